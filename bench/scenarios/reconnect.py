"""Reconnect storm: all streams come back at once with their last event id, and get what they missed."""

from __future__ import annotations

import time

from bench.load import LoadFailed, Publisher, Report, StreamClient, verify
from bench.measure import CHANNEL, Cost, Sample, Stopwatch, connect, running, stream_client, wait_until_quiet
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, servers
from bench.servers import Server


def _publish(server: Server, first: int, events: int) -> None:
    batch = events if server.batches else 1
    Publisher(server.publish([CHANNEL], batch), events // batch, first=first).result()


def _come_back(server: Server, client: StreamClient, missed: int, first: int) -> tuple[Cost, Report, float]:
    client.ask("drop")
    wait_until_quiet(server)  # it has noticed, and tidied up
    if missed:
        _publish(server, first, missed)
        wait_until_quiet(server)
    client.reset()
    watch = Stopwatch(server)
    began = time.monotonic()
    client.open()
    report = client.wait(missed, 60.0)
    took = time.monotonic() - began
    cost = watch.stop()
    return cost, verify(report, missed), took


def _measure(server_name: str, run: Run) -> Sample:
    streams, missed = run.pick((500, 20), (10_000, 100), (10_000, 100))
    with running(server_name) as server, stream_client(server, streams) as client:
        connect(server, client)
        client.reset()
        _publish(server, 1, 1)
        verify(client.wait(1, 30.0), 1)
        before, _, before_took = _come_back(server, client, 0, 0)
        replay, report, replay_took = _come_back(server, client, missed, 2)
        after, _, after_took = _come_back(server, client, 0, 0)
        plain_cpu = (before.cpu + after.cpu) / 2
        if report["resets"]:
            raise LoadFailed(f"{report['resets']} streams were reset instead of resumed")
        return {
            "complete_percent": report["events"] / (streams * missed) * 100,
            "resumed": float(report["recovered"]),
            "plain_cpu_us": plain_cpu / streams * 1e6,
            "plain_s": (before_took + after_took) / 2,
            "replay_cpu_us": (replay.cpu - plain_cpu) / (streams * missed) * 1e6,
            "replay_s": replay_took,
            "client_cpu_s": report["cpu_s"],
            "stolen_percent": replay.stolen * 100,
        }


SCENARIOS = (
    Scenario(
        "reconnect",
        "Reconnect storm: 10,000 streams resume 100 events back",
        "All streams are cut, and come back with their last event id: with nothing missed, with 100 events missed, "
        "and with nothing missed again. Each is checked to get every event once and in order; a sample with a lost "
        "or doubled event is a failure. CPU per replayed event is what the second storm took above the mean of the "
        "others.",
        (*servers("sse_app"), *servers("nchan", once=True)),
        (
            Column("complete_percent", "streams complete, %", 0),
            Column("plain_cpu_us", "server CPU, µs a reconnect, nothing missed", 0),
            Column("replay_cpu_us", "and µs for each replayed event", 2),
            Column("plain_s", "s until all are back, nothing missed", 2),
            Column("replay_s", "s until all have all", 2),
            Column("stolen_percent", "stolen %"),
        ),
        _measure,
        plot="replay_cpu_us",
        quick=True,
    ),
)
