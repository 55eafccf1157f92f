"""A hundred thousand idle streams with pings, and as many as a machine holds."""

from __future__ import annotations

import time
from functools import partial

from bench.crowd import crowd
from bench.load import LoadFailed
from bench.measure import Sample, Stopwatch
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant

_LEAST_AVAILABLE_MIB = 1_200.0
"""With less memory left no more streams are opened: the machine needs it for itself."""


def _measure(
    streams: int,
    workers: int,
    minutes: float,
    whole: bool,
    server_name: str,
    run: Run,
) -> Sample:
    """Open the streams, and hold them.

    Args:
        whole: whether anything less than all of them is a failure; else as many as fit are held.
    """
    streams = run.streams or run.pick(streams // 50, streams // 10, streams)
    workers = run.workers or run.pick(2, 2, workers)
    minutes = run.minutes if run.minutes is not None else run.pick(0.1, 0.5, minutes)
    with crowd(server_name, run, streams, workers) as (server, fleet):
        opened = fleet.open(_LEAST_AVAILABLE_MIB)
        if fleet.short:
            said = f"{server_name}: {fleet.clients.streams:,} of {streams:,} streams are open: {fleet.short}"
            run.notes.append(said)
            if whole or not fleet.clients.streams:
                raise LoadFailed(said)
        memory = fleet.grown()
        fleet.clients.reset()
        watch = Stopwatch(server)
        deadline = time.monotonic() + minutes * 60
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 30.0))
            server.processes.check()
        cost = watch.stop()
        report = fleet.clients.ask("stats", 60.0)
        held = fleet.clients.streams
        lost = held - report["ready"]
        if whole and (lost or report["ended"] or report["closings"]):
            raise LoadFailed(
                f"{report['ready']} of {held} streams are left, {report['closings']} were told to close"
            )
        silent = max(report["silent_us"], report["longest_wait_us"]) / 1e6
        if silent > 1.5 * server.options.ping_interval and minutes * 60 > silent:
            raise LoadFailed(f"a stream had no ping for {silent:.0f} s")
        return {
            "streams": float(held),
            "lost": float(lost),
            "minutes": cost.wall / 60,
            "cpu_percent": cost.cpu / cost.wall * 100,
            "machine_percent": cost.machine_cpu / cost.wall * 100,
            "pings_per_stream": report["pings"] / held,
            "longest_silence_s": silent,
            **opened,
            **memory,
            "stolen_percent": cost.stolen * 100,
        }


_COLUMNS = (
    Column("streams", "streams held", 0),
    Column("lost", "lost", 0),
    Column("minutes", "minutes"),
    Column("cpu_percent", "server, % of a core", 2),
    Column("pings_per_stream", "pings a stream", 2),
    Column("longest_silence_s", "longest silence, s"),
    Column("open_s", "s to open"),
    Column("connect_cpu_us", "server CPU, µs a connect", 0),
    Column("total_kb", "KB a stream in all"),
    Column("server_kb", "server"),
    Column("kernel_kb", "kernel"),
    Column("client_kb", "client"),
    Column("machine_kb", "by MemAvailable"),
    Column("empty_worker_mib", "a worker without streams, MiB"),
    Column("stolen_percent", "stolen %"),
)
_HUNDRED_THOUSAND = partial(_measure, 100_000, 6)

SCENARIOS = (
    Scenario(
        "crowd",
        "100,000 idle streams, a ping every 30 s",
        "Six workers, since a process may open 20,000 files here. Each stream has a user and a token of its own. "
        "The clients, in processes of 18,000 streams, share the machine. Memory is what the server's processes "
        "(PSS), the kernel and the clients grew by; the kernel's is its slab and the buffers of TCP, for both ends "
        "of each stream. Beside it stands what the whole machine has less of. A stream that is lost, or has no ping "
        "for 45 seconds, is a failure.",
        (
            Variant("sse_app", "", partial(_HUNDRED_THOUSAND, 10.0, True)),
            Variant("nchan", "", partial(_HUNDRED_THOUSAND, 0.6, True), once=True),
        ),
        _COLUMNS,
        partial(_HUNDRED_THOUSAND, 10.0, True),
        rounds=1,
        default=("sse_app", "nchan"),
    ),
    Scenario(
        "million",
        "As many idle streams as the machine holds, a ping every 30 s",
        "Workers and clients as above, more of each. Streams are opened until all are there, memory is short, or "
        "something refuses.",
        (Variant("sse_app", "", partial(_measure, 1_000_000, 56, 2.0, False)),),
        _COLUMNS,
        partial(_measure, 1_000_000, 56, 2.0, False),
        rounds=1,
        on_demand=True,
        default=("sse_app",),
    ),
)
