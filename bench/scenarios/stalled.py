"""One stream that never reads among 1,000 that do: what it costs the others, and in memory."""

from __future__ import annotations

import time
from functools import partial

from bench.load import Publisher, verify
from bench.measure import CHANNEL, Sample, Stopwatch, connect, latencies, running, stream_client
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant

_BATCH = 50
_RATE = 10.0


def _measure(stall: bool, server_name: str, run: Run) -> Sample:
    streams, batches = run.pick((100, 120), (1_000, 120), (1_000, 120))
    with running(server_name) as server, stream_client(server, streams) as client:
        connect(server, client)
        if stall:
            client.ask("stall 0")
        client.reset()
        before = server.processes.memory()
        server.processes.reset_peak()
        watch = Stopwatch(server)
        publisher = Publisher(server.publish([CHANNEL], _BATCH), batches, rate=_RATE)
        report = client.wait(batches * _BATCH, 30.0 + batches / _RATE)
        cost = watch.stop()
        publisher.result()
        verify(report, batches * _BATCH)
        peak = server.processes.peak_rss()
        ended = client.ask("unstall 0" if stall else "stats")
        for _ in range(40 if stall else 0):  # what the kernel still holds for it comes first
            if ended["ended"]:
                break
            time.sleep(0.5)
            ended = client.ask("stats")
        return {
            **latencies(report),
            "cpu_us": cost.cpu / (streams * batches * _BATCH) * 1e6,
            "peak_growth_kib": float(peak - before.rss),
            "told": float(ended["closings"]),
            "ended": float(ended["ended"]),
            "stolen_percent": cost.stolen * 100,
        }


SCENARIOS = (
    Scenario(
        "stalled",
        "One stalled client among 1,000",
        "120 batches of 50 events, ten a second (about 2 MB for each stream), with and without one stream that "
        "never reads. Latencies are those of the others. Memory is the highest resident set during publishing, "
        "above the one before.",
        (
            Variant("sse_app", "all read", partial(_measure, False)),
            Variant("sse_app", "one stalled", partial(_measure, True)),
        ),
        (
            Column("p50_ms", "p50 ms"),
            Column("p99_ms", "p99 ms"),
            Column("cpu_us", "server CPU, µs a delivery", 3),
            Column("peak_growth_kib", "peak memory growth, KiB", 0),
            Column("ended", "streams ended", 0),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_measure, False),
    ),
)
