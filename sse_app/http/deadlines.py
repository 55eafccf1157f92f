"""Timeouts of many connections with one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Deadlines(Generic[Item]):
    """Calls back for each item that has been here for a time, which is the same for all.

    They are kept in the order in which they came, so only the oldest need be looked at.

    Args:
        seconds: the time.
        expired: called with an item that has been here for so long, and is not any more.
    """

    def __init__(self, seconds: float, expired: Callable[[Item], None]) -> None:
        self._seconds = seconds
        self._expired = expired
        self._since: dict[Item, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def start(self, item: Item) -> None:
        """Begin to count for an item, from now; also if it was counted for already."""
        loop = asyncio.get_running_loop()
        self._since.pop(item, None)  # to the end of the order
        self._since[item] = now = loop.time()
        if self._timer is None:
            self._timer = loop.call_at(now + self._seconds, self._sweep, loop)

    def stop(self, item: Item) -> None:
        """Count for an item no more, if it was counted for."""
        self._since.pop(item, None)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._since)

    def close(self) -> None:
        """Count for none."""
        self._since.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        late = []
        for item, since in self._since.items():
            if since + self._seconds > now:
                self._timer = loop.call_at(since + self._seconds, self._sweep, loop)
                break
            late.append(item)
        for item in late:
            if self._since.pop(item, None) is not None:
                self._expired(item)
