"""Counters of durations, of work in progress, and of what only the metrics show."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return an upper bound, in seconds, of that share of durations counted as `Durations.counts` does.

    None where there are none. Above the highest bound it is that bound.
    """
    wanted = share * sum(counts)
    if not wanted:
        return None
    for bound, reached in zip(_SECONDS, accumulate(counts), strict=False):
        if reached >= wanted:
            return bound
    return _SECONDS[-1]


class Durations:
    """Counts durations, in seconds, by their length."""

    def __init__(self) -> None:
        self.sum = 0.0
        self._counts = [0] * (len(_SECONDS) + 1)

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.sum += seconds
        self._counts[bisect_left(_SECONDS, seconds)] += 1

    @property
    def counts(self) -> tuple[int, ...]:
        """How many lie between each two bounds; the first are below the first bound, the last above the last."""
        return tuple(self._counts)

    def cumulated(self) -> list[tuple[str, float]]:
        """Return for each upper bound how many were not longer, as Prometheus wants it."""
        total = 0
        buckets = []
        for bound, count in zip((*map(str, _SECONDS), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets


class InProgress:
    """Counts work in progress: a context manager around each piece of it."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> None:
        self.count += 1

    def __exit__(self, *exception: object) -> None:
        self.count -= 1


class ConnectionCounts:
    """Counts connections that are no streams."""

    def __init__(self) -> None:
        self.open = 0
        self.shed: Counter[str] = Counter()
        """Connections that were closed, or not begun, because there were too many, by the reason."""
        self.accept_failures = 0
        """How often no connection could be accepted, for lack of descriptors or memory, or because all were busy."""


class Metrics:
    """Counters. Their labels are bounded: no client, user or unconfigured channel is among them."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """Requests answered, by handler, method and status."""
        self.publish_seconds = Durations()
        """From a publish request to its answer, the commit included."""
        self.streams_opened = 0
        self.streams_resumed = 0
        """How many of these gave a position: clients that reconnected."""
        self.refusals: Counter[str] = Counter()
        """Requests and streams that were refused, by the code of the error or the reason of the ``closing``."""
        self.dropped_log_lines: Callable[[], int] = lambda: 0
        """Returns how many lines of the log have been dropped; set by what writes the log."""
        self.connections = ConnectionCounts()
