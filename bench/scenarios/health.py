"""A health check during large fan-outs: how long other requests wait."""

from __future__ import annotations

from bench.load import Publish, Publisher, verify
from bench.measure import CHANNEL, Sample, Stopwatch, connect, latencies, running, stream_client
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, servers

_PROBES_PER_SECOND = 100.0


def _measure(server_name: str, run: Run) -> Sample:
    streams, events, rate = run.pick((1_000, 8, 4.0), (10_000, 20, 4.0), (10_000, 40, 4.0))
    with running(server_name) as server, stream_client(server, streams) as client:
        connect(server, client)
        client.reset()
        probes = int(events / rate * _PROBES_PER_SECOND)
        publish = server.publish([CHANNEL])
        watch = Stopwatch(server)
        publisher = Publisher(publish, events, rate=rate)
        prober = Publisher(
            Publish(server.port, server.health_path, ""),
            probes,
            rate=_PROBES_PER_SECOND,
            connections=16,
            method="GET",
        )
        report = client.wait(events, 60.0)
        probed = prober.result()
        cost = watch.stop()
        publisher.result()
        verify(report, events)
        answers = {f"probe_{name}_ms": probed["answer_us"][name] / 1e3 for name in ("p50", "p99", "max")}
        return {**latencies(report), **answers, "stolen_percent": cost.stolen * 100}


SCENARIOS = (
    Scenario(
        "health",
        "/healthz during fan-outs to 10,000",
        "40 events at 4 a second to 10,000 streams, and 100 health checks a second beside them over 16 "
        "connections, each timed from the moment it was due.",
        servers("sse_app", "nchan", "tornado-queue"),
        (
            Column("probe_p50_ms", "check p50 ms"),
            Column("probe_p99_ms", "check p99 ms"),
            Column("probe_max_ms", "check max ms"),
            Column("p99_ms", "event p99 ms"),
            Column("stolen_percent", "stolen %"),
        ),
        _measure,
        plot="probe_p99_ms",
        default=("sse_app", "nchan"),
        rounds=1,
    ),
)
