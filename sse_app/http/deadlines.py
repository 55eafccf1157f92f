"""Timeouts of many connections with one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Deadlines(Generic[Item]):
    """Calls back for each item whose time has passed; the time is the same for all.

    The items are kept in the order in which they began, so only the oldest are looked at.

    Args:
        seconds: the time.
        expired: called with an item whose time has passed, and which has been removed.
    """

    def __init__(self, seconds: float, expired: Callable[[Item], None]) -> None:
        self._seconds = seconds
        self._expired = expired
        self._loop = asyncio.get_running_loop()
        self._since: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, item: Item) -> None:
        """Begin an item's time now; begin it anew if it was running."""
        self._since.pop(item, None)  # to the end of the order
        self._since[item] = now = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._seconds, self._sweep)

    def stop(self, item: Item) -> None:
        """Remove an item, if its time is running."""
        self._since.pop(item, None)

    def since(self, item: Item) -> float:
        """Return when an item's time began, by the event loop's clock."""
        return self._since[item]

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, item: object) -> bool:
        return item in self._since

    def __iter__(self) -> Iterator[Item]:
        return iter(self._since)

    def close(self) -> None:
        """Remove all items."""
        self._since.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = []
        for item, since in self._since.items():
            if since + self._seconds > now:
                self._timer = self._loop.call_at(since + self._seconds, self._sweep)
                break
            late.append(item)
        for item in late:
            if self._since.pop(item, None) is not None:
                self._expired(item)
