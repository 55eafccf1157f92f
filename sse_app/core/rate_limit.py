"""How fast one bearer may do something: pure, with the time handed in."""

from __future__ import annotations

MAX_ENTRIES = 10_000


class RateLimit:
    """A token bucket for each of many bearers: so many a second, with a second's worth at once.

    Something larger than the bucket passes when the bucket is full, and is paid off afterwards.

    Args:
        rate: how many a second; 0 is no limit.
    """

    def __init__(self, rate: float) -> None:
        self.use(rate)

    def use(self, rate: float) -> None:
        """Go on with another rate, and full buckets."""
        self.rate = rate
        self._room = max(rate, 1.0)
        self._full_at: dict[str, float] = {}
        """When each bearer's bucket will be full again."""

    def take(self, bearer: str, count: int, now: float) -> float:
        """Take ``count`` at once, and return 0; or take none, and return in how many seconds to ask again."""
        if not self.rate:
            return 0.0
        empty_for = max(0.0, self._full_at.get(bearer, now) - now)
        missing = min(count, self._room) - (self._room - empty_for * self.rate)
        if missing > 1e-9:
            return missing / self.rate
        self._full_at.pop(bearer, None)
        self._full_at[bearer] = now + empty_for + count / self.rate
        if len(self._full_at) > MAX_ENTRIES:
            del self._full_at[next(iter(self._full_at))]
        return 0.0
