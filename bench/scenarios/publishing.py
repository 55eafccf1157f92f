"""Durable publishing: 64 clients publish as fast as they are answered, one event a request and in batches."""

from __future__ import annotations

from functools import partial

from bench.load import Publisher
from bench.measure import CHANNEL, Sample, Stopwatch, running
from bench.scenarios.scenario import Column, Scenario, Variant

_CLIENTS = 64
_LONE_RATE = 10.0


def _measure(batch: int, requests: int, clients: int, rate: float, server_name: str, quick: bool) -> Sample:
    requests = requests // 10 if quick else requests
    with running(server_name) as server:
        publish = server.publish([CHANNEL], batch)
        Publisher(publish, clients * 2, connections=clients).result()  # warm up
        watch = Stopwatch(server)
        report = Publisher(publish, requests, rate=rate, connections=clients).result()
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


_SINGLE = partial(_measure, 1, 10_000, _CLIENTS, 0.0)
_BATCH = partial(_measure, 100, 2_000, _CLIENTS, 0.0)
_LONE = partial(_measure, 1, 300, 1, _LONE_RATE)

SCENARIOS = (
    Scenario(
        "publish",
        "Durable publishing from 64 clients",
        "10,000 requests of one event, and 2,000 of 100 events, over 64 connections, the next one when the "
        "last was answered; and 300 requests at ten a second over one connection, each of which finds the caches "
        "cold. sse_app answers when the event is on disk (SQLite, synchronous=FULL); nchan "
        "keeps it in memory; the bare Tornado handler reads the body and answers, nothing else.",
        (
            Variant("sse_app", "single", _SINGLE),
            Variant("tornado-post", "single", _SINGLE),
            Variant("nchan", "single", _SINGLE),
            Variant("sse_app", "ten a second", _LONE),
            Variant("tornado-post", "ten a second", _LONE),
            Variant("sse_app", "batches of 100", _BATCH),
            Variant("tornado-post", "batches of 100", _BATCH),
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
        _SINGLE,
        plot="events_per_s",
        default=("sse_app", "tornado-post", "nchan"),
    ),
)
