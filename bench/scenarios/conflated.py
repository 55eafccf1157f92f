"""A table of latest values: one conflated channel, and streams on it that read at a tenth of what it carries."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from statistics import median, quantiles

from bench.load import LoadFailed, Publisher
from bench.measure import Sample, Stopwatch, latencies, running, stream_client, wait_until_quiet
from bench.payload import EVENT_ITEM, KEYED_ITEM
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant
from bench.servers import Options
from bench.slow_readers import SlowReaders

_CHANNEL = "bench.market"
_KEYS = 500
_FAST, _SLOW = 90, 10
_SHARE = 10
"""The slow ones read so many times less than the channel carries."""

_BATCH = 100
_CATCH_UP_SECONDS = 10.0


def _measure(rate: int, conflate: bool, server_name: str, run: Run) -> Sample:
    """Publish so many events a second; the streams are on a channel that is conflated, or on one that is not."""
    rate = run.pick(rate // 10, rate, rate)
    events = rate * run.pick(2, 5, 10)
    channels = [{"pattern": _CHANNEL, "conflate": "symbol"}] * conflate + [{"pattern": "bench.**"}]
    options = Options(env={"SSE_APP_CHANNELS": json.dumps(channels)})
    with running(server_name, options) as server, stream_client(server, _FAST, [_CHANNEL]) as fast:
        fast.open()
        publish = server.publish([_CHANNEL], _BATCH)
        publish = replace(publish, item=publish.item.replace(EVENT_ITEM, KEYED_ITEM), keys=_KEYS)
        fast.reset()
        Publisher(publish, _KEYS // _BATCH).result()  # warm up: each key has a value
        warm = fast.wait(_KEYS, 30.0)
        event_bytes = warm["bytes"] / warm["events"]
        paths = server.stream_paths([_CHANNEL], _SLOW)
        with SlowReaders(server.port, paths, rate * event_bytes / _SHARE) as slow:
            wait_until_quiet(server, 5.0)
            memory = server.processes.memory()
            server.processes.reset_peak()
            before = fast.reset()
            watch = Stopwatch(server)
            publisher = Publisher(
                publish, events // _BATCH, rate=rate / _BATCH, connections=4, first=_KEYS + 1
            )
            published = publisher.result()
            heard = sum(reader.events for reader in slow.readers)
            caught_up = slow.wait_for(_KEYS + events, _KEYS, _CATCH_UP_SECONDS)
            report = fast.wait(events, 1.0)
            cost = watch.stop()
            peak = server.processes.peak_rss()
            complete = slow.complete(_KEYS + events, _KEYS)
            readers = slow.readers
    if report["duplicates"] or any(reader.disordered for reader in readers):
        raise LoadFailed("events came twice, or not in order")
    ages = [age for reader in readers for age in reader.ages] or [0.0]
    of_hundred = quantiles(ages, n=100) if len(ages) > 1 else ages * 99
    deliveries = report["events"] + sum(reader.events for reader in readers)
    return {
        "published_per_s": events / published["wall_s"],
        "deliveries_per_s": deliveries / published["wall_s"],
        "cpu_us": cost.cpu / deliveries * 1e6,
        "server_cpu_percent": cost.cpu / published["wall_s"] * 100,
        "client_cpu_us": (report["cpu_s"] - before["cpu_s"]) / report["events"] * 1e6,
        "fast_complete_percent": report["events"] / (_FAST * events) * 100,
        **{f"fast_{name}": value for name, value in latencies(report).items()},
        "slow_share_percent": heard / (_SLOW * events) * 100,
        "slow_age_p50_ms": median(ages),
        "slow_age_p99_ms": of_hundred[98],
        "slow_age_max_ms": max(ages),
        "slow_complete_percent": complete,
        "slow_caught_up_s": caught_up,
        "cut": float(report["ended"] + sum(not reader.is_open for reader in readers)),
        "peak_growth_mib": (peak - memory.rss) / 1024,
        "rss_mib": peak / 1024,
        "stolen_percent": cost.stolen * 100,
    }


SCENARIOS = (
    Scenario(
        "conflated",
        "A table of 500 latest values, a tenth of its streams slow",
        "500 keys get a new value in turn, in batches of 100 events over 10 seconds, on one channel with 100 "
        "streams. Ten of them read a tenth of the bytes that it carries; their sockets hold 16 KiB. On a conflated "
        "channel they get the newest event of each key. On another one they are cut off once their backlogs are "
        "full. An age is from just before the request is sent until the slow stream has read the value. “Newest at "
        "the end” says of how many keys the slow streams have the last value when nothing more is published.",
        (
            *(
                Variant("sse_app", f"{rate:,} a second", partial(_measure, rate, True))
                for rate in (2_500, 5_000, 10_000)
            ),
            Variant("sse_app", "5,000 a second, not conflated", partial(_measure, 5_000, False)),
        ),
        (
            Column("cpu_us", "server CPU, µs a delivery", 3),
            Column("published_per_s", "published a second", 0),
            Column("deliveries_per_s", "deliveries a second", 0),
            Column("server_cpu_percent", "% of a core", 0),
            Column("fast_complete_percent", "the 90 have, %", 2),
            Column("fast_p99_ms", "p99 ms to them"),
            Column("slow_share_percent", "the ten have read, %"),
            Column("slow_age_p50_ms", "age of a value there, p50 ms", 0),
            Column("slow_age_p99_ms", "p99 ms", 0),
            Column("slow_complete_percent", "newest at the end, %", 1),
            Column("cut", "cut off", 0),
            Column("peak_growth_mib", "memory growth, MiB"),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_measure, 5_000, True),
        default=("sse_app",),
        rounds=1,
    ),
)
