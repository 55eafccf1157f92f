"""The hub: registers streams, follows the log, and fans its events out to the streams that have joined the present."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import chain
from typing import TypeVar

from sse_app.core.addresses import network_of
from sse_app.core.channel_rules import ChannelRules
from sse_app.core.channels import ChannelName
from sse_app.core.counters import Durations
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import FINAL, TEXT, Event, EventId, NewEvent
from sse_app.core.framing import Framing
from sse_app.core.multimap import Multimap
from sse_app.core.selection import Interest, interest_of
from sse_app.core.sse import encode_ping, encode_without_id
from sse_app.eventlog.base import EventLog, EventsTrimmed, LogReplaced
from sse_app.streams.bulk_send import BulkSender
from sse_app.streams.conflation import Conflation
from sse_app.streams.disconnects import Disconnects
from sse_app.streams.ended_channels import EndedChannels
from sse_app.streams.fanout import FanoutGroup, FanoutGroups
from sse_app.streams.numbers import first_number, node_of
from sse_app.streams.past import Past
from sse_app.streams.stream import Replay, Stream, Subscriber

FANOUT_SLICE = 128
"""How many streams a fan-out serves before the event loop runs other callbacks: about a millisecond.

A request takes some five rounds of the event loop until it is answered, and waits for a slice in each.
"""

FINISHED_AT_ONCE = 64
"""How many streams whose channels have ended are ended before the event loop runs other callbacks."""

RETRY_INTERVAL = 1.0
"""After how many seconds a tail that could not be read is read again."""

DRAIN_RATE = 200
DRAIN_STEP = 0.02
"""A drain ends at least so many streams a second, a few at a time so many seconds apart."""

Key = TypeVar("Key", bound=str)
AnyEvent = TypeVar("AnyEvent", Event, NewEvent)

log = logging.getLogger(__name__)


class Hub:
    """Sends what the log's tail yields to the streams.

    An event is encoded once; its bytes are shared by all streams of a `FanoutGroup`. A fan-out to many
    streams goes in slices, so that logins, publishes and pings are answered in between; the next one begins
    when it is finished, so each stream sees the log's order.

    Args:
        eventlog: open when the hub begins.
        rules: which channels are conflated.
        backlog_limit: how many bytes may wait for one stream.
        retry: the mean of the reconnection times that clients are given, in milliseconds; they vary by half of it.
    """

    def __init__(
        self, eventlog: EventLog, rules: ChannelRules | None = None, *, backlog_limit: int, retry: int
    ) -> None:
        self.eventlog = eventlog
        self.streams_on_channel: Counter[str] = Counter()
        """How many streams have asked for each channel or pattern."""
        self.conflation = Conflation(eventlog, rules or ChannelRules(), self.streams_on_channel)
        self.past = Past(eventlog, self.conflation, lambda: self.head.seq)
        self.ended = EndedChannels(eventlog)
        """The channels that have ended by what every stream has been given."""
        self.streams: set[Stream] = set()
        self.laggards: set[Stream] = set()
        """The streams that have something waiting."""
        self.streams_of_subject: Multimap[str, Stream] = Multimap()
        self.streams_of_address: Counter[str] = Counter()
        """How many streams each address has, as `network_of` counts addresses."""
        self.events_fanned_out = 0
        self.deliveries = 0
        self.offers_dropped = 0
        """How often a stream that was behind has not been given events that are not in the log."""
        self.fan_out_seconds = Durations()
        """From an event's arrival from the log until the last stream has been given it."""
        self.endings: Counter[str] = Counter()
        self.disconnects = Disconnects()
        """Notices when clients disconnect."""
        self.sender = BulkSender()
        self.number_from(0)
        self.backlog_limit = backlog_limit
        self.retry = retry
        self.head = eventlog.head
        """The id of the last event whose fan-out has begun: where a stream that joins now begins."""
        self._given = self.head.seq
        """The ``seq`` of the last event before the last fan-out."""
        self._fanning_out = asyncio.Lock()
        self._groups: FanoutGroups[Stream] = FanoutGroups()
        self._replacements = 0
        """How often it has begun anew, at the head of another log or of one that it has not read in time."""
        self._arrival: asyncio.Event | None = None
        """Is set at the next fan-out, where that is waited for."""
        self._empty = asyncio.Event()
        self._following: asyncio.Task[None] | None = None
        self._knows_ended = False
        self._rated: set[Stream] = set()
        """Streams that have a rate: those that have not joined may have all that is up to the head."""
        self._finishing: set[Stream] = set()
        """Streams that end because of an event that is not in the log, once they have written what waits."""

    def jittered_retry(self) -> int:
        """Return a reconnection time in milliseconds, so that clients whose streams end together come back apart."""
        return self.retry // 2 + int(random.random() * (self.retry + 1))

    def use(self, rules: ChannelRules, *, backlog_limit: int, retry: int) -> None:
        """Take other settings; streams that are open keep their backlog limit."""
        self.conflation.use(rules)
        for group in self._groups.all():
            group.fall_out = self._falls_out(group.interest)
        self.backlog_limit = backlog_limit
        self.retry = retry

    def number_from(self, node: int) -> None:
        """Take the number of the node, which is part of those of its streams; there are none yet.

        They are numbered on from the time, and from the greatest number that an earlier process of this node has
        given, which may be ahead where the clock was set back.
        """
        self._node = node
        self._next_number = first_number(node)

    # -- following the log ----------------------------------------------------------------------------------

    def begin(self, after: EventId | None = None) -> None:
        """Follow the log, which must be open by now, and give every stream that has joined what comes.

        Args:
            after: the position up to which the streams that are there have their events; where the log does
                not continue it, or none is given, the hub begins at the log's head.
        """
        head = self.eventlog.head
        self.head = after if after is not None and self.continues(after) else head
        self.past.begin(head.epoch)
        self._knows_ended = False
        self.disconnects.prepare()
        self.sender.prepare()
        self.resume()

    def continues(self, position: EventId) -> bool:
        """Return whether the log is the one that a position is of, and has come as far."""
        head = self.eventlog.head
        return position.epoch == head.epoch and position.seq <= head.seq

    async def pause(self) -> EventId:
        """Give no stream any further event, and return the position up to which all have theirs.

        A fan-out under way is finished first. Streams that are still being replayed to are replayed to up to
        that position. Events may be appended to the log all the while.
        """
        async with self._fanning_out:
            await self._stop_following()
        return self.head

    def resume(self) -> None:
        """Follow the log again, from where the hub was paused; what has been appended since is read from the log."""
        if self._following is None:
            self._following = asyncio.create_task(self._follow(), name="hub-tail")

    async def _stop_following(self) -> None:
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait([self._following])
            self._following = None

    async def _follow(self) -> None:
        while True:
            try:
                if not self._knows_ended:
                    await self._learn_ended()
                self._require_same_log()  # it may have been replaced when no tail was there to tell
                async with aclosing(self.eventlog.tail(self.head.seq)) as tail:
                    async for events in tail:
                        await self._bring(events)
            except EventsTrimmed as error:  # another process publishes faster than this one reads
                log.error("events_trimmed", extra={"detail": str(error)})
                self._begin_anew(EventId(self.head.epoch, error.head))
            except LogReplaced as error:
                log.error("log_replaced", extra={"detail": str(error)})
                self._begin_anew(self.eventlog.head)
            except EventLogUnavailable as error:
                log.warning("event_log_unavailable", extra={"detail": str(error)})
                await asyncio.sleep(RETRY_INTERVAL)

    def _require_same_log(self) -> None:
        """Raise `LogReplaced` where the log has another epoch than the one that is followed."""
        if self.eventlog.head.epoch != self.head.epoch:
            raise LogReplaced

    def _begin_anew(self, head: EventId) -> None:
        """Continue at another head; the streams are ended, and their clients told of the gap when they come back."""
        self.head = head
        self._replacements += 1
        self._advance(head.seq)
        self.past.begin(head.epoch)
        self.ended.learn({})
        self._knows_ended = False
        self.end_all("unavailable")

    async def _bring(self, events: list[Event]) -> None:
        try:
            if len(events) == 1 and self._fan_out_at_once(events[0]):
                return
            async with self._fanning_out:
                await self.fan_out(events)
        except Exception:
            log.exception("a fan-out failed; every stream is ended so that none has a silent gap")
            self.end_all("unavailable")

    def _advance(self, head: int) -> None:
        self.head = EventId(self.head.epoch, head)
        if self._arrival is not None:
            self._arrival.set()
            self._arrival = None

    async def reached(self, position: EventId) -> bool:
        """Wait until the fan-out of an event has begun; return False where the log is replaced by another one.

        Args:
            position: of the log that the hub follows, or that the log has been replaced by.
        """
        replacements = self._replacements
        while self.head.epoch != position.epoch or self.head.seq < position.seq:
            if replacements != self._replacements:
                return False
            self._arrival = self._arrival or asyncio.Event()
            await self._arrival.wait()
        return True

    # -- streams come and go --------------------------------------------------------------------------------

    def register(
        self,
        subscriber: Subscriber,
        channels: tuple[str, ...],
        *,
        types: frozenset[str] | None = None,
        rate: float | None = None,
        framing: Framing,
        number: int | None = None,
    ) -> Stream:
        """Register a new stream; it is given no events until it joins.

        Args:
            subscriber: whose stream it is.
            channels: names and patterns, in the order asked for.
            types: of the events; all where it is None.
            rate: as of `Interest`.
            framing: how its bytes stand in the body of the response.
            number: of a stream that an earlier process numbered.
        """
        if number is None:
            number = self._next_number
        if node_of(number) == self._node:
            self._next_number = max(self._next_number, number + 1)
        stream = Stream(
            number,
            subscriber,
            channels,
            interest=interest_of(channels, types, rate),
            framing=framing,
            backlog_limit=self.backlog_limit,
            laggards=self.laggards,
        )
        self.streams.add(stream)
        if rate is not None:
            self._rated.add(stream)
        self.streams_of_subject.add(subscriber.lease.subject, stream)
        self.streams_of_address[network_of(subscriber.address)] += 1
        for channel in channels:
            self.streams_on_channel[channel] += 1
        return stream

    def join(self, stream: Stream) -> None:
        """Give the stream every event from now on; it must have been brought up to `head`."""
        group = self._groups.get(stream.interest, stream.framing)
        if group is None:
            fall_out = self._falls_out(stream.interest)
            group = FanoutGroup(stream.interest, stream.framing, self.sender, fall_out)
            self._groups.add(group)
        group.add(stream)

    def _falls_out(self, interest: Interest) -> Callable[[Stream], None] | None:
        """Return what is called with a stream of that interest in place of queueing events for it."""
        falls_out = interest.rate is not None or self.conflation.conflated(interest.channels)
        return self._fall_out if falls_out else None

    def unregister(self, stream: Stream) -> None:
        """Forget a stream that has ended, and count its end; calling it again does nothing."""
        if stream in self.streams:
            self.endings[stream.ending or "client"] += 1
            self.withdraw(stream)

    def withdraw(self, stream: Stream) -> None:
        """Forget a stream as if it had not been registered."""
        self.streams.discard(stream)
        self.laggards.discard(stream)
        self._finishing.discard(stream)
        self._rated.discard(stream)
        self.streams_of_subject.discard(stream.subscriber.lease.subject, stream)
        _count_out(self.streams_of_address, network_of(stream.subscriber.address))
        for channel in stream.channels:
            _count_out(self.streams_on_channel, channel)
        if not self.streams:
            self._empty.set()
        self._leave_group(stream)

    def _fall_out(self, stream: Stream) -> None:
        """Have a stream that is behind when events come, or has a rate, read them later: the newest of each key.

        It has been given all before the fan-out that is under way.
        """
        assert stream.group is not None
        if stream.ending is None:
            stream.replay = Replay(self._given)
            self._leave_group(stream)
            if stream.parked:
                stream.resume()

    def _leave_group(self, stream: Stream) -> None:
        if (group := stream.group) is not None:
            group.remove(stream, stream.slot)
            if not len(group):
                self._groups.remove(group)

    def end_all(self, reason: str) -> None:
        """End every stream with ``closing``, each with another time to come back."""
        for stream in list(self.streams):
            stream.end(reason, self.jittered_retry())

    async def drain(self, reason: str, seconds: float) -> None:
        """End every stream with ``closing``; where they are many, spread over so many seconds at the most."""
        streams = list(self.streams)
        random.shuffle(streams)
        steps = max(1, round(min(seconds, len(streams) / DRAIN_RATE) / DRAIN_STEP))
        for step in range(steps):
            for stream in streams[step::steps]:
                stream.end(reason, self.jittered_retry())
            if step + 1 < steps:
                await asyncio.sleep(DRAIN_STEP)

    async def emptied(self) -> None:
        """Wait until there are no streams."""
        self._empty.clear()
        if self.streams:
            await self._empty.wait()

    def subscribers(self, channel: ChannelName) -> list[Stream]:
        """Return the streams on a channel that have joined the present."""
        return [
            stream for group in self._groups.naming(channel) for stream in group.streams if stream is not None
        ]

    async def close(self) -> None:
        """Stop following the log and close every connection that is still open."""
        await self._stop_following()
        for stream in list(self.streams):
            stream.close()
        self.disconnects.close()
        self.sender.close()

    # -- fan-out --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def between_fan_outs(self) -> AsyncIterator[EventId]:
        """Have no fan-out under way, so that each stream that has joined has been given all up to the position."""
        async with self._fanning_out:
            yield self.head

    async def settled(self) -> None:
        """Wait until every stream has been given all that the log had at the call, and no fan-out is under way."""
        while not await self.reached(self.eventlog.head):
            pass
        async with self._fanning_out:
            pass

    async def fan_out(self, events: list[Event]) -> None:
        """Send events that follow the last ones to every stream on their channels."""
        begun = time.perf_counter()
        await self._serve(self._begin(events))
        self.fan_out_seconds.observe(time.perf_counter() - begun)
        if any(event.flags & FINAL for event in events):
            await self._finish_all(self._finished_by(events))

    def _fan_out_at_once(self, event: Event) -> bool:
        """Do as `fan_out` does, in one step, where an event is for few streams; return whether that is so.

        It is the most frequent case. Nothing can happen in between, so it needs no lock but that nothing else is
        under way.
        """
        groups = self._groups.on(event.channel)
        if self._fanning_out.locked() or sum([len(group.streams) for group in groups]) > FANOUT_SLICE:
            return False
        begun = time.perf_counter()
        for group, frames, slots in self._begin([event]):
            group.send(frames, 0, slots)
        self.fan_out_seconds.observe(time.perf_counter() - begun)
        if event.flags & FINAL:
            for stream in self._finished_by([event]):
                self.finish(stream)
        return True

    def _begin(self, events: list[Event]) -> list[tuple[FanoutGroup[Stream], bytes, int]]:
        """Have events be the last ones, and return what is to be sent to whom."""
        self.past.cache.add(events)
        if self.ended:
            self.ended.reopen(event.channel for event in events)
        self.conflation.add(events)
        self._given = self.head.seq
        self._advance(events[-1].seq)
        self.events_fanned_out += len(events)
        return list(self._plan(events, self.past.cache.encode))

    async def pass_on(self, events: list[NewEvent], in_time: Callable[[], bool]) -> None:
        """Give events that are not in the log to the streams that have all that is up to `head`.

        Streams that are behind by much, or by events of the log, are not given them: what is not kept for a stream
        must not end it. While the hub is paused none is.

        Args:
            events: without ids.
            in_time: returns whether they may still be given.
        """
        async with self._fanning_out:
            if self._following is None or not in_time():
                return
            plan = list(self._plan(events, _encode_without_id))
            for stream in self.laggards | self._rated:
                if stream.replay is not None and stream.replay.after >= self.head.seq:
                    self._offer(stream, events)
            await self._serve(plan, is_offer=True)
            if any(event.flags & FINAL for event in events):
                await self._finish_passed_on(events)

    def _offer(self, stream: Stream, events: list[NewEvent]) -> None:
        """Give events without ids to a stream that has all that is up to the head, and has not joined."""
        interest = stream.interest
        wanted = [
            _encode_without_id(event)
            for event in events
            if interest.takes(event.type) and interest.selection.covers(event.channel)
        ]
        if wanted and not stream.offer(stream.framing.frame(b"".join(wanted))):
            self.offers_dropped += 1

    async def _serve(
        self, plan: list[tuple[FanoutGroup[Stream], bytes, int]], *, is_offer: bool = False
    ) -> None:
        served = 0
        for group, frames, slots in plan:
            start = 0
            while start < slots:
                stop = min(slots, start + FANOUT_SLICE - served)
                if is_offer:
                    self.offers_dropped += group.offer(frames, start, stop)
                else:
                    group.send(frames, start, stop)
                served += stop - start
                start = stop
                if served >= FANOUT_SLICE:
                    served = 0
                    await asyncio.sleep(0)

    def _plan(
        self, events: Sequence[AnyEvent], encode: Callable[[AnyEvent], bytes]
    ) -> Iterator[tuple[FanoutGroup[Stream], bytes, int]]:
        """Yield each group with its bytes and its number of slots: streams that join later have the events."""
        encoded: dict[int, bytes] = {}  # once, for all groups
        by_channel: dict[ChannelName, list[int]] = {}
        for number, event in enumerate(events):
            by_channel.setdefault(event.channel, []).append(number)
        channels_of: dict[FanoutGroup[Stream], list[ChannelName]] = {}
        for channel in by_channel:
            for group in self._groups.on(channel):
                channels_of.setdefault(group, []).append(channel)
        joined: dict[tuple[tuple[ChannelName, ...], frozenset[str] | None, Framing], tuple[bytes, int]] = {}
        for group, channels in channels_of.items():
            group.close_holes()
            key = (tuple(channels), group.interest.types, group.framing)
            if key not in joined:
                numbers = sorted(chain.from_iterable(map(by_channel.__getitem__, channels)))
                if group.interest.types is not None:
                    numbers = [number for number in numbers if events[number].type in group.interest.types]
                for number in numbers:
                    if number not in encoded:
                        encoded[number] = encode(events[number])
                payload = b"".join(map(encoded.__getitem__, numbers))
                joined[key] = group.framing.frame(payload) if numbers else b"", len(numbers)
            frames, count = joined[key]
            if count:
                self.deliveries += len(group) * count
                yield group, frames, len(group.streams)

    # -- channels that end ----------------------------------------------------------------------------------

    async def _learn_ended(self) -> None:
        """Learn which channels have ended up to the head, and end the streams on these that have all already.

        What follows the head comes from the log's tail.

        Raises:
            EventLogUnavailable: the log cannot be read.
            LogReplaced: it has another epoch.
        """
        ended = await self.eventlog.ended()
        self._require_same_log()
        self.ended.learn({channel: seq for channel, seq in ended.items() if seq <= self.head.seq})
        if self.ended:
            await self._finish_all(self._finished(self._groups.all()))
        self._knows_ended = True

    def finish(self, stream: Stream) -> None:
        """End a stream that has been given all up to the head, and whose channels have ended.

        A client that is sent some event types only is told that position: its own may be an earlier one, with which it
        would never be told that there is nothing to come.
        """
        position = None if stream.interest.types is None else self.head
        stream.end("ended", None, before=encode_ping(time.time(), position) if position else b"")

    def _finished_by(self, events: list[Event]) -> list[Stream]:
        """Have channels end, and return the streams for which nothing follows and nothing waits.

        A stream that is behind is ended by its pump, once it has written what waits.
        """
        channels = self.ended.end(events)
        return self._finished(dict.fromkeys(chain.from_iterable(map(self._groups.naming, channels))))

    async def _finish_passed_on(self, events: list[NewEvent]) -> None:
        """End the streams for which nothing follows events that are not in the log; their channels do not end."""
        last = {event.channel: event for event in events}
        finals = {event.channel for event in last.values() if event.flags & FINAL}
        streams: list[Stream] = []
        for group in dict.fromkeys(chain.from_iterable(map(self._groups.naming, finals))):
            selection = group.interest.selection
            others = selection.names - finals
            if not selection.patterns and (not others or self.ended.have_ended(others)):
                streams += [stream for stream in group.streams if stream is not None]
        self._finishing.update(streams)
        for number, stream in enumerate(streams, 1):
            if stream.parked and stream in self._finishing:
                self.finish(stream)
            if number % FINISHED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def is_finished(self, stream: Stream) -> bool:
        """Return whether a stream that has been given all up to the head is to end, once it has written what waits."""
        return stream in self._finishing or self.ended.leave_nothing(stream.interest)

    def _finished(self, groups: Iterable[FanoutGroup[Stream]]) -> list[Stream]:
        ended = [group for group in groups if self.ended.leave_nothing(group.interest)]
        return [stream for group in ended for stream in group.streams if stream is not None and stream.parked]

    async def _finish_all(self, streams: list[Stream]) -> None:
        for number, stream in enumerate(streams, 1):
            if stream.parked and self.ended.leave_nothing(stream.interest):  # also now
                self.finish(stream)
            if number % FINISHED_AT_ONCE == 0:
                await asyncio.sleep(0)


def _encode_without_id(event: NewEvent) -> bytes:
    is_text = bool(event.flags & TEXT)
    return encode_without_id(event.type.encode(), event.data, event.retry, is_text=is_text)


def _count_out(counter: Counter[Key], key: Key) -> None:
    """Count one less, and forget what is no longer there at all."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
