"""Brings committed events to the followers of the log in the same process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable

from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import Event, held_bytes
from sse_app.eventlog.base import LogReplaced, Page

TAIL_EVENTS = 500
"""How many events a follower reads from the log at a time."""

MAX_WAITING_BYTES = 8 * 1024 * 1024
"""With more than this committed but not yet taken by a follower, appends wait: no faster than fan-out takes them."""

ROOM_TIMEOUT = 5.0
"""For how many seconds an append waits for that."""

MAX_PIECE_BYTES = 256 * 1024
"""At about this size a follower gets what waits in several pieces, so that streams can drain in between."""


class Tails:
    """Brings the log's events to each follower in order, and holds appends back while one lags far behind.

    What this process commits is handed on without being read back. Where that does not follow directly on
    what a follower has, since it began in the past or another process has appended in between, the follower
    reads the log until it has all that is there.

    Args:
        read: returns the first events of the log after a position, with none left out.
    """

    def __init__(self, read: Callable[[int], Awaitable[Page]]) -> None:
        self._read = read
        self._followers: set[_Follower] = set()
        self._head = 0
        """The last event that was passed to `publish` or `grown_to`."""
        self._room = asyncio.Event()
        self._room.set()

    @property
    def is_full(self) -> bool:
        """Whether `room` would wait."""
        return not self._room.is_set()

    async def room(self) -> None:
        """Wait until every follower is near enough to the head.

        Raises:
            EventLogUnavailable: that takes too long.
        """
        if self._room.is_set():
            return
        # Not asyncio.timeout, which needs a task: a request may be answered without one.
        waiting = asyncio.ensure_future(self._room.wait())
        try:
            await asyncio.wait([waiting], timeout=ROOM_TIMEOUT)
            if not waiting.done():
                raise EventLogUnavailable("what was stored before takes too long to reach the streams")
        finally:
            waiting.cancel()

    def publish(self, events: list[Event]) -> None:
        """Give every follower events that have been committed, by this process or by another that has told of them."""
        self._head = max(self._head, events[-1].seq)
        for follower in self._followers:
            follower.put(events)
            if follower.waiting_bytes > MAX_WAITING_BYTES:
                self._room.clear()

    def grown_to(self, head: int) -> None:
        """Tell every follower how far the log goes, where this process has not published all that is there."""
        self._head = head
        for follower in self._followers:
            follower.miss(head)

    def replaced(self, head: int) -> None:
        """Raise `LogReplaced` to every follower, since the log has another epoch, and its head is this one now."""
        self._head = head
        for follower in self._followers:
            follower.replace()

    async def follow(self, after: int) -> AsyncGenerator[list[Event], None]:
        """Yield every event after a position; those that wait together come as one list.

        Raises:
            LogReplaced: see `replaced`.
        """
        follower = _Follower(after, behind=after < self._head)
        self._followers.add(follower)
        try:
            while True:
                if not follower.has_something:
                    await follower.arrival()
                    continue
                events = follower.take_waiting() or await follower.take_from_log(self._read)
                if follower.is_of_another_log:
                    raise LogReplaced
                if not self._room.is_set():
                    self._set_room()
                if events:
                    yield events
        finally:
            self._followers.discard(follower)
            self._set_room()

    def _set_room(self) -> None:
        if all(follower.waiting_bytes <= MAX_WAITING_BYTES for follower in self._followers):
            self._room.set()
        else:
            self._room.clear()


class _Follower:
    """One follower's waiting events.

    At every await the events up to ``_last`` have been taken or wait here, the rest is still in the log; and
    the follower knows of that rest (``_behind``) as soon as its process does.
    """

    def __init__(self, after: int, *, behind: bool) -> None:
        self.waiting_bytes = 0
        """How far the follower is behind what its process has committed, in bytes of memory."""
        self.has_something = behind
        """Whether there is something to take, here or in the log."""
        self.is_of_another_log = False
        """Whether the log has another epoch than when this one began."""
        self._last = after
        self._behind = behind
        self._missed = False
        """Whether the log has grown since it was last read."""
        self._waiting: list[Event] = []
        self._arrival: asyncio.Future[None] | None = None

    def arrival(self) -> asyncio.Future[None]:
        """Return what is done once there is something to take; there is nothing now."""
        self._arrival = asyncio.get_running_loop().create_future()
        return self._arrival

    def _arrived(self) -> None:
        self.has_something = True
        if (arrival := self._arrival) is not None:
            self._arrival = None
            if not arrival.done():  # the follower's task was cancelled
                arrival.set_result(None)

    def put(self, events: list[Event]) -> None:
        first, last = events[0].seq, events[-1].seq
        if last <= self._last:  # read from the log already
            return
        if self._behind or first != self._last + 1:
            self.miss(last)
        else:
            self._waiting += events
            self._last = last
        for event in events:
            self.waiting_bytes += held_bytes(event)
        self._arrived()

    def miss(self, head: int) -> None:
        if head > self._last:
            self._behind = self._missed = True
            self._arrived()

    def replace(self) -> None:
        self.is_of_another_log = True
        self._arrived()

    def take_waiting(self) -> list[Event]:
        if self.waiting_bytes <= MAX_PIECE_BYTES:
            if piece := self._waiting:
                self._waiting, self.waiting_bytes = [], 0
                self.has_something = self._behind
            return piece
        count = size = 0
        while count < len(self._waiting) and (not count or size < MAX_PIECE_BYTES):
            size += held_bytes(self._waiting[count])
            count += 1
        piece = self._waiting[:count]
        if piece:
            del self._waiting[:count]
            self.waiting_bytes -= size
            self.has_something = self._behind or bool(self._waiting)
        return piece

    async def take_from_log(self, read: Callable[[int], Awaitable[Page]]) -> list[Event]:
        self._missed = False
        page = await read(self._last)
        if page.events:
            self._last = page.events[-1].seq
        if not page.more and not self._missed:
            # All that this process knew of when it began to read was read, and nothing was committed since.
            self._behind = False
            self.waiting_bytes = 0
            self.has_something = bool(self._waiting)
        return page.events
