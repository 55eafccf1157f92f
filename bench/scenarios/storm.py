"""A storm: every worker is killed, and every client comes back with its last id and a hundred missed events."""

from __future__ import annotations

import os
import signal
import time

from bench.crowd import crowd
from bench.fleet import Fleet
from bench.load import LoadFailed, Publisher, verify
from bench.measure import CHANNEL, Sample, Stopwatch
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, servers
from bench.servers import Server

_MISSED = 100
_DEADLINE = 180.0
_INFLIGHT = 100
"""Connections under way of each client process."""


def _kill_workers(server: Server) -> None:
    """Kill all but the process that watches over them; where there is none, start the server anew."""
    parents = server.processes.parents
    workers = [pid for pid in server.processes.pids() if pid not in parents] or parents
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    while set(workers) & set(server.processes.pids()):
        time.sleep(0.01)
    if workers == parents:
        server.processes.forget_ended()
        server.launch()


def _until_serving(server: Server, deadline: float) -> None:
    while time.monotonic() < deadline:
        try:
            server.check_health(timeout=5)
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise LoadFailed("no worker serves")


def _until_cut(fleet: Fleet, deadline: float) -> None:
    while (report := fleet.ask("stats", 60.0))["ready"]:
        if time.monotonic() > deadline:
            raise LoadFailed(f"{report['ready']} streams do not notice")
        time.sleep(0.05)


def _measure(server_name: str, run: Run) -> Sample:
    streams = run.streams or run.pick(1_000, 10_000, 100_000)
    workers = run.workers or run.pick(2, 2, 6)
    with crowd(server_name, run, streams, workers) as (server, fleet):
        opened = fleet.open(0.0)
        clients = fleet.clients
        if fleet.short:
            raise LoadFailed(f"{clients.streams} of {streams} streams are open: {fleet.short}")
        clients.reset()
        Publisher(server.publish([CHANNEL]), 1).result()
        verify(clients.wait(1, 60.0), 1)
        began = time.monotonic()
        deadline = began + _DEADLINE
        _kill_workers(server)
        watch = Stopwatch(server)
        _until_cut(clients, deadline)
        _until_serving(server, deadline)
        serving = time.monotonic() - began
        batch = _MISSED if server.batches else 1
        Publisher(server.publish([CHANNEL], batch), _MISSED // batch, first=2).result()
        clients.reset()
        published = time.monotonic() - began
        clients.come_back(_INFLIGHT, deadline - time.monotonic())
        back = time.monotonic() - began
        report = verify(clients.wait(_MISSED, deadline - time.monotonic()), _MISSED)
        complete = time.monotonic() - began
        cost = watch.stop()
        time.sleep(2.0)
        verify(clients.ask("stats", 60.0), _MISSED)  # and nothing comes after it
        if report["resets"] or (server.ready == "connected" and report["recovered"] < streams):
            raise LoadFailed(
                f"{report['resets']} resets, {report['recovered']} of {streams} streams were resumed"
            )
        return {
            "streams": float(streams),
            "events": float(report["events"]),
            "serving_s": serving,
            "published_s": published,
            "back_s": back,
            "complete_s": complete,
            "return_p99_s": report["opening_us"]["p99"] / 1e6,
            "refused": float(report["refused"] + report["retried"]),
            "cpu_us_per_stream": cost.cpu / streams * 1e6,
            "connect_cpu_us": opened["connect_cpu_us"],
            "open_s": opened["open_s"],
            "stolen_percent": cost.stolen * 100,
        }


SCENARIOS = (
    Scenario(
        "storm",
        "A storm: 100,000 streams come back after `kill -9` of every worker",
        "All six workers are killed at once. While their streams are away a batch of 100 events is published, as "
        "soon as a worker is there to take it. Then all clients come back at once with their last ids. Each must "
        "get each of the 100 events once and in order, and none may be reset, or the sample is a failure. Times are "
        "from the kill.",
        servers("sse_app", "nchan"),
        (
            Column("streams", "streams", 0),
            Column("serving_s", "s until a worker serves"),
            Column("published_s", "s until the 100 events are in the log"),
            Column("back_s", "s until all are back"),
            Column("complete_s", "s until all have all"),
            Column("events", "events replayed", 0),
            Column("return_p99_s", "p99 s to connect"),
            Column("refused", "connects tried again", 0),
            Column("cpu_us_per_stream", "server CPU, µs a stream with 100 events", 0),
            Column("open_s", "s to open at first"),
            Column("stolen_percent", "stolen %"),
        ),
        _measure,
        rounds=1,
        default=("sse_app",),
    ),
)
