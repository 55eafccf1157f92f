"""An event log in memory, for tests and for embedding where nothing must outlive the process."""

from __future__ import annotations

import asyncio
import secrets
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from heapq import merge

import msgspec

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable, IdempotencyKeyReused
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import (
    IDEMPOTENCY_AGE,
    EventLog,
    IdempotencyKey,
    Page,
    Retention,
    first_page,
    without_holes,
)
from sse_app.eventlog.tail import TAIL_EVENTS, Tails


class _Channel(msgspec.Struct):
    events: deque[tuple[float, Event]] = msgspec.field(default_factory=deque)
    published: int = 0
    last_seq: int = 0
    trimmed: int = 0


class MemoryEventLog(EventLog):
    """Keeps events in this process's memory; a restart begins a new epoch.

    Args:
        retention: how much of each channel is kept.
        clock: the time in seconds, which never goes back.
    """

    def __init__(
        self, retention: Retention | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retention = retention or Retention()
        self._clock = clock
        self._epoch = secrets.token_hex(4)
        self._seq = 0
        self._open = True
        self._channels: dict[ChannelName, _Channel] = {}
        self._answers: OrderedDict[tuple[str, str], tuple[float, bytes, list[EventId]]] = OrderedDict()
        self._tails = Tails(self._following)

    @property
    def head(self) -> EventId:
        return EventId(self._epoch, self._seq)

    @property
    def available(self) -> bool:
        return self._open

    async def open(self) -> None:
        self._open = True

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        await self._tails.room()
        if not self._open:
            raise EventLogUnavailable("the event log is closed")
        now = self._clock()
        if key is not None and (answer := self._answer(key, now)) is not None:
            return answer
        stored = [Event(self._seq + n, *event) for n, event in enumerate(events, 1)]
        for event in stored:
            channel = self._channels.setdefault(event.channel, _Channel())
            channel.events.append((now, event))
            channel.published += 1
            channel.last_seq = event.seq
        self._seq += len(stored)
        ids = [EventId(self._epoch, event.seq) for event in stored]
        if key is not None:
            self._answers[key.subject, key.key] = (now, key.digest, ids)
        self._trim(now)
        self._tails.publish(stored)
        return list(ids)

    def _answer(self, key: IdempotencyKey, now: float) -> list[EventId] | None:
        while self._answers and next(iter(self._answers.values()))[0] <= now - IDEMPOTENCY_AGE:
            self._answers.popitem(last=False)
        known = self._answers.get((key.subject, key.key))
        if known is None:
            return None
        if known[1] != key.digest:
            raise IdempotencyKeyReused("this Idempotency-Key was used with another request")
        return list(known[2])

    def _trim(self, now: float) -> None:
        for channel in self._channels.values():
            events = channel.events
            while events and (
                len(events) > self._retention.size or events[0][0] <= now - self._retention.age
            ):
                channel.trimmed = events.popleft()[1].seq

    async def lost(self, channels: Collection[ChannelName], position: EventId) -> dict[ChannelName, str]:
        if position.epoch != self._epoch:
            return dict.fromkeys(channels, "log_replaced")
        if position.seq > self._seq:
            return dict.fromkeys(channels, "position_ahead")
        self._trim(self._clock())
        known = ((name, self._channels.get(name)) for name in channels)
        return {
            name: "history_trimmed" for name, channel in known if channel and position.seq < channel.trimmed
        }

    async def replay(self, channels: Collection[ChannelName], after: int, until: int, limit: int) -> Page:
        return self._page(channels, after, until, limit)

    def _page(self, channels: Collection[ChannelName], after: int, until: int, limit: int) -> Page:
        self._trim(self._clock())
        pasts = []
        gap = False
        for name in channels:
            if (channel := self._channels.get(name)) is not None:
                gap = gap or after < channel.trimmed
                events = [event for _, event in channel.events]
                start = bisect_right(events, after, key=lambda event: event.seq)
                pasts.append(event for event in events[start:] if event.seq <= until)
        return first_page(merge(*pasts), limit, gap=gap)

    async def latest(self, channel: ChannelName, limit: int) -> list[Event]:
        self._trim(self._clock())
        known = self._channels.get(channel)
        newest_first = (event for _, event in reversed(known.events)) if known else iter(())
        return first_page(newest_first, limit).events[::-1]

    async def published(self, channel: ChannelName) -> tuple[int, int]:
        known = self._channels.get(channel)
        return (known.published, known.last_seq) if known else (0, 0)

    def tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        return self._tails.follow(after)

    async def _following(self, after: int) -> Page:
        await asyncio.sleep(0)  # to read takes no time here, and others have to run
        page = self._page(self._channels.keys(), after, self._seq, TAIL_EVENTS)
        return without_holes(page, after, lambda: self._seq)

    async def close(self) -> None:
        self._open = False
