"""The way from a commit to whoever follows the log in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sse_app.core.events import Event

MAX_WAITING_BYTES = 8 * 1024 * 1024
"""With more than this committed but not yet taken by a follower, appends wait: fan-out sets the pace."""

MAX_PIECE_BYTES = 256 * 1024
"""At about this size a follower gets what waits in several pieces, so that streams can drain in between."""


class Tails:
    """Hands committed events to each follower in order, and holds appends back while one lags far behind."""

    def __init__(self) -> None:
        self._tails: set[_Tail] = set()
        self._room = asyncio.Event()
        self._room.set()

    async def room(self) -> None:
        """Wait until every follower is near enough to the head."""
        await self._room.wait()

    def publish(self, events: list[Event]) -> None:
        """Give events that are committed to every follower."""
        for tail in self._tails:
            tail.put(events)
            if tail.waiting_bytes > MAX_WAITING_BYTES:
                self._room.clear()

    def follow(self) -> AsyncIterator[list[Event]]:
        """Yield what is published from now on, what waits together as one list."""
        tail = _Tail()  # registered at the call, not at the first step: nothing in between is missed
        self._tails.add(tail)
        return self._steps(tail)

    async def _steps(self, tail: _Tail) -> AsyncIterator[list[Event]]:
        try:
            while True:
                events = await tail.take()
                if not self._room.is_set():
                    self._set_room()
                yield events
        finally:
            self._tails.discard(tail)
            self._set_room()

    def _set_room(self) -> None:
        if all(tail.waiting_bytes <= MAX_WAITING_BYTES for tail in self._tails):
            self._room.set()
        else:
            self._room.clear()


class _Tail:
    """One follower's waiting events."""

    def __init__(self) -> None:
        self.waiting_bytes = 0
        self._waiting: list[Event] = []
        self._wake = asyncio.Event()

    def put(self, events: list[Event]) -> None:
        self._waiting.extend(events)
        self.waiting_bytes += sum([len(event.data) for event in events])
        self._wake.set()

    async def take(self) -> list[Event]:
        await self._wake.wait()
        if self.waiting_bytes <= MAX_PIECE_BYTES:
            piece, self._waiting, self.waiting_bytes = self._waiting, [], 0
        else:
            count = size = 0
            while not count or (count < len(self._waiting) and size < MAX_PIECE_BYTES):
                size += len(self._waiting[count].data)
                count += 1
            piece = self._waiting[:count]
            del self._waiting[:count]
            self.waiting_bytes -= size
        if not self._waiting:
            self._wake.clear()
        return piece
