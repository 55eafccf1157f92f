"""Streams on patterns: what those cost that an event does not match, and what it costs to come back to one."""

from __future__ import annotations

from functools import partial

from bench.load import LoadFailed, Publisher, StreamClient, verify
from bench.measure import (
    Sample,
    Stopwatch,
    connect,
    fan_out,
    running,
    stream_client,
    wait_until_quiet,
)
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant
from bench.servers import Options, Server

_CHANNELS = 10_000
_WIDE = "bench.user.*.orders"
_WIDE_EACH = 100
"""One of so many of the streams that have a pattern is on this one, each other one on a pattern of its own."""

_UNHEARD = 100
"""The publishes that are measured go to so many channels in turn, on which there is no stream."""

_LISTENERS = 1_000
_NO_PINGS = Options(ping_interval=300)
"""So that pings to the streams are not in the figures."""


def _orders(users: range) -> list[str]:
    return [f"bench.user.{number}.orders" for number in users]


def _fill(server: Server, channels: list[str]) -> None:
    """Publish one event to each channel, so that the log has it."""
    Publisher(server.publish(channels), len(channels), connections=16).result()


def _bystanders(patterns: int, streams: int) -> list[str]:
    """Return what streams are on that get none of the events: patterns, and of the rest each a channel."""
    on_patterns = [
        _WIDE if number % _WIDE_EACH == 0 else f"bench.user.{number}.*" for number in range(patterns)
    ]
    return on_patterns + _orders(range(patterns, streams))


def _publish(server: Server, requests: int) -> float:
    """Return the CPU of a publish to channels that are like those of the patterns, in µs."""
    channels = [f"bench.user.{_CHANNELS + number}.mail" for number in range(_UNHEARD)]
    publish = server.publish(channels)
    Publisher(publish, _UNHEARD).result()  # warm up
    wait_until_quiet(server, 5.0)
    watch = Stopwatch(server)
    Publisher(publish, requests).result()
    return watch.stop().cpu / requests * 1e6


def _measure(patterns: int, heard: str, server_name: str, run: Run) -> Sample:
    """Measure publishes, and deliveries to streams on a name or a pattern, beside streams on patterns."""
    share = run.pick(20, 1, 1)
    patterns, streams, listeners = patterns // share, _CHANNELS // share, _LISTENERS // share
    requests, events = run.pick((200, 20), (2_000, 60), (4_000, 100))
    with running(server_name, _NO_PINGS) as server:
        _fill(server, _orders(range(streams)))
        bystanders = _bystanders(patterns, streams)
        with stream_client(server, streams, bystanders) as others:
            opened = connect(server, others)
            publish_cpu_us = _publish(server, requests)
            with stream_client(server, listeners, [heard]) as client:
                client.open()
                delivery = fan_out(server, client, events, 10.0, channel="bench.user.listeners.mail")
            if (left := others.ask("stats"))["ready"] != streams or left["events"]:
                raise LoadFailed(
                    f"{left['ready']} of {streams} streams are left, with {left['events']} events"
                )
    return {**opened, **delivery, "publish_cpu_us": publish_cpu_us}


def _come_back(server: Server, client: StreamClient, channels: list[str], first: int) -> float:
    """Cut all streams, publish an event to each channel, and return the CPU of one that comes back, in µs."""
    client.ask("drop")
    wait_until_quiet(server)
    Publisher(server.publish(channels), len(channels), first=first).result()
    wait_until_quiet(server)
    client.reset()
    watch = Stopwatch(server)
    client.open()
    report = client.wait(1, 60.0)
    cost = watch.stop()
    if verify(report, 1)["resets"]:
        raise LoadFailed(f"{report['resets']} streams were reset instead of resumed")
    return cost.cpu / client.streams * 1e6


def _resume(heard: str, server_name: str, run: Run) -> Sample:
    """Measure streams that come back; with "{}" in what they have asked for each is on a pattern of its own."""
    channels, streams = run.pick((500, 50), (_CHANNELS, _LISTENERS), (_CHANNELS, _LISTENERS))
    wanted = [heard.format(number) for number in range(streams)] if "{}" in heard else [heard]
    missed = _orders(range(len(wanted)))
    with running(server_name, _NO_PINGS) as server:
        _fill(server, _orders(range(channels)))
        with stream_client(server, streams, wanted) as client:
            client.open()
            costs = [_come_back(server, client, missed, 2 + turn) for turn in range(run.pick(1, 2, 3))]
    return {"resume_cpu_us": sorted(costs)[len(costs) // 2]}


_BY_NAME = "bench.user.listeners.mail"

SCENARIOS = (
    Scenario(
        "patterns",
        "Patterns that an event does not match",
        "10,000 channels have an event, and 10,000 streams get none of those that follow. So many of them as the "
        f"line says are on patterns: one in a hundred on `{_WIDE}`, each other one on a pattern of its own "
        "(`bench.user.7.*`). The rest are each on a channel by its name. Then 4,000 events are published one after "
        "the other to `bench.user.{N}.mail`, on which there is no stream. After that 100 events at 10 a second go "
        "to 1,000 streams on such a channel by its name, and in the last line by a pattern (`bench.*.*.mail`).",
        (
            Variant("sse_app", "no patterns", partial(_measure, 0, _BY_NAME)),
            Variant("sse_app", "1,000 patterns", partial(_measure, 1_000, _BY_NAME)),
            Variant("sse_app", "10,000 patterns", partial(_measure, 10_000, _BY_NAME)),
            Variant("sse_app", "10,000 patterns, heard by one", partial(_measure, 10_000, "bench.*.*.mail")),
        ),
        (
            Column("publish_cpu_us", "server CPU, µs a publish", 0),
            Column("cpu_us", "server CPU, µs a delivery", 2),
            Column("p99_ms", "p99 ms"),
            Column("connect_cpu_us", "server CPU, µs a connect", 0),
            Column("rss_kib_per_stream", "RSS, KiB a stream", 2),
            Column("stolen_percent", "stolen %"),
            Column("others_percent", "others %"),
        ),
        partial(_measure, 0, _BY_NAME),
        default=("sse_app",),
        rounds=1,
    ),
    Scenario(
        "patterns-resume",
        "1,000 streams of patterns come back at once",
        "10,000 channels have an event. 1,000 streams are cut, each misses one event, and all come back with their "
        "last event id. They are on one channel by its name, each on one of its own, on one pattern that covers all "
        "channels, or each on a pattern of its own. CPU is that of a stream with its event.",
        (
            Variant("sse_app", "a name", partial(_resume, "bench.user.0.orders")),
            Variant("sse_app", "names of their own", partial(_resume, "bench.user.{}.orders")),
            Variant("sse_app", "one pattern", partial(_resume, _WIDE)),
            Variant("sse_app", "patterns of their own", partial(_resume, "bench.user.{}.*")),
        ),
        (Column("resume_cpu_us", "server CPU, µs a stream", 0),),
        partial(_resume, _WIDE),
        default=("sse_app",),
        rounds=1,
    ),
)
