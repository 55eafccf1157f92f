"""Idle streams with pings on: what they take of memory and CPU."""

from __future__ import annotations

import time

from bench.load import LoadFailed
from bench.measure import Sample, Stopwatch, connect, running, stream_client
from bench.scenarios.scenario import Column, Scenario, servers
from bench.servers import Options

_PING_SECONDS = 30


def _measure(server_name: str, quick: bool) -> Sample:
    streams, interval = (500, 5) if quick else (10_000, _PING_SECONDS)
    options = Options(ping_interval=interval)
    with running(server_name, options) as server, stream_client(server, streams) as client:
        sample = connect(server, client)
        time.sleep(2)
        client.reset()
        watch = Stopwatch(server)
        time.sleep(interval)
        cost = watch.stop()
        report = client.ask("stats")
        if report["ready"] != streams:
            raise LoadFailed(f"{report['ready']} of {streams} idle streams are left")
        return {
            **sample,
            "cpu_percent": cost.cpu / cost.wall * 100,
            "pings_per_stream": report["pings"] / streams,
            "stolen_percent": cost.stolen * 100,
        }


SCENARIOS = (
    Scenario(
        "idle",
        "Idle: 10,000 streams, a ping every 30 s",
        "CPU over one ping interval; memory is what the servers grew by, from before the first stream to "
        "when all are connected and the server is quiet. Socket buffers of the kernel are not in it.",
        servers("sse_app", "nchan"),
        (
            Column("cpu_percent", "% of a core", 2),
            Column("rss_kib_per_stream", "RSS, KiB a stream"),
            Column("pss_kib_per_stream", "PSS, KiB a stream"),
            Column("rss_mib", "RSS in all, MiB", 0),
            Column("pings_per_stream", "pings a stream", 2),
            Column("stolen_percent", "stolen %"),
        ),
        _measure,
        plot="rss_kib_per_stream",
        max_rounds=2,
    ),
)
