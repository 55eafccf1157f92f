"""An event log in memory, for tests and for embedding where nothing must outlive the process."""

from __future__ import annotations

import asyncio
import secrets
import time
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice, takewhile
from operator import itemgetter

import msgspec

from sse_app.core.channels import ChannelName, is_internal
from sse_app.core.errors import EventLogUnavailable, IdempotencyKeyReused
from sse_app.core.events import FINAL, Event, EventId, NewEvent
from sse_app.core.selection import Selection, selection_of
from sse_app.eventlog.base import (
    EMPTY_CHANNELS,
    IDEMPOTENCY_AGE,
    NO_FLOORS,
    Beginning,
    EventLog,
    Floors,
    IdempotencyKey,
    Page,
    Retention,
    RetentionRules,
    first_page,
    floors_of,
    retention_rules,
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


def _seq(held: tuple[float, Event]) -> int:
    return held[1].seq


def _start_of_last(events: deque[tuple[float, Event]], last: int, types: frozenset[str] | None) -> int:
    """Return the place of the first of the last events of the types; the end where there is none of them."""
    if types is None:
        return max(0, len(events) - last)
    places = zip(range(len(events) - 1, -1, -1), reversed(events), strict=True)
    of_types = (place for place, (_, event) in places if event.type in types)
    return min(islice(of_types, last), default=len(events))


class MemoryEventLog(EventLog):
    """Keeps events in this process's memory; a restart begins a new epoch.

    Args:
        retention: how much of each channel is kept.
        clock: the time in seconds, which never goes back.
    """

    def __init__(
        self,
        retention: Retention | RetentionRules | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retention = retention_rules(retention)
        self._clock = clock
        self._epoch = secrets.token_hex(4)
        self._seq = 0
        self._open = True
        self._channels: dict[ChannelName, _Channel] = {}
        self._names: list[ChannelName] = []
        """Those of the channels, sorted."""
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
                insort(self._names, event.channel)
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
            size, age = self._retention.of(name)
            while events and (len(events) > size or events[0][0] <= now - age):
                channel.trimmed = events.popleft()[1].seq

    def _sweep(self, now: float) -> None:
        """Look at all channels from time to time, and forget the empty ones that were used longest ago."""
        if now < self._sweep_at:
            return
        self._sweep_at = now + min(self._retention.ages[0] / 20, MAX_SWEEP_INTERVAL)
        self._trim(self._channels, now)
        empty = [(channel.last_seq, name) for name, channel in self._channels.items() if not channel.events]
        for last_seq, name in sorted(empty)[:-EMPTY_CHANNELS]:
            del self._channels[name]
            self._names.remove(name)
            self._forgotten = max(self._forgotten, last_seq)

    def _trimmed(self, name: ChannelName) -> int:
        """Return the ``seq`` of the last event of a channel that is not kept, as far as there may be one."""
        known = self._channels.get(name)
        return known.trimmed if known else self._forgotten

    def _matching(self, selection: Selection, after: int = 0) -> list[ChannelName]:
        """Return the channels of a selection, of a pattern those that have had events after a position."""
        found = dict.fromkeys(selection.names)
        for pattern in selection.patterns:
            begin, end = (bisect_left(self._names, text) for text in (pattern.prefix, f"{pattern.prefix}~"))
            for name in self._names[begin:end]:  # no name has a tilde, or a character that comes after it
                if self._channels[name].last_seq > after and pattern.matches(name) and not is_internal(name):
                    found[name] = None
        return list(found)

    async def begin(self, channels: Collection[str], beginning: Beginning) -> Floors:
        selection = selection_of(frozenset(channels))
        names = self._matching(selection)
        now = self._clock()
        self._trim(names, now)
        ago = beginning.ago if beginning.since is None else time.time() - beginning.since
        found: list[tuple[ChannelName, int, int]] = []
        for name in names:
            if (channel := self._channels.get(name)) is None:
                continue
            events = channel.events
            start = 0 if ago is None else bisect_left(events, now - ago, key=itemgetter(0))
            if beginning.last is not None:
                start = max(start, _start_of_last(events, beginning.last, beginning.types))
            floor = events[start - 1][1].seq if start else channel.trimmed
            found.append((name, floor, events[start][1].seq if start < len(events) else 0))
        return floors_of(selection, self.head, self._forgotten, found)

    async def lost(self, channels: Collection[str], position: EventId) -> dict[str, str]:
        if position.epoch != self._epoch:
            return dict.fromkeys(channels, "log_replaced")
        if position.seq > self._seq:
            return dict.fromkeys(channels, "position_ahead")
        selection = selection_of(frozenset(channels))
        whole = [pattern.text for pattern in selection.patterns if position.seq < self._forgotten]
        names = list(selection.names) if whole else self._matching(selection, position.seq)
        self._trim(names, self._clock())
        lost = [name for name in names if position.seq < self._trimmed(name)]
        return dict.fromkeys([*whole, *lost], "history_trimmed")

    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        return self._page(selection_of(frozenset(channels)), after, until, limit, floors)

    def _page(
        self, selection: Selection, after: int, until: int, limit: int, floors: Mapping[str, int]
    ) -> Page:
        names = self._matching(selection, after)
        self._trim(names, self._clock())
        gap = any(max(after, floors.get(pattern.text, 0)) < self._forgotten for pattern in selection.patterns)
        if (
            after < self._forgotten
        ):  # channels that were there when the stream began may have been forgotten since
            gap = gap or any(
                floor < self._forgotten and "*" not in name and name not in self._channels
                for name, floor in floors.items()
            )
        pasts = []
        for name in names:
            floor = max(after, selection.floor(floors, name))
            gap = gap or floor < self._trimmed(name)
            if (channel := self._channels.get(name)) is not None:
                pasts.append(self._between(channel, floor, until))
        return first_page(merge(*pasts), limit, gap=gap)

    @staticmethod
    def _between(channel: _Channel, after: int, until: int) -> Iterator[Event]:
        start = bisect_right(channel.events, after, key=_seq)
        return takewhile(
            lambda event: event.seq <= until, map(itemgetter(1), islice(channel.events, start, None))
        )

    async def latest(self, channels: Collection[str], limit: int) -> list[Event]:
        names = self._matching(selection_of(frozenset(channels)))
        self._trim(names, self._clock())
        known = [self._channels[name].events for name in names if name in self._channels]
        newest_first = merge(*(map(itemgetter(1), reversed(events)) for events in known), reverse=True)
        return first_page(newest_first, limit).events[::-1]

    async def ended(self) -> dict[ChannelName, int]:
        self._trim(self._channels, self._clock())
        last = {name: channel.events[-1][1] for name, channel in self._channels.items() if channel.events}
        return {name: event.seq for name, event in last.items() if event.flags & FINAL}

    async def names(self, pattern: str) -> list[ChannelName]:
        return self._matching(selection_of(frozenset([pattern])))

    async def published(self, channel: ChannelName) -> tuple[int, int]:
        known = self._channels.get(channel)
        return (known.published, known.last_seq) if known else (0, 0)

    def tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        return self._tails.follow(after)

    async def _following(self, after: int) -> Page:
        await asyncio.sleep(0)  # to read takes no time here, and others have to run
        page = self._page(Selection(self._channels), after, self._seq, TAIL_EVENTS, NO_FLOORS)
        return without_holes(page, after, lambda: self._seq)

    def use(self, retention: Retention | RetentionRules) -> None:
        self._retention = retention_rules(retention)
        self._sweep_at = 0.0

    async def close(self) -> None:
        self._open = False
