"""What sse_app must show: bounds and aims, and the measured figure for each of them."""

# ruff: noqa: RUF001  (the multiplication sign is meant)

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from bench import handover_table
from bench.results import Result

Results = dict[str, Result]
OURS = "sse_app"
POSTGRES = "sse_app-postgres"
_NUMBER = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True)
class Measured:
    """A figure, and how it is shown with what it is made of."""

    value: float
    text: str


Value = Callable[[Results], Measured | None]


@dataclass(frozen=True)
class Target:
    """One bound; lower is better unless said otherwise."""

    line: str
    limit: str
    """How a limit is written: a format with one place, like "{:.2f} ×"."""
    bound: float | None
    aim: float | None
    value: Value
    higher: bool = False

    def _meets(self, value: float, limit: float) -> bool:
        return value >= limit if self.higher else value <= limit

    def shown(self, limit: float | None) -> str:
        """Return a limit as it is written; empty where there is none."""
        if limit is None:
            return ""
        return ("≥ " if self.higher else "≤ ") + self.limit.format(limit)

    def verdict(self, measured: Measured | None) -> str:
        """Return whether bound and aim are met."""
        if measured is None:
            return ""
        if self.bound is not None and not self._meets(measured.value, self.bound):
            return "**no**"
        if self.aim is None:
            return "" if self.bound is None else "yes"
        aim = self._meets(measured.value, self.aim)
        if self.bound is None:
            return "yes, the aim" if aim else "not the aim"
        return "yes, and the aim" if aim else "yes"


@dataclass(frozen=True)
class Group:
    """Targets of one kind."""

    title: str
    targets: tuple[Target, ...]


def _beside(scenario: str, metric: str, figure: str, other: str, named: str, ours: str = OURS) -> Value:
    """Ours divided by another's, in the same round.

    Args:
        figure: how each of the two figures is written.
        other: the variant it is compared with.
        named: what it is called.
    """

    def value(results: Results) -> Measured | None:
        if (result := results.get(scenario)) is None:
            return None
        ratio, mine, theirs = (
            result.ratio(ours, other, metric),
            result.median(ours, metric),
            result.median(other, metric),
        )
        if ratio is None or mine is None or theirs is None:
            return None
        digits = 3 if ratio < 0.1 else 2
        two = f"{figure.format(mine)} against {_NUMBER.search(figure)[0].format(theirs)}"  # type: ignore[index]
        return Measured(ratio, f"{ratio:.{digits}f} × {named}: {two}")

    return value


def _figure(
    scenario: str,
    metric: str,
    figure: str,
    variant: str = OURS,
    peer: str = "",
    named: str = "nchan",
    divided_by: float = 1.0,
) -> Value:
    """A figure of ours, and that of a peer beside it.

    Args:
        peer: the variant that is shown beside it; none when empty.
        named: what the peer is called.
        divided_by: for a unit that is so many times larger than the metric's.
    """

    def value(results: Results) -> Measured | None:
        result = results.get(scenario)
        mine = result.median(variant, metric) if result else None
        if result is None or mine is None:
            return None
        theirs = result.median(peer, metric) if peer else None
        shown = figure.format(mine / divided_by)
        if theirs is not None:
            shown += f" ({named}: {figure.format(theirs / divided_by)})"
        return Measured(mine / divided_by, shown)

    return value


def _stalled_memory(results: Results) -> Measured | None:
    if "stalled" not in results:
        return None
    with_one = results["stalled"].median("sse_app, one stalled", "peak_growth_kib")
    without = results["stalled"].median("sse_app, all read", "peak_growth_kib")
    if with_one is None or without is None:
        return None
    return Measured(with_one - without, f"{with_one - without:,.0f} KiB more memory")


def _held(results: Results) -> Measured | None:
    for scenario in ("million", "crowd"):
        result = results.get(scenario)
        streams = result.median(OURS, "streams") if result else None
        lost = result.median(OURS, "lost") if result else None
        minutes = result.median(OURS, "minutes") if result else None
        if streams is not None and lost is not None and minutes is not None:
            return Measured(streams - lost, f"{streams:,.0f}, {lost:,.0f} lost in {minutes:.0f} minutes")
    return None


def _survived(results: Results) -> Measured | None:
    result = results.get("crowd")
    sample = next((one for one in result.samples.get(OURS, []) if one), None) if result else None
    if sample is None:
        return None
    text = (
        f"{sample['streams'] - sample['lost']:,.0f} of {sample['streams']:,.0f}, for {sample['minutes']:.0f} minutes; "
        f"{sample['pings_per_stream']:.1f} pings each"
    )
    return Measured(100 * (1 - sample["lost"] / sample["streams"]), text)


def _storm(results: Results) -> Measured | None:
    result = results.get("storm")
    sample = next((one for one in result.samples.get(OURS, []) if one), None) if result else None
    if sample is None:
        return None
    text = (
        f"{sample['complete_s']:.1f} s for {sample['streams']:,.0f} streams and {sample['events']:,.0f} missed events, "
        "none lost, none twice"
    )
    return Measured(sample["complete_s"], text)


def _share(label: str, figure: str) -> Value:
    """What the database does for each event and each further node that only reads it."""

    def value(results: Results) -> Measured | None:
        if (result := results.get("postgres-tail")) is None:
            return None
        one, four = (
            result.median(f"{POSTGRES}, {label}, {count}", "database_us_per_event")
            for count in ("1 node", "4 nodes")
        )
        if one is None or four is None:
            return None
        share = (four - one) / 3
        return Measured(share, f"{figure.format(share)} ({figure.format(one)} to append it)")

    return value


def _disturbed(scenario: str) -> Value:
    """How many streams were closed, and events lost or doubled, over all restarts and upgrades."""

    def value(results: Results) -> Measured | None:
        if (result := results.get(scenario)) is None:
            return None
        counts = {
            name: sum(sum(result.values(variant, name)) for variant in ("restart", "upgrade"))
            for name in ("closed", "lost", "doubled")
        }
        return Measured(
            sum(counts.values()), ", ".join(f"{count:.0f} {name}" for name, count in counts.items())
        )

    return value


def _pause(scenario: str, variant: str) -> Value:
    """The longest time in which a process served nothing."""

    def value(results: Results) -> Measured | None:
        pauses = results[scenario].values(variant, "pause_ms") if scenario in results else []
        return Measured(max(pauses), f"{max(pauses):.0f} ms") if pauses else None

    return value


_SINGLE, _HUNDRED, _TWO = "single", "batches of 100", "2 workers"
_OURS_TWO = f"{OURS}, {_TWO}"
_RATIO = "{:.2f} ×"
_US, _MS, _WHOLE_MS = "{:.2f} µs", "{:.1f} ms", "{:.0f} ms"

_DELIVERY = Group(
    "Server CPU to deliver an event to a stream",
    (
        Target(
            "1,000 streams, one event a POST, 10 a second",
            _RATIO, 0.85, 0.75, _beside("fanout-1000", "cpu_us", _US, "nchan", "nchan"),
        ),
        Target(
            "10,000 streams, one event a POST, 4 a second",
            _RATIO, 0.75, 0.7, _beside("fanout-10000", "cpu_us", _US, "nchan", "nchan"),
        ),
        Target(
            "1,000 streams, two workers on both sides",
            _RATIO, 0.9, 0.8, _beside("fanout-1000", "cpu_us", _US, f"nchan, {_TWO}", "nchan", _OURS_TWO),
        ),
        Target(
            "10,000 streams, two workers on both sides",
            _RATIO, 0.9, 0.8, _beside("fanout-10000", "cpu_us", _US, f"nchan, {_TWO}", "nchan", _OURS_TWO),
        ),
        Target(
            "1,000 streams, two workers beside one of ours",
            _RATIO, 1.1, None, _beside("fanout-1000", "cpu_us", _US, OURS, "one worker", _OURS_TWO),
        ),
        Target(
            "10,000 streams, two workers beside one of ours",
            _RATIO, 1.1, None, _beside("fanout-10000", "cpu_us", _US, OURS, "one worker", _OURS_TWO),
        ),
        Target(
            "1,000 streams, batches of 100 events",
            "{:.3f} ×", 0.06, 0.03, _beside("fanout-1000-batch", "cpu_us", _US, "nchan", "nchan"),
        ),
        Target(
            "10,000 streams, batches of 100 events",
            "{:.3f} ×", 0.06, 0.03, _beside("fanout-10000-batch", "cpu_us", _US, "nchan", "nchan"),
        ),
        Target(
            "1,000 streams, beside a Python server",
            "{:.3f} ×", 1 / 6, None, _beside("fanout-1000", "cpu_us", _US, "sse-starlette", "sse-starlette"),
        ),
        Target(
            "10,000 streams, beside a bare `send()` loop in C",
            _RATIO, None, 1.2, _beside("fanout-10000", "cpu_us", _US, "floor", "the C loop"),
        ),
        Target(
            "an event to one of 10,000 channels, beside one of 100",
            _RATIO, 1.2, 1.1,
            _beside(
                "channels", "cpu_us_per_event", "{:.0f} µs", "sse_app, 100 channels", "that", "sse_app, 10,000 channels"
            ),
        ),
    ),
)  # fmt: skip

_LATENCY = Group(
    "Time from publish to receipt, which 99 of 100 do not exceed",
    (
        Target(
            "1,000 streams, 50 durable events a second, each to all",
            _MS, 20.0, 5.0, _figure("steady", "p99_ms", _MS, peer="nchan"),
        ),
        Target(
            "the same with two workers",
            _MS, 20.0, 5.0, _figure("steady", "p99_ms", _MS, _OURS_TWO, f"nchan, {_TWO}", "nchan with two"),
        ),
        Target(
            "10,000 streams, 4 events a second",
            _RATIO, 0.95, 0.75, _beside("fanout-10000", "p99_ms", _MS, "nchan", "nchan"),
        ),
        Target(
            "published in one worker and received from another, beside from the same",
            _RATIO, 1.5, 1.2, _figure("across", "p99_ratio", _RATIO, peer="nchan"),
        ),
        Target(
            "with one client among 1,000 that does not read, beside without it",
            _RATIO, 1.2, None, _beside("stalled", "p99_ms", _MS, "sse_app, all read", "that", "sse_app, one stalled"),
        ),
        Target(
            "a health check (`/healthz`) while events go to 10,000 streams",
            _MS, 20.0, 10.0, _figure("health", "probe_p99_ms", _MS, peer="nchan"),
        ),
    ),
)  # fmt: skip

_PUBLISHING = Group(
    "Publishing, answered 201 when the event is on disk",
    (
        Target(
            "server CPU of a lone publish, 10 a second, one stream",
            "{:.1f} ms", 1.2, 0.8,
            _figure(
                "lone", "cpu_us_per_request", "{:.2f} ms", f"{OURS}, ten a second",
                "tornado-sqlite, ten a second", "a plain Tornado handler with SQLite, without tokens", divided_by=1e3,
            ),
        ),
        Target(
            "requests a second from 64 clients, beside a bare Tornado POST handler",
            _RATIO, 0.9, 1.2,
            _beside(
                "publish", "requests_per_s", "{:,.0f}", f"tornado-post, {_SINGLE}", "the handler", f"{OURS}, {_SINGLE}"
            ),
            higher=True,
        ),
        Target(
            "requests a second from 64 clients, two workers beside one of ours",
            _RATIO, 1.25, 1.5,
            _beside(
                "publish", "requests_per_s", "{:,.0f}", f"{OURS}, {_SINGLE}", "one worker", f"{OURS}, {_SINGLE}, {_TWO}"
            ),
            higher=True,
        ),
        Target(
            "events a second in batches of 100, one worker",
            "{:,.0f}", 50_000, 100_000, _figure("publish", "events_per_s", "{:,.0f}", f"{OURS}, {_HUNDRED}"),
            higher=True,
        ),
        Target(
            "events a second in batches of 100, two workers",
            "{:,.0f}", 60_000, 100_000, _figure("publish", "events_per_s", "{:,.0f}", f"{OURS}, {_HUNDRED}, {_TWO}"),
            higher=True,
        ),
    ),
)  # fmt: skip

_STREAMS = Group(
    "A stream, with a user and a token of its own",
    (
        Target(
            "memory of an idle one as it was opened (RSS)",
            "{:.1f} KiB", 2.2, 1.5, _figure("idle", "rss_kib_per_stream", "{:.2f} KiB", peer="nchan"),
        ),
        Target(
            "memory of an idle one as an upgrade's new process has adopted it",
            "{:.1f} KiB", 2.2, 1.5, _figure("idle", "rss_kib_per_stream", "{:.2f} KiB", f"{OURS}, adopted"),
        ),
        Target(
            "server CPU to connect",
            "{:.0f} µs", 200.0, 150.0, _figure("connect", "connect_cpu_us", "{:.0f} µs", peer="nchan"),
        ),
        Target(
            "server CPU to resume, nothing missed",
            "{:.0f} µs", 250.0, 170.0, _figure("reconnect", "plain_cpu_us", "{:.0f} µs", peer="nchan"),
        ),
        Target(
            "server CPU of each missed event it is sent",
            "{:.2f} µs", 1.0, 0.5, _figure("reconnect", "replay_cpu_us", _US, peer="nchan"),
        ),
        Target(
            "10,000 come back and have missed 100 events: with each, once and in order",
            "{:.0f} %", 100, None, _figure("reconnect", "complete_percent", "{:.0f} %"),
            higher=True,
        ),
        Target(
            "10,000 idle ones with a ping every 30 s: of a core",
            "{:.1f} %", 2.0, 1.0, _figure("idle", "cpu_percent", "{:.2f} %", peer="nchan"),
        ),
        Target(
            "memory of one that does not read, with a limit of 1,024 KiB",
            "{:,.0f} KiB", 1280.0, None, _stalled_memory,
        ),
        Target(
            "1,000 from one address on four workers: most on one, beside the mean",
            _RATIO, 1.2, 1.1, _figure("spread", "most_of_mean", _RATIO, peer="nchan"),
        ),
    ),
)  # fmt: skip

_CONFLATED = f"{OURS}, 5,000 a second"
_NONE = f"{OURS}, no patterns"
_MANY = f"{OURS}, 10,000 patterns"
_PATTERNS = Group(
    "Patterns and conflated channels",
    (
        Target(
            "a publish beside 10,000 streams on patterns that it does not match, beside none",
            _RATIO, 1.1, None, _beside("patterns", "publish_cpu_us", "{:.0f} µs", _NONE, "without", _MANY),
        ),
        Target(
            "the same beside 1,000",
            _RATIO, 1.1, None,
            _beside("patterns", "publish_cpu_us", "{:.0f} µs", _NONE, "without", f"{OURS}, 1,000 patterns"),
        ),
        Target(
            "a delivery to one of 1,000 streams, beside 10,000 patterns that do not match",
            _RATIO, 1.1, None, _beside("patterns", "cpu_us", _US, _NONE, "without", _MANY),
        ),
        Target(
            "the same, where the 1,000 streams are on a pattern",
            _RATIO, 1.1, None, _beside("patterns", "cpu_us", _US, _NONE, "by name", f"{_MANY}, heard by one"),
        ),
        Target(
            "server CPU to resume on a pattern of 10,000 channels, one event missed, beside on one channel",
            _RATIO, None, None,
            _beside(
                "patterns-resume", "resume_cpu_us", "{:.0f} µs", f"{OURS}, a name", "a name", f"{OURS}, one pattern"
            ),
        ),
        Target(
            "slow streams of a conflated channel with 5,000 events a second: cut off",
            "{:.0f}", 0.0, None, _figure("conflated", "cut", "{:.0f}", _CONFLATED),
        ),
        Target(
            "age of the values that they get, 99 of 100",
            "{:.0f} ms", None, None, _figure("conflated", "slow_age_p99_ms", "{:.0f} ms", _CONFLATED),
        ),
        Target(
            "keys of which they have the newest value when nothing more comes",
            "{:.0f} %", 100, None, _figure("conflated", "slow_complete_percent", "{:.0f} %", _CONFLATED),
            higher=True,
        ),
    ),
)  # fmt: skip

_CROWD = Group(
    "100,000 idle streams on six workers, their clients on the same machine",
    (
        Target("open at the end, none lost", "{:.0f} %", 100, None, _survived, higher=True),
        Target(
            "with a ping every 30 s: of a core",
            "{:.0f} %", 6.0, None, _figure("crowd", "cpu_percent", "{:.1f} %", peer="nchan"),
        ),
        Target(
            "memory of one: server, kernel and client together",
            "{:.0f} KB", 12.0, None, _figure("crowd", "total_kb", "{:.1f} KB", peer="nchan"),
        ),
        Target("streams held at once, with more workers", "{:,.0f}", 100_000, 1_000_000, _held, higher=True),
        Target(
            "`kill -9` of all workers: until all are back, each with its 100 missed events",
            "{:.0f} s", 60.0, 30.0, _storm,
        ),
    ),
)  # fmt: skip

_RESTART_MS, _UPGRADE_MS = (handover_table.BOUNDS[variant] for variant in ("restart", "upgrade"))
_ONE, _SEVERAL = handover_table.SCENARIO, handover_table.WORKERS_SCENARIO
_RESTARTS = Group(
    "`systemctl restart` and `sse-app upgrade` of 10,000 streams while events are published",
    (
        Target(
            "one worker: streams closed, events lost, events doubled", "{:.0f}", 0.0, None, _disturbed(_ONE)
        ),
        Target("four workers: the same", "{:.0f}", 0.0, None, _disturbed(_SEVERAL)),
        Target(
            "one worker: longest pause of a restart", _WHOLE_MS, _RESTART_MS, None, _pause(_ONE, "restart")
        ),
        Target("four workers: the same", _WHOLE_MS, _RESTART_MS, None, _pause(_SEVERAL, "restart")),
        Target(
            "one worker: longest pause of an upgrade", _WHOLE_MS, _UPGRADE_MS, None, _pause(_ONE, "upgrade")
        ),
        Target("four workers: the same", _WHOLE_MS, _UPGRADE_MS, None, _pause(_SEVERAL, "upgrade")),
    ),
)

_POSTGRES = Group(
    "Nodes on PostgreSQL, which runs on the same two cores",
    (
        Target(
            "server CPU of a delivery, 1,000 streams, beside SQLite",
            _RATIO, 1.1, None, _beside("postgres", "cpu_us", _US, OURS, "that", POSTGRES),
        ),
        Target(
            "published on one node and received from another, half of them",
            _MS, 3.0, None, _figure("postgres-across", "other_p50_ms", _MS, POSTGRES),
        ),
        Target(
            "99 of 100 of them, beside those from the same node",
            _RATIO, 3.0, None, _figure("postgres-across", "p99_ratio", _RATIO, POSTGRES),
        ),
        Target(
            "events a second in batches of 100 from 64 clients, two nodes",
            "{:,.0f}", 20_000, None,
            _figure("postgres-publish", "events_per_s", "{:,.0f}", f"{POSTGRES}, {_HUNDRED}, 2 nodes"),
            higher=True,
        ),
        Target(
            "events a second one by one from 64 clients, two nodes",
            "{:,.0f}", None, None,
            _figure("postgres-publish", "events_per_s", "{:,.0f}", f"{POSTGRES}, {_SINGLE}, 2 nodes"),
            higher=True,
        ),
        Target(
            "CPU of the database for each node that reads an event, 50 a second",
            "{:.0f} µs", None, None, _share(_SINGLE, "{:.0f} µs"),
        ),
        Target(
            "the same, in batches of 100",
            "{:.1f} µs", None, None, _share(_HUNDRED, "{:.1f} µs"),
        ),
        Target(
            "transactions a second of an idle node",
            "{:.1f}", None, None,
            _figure("postgres-tail", "transactions_per_s", "{:.1f}", f"{POSTGRES}, {_SINGLE}, 1 node"),
        ),
    ),
)  # fmt: skip

GROUPS = (_DELIVERY, _LATENCY, _PUBLISHING, _STREAMS, _PATTERNS, _CROWD, _RESTARTS, _POSTGRES)
