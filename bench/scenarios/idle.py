"""Idle streams with pings on: what they take of memory and CPU, as they were opened and after an upgrade."""

from __future__ import annotations

import time

from bench.load import LoadFailed
from bench.measure import Sample, Stopwatch, connect, running, stream_client, wait_until_quiet
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant, servers
from bench.servers import Options
from bench.servers.sse_app import SseApp

_PING_SECONDS = 30


def _measure(server_name: str, run: Run) -> Sample:
    streams, interval = run.pick((500, 5), (10_000, 10), (10_000, _PING_SECONDS))
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


def _measure_adopted(server_name: str, run: Run) -> Sample:
    """What a process has grown by that adopted the streams, beside one that adopted none."""
    streams = run.pick(500, 10_000, 10_000)
    with running(server_name) as server:
        assert isinstance(server, SseApp)
        server.upgrade()
        wait_until_quiet(server, 5.0)
        empty = server.processes.memory()
        with stream_client(server, streams) as client:
            client.open()
            wait_until_quiet(server, 5.0)
            server.upgrade()
            wait_until_quiet(server, 5.0)
            grown = server.processes.memory()
            report = client.ask("stats")
            if report["ready"] != streams or report["ended"]:
                raise LoadFailed(f"{report['ready']} of {streams} streams were adopted")
    return {
        "rss_kib_per_stream": (grown.rss - empty.rss) / streams,
        "pss_kib_per_stream": (grown.pss - empty.pss) / streams,
        "rss_mib": grown.rss / 1024,
    }


SCENARIOS = (
    Scenario(
        "idle",
        "Idle: 10,000 streams, a ping every 30 s",
        "CPU is over one ping interval. Memory is what the servers grew by, from before the first stream to when "
        "all are connected and the server is quiet. Socket buffers of the kernel are not in it. “Adopted” is the "
        "process that has taken the same streams over in an upgrade, beside one that took over none.",
        (*servers("sse_app", "nchan"), Variant("sse_app", "adopted", _measure_adopted)),
        (
            Column("cpu_percent", "% of a core", 2),
            Column("rss_kib_per_stream", "RSS, KiB a stream", 2),
            Column("pss_kib_per_stream", "PSS, KiB a stream", 2),
            Column("rss_mib", "RSS in all, MiB", 0),
            Column("pings_per_stream", "pings a stream", 2),
            Column("stolen_percent", "stolen %"),
        ),
        _measure,
        plot="rss_kib_per_stream",
        rounds=1,
        quick=True,
    ),
)
