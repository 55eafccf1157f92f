"""What sse_app must show: bounds and aims, and the measured value for each of them."""

# ruff: noqa: RUF001  (the multiplication sign is meant)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.results import Result

Results = dict[str, Result]
OURS = "sse_app"


@dataclass(frozen=True)
class Target:
    """One bound; lower is better unless said otherwise."""

    row: str
    unit: str
    """How a value is written: a format with one place, like "{:.2f} × nchan"."""
    bound: float | None
    aim: float | None
    value: Callable[[Results], float | None]
    higher: bool = False

    def met(self, value: float, limit: float) -> bool:
        """Whether the value is on the right side of the limit."""
        return value >= limit if self.higher else value <= limit


def _ratio(scenario: str, metric: str, other: str, ours: str = OURS) -> Callable[[Results], float | None]:
    return lambda results: results[scenario].ratio(ours, other, metric) if scenario in results else None


def _value(scenario: str, metric: str, variant: str = OURS) -> Callable[[Results], float | None]:
    return lambda results: results[scenario].median(variant, metric) if scenario in results else None


def _stalled_memory(results: Results) -> float | None:
    if "stalled" not in results:
        return None
    with_one = results["stalled"].median("sse_app, one stalled", "peak_growth_kib")
    without = results["stalled"].median("sse_app, all read", "peak_growth_kib")
    return None if with_one is None or without is None else with_one - without


_DELIVERY = "CPU per delivery, one event a POST"
_BATCHES = "CPU per delivery, batches of 100"
_MEMORY = "RSS per idle authorised stream"
_CONNECT = "CPU per authorised connect"
_RESUME = "10,000 clients resume 100 events back"
_PUBLISH = "publish from 64 clients, each 201 after its fsync"
_STALLED = "one stalled client among 1,000"
_SINGLE, _HUNDRED = "single", "batches of 100"

TARGETS = (
    Target(_DELIVERY, "{:.2f} × nchan at 1,000 streams", 0.85, 0.6, _ratio("fanout-1000", "cpu_us", "nchan")),
    Target(
        _DELIVERY, "{:.2f} × nchan at 10,000 streams", 0.8, 0.6, _ratio("fanout-10000", "cpu_us", "nchan")
    ),
    Target(_DELIVERY, "{:.2f} × the C loop at 10,000", None, 1.2, _ratio("fanout-10000", "cpu_us", "floor")),
    Target(
        _DELIVERY, "{:.3f} × sse-starlette", 1 / 6, None, _ratio("fanout-1000", "cpu_us", "sse-starlette")
    ),
    Target(
        _BATCHES,
        "{:.3f} × nchan at 1,000 streams",
        0.06,
        0.03,
        _ratio("fanout-1000-batch", "cpu_us", "nchan"),
    ),
    Target(
        _BATCHES,
        "{:.3f} × nchan at 10,000 streams",
        0.06,
        0.03,
        _ratio("fanout-10000-batch", "cpu_us", "nchan"),
    ),
    Target(
        "p99 from publish to receipt, 10,000 streams",
        "{:.2f} × nchan",
        0.95,
        0.75,
        _ratio("fanout-10000", "p99_ms", "nchan"),
    ),
    Target(_MEMORY, "{:.1f} KiB", 12.0, None, _value("idle", "rss_kib_per_stream")),
    Target(_MEMORY, "{:.2f} × nchan", None, 1.0, _ratio("idle", "rss_kib_per_stream", "nchan")),
    Target(_CONNECT, "{:.0f} µs", 250.0, 180.0, _value("connect", "connect_cpu_us")),
    Target(
        _CONNECT,
        "{:.2f} × sse-starlette without auth",
        0.5,
        None,
        _ratio("connect", "connect_cpu_us", "sse-starlette"),
    ),
    Target(
        _RESUME,
        "{:.0f} % complete, none lost, none twice",
        100,
        None,
        _value("reconnect", "complete_percent"),
        True,
    ),
    Target(_RESUME, "{:.2f} µs CPU per replayed event", 1.0, 0.5, _value("reconnect", "replay_cpu_us")),
    Target(
        _PUBLISH,
        "{:.2f} × the requests/s of a bare Tornado POST handler",
        0.5,
        0.7,
        _ratio("publish", "requests_per_s", f"tornado-post, {_SINGLE}", f"{OURS}, {_SINGLE}"),
        higher=True,
    ),
    Target(
        _PUBLISH,
        "{:,.0f} events/s in batches of 100",
        50_000,
        100_000,
        _value("publish", "events_per_s", f"{OURS}, {_HUNDRED}"),
        higher=True,
    ),
    Target("idle, 10,000 streams, ping 30 s", "{:.2f} % of a core", 2.0, 1.0, _value("idle", "cpu_percent")),
    Target(
        "`/healthz` p99 during fan-outs to 10,000", "{:.1f} ms", 20.0, 10.0, _value("health", "probe_p99_ms")
    ),
    Target(
        _STALLED,
        "others' p99 {:.2f} × that without it",
        1.2,
        None,
        _ratio("stalled", "p99_ms", "sse_app, all read", "sse_app, one stalled"),
    ),
    Target(
        _STALLED,
        "{:,.0f} KiB more memory; its byte limit is 1,024 KiB, a quarter more is for what holds the bytes",
        1280.0,
        None,
        _stalled_memory,
    ),
    Target(
        "an event to one of 10,000 channels",
        "{:.2f} × the CPU of one among 100",
        1.2,
        1.1,
        _ratio("channels", "cpu_us_per_event", "sse_app, 100 channels", "sse_app, 10,000 channels"),
    ),
)
