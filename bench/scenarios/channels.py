"""Many channels: an event to one channel costs the same however many others there are."""

from __future__ import annotations

from functools import partial

from bench.load import LoadFailed, Publisher
from bench.measure import Sample, Stopwatch, connect, latencies, running, stream_client
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant
from bench.servers import Options

_TARGETS = 100
"""Events go to so many of the channels in turn, in every variant the same."""
_RATE = 100.0


def _measure(channels: int, server_name: str, run: Run) -> Sample:
    channels, events = run.pick((max(_TARGETS, channels // 10), 200), (channels, 200), (channels, 500))
    names = [f"bench.{number}" for number in range(channels)]
    options = Options(ping_interval=300)  # so that pings to the streams are not in the figure
    with running(server_name, options) as server, stream_client(server, channels, names) as client:
        connect(server, client)
        before = client.reset()
        publish = server.publish(names[:_TARGETS])
        watch = Stopwatch(server)
        publisher = Publisher(publish, events, rate=_RATE)
        report = client.wait_total(events, 30.0 + events / _RATE)
        cost = watch.stop()
        publisher.result()
        if report["events"] != events or report["gaps"] or report["duplicates"]:
            raise LoadFailed(f"{report['events']} of {events} events arrived")
        return {
            "cpu_us_per_event": cost.cpu / events * 1e6,
            "client_cpu_us": (report["cpu_s"] - before["cpu_s"]) / events * 1e6,
            "stolen_percent": cost.stolen * 100,
            **latencies(report),
        }


SCENARIOS = (
    Scenario(
        "channels",
        "Many channels: an event to one of 10,000",
        "One stream on each channel; 500 events, 100 a second, to 100 of the channels in turn, with no other "
        "channel beside them and with 9,900. CPU is that of publishing, log and delivery together.",
        (
            Variant("sse_app", "100 channels", partial(_measure, 100)),
            Variant("sse_app", "10,000 channels", partial(_measure, 10_000)),
            Variant("nchan", "100 channels", partial(_measure, 100)),
            Variant("nchan", "10,000 channels", partial(_measure, 10_000)),
        ),
        (
            Column("cpu_us_per_event", "server CPU, µs an event", 0),
            Column("p50_ms", "p50 ms", 2),
            Column("p99_ms", "p99 ms", 2),
            Column("stolen_percent", "stolen %"),
        ),
        partial(_measure, 100),
        plot="cpu_us_per_event",
        rounds=1,
    ),
)
