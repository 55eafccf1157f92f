"""The past, in pages for streams that are behind: the log's last events from memory, earlier ones read from the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import Event
from sse_app.core.selection import Interest
from sse_app.core.shared_reads import SharedReads
from sse_app.eventlog.base import NO_FLOORS, EventLog, Page
from sse_app.streams.conflation import Conflation
from sse_app.streams.replay_cache import ReplayCache

REPLAY_PAGE_EVENTS = 500
"""How many events a replay reads from the log at a time."""

COMPARED_FLOORS = 100
"""With so many floors a page is read once for all streams that have equal ones."""

REPLAY_CACHE_BYTES = 8 * 1024 * 1024
"""How much of the log's end is kept encoded in memory."""

CONFLATED_BYTES = 16 * 1024
"""About how much is written at a time to a stream that is behind on conflated channels: what waits in its socket
grows old there."""


class Past:
    """Reads what streams are to be sent that comes before the present.

    Args:
        eventlog: has the events.
        conflation: has the newest event of each key of conflated channels.
        head: returns the ``seq`` of the last event whose fan-out has begun.
    """

    def __init__(self, eventlog: EventLog, conflation: Conflation, head: Callable[[], int]) -> None:
        self._eventlog = eventlog
        self._conflation = conflation
        self._head = head
        self._reads: SharedReads[
            tuple[Interest, int, int, tuple[tuple[str, int], ...] | int], tuple[bytes, int]
        ] = SharedReads()
        self.cache = ReplayCache(eventlog.head.epoch, REPLAY_CACHE_BYTES)
        """The last events."""

    def begin(self, epoch: str) -> None:
        """Forget what is in memory: what comes next is of a log with this epoch, and may not follow it."""
        self.cache = ReplayCache(epoch, REPLAY_CACHE_BYTES)
        self._conflation.clear()

    async def read(
        self, interest: Interest, after: int, until: int, floors: Mapping[str, int] = NO_FLOORS
    ) -> tuple[bytes, int]:
        """Return the events with ``after < seq <= until`` in the event stream format.

        Not more than a page at a time; with it comes the ``seq`` that the next page follows. Of conflated channels it
        is the newest event of each key.

        Args:
            interest: which events.
            after, until: the part of the log.
            floors: as of `Replay`.

        Raises:
            EventLogUnavailable: the log cannot be read, or no longer keeps events that follow ``after``.
        """
        if self._conflation.conflated(interest.channels):
            return await self._conflated(interest, after, until, floors)
        recent = self.cache.between(after, until, interest, floors)
        if recent is not None:
            return recent
        # To compare thousands of floors takes longer than to read: streams that began together have the same object.
        of = tuple(floors.items()) if len(floors) <= COMPARED_FLOORS else id(floors)
        asked = (interest, after, until, of)
        return await self._reads.get(asked, lambda: self._stored(interest, after, until, floors))

    async def _conflated(
        self, interest: Interest, after: int, until: int, floors: Mapping[str, int]
    ) -> tuple[bytes, int]:
        """Return a page of which conflated channels are a part; see `read`."""
        conflation, cache = self._conflation, self.cache
        await asyncio.sleep(0)  # a client that reads at once, of a large table, holds nothing else up
        await conflation.read(interest.selection, self._head)
        events: list[Event] = []
        reached = until
        if (others := conflation.others(interest)) is not None:
            # Of those that are conflated and that a pattern covers nothing is read.
            left_out: dict[str, int] = dict.fromkeys(conflation.channels_of(others.selection), until)
            page = cache.page(after, until, others, {**floors, **left_out})
            if page is None:
                page = await self._page(others, after, until, {**floors, **left_out})
            events = [event for event in page.events if not conflation.member(event.channel)]
            reached = page.reached if page.more else until
        if cache is not self.cache or cache.epoch != self._eventlog.head.epoch:
            raise EventLogUnavailable("the log was replaced while it was being replayed")
        if not conflation.is_ready(interest.selection):
            return b"", after  # other rules, or a channel or many keys have come meanwhile
        events += conflation.newest(interest, after, reached, floors)
        events.sort()
        found: list[bytes] = []
        size = 0
        for event in events:
            if size >= CONFLATED_BYTES:
                break
            if interest.takes(event.type):
                found.append(cache.encode(event))
                size += len(found[-1])
            last = event.seq
        else:
            return b"".join(found), reached
        return b"".join(found), last

    async def _stored(
        self, interest: Interest, after: int, until: int, floors: Mapping[str, int]
    ) -> tuple[bytes, int]:
        """Return a page from the log; see `read`."""
        cache = self.cache
        page = await self._page(interest, after, until, floors)
        encoded = b"".join(cache.encode(event) for event in page.events if interest.takes(event.type))
        return encoded, page.reached if page.more else until

    async def _page(self, interest: Interest, after: int, until: int, floors: Mapping[str, int]) -> Page:
        cache = self.cache
        page = await self._eventlog.replay(interest.channels, after, until, REPLAY_PAGE_EVENTS, floors)
        if page.gap:
            raise EventLogUnavailable("the history was trimmed while it was being replayed")
        if cache.epoch != self._eventlog.head.epoch:
            raise EventLogUnavailable("the log was replaced while it was being replayed")
        return page
