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
    EMPTY_CHANNELS,
    IDEMPOTENCY_AGE,
    EventLog,
    IdempotencyKey,
    Page,
    Retention,
    first_page,
    without_holes,
)
from sse_app.eventlog.tail import TAIL_EVENTS, Tails

MAX_SWEEP_INTERVAL = 30.0
"""The longest time for which expired events of channels that are not used are still held, in seconds."""


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
        self._forgotten = 0
        """The ``seq`` of the last event of any channel that was forgotten."""
        self._sweep_at = 0.0
        """When all channels are looked at for expired events; those that are used are looked at each time."""
        self._answers: OrderedDict[tuple[str, str], tuple[float, bytes, range]] = OrderedDict()
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
            if (channel := self._channels.get(event.channel)) is None:
                channel = self._channels[event.channel] = _Channel(trimmed=self._forgotten)
            channel.events.append((now, event))
            channel.published += 1
            channel.last_seq = event.seq
        seqs = range(self._seq + 1, self._seq + len(stored) + 1)
        self._seq += len(stored)
        if key is not None:
            self._answers[key.subject, key.key] = (now, key.digest, seqs)
        self._trim({event.channel for event in stored}, now)
        self._sweep(now)
        self._tails.publish(stored)
        return self._ids(seqs)

    def _ids(self, seqs: range) -> list[EventId]:
        return [EventId(self._epoch, seq) for seq in seqs]

    def _answer(self, key: IdempotencyKey, now: float) -> list[EventId] | None:
        while self._answers and next(iter(self._answers.values()))[0] <= now - IDEMPOTENCY_AGE:
            self._answers.popitem(last=False)
        known = self._answers.get((key.subject, key.key))
        if known is None:
            return None
        if known[1] != key.digest:
            raise IdempotencyKeyReused("this Idempotency-Key was used with another request")
        return self._ids(known[2])

    def _trim(self, names: Collection[ChannelName], now: float) -> None:
        """Drop what is over the retention of these channels."""
        for name in names:
            if (channel := self._channels.get(name)) is None:
                continue
            events = channel.events
            while events and (
                len(events) > self._retention.size or events[0][0] <= now - self._retention.age
            ):
                channel.trimmed = events.popleft()[1].seq

    def _sweep(self, now: float) -> None:
        """Look at all channels from time to time, and forget the empty ones that were used longest ago."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + min(self._retention.age / 20, MAX_SWEEP_INTERVAL)
        self._trim(self._channels, now)
        empty = [(channel.last_seq, name) for name, channel in self._channels.items() if not channel.events]
        for last_seq, name in sorted(empty)[:-EMPTY_CHANNELS]:
            del self._channels[name]
            self._forgotten = max(self._forgotten, last_seq)

    def _trimmed(self, name: ChannelName) -> int:
        """Return the ``seq`` of the last event of a channel that is not kept, as far as there may be one."""
        known = self._channels.get(name)
        return known.trimmed if known else self._forgotten

    async def lost(self, channels: Collection[ChannelName], position: EventId) -> dict[ChannelName, str]:
        if position.epoch != self._epoch:
            return dict.fromkeys(channels, "log_replaced")
        if position.seq > self._seq:
            return dict.fromkeys(channels, "position_ahead")
        self._trim(channels, self._clock())
        return {name: "history_trimmed" for name in channels if position.seq < self._trimmed(name)}

    async def replay(self, channels: Collection[ChannelName], after: int, until: int, limit: int) -> Page:
        return self._page(channels, after, until, limit)

    def _page(self, channels: Collection[ChannelName], after: int, until: int, limit: int) -> Page:
        self._trim(channels, self._clock())
        pasts = []
        gap = any(after < self._trimmed(name) for name in channels)
        for name in channels:
            if (channel := self._channels.get(name)) is not None:
                events = [event for _, event in channel.events]
                start = bisect_right(events, after, key=lambda event: event.seq)
                pasts.append(event for event in events[start:] if event.seq <= until)
        return first_page(merge(*pasts), limit, gap=gap)

    async def latest(self, channel: ChannelName, limit: int) -> list[Event]:
        self._trim([channel], self._clock())
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
