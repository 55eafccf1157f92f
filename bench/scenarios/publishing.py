"""Durable publishing: as fast as 64 clients are answered, one event a request and in batches; and a lone publish."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

from bench.load import Publisher, verify
from bench.measure import CHANNEL, Sample, Stopwatch, running, stream_client, wait_until_quiet
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant
from bench.servers import Options

_CLIENTS = 64
_LONE_RATE = 10.0


def _measure(batch: int, requests: int, workers: int, server_name: str, run: Run) -> Sample:
    requests = run.pick(requests // 10, requests // 2, requests)
    with running(server_name, Options(workers=workers)) as server:
        publish = server.publish([CHANNEL], batch)
        Publisher(publish, _CLIENTS * 2, connections=_CLIENTS).result()  # warm up
        watch = Stopwatch(server)
        report = Publisher(publish, requests, connections=_CLIENTS).result()
        cost = watch.stop()
        return {
            "requests_per_s": requests / report["wall_s"],
            "events_per_s": requests * batch / report["wall_s"],
            "cpu_us_per_request": cost.cpu / requests * 1e6,
            "cpu_us_per_event": cost.cpu / requests / batch * 1e6,
            "answer_p50_ms": report["answer_us"]["p50"] / 1e3,
            "answer_p99_ms": report["answer_us"]["p99"] / 1e3,
            "publisher_cpu_us": report["cpu_s"] / requests * 1e6,
            "stolen_percent": cost.stolen * 100,
        }


def _measure_lone(rate: float, server_name: str, run: Run) -> Sample:
    requests = run.pick(20, 60, 120) * (1 if rate else 10)
    with running(server_name) as server:
        listening = stream_client(server, 1) if server.streams else nullcontext()
        with listening as client:
            if client:
                client.open()
            publish = server.publish([CHANNEL])
            Publisher(publish, 20).result()  # warm up
            if client:
                client.wait(20, 10.0)
                client.reset()
            wait_until_quiet(server, 5.0)
            watch = Stopwatch(server)
            report = Publisher(publish, requests, rate=rate, first=21).result()
            if client:
                verify(client.wait(requests, 10.0), requests)
            cost = watch.stop()
    return {
        "cpu_us_per_request": cost.cpu / requests * 1e6,
        "requests_per_s": requests / report["wall_s"],
        "answer_p50_ms": report["answer_us"]["p50"] / 1e3,
        "answer_p99_ms": report["answer_us"]["p99"] / 1e3,
        "publisher_cpu_us": report["cpu_s"] / requests * 1e6,
        "stolen_percent": cost.stolen * 100,
    }


_SINGLE = partial(_measure, 1, 10_000)
_BATCH = partial(_measure, 100, 2_000)

SCENARIOS = (
    Scenario(
        "lone",
        "A lone publish",
        "One publisher with one connection, and one stream that gets its events (the bare Tornado handler has "
        "none). It publishes ten a second, each of which finds the caches cold, or back to back: the next one when "
        "the last was answered. CPU is that of the publish, the log and the delivery together. The plain handler "
        "with SQLite does no more than insert the event in a thread (synchronous=FULL, as ours), send it to the "
        "stream, and answer: no token, no checks, no channels, no history.",
        (
            Variant("sse_app", "ten a second", partial(_measure_lone, _LONE_RATE)),
            Variant("tornado-sqlite", "ten a second", partial(_measure_lone, _LONE_RATE)),
            Variant("tornado-post", "ten a second", partial(_measure_lone, _LONE_RATE)),
            Variant("nchan", "ten a second", partial(_measure_lone, _LONE_RATE), once=True),
            Variant("sse_app", "back to back", partial(_measure_lone, 0.0)),
            Variant("tornado-sqlite", "back to back", partial(_measure_lone, 0.0)),
            Variant("tornado-post", "back to back", partial(_measure_lone, 0.0)),
        ),
        (
            Column("cpu_us_per_request", "server CPU, µs a publish", 0),
            Column("answer_p50_ms", "answer p50 ms"),
            Column("answer_p99_ms", "answer p99 ms"),
            Column("publisher_cpu_us", "publisher CPU, µs a publish", 0),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_measure_lone, _LONE_RATE),
        plot="cpu_us_per_request",
        quick=True,
        default=("sse_app", "tornado-sqlite", "tornado-post", "nchan"),
    ),
    Scenario(
        "publish",
        "Durable publishing from 64 clients",
        "10,000 requests of one event, and 2,000 of 100 events, over 64 connections, with one worker and with two. "
        "The next request is sent when the last was answered. sse_app answers when the event is on disk (SQLite, "
        "synchronous=FULL). nchan keeps it in memory. The bare Tornado handler reads the body and answers, nothing "
        "else.",
        (
            Variant("sse_app", "single", partial(_SINGLE, 1)),
            Variant("sse_app", "single, 2 workers", partial(_SINGLE, 2)),
            Variant("tornado-post", "single", partial(_SINGLE, 1)),
            Variant("tornado-post", "single, 2 workers", partial(_SINGLE, 2)),
            Variant("nchan", "single", partial(_SINGLE, 1), once=True),
            Variant("sse_app", "batches of 100", partial(_BATCH, 1)),
            Variant("sse_app", "batches of 100, 2 workers", partial(_BATCH, 2)),
            Variant("tornado-post", "batches of 100", partial(_BATCH, 1), once=True),
        ),
        (
            Column("requests_per_s", "requests a second", 0),
            Column("events_per_s", "events a second", 0),
            Column("cpu_us_per_request", "server CPU, µs a request", 0),
            Column("answer_p50_ms", "answer p50 ms"),
            Column("answer_p99_ms", "answer p99 ms"),
            Column("publisher_cpu_us", "publisher CPU, µs a request", 0),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_SINGLE, 1),
        plot="events_per_s",
        rounds=3,
        quick=True,
        default=("sse_app", "tornado-post", "nchan"),
    ),
)
