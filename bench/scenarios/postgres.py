"""Nodes on PostgreSQL: a delivery beside SQLite's, the way to another node, publishing, and what a node costs there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.histogram import merged
from bench.load import Publisher, verify
from bench.measure import CHANNEL, Sample, Stopwatch, connect, fan_out, running, stream_client
from bench.postgres import Postgres, postgres
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant, servers
from bench.servers import Options, Server, SseAppPostgres

_OURS = SseAppPostgres.name
_RATE = 50.0
_STREAMS = 4
"""On each of the two nodes that one event reaches."""

_CALLERS = 64
_SETTLE_SECONDS = 1.0


@contextlib.contextmanager
def _nodes(database: Postgres, count: int, server_name: str = _OURS) -> Iterator[list[Server]]:
    """Run so many nodes on one database, each warmed up."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                running(
                    server_name,
                    Options(env={"SSE_APP_EVENT_LOG": database.url, "SSE_APP_NODE": f"bench{number}"}),
                )
            )
            for number in range(1, count + 1)
        ]


def _measure_delivery(server_name: str, run: Run) -> Sample:
    streams, events = run.pick(100, 1_000, 1_000), run.pick(10, 60, 60)
    if server_name != _OURS:
        with running(server_name) as server, stream_client(server, streams) as client:
            return {**connect(server, client), **fan_out(server, client, events, 10.0)}
    with postgres() as database, _nodes(database, 1) as (server,), stream_client(server, streams) as client:
        sample = connect(server, client)
        used = database.cpu_seconds()
        sample |= fan_out(server, client, events, 10.0)
        sample["database_us_per_event"] = (database.cpu_seconds() - used) / events * 1e6
        return sample


def _measure_across(server_name: str, run: Run) -> Sample:
    events = run.pick(50, 500, 500)
    with postgres() as database, _nodes(database, 2, server_name) as nodes, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(stream_client(node, _STREAMS)) for node in nodes]
        for client in clients:
            client.open()
            client.ask("buckets 1")
        Publisher(nodes[0].publish([CHANNEL]), events, rate=_RATE).result()
        same, other = (
            merged([verify(client.wait(events, 10.0), events)], "latency_us") for client in clients
        )
    return {
        "same_p50_ms": same["p50"] / 1e3,
        "same_p99_ms": same["p99"] / 1e3,
        "other_p50_ms": other["p50"] / 1e3,
        "other_p99_ms": other["p99"] / 1e3,
        "p50_ratio": other["p50"] / same["p50"],
        "p99_ratio": other["p99"] / same["p99"],
    }


def _measure_publishing(nodes: int, batch: int, requests: int, server_name: str, run: Run) -> Sample:
    requests = run.pick(requests // 10, requests // 2, requests) // nodes
    callers = _CALLERS // nodes
    with postgres() as database, _nodes(database, nodes, server_name) as running_nodes:
        publishes = [node.publish([CHANNEL], batch) for node in running_nodes]
        for publish in publishes:
            Publisher(publish, callers * 2, connections=callers).result()  # warm up
        watches, used = [Stopwatch(node) for node in running_nodes], database.cpu_seconds()
        publishers = [Publisher(publish, requests, connections=callers) for publish in publishes]
        reports = [publisher.result() for publisher in publishers]
        database_cpu = database.cpu_seconds() - used
        costs = [watch.stop() for watch in watches]
    wall, total = max(report["wall_s"] for report in reports), requests * nodes
    return {
        "requests_per_s": total / wall,
        "events_per_s": total * batch / wall,
        "cpu_us_per_request": sum(cost.cpu for cost in costs) / total * 1e6,
        "database_us_per_request": database_cpu / total * 1e6,
        "answer_p50_ms": max(report["answer_us"]["p50"] for report in reports) / 1e3,
        "answer_p99_ms": max(report["answer_us"]["p99"] for report in reports) / 1e3,
        "publisher_cpu_us": sum(report["cpu_s"] for report in reports) / total * 1e6,
        "stolen_percent": costs[0].stolen * 100,
    }


def _measure_tail(nodes: int, batch: int, rate: float, server_name: str, run: Run) -> Sample:
    """What the database does for each event that one of so many nodes publishes, and for idle ones."""
    idle, seconds = run.pick(2, 10, 10), run.pick(1, 10, 10)
    requests = int(rate * seconds)
    with postgres() as database, _nodes(database, nodes, server_name) as running_nodes:
        time.sleep(_SETTLE_SECONDS)
        began, used, asked = time.monotonic(), database.cpu_seconds(), database.transactions()
        time.sleep(idle)
        quiet = time.monotonic() - began
        idle_cpu = (database.cpu_seconds() - used) / quiet
        transactions = (database.transactions() - asked) / quiet
        watch, began, used = Stopwatch(running_nodes[-1]), time.monotonic(), database.cpu_seconds()
        Publisher(running_nodes[0].publish([CHANNEL], batch), requests, rate=rate).result()
        time.sleep(_SETTLE_SECONDS)
        busy, cost = database.cpu_seconds() - used, watch.stop()
    events = requests * batch
    return {
        "database_us_per_event": (busy - idle_cpu * (time.monotonic() - began)) / events * 1e6,
        "node_us_per_event": cost.cpu / events * 1e6,
        "idle_percent": idle_cpu / nodes * 100,
        "transactions_per_s": transactions / nodes,
        "stolen_percent": cost.stolen * 100,
    }


def _variants(
    measure: Callable[..., Sample], label: str, *arguments: float, nodes: Sequence[int]
) -> list[Variant]:
    """Return one variant for each number of nodes."""
    return [
        Variant(
            _OURS, f"{label}, {count} node{'s' if count > 1 else ''}", partial(measure, count, *arguments)
        )
        for count in nodes
    ]


SCENARIOS = (
    Scenario(
        "postgres",
        "A node on PostgreSQL: fan-out to 1,000 streams",
        "60 events at 10 a second, each to 1,000 streams, with the log on SQLite and on PostgreSQL. PostgreSQL runs "
        "beside it with its default settings. Server CPU is the node's; the database's is told beside it.",
        servers("sse_app", _OURS),
        (
            Column("cpu_us", "server CPU, µs a delivery", 2),
            Column("database_us_per_event", "database CPU, µs an event", 0),
            Column("p50_ms", "p50 ms"),
            Column("p99_ms", "p99 ms"),
            Column("rss_kib_per_stream", "RSS, KiB a stream"),
            Column("stolen_percent", "stolen %"),
        ),
        _measure_delivery,
        rounds=3,
        quick=True,
        default=("sse_app", _OURS),
    ),
    Scenario(
        "postgres-across",
        "From a publish on one node to receipt from another",
        "Two nodes on one PostgreSQL, four streams on each; 50 events a second are published on one of them. Both "
        "wait for the event to be committed, which is on disk.",
        servers(_OURS),
        (
            Column("same_p50_ms", "same node, p50 ms", 2),
            Column("same_p99_ms", "p99 ms", 2),
            Column("other_p50_ms", "other node, p50 ms", 2),
            Column("other_p99_ms", "p99 ms", 2),
            Column("p50_ratio", "other to same, p50", 2),
            Column("p99_ratio", "p99", 2),
        ),
        _measure_across,
        rounds=3,
        quick=True,
        default=(_OURS,),
    ),
    Scenario(
        "postgres-publish",
        "Publishing on PostgreSQL from 64 clients",
        "As with SQLite: 10,000 requests of one event, and 1,000 of 100 events, over 64 connections, which are divided "
        "between the nodes. Answered when the event is committed and on disk.",
        (
            *_variants(_measure_publishing, "single", 1, 10_000, nodes=(1, 2)),
            *_variants(_measure_publishing, "batches of 100", 100, 1_000, nodes=(1, 2)),
        ),
        (
            Column("requests_per_s", "requests a second", 0),
            Column("events_per_s", "events a second", 0),
            Column("cpu_us_per_request", "CPU of the nodes, µs a request", 0),
            Column("database_us_per_request", "database CPU, µs a request", 0),
            Column("answer_p50_ms", "answer p50 ms"),
            Column("answer_p99_ms", "answer p99 ms"),
            Column("publisher_cpu_us", "publisher CPU, µs a request", 0),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_measure_publishing, 2, 1, 10_000),
        rounds=3,
        default=(_OURS,),
    ),
    Scenario(
        "postgres-tail",
        "What a node costs the database",
        "Events are published on one of so many nodes: one event a request at 50 a second, and 100 a request at ten "
        "a second. The others have no clients and read the log. Before that nothing is done for a while, and what "
        "the database takes then is not counted as the events'. A transaction is a query, or a notification that is "
        "heard.",
        (
            *_variants(_measure_tail, "single", 1, 50.0, nodes=(1, 2, 4, 16)),
            *_variants(_measure_tail, "batches of 100", 100, 10.0, nodes=(1, 2, 4)),
        ),
        (
            Column("database_us_per_event", "database CPU, µs an event", 1),
            Column("node_us_per_event", "CPU of the last node, µs an event", 1),
            Column("transactions_per_s", "transactions a second of an idle node"),
            Column("idle_percent", "database CPU for an idle node, % of a core", 2),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_measure_tail, 2, 1, 50.0),
        rounds=1,
        default=(_OURS,),
    ),
)
