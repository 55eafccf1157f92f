"""How long to wait before trying again: pure, except that it draws random numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass

_MOST_DOUBLINGS = 64
"""Beyond these a float would overflow; any bound is met long before."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: any time up to a bound that doubles with each attempt.

    The whole span is random, so that the clients of a restarted server do not come back in step.

    Attributes:
        first: the bound before the first attempt, in seconds.
        most: what the bound grows to, in seconds.
        stable: seconds after which a connection counts as good, and the bound begins anew.
    """

    first: float = 1.0
    most: float = 30.0
    stable: float = 10.0

    def bound(self, attempt: int) -> float:
        """Return the longest wait before an attempt, in seconds; ``attempt`` counts from 0."""
        return min(self.most, self.first * 2.0 ** min(attempt, _MOST_DOUBLINGS))

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait before an attempt; ``attempt`` counts from 0."""
        return random.uniform(0.0, self.bound(attempt))
