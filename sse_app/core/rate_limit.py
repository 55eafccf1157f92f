"""A limit on how many things each caller may do a second. Pure: the caller passes the time."""

from __future__ import annotations

from collections.abc import Callable

MAX_ENTRIES = 10_000
"""How many callers are remembered; beyond that the one that has taken nothing for the longest time is forgotten."""


class RateLimit:
    """A token bucket for each caller, which holds what the rate allows in one second.

    A request for more than the bucket holds passes when the bucket is full, and delays the ones after it.

    Args:
        rate: how many a second; 0 is no limit.
        shares: returns among how many limits of this kind, on as many nodes, the rate is divided just now.
    """

    def __init__(self, rate: float, shares: Callable[[], int] = lambda: 1) -> None:
        self._shares = shares
        self.use(rate)

    def use(self, rate: float) -> None:
        """Take another rate, and begin with full buckets."""
        self.rate = rate
        self._full_at: dict[str, float] = {}
        """When each caller's bucket will be full again."""

    def take(self, caller: str, count: int, now: float) -> float:
        """Take ``count`` at once, and return 0; or take none, and return in how many seconds to ask again."""
        if not self.rate:
            return 0.0
        rate = self.rate / self._shares()
        room = max(rate, 1.0)
        empty_for = max(0.0, self._full_at.get(caller, now) - now)
        missing = min(count, room) - (room - empty_for * rate)
        if missing > 1e-9:
            return missing / rate
        self._full_at.pop(caller, None)
        self._full_at[caller] = now + empty_for + count / rate
        if len(self._full_at) > MAX_ENTRIES:
            del self._full_at[next(iter(self._full_at))]
        return 0.0
