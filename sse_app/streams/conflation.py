"""Conflated channels: of each key the newest event, for streams that are behind on them, or want few events.

The keys of a channel are the values that a member of its events' data has. What is kept of a channel here is its
*table*: the newest event of each key and event type. It is read from the log when a stream first needs it, and follows
what is fanned out from then on. Those that no stream needs are forgotten when they have become many.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping

from sse_app.core.channel_rules import ChannelRules
from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.event_members import member_of
from sse_app.core.events import Event
from sse_app.core.selection import Interest, Selection, interest_of
from sse_app.core.shared_reads import SharedReads
from sse_app.eventlog.base import Beginning, EventLog

PAGE_EVENTS = 500
"""How many events are read at a time to fill tables."""

CHANNELS_AT_ONCE = 100
"""The tables of so many channels are filled at a time."""

GROWTH = 1000
"""By how many entries, and by as many as it has, a table may grow until it is read anew.

So keys whose events are no longer kept by the log are not kept here for ever.
"""

UNNEEDED_TABLES = 1000
UNNEEDED_PATTERNS = 100
"""How many tables, and patterns whose channels all have one, may be kept beside twice as many as streams need.

A client may ask for any names that it is allowed to, also for those of channels that do not exist.
"""

MOST_SELECTIONS = 1000
"""Of how many selections with patterns the channels are remembered."""

Key = tuple[bytes, str]
"""The value as JSON, and the event type."""


class _Table:
    """The newest events of a channel.

    Attributes:
        events: by key, in log order.
        complete_after: the ``seq`` after which every event is here, unless a newer one of its key is.
        most: with how many entries it is read anew.
        is_read: whether it has what the log had at the beginning.
        last: the ``seq`` of the last event.
    """

    __slots__ = ("complete_after", "events", "is_read", "last", "most")

    def __init__(self) -> None:
        self.events: dict[Key, Event] = {}
        self.last = 0
        self.complete_after = 0
        self.most = GROWTH
        self.is_read = False

    def put(self, key: Key, event: Event) -> None:
        """Add an event that follows the last one."""
        self.events.pop(key, None)
        if len(self.events) >= self.most:
            self.events.clear()
            self.is_read = False
        self.events[key] = event
        self.last = event.seq


class Conflation:
    """The tables of the conflated channels.

    Args:
        eventlog: has the events.
        rules: say which channels are conflated.
        needed: has the names and patterns that open streams have asked for, as they come and go.
    """

    def __init__(self, eventlog: EventLog, rules: ChannelRules, needed: Container[str] = ()) -> None:
        self._eventlog = eventlog
        self._needed = needed
        self._reading: Counter[str] = Counter()
        """How many wait in `read` for each name and pattern."""
        self._tables: dict[ChannelName, _Table] = {}
        self._patterns: dict[str, ChannelPattern] = {}
        """The patterns of which each new channel gets a table."""
        self._known: set[str] = set()
        """Those of them whose channels all have a table."""
        self._covered: dict[frozenset[str], list[ChannelName]] = {}
        """The channels of selections with patterns, as far as they were asked for since the last new table."""
        self._reads: SharedReads[frozenset[str], None] = SharedReads()
        self._filling: dict[ChannelName, asyncio.Task[None]] = {}
        """By channel the reads under way that fill its table, perhaps with others."""
        self.use(rules)

    def use(self, rules: ChannelRules) -> None:
        """Take other rules."""
        self._rules = rules
        self.any = any(rule.conflate for rule in rules.rules)
        """Whether there are conflated channels."""
        self.clear()

    def clear(self) -> None:
        """Forget all tables: the log is another one."""
        self._tables = {}
        self._patterns = {}
        self._known = set()
        self._covered = {}
        self._most_tables = UNNEEDED_TABLES
        self._most_patterns = UNNEEDED_PATTERNS

    def member(self, channel: str) -> str:
        """Return the member of the data whose values are the keys of a channel; empty where it is not conflated."""
        rule = self._rules.rule(channel)
        return "" if rule is None else rule.conflate

    def conflated(self, channels: Collection[str]) -> list[str]:
        """Return those of the names and patterns that are conflated, or have a channel that is."""
        if not self.any:
            return []
        return [text for text in channels if self._may_conflate(text)]

    def _may_conflate(self, text: str) -> bool:
        if "*" not in text:
            return bool(self.member(text))
        return any(rule.conflate for rule in self._rules.overlapping(ChannelPattern(text)))

    async def channels(self, texts: Collection[str]) -> list[ChannelName]:
        """Return the conflated channels that names and patterns stand for.

        Raises:
            EventLogUnavailable: the log cannot be read.
        """
        found = [ChannelName(text) for text in texts if "*" not in text]
        for text in texts:
            if "*" in text:
                found += await self._eventlog.names(text)
        return [name for name in dict.fromkeys(found) if self.member(name)]

    def others(self, interest: Interest) -> Interest | None:
        """Return the interest in what is not conflated; its patterns may cover conflated channels too."""
        others = tuple(text for text in sorted(interest.channels) if "*" in text or not self.member(text))
        return interest_of(others, interest.types) if others else None

    def add(self, events: list[Event]) -> None:
        """Take events that follow the last ones into the tables."""
        if not self._tables and not self._patterns:
            return
        for event in events:
            if member := self.member(event.channel):
                table = self._tables.get(event.channel)
                if table is None:
                    if not any(pattern.matches(event.channel) for pattern in self._patterns.values()):
                        continue
                    table = self._put_table(event.channel)
                table.put(_key(event, member), event)
        self._forget()

    async def read(self, selection: Selection, head: Callable[[], int]) -> None:
        """Have the tables of the conflated channels of a selection.

        Args:
            selection: names and patterns.
            head: returns up to which event all has been fanned out; it may grow while a table is read.

        Raises:
            EventLogUnavailable: the log cannot be read.
        """
        if self.is_ready(selection):
            return
        self._reading.update(selection.texts)
        try:
            while not self.is_ready(selection):
                await self._reads.get(selection.texts, lambda: self._read_missing(selection, head))
        finally:
            self._forget()
            for text in selection.texts:
                self._reading[text] -= 1
                if not self._reading[text]:
                    del self._reading[text]

    def _forget(self) -> None:
        """Forget the patterns and tables that no stream needs and no `read` waits for, where they are too many."""
        if len(self._tables) <= self._most_tables and len(self._patterns) <= self._most_patterns:
            return
        self._patterns = {text: pattern for text, pattern in self._patterns.items() if self._is_needed(text)}
        self._known &= self._patterns.keys()
        patterns = Selection(self._patterns)
        self._tables = {
            name: table
            for name, table in self._tables.items()
            if self._is_needed(name) or name in self._filling or patterns.covers(name)
        }
        self._covered.clear()
        self._most_tables = 2 * len(self._tables) + UNNEEDED_TABLES
        self._most_patterns = 2 * len(self._patterns) + UNNEEDED_PATTERNS

    def _is_needed(self, text: str) -> bool:
        return text in self._needed or text in self._reading

    async def _read_missing(self, selection: Selection, head: Callable[[], int]) -> None:
        for pattern in selection.patterns:
            if pattern.text not in self._known and self._may_conflate(pattern.text):
                await self._learn(pattern.text)
        missing = [name for name in self.channels_of(selection) if not self._is_read(name)]
        # A table that is being filled must not be begun anew for another selection: neither would ever be ready.
        if filling := {self._filling[name] for name in missing if name in self._filling}:
            await asyncio.wait(filling)
            return  # `read` looks again
        this = asyncio.current_task()
        assert this is not None
        self._filling.update(dict.fromkeys(missing, this))
        try:
            for start in range(0, len(missing), CHANNELS_AT_ONCE):
                await self._read(missing[start : start + CHANNELS_AT_ONCE], head)
        finally:
            for name in missing:
                del self._filling[name]

    def _is_read(self, channel: ChannelName) -> bool:
        table = self._tables.get(channel)
        return table is not None and table.is_read

    async def _learn(self, pattern: str) -> None:
        # From now on new channels get a table.
        learned = self._patterns.setdefault(pattern, ChannelPattern(pattern))
        for name in await self.channels([pattern]):
            if name not in self._tables:
                self._put_table(name)
        if self._patterns.get(pattern) is learned:  # and has not been forgotten meanwhile
            self._known.add(pattern)

    def is_ready(self, selection: Selection) -> bool:
        """Return whether the tables of a selection are still as `read` has left them: all that is to be there is."""
        patterns = [pattern.text for pattern in selection.patterns if pattern.text not in self._known]
        if any(map(self._may_conflate, patterns)):
            return False
        return all(map(self._is_read, self.channels_of(selection)))

    def channels_of(self, selection: Selection) -> list[ChannelName]:
        """Return the conflated channels of a selection: those named, and of its patterns those with a table."""
        if not selection.patterns:
            return [name for name in selection.names if self.member(name)]
        found = self._covered.get(selection.texts)
        if found is None:
            if len(self._covered) >= MOST_SELECTIONS:
                self._covered.clear()
            found = [name for name in selection.names if self.member(name)]
            found += [
                name for name in self._tables if name not in selection.names and selection.covering(name)
            ]
            self._covered[selection.texts] = found
        return found

    def _put_table(self, channel: ChannelName) -> _Table:
        """Have a new table of a channel, and return it."""
        if channel not in self._tables:
            self._covered.clear()
        table = self._tables[channel] = _Table()
        return table

    async def _read(self, channels: list[ChannelName], head_now: Callable[[], int]) -> None:
        # What is fanned out from now on follows the head, and is to be there when the rest has been read.
        tables, head = {channel: self._put_table(channel) for channel in channels}, head_now()
        for table in tables.values():
            table.most = sys.maxsize
        complete_after = await self._kept(channels)
        older: dict[ChannelName, dict[Key, Event]] = {channel: {} for channel in channels}
        after = min(complete_after.values())
        while after < head:
            page = await self._eventlog.replay(channels, after, head, PAGE_EVENTS, complete_after)
            if page.gap:  # some have been trimmed meanwhile
                for channel, floor in (await self._kept(channels)).items():
                    complete_after[channel] = max(complete_after[channel], floor)
            for event in page.events:
                key = _key(event, self.member(event.channel))
                found = older[event.channel]
                found.pop(key, None)
                found[key] = event
            after = page.reached if page.more else head
        for channel, table in tables.items():
            kept = {key: event for key, event in older[channel].items() if key not in table.events}
            table.events = {**kept, **table.events}
            table.last = max((event.seq for event in table.events.values()), default=0)
            table.complete_after = complete_after[channel]
            table.most = 2 * len(table.events) + GROWTH
            table.is_read = True

    async def _kept(self, channels: list[ChannelName]) -> dict[str, int]:
        """Return after which ``seq`` all events of each channel are kept."""
        floors = (await self._eventlog.begin(channels, Beginning())).floors
        return {channel: floors.get(channel, 0) for channel in channels}

    def continues(self, channel: ChannelName, after: int) -> bool:
        """Return whether a stream that has the events up to a position misses no key, once its table has been read."""
        table = self._tables.get(channel)
        return table is not None and table.is_read and after >= table.complete_after

    def newest(
        self, interest: Interest, after: int, until: int, floors: Mapping[str, int]
    ) -> Iterator[Event]:
        """Yield the newest event of each key with ``after < seq <= until``, whose tables have been read.

        A key whose newest event comes later has none.
        """
        selection = interest.selection
        for channel in self.channels_of(selection):
            if (table := self._tables.get(channel)) is None or table.last <= after:
                continue
            floor = max(after, selection.floor(floors, channel)) if floors else after
            seen = set()
            for (value, type), event in reversed(table.events.items()):
                if event.seq <= floor:
                    break
                if value not in seen and interest.takes(type):
                    seen.add(value)
                    if event.seq <= until:
                        yield event


def _key(event: Event, member: str) -> Key:
    """Return the key of an event; events without the member, from before the channel was conflated, have one."""
    return member_of(event, member) or b"", event.type
