"""The histograms of several load programs as one; see `histogram.h`, whose buckets these are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

_STEPS = 128
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


def _middle(bucket: int) -> float:
    """Return the value, in microseconds, in the middle of a bucket."""
    if bucket < 2 * _STEPS:
        return float(bucket)
    power, step = divmod(bucket - 2 * _STEPS, _STEPS)
    return float(((step + _STEPS) << (power + 1)) + (1 << power))


def merged(reports: Iterable[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return one histogram of many reports as `client.c` prints one: count, mean, percentiles, maximum.

    Args:
        reports: with buckets.
        name: of the histogram, such as ``latency_us``.
    """
    counts: Counter[int] = Counter()
    total, largest = 0.0, 0
    for report in reports:
        counts.update(dict(report[f"{name}_buckets"]))
        total += report[name]["mean"] * report[name]["count"]
        largest = max(largest, report[name]["max"])
    count = sum(counts.values())
    summary: dict[str, Any] = {"count": count, "mean": total / count if count else 0.0, "max": largest}
    wanted = {shown: max(1, int(share * count + 0.5)) for shown, share in SHARES.items()}
    summary.update(dict.fromkeys(wanted, 0.0))
    seen = 0
    for bucket in sorted(counts):
        before, seen = seen, seen + counts[bucket]
        for shown, number in wanted.items():
            if before < number <= seen:
                summary[shown] = min(_middle(bucket), float(largest))
    return summary
