"""Fifty durable events a second, each to 1,000 streams: how long they take."""

from __future__ import annotations

from functools import partial

from bench.measure import Sample, connect, fan_out, running, stream_client
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant, servers
from bench.servers import Options


def _measure(workers: int, server_name: str, run: Run) -> Sample:
    streams, events = run.pick((100, 50), (1_000, 150), (1_000, 300))
    with running(server_name, Options(workers=workers)) as server, stream_client(server, streams) as client:
        connect(server, client)
        return fan_out(server, client, events, 50.0)


SCENARIOS = (
    Scenario(
        "steady",
        "1,000 streams, 50 durable events a second",
        "300 events, 50 a second, one a request, each to 1,000 streams: 50,000 deliveries a second. Latency is from "
        "just before the request is sent to the moment the client has read the event.",
        (
            *servers("sse_app", "nchan"),
            Variant("sse_app", "2 workers", partial(_measure, 2)),
            Variant("nchan", "2 workers", partial(_measure, 2)),
            *servers("floor", once=True),
        ),
        (
            Column("p50_ms", "p50 ms"),
            Column("p99_ms", "p99 ms"),
            Column("max_ms", "max ms"),
            Column("cpu_us", "server CPU, µs a delivery", 2),
            Column("server_cpu_percent", "server, % of a core", 0),
            Column("client_cpu_percent", "client, % of a core", 0),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_measure, 1),
        plot="p99_ms",
        quick=True,
        default=("sse_app", "nchan", "floor"),
    ),
)
