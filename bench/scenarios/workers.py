"""Several workers: from a publish in one to receipt in another, and how evenly streams are spread over them."""

from __future__ import annotations

import contextlib
import time

from bench.histogram import merged
from bench.load import LoadFailed, Publisher, StreamClient
from bench.measure import CHANNEL, Sample, running
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, servers
from bench.servers import Options, Server

_RATE = 50.0
_EACH = 4
"""Streams on each of the two workers."""

_MOST_OPENED = 64
_SPREAD = 1_000


def _grown(server: Server, before: dict[int, int]) -> int:
    """Return the process that has a connection more than before.

    Raises:
        LoadFailed: none has, for five seconds, or several have.
    """
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        now = server.processes.connections(server.port)
        more = [pid for pid, count in now.items() if count > before.get(pid, 0)]
        if len(more) == 1:
            return more[0]
        time.sleep(0.02)
    raise LoadFailed("it cannot be told which worker has a connection")


def _measure_across(server_name: str, run: Run) -> Sample:
    events = run.pick(50, 200, 500)
    with running(server_name, Options(workers=2)) as server, contextlib.ExitStack() as opened:
        streams: dict[int, list[StreamClient]] = {}
        for _ in range(_MOST_OPENED):
            if len(streams) == 2 and all(len(clients) == _EACH for clients in streams.values()):
                break
            before = server.processes.connections(server.port)
            client = StreamClient(server.port, server.stream_paths([CHANNEL], 1), 1, ready=server.ready)
            opened.callback(client.close)
            client.open()
            clients = streams.setdefault(_grown(server, before), [])
            if len(clients) < _EACH:
                clients.append(client)
            else:
                client.close()
                time.sleep(0.1)
        if len(streams) != 2 or any(len(clients) != _EACH for clients in streams.values()):
            raise LoadFailed(f"{_MOST_OPENED} connections do not reach both workers")
        before = server.processes.connections(server.port)
        publisher = Publisher(server.publish([CHANNEL]), events, rate=_RATE)
        publishing = _grown(server, before)
        publisher.result()
        reports: dict[bool, list[dict[str, object]]] = {True: [], False: []}
        for pid, clients in streams.items():
            for client in clients:
                client.ask("buckets 1")
                report = client.wait(events, 10.0)
                if report["events"] != events or report["gaps"] or report["duplicates"]:
                    raise LoadFailed(f"{report['events']} of {events} events arrived")
                reports[pid == publishing].append(report)
        same, other = (merged(reports[which], "latency_us") for which in (True, False))
        return {
            "same_p50_ms": same["p50"] / 1e3,
            "same_p99_ms": same["p99"] / 1e3,
            "other_p50_ms": other["p50"] / 1e3,
            "other_p99_ms": other["p99"] / 1e3,
            "p50_ratio": other["p50"] / same["p50"],
            "p99_ratio": other["p99"] / same["p99"],
        }


def _measure_spread(server_name: str, run: Run) -> Sample:
    """How many streams each of four workers has, of 1,000 from one address; the worst of three times."""
    workers, times = 4, run.pick(1, 2, 3)
    worst = 0.0
    fewest, most = _SPREAD, 0
    with running(server_name, Options(workers=workers)) as server:
        paths = server.stream_paths([CHANNEL], _SPREAD)
        for _ in range(times):
            before = server.processes.connections(server.port)
            with StreamClient(server.port, paths, _SPREAD, ready=server.ready, sources=1) as client:
                client.open()
                now = server.processes.connections(server.port)
            grown = sorted((count - before.get(pid, 0) for pid, count in now.items()), reverse=True)[:workers]
            if sum(grown) != _SPREAD:
                raise LoadFailed(f"{sum(grown)} of {_SPREAD} streams are on the workers")
            worst = max(worst, grown[0] / (_SPREAD / workers))
            fewest, most = min(fewest, grown[-1]), max(most, grown[0])
            time.sleep(0.5)
    return {"most_of_mean": worst, "fewest": float(fewest), "most": float(most)}


SCENARIOS = (
    Scenario(
        "across",
        "From a publish in one worker to receipt in another",
        "Two workers, four streams on each, and one publisher with one connection, 50 events a second. The question "
        "is how long an event takes to the streams of the worker that was asked to publish it, and to those of the "
        "other. Both wait for the event to be on disk.",
        servers("sse_app", "nchan"),
        (
            Column("same_p50_ms", "same worker, p50 ms", 2),
            Column("same_p99_ms", "p99 ms", 2),
            Column("other_p50_ms", "other worker, p50 ms", 2),
            Column("other_p99_ms", "p99 ms", 2),
            Column("p50_ratio", "other to same, p50", 2),
            Column("p99_ratio", "p99", 2),
        ),
        _measure_across,
        quick=True,
    ),
    Scenario(
        "spread",
        "1,000 streams from one address on four workers",
        "All connections come from one address, as they do behind a proxy. Of three times this is the one with the "
        "most streams on one worker. The kernel spreads them by a hash of both ends' addresses and ports.",
        servers("sse_app", "nchan"),
        (
            Column("most_of_mean", "most streams on a worker, of the mean", 3),
            Column("fewest", "fewest", 0),
            Column("most", "most", 0),
        ),
        _measure_spread,
        rounds=1,
        quick=True,
    ),
)
