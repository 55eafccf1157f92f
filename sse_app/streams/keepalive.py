"""The periodic sweep over the streams: pings, the end of dead ones, and the expiry of tokens."""

from __future__ import annotations

import asyncio
import math
import random
import time
from heapq import heapify, heappop, heappush

from sse_app.auth.tokens.claims import Lease
from sse_app.core.events import EventId
from sse_app.core.framing import FRAMINGS, Framing
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.sse import encode_ping
from sse_app.settings.model import KeepaliveSettings
from sse_app.streams.bulk_send import BulkSender
from sse_app.streams.delivery import DeliveryWatch
from sse_app.streams.hub import Hub
from sse_app.streams.send_table import SendTable
from sse_app.streams.stream import Stream

MAX_TICK = 0.25
"""The longest time between two steps of the sweep, in seconds; two where the next one has nothing to do but ping."""

CLOSING_TIMEOUT = 5.0
"""How long a stream that is being ended may take to accept its ``closing``, in seconds."""

ENDED_AT_ONCE = 64
"""How many streams are ended before the event loop runs other callbacks: some milliseconds, with what follows."""

PINGED_AT_ONCE = 32
"""How many streams are looked at and then pinged: what the kernel has of them is still in the processor's caches."""

_FRAMINGS = list(FRAMINGS.values())


class _Turn(SendTable[Stream]):
    """The streams that are pinged together.

    Args:
        framing: that of each stream.
        sender: sends the bytes.
    """

    __slots__ = ("pinged", "pinged_at")

    def __init__(self, framing: Framing, sender: BulkSender) -> None:
        super().__init__(framing, sender)
        self.pinged = 0
        """How many slots were sent the last ping; those behind them are of later streams."""
        self.pinged_at = 0.0
        """When that was (`time.monotonic`)."""

    def place(self, stream: Stream, slot: int) -> None:
        """Tell a stream its slot."""
        stream.ping_turn = self if slot >= 0 else None
        stream.ping_slot = slot

    def ping(self, delivery: DeliveryWatch, position: EventId | None = None) -> None:
        """Look at what has become of the last ping, and send the next.

        Args:
            delivery: looks.
            position: up to which every stream that has joined has been given its events; the next ping tells it. None
                where it is not to tell.
        """
        frames = self.framing.frame(encode_ping(time.time()))
        telling = self.framing.frame(encode_ping(time.time(), position)) if position is not None else None
        now = time.monotonic()
        for start in range(0, len(self.streams), PINGED_AT_ONCE):
            stop = start + PINGED_AT_ONCE
            for slot, stream in enumerate(self.streams[start:stop], start):
                pinged_at = self.pinged_at if slot < self.pinged else now
                if stream is not None and not stream.settled and delivery.look(stream, pinged_at, now):
                    stream.close()
            if telling is None:
                self.send(frames, start, stop)
                continue
            for stream in self.streams[start:stop]:
                if stream is not None:  # one that has not joined is replayed to, up to a position of its own
                    stream.write(frames if stream.group is None else telling)
        self.close_holes()
        self.pinged, self.pinged_at = len(self.streams), now


class _DeadlineQueue:
    """The streams by their deadlines on one clock; that clock may jump.

    Args:
        step: times within so many seconds count as one, the last of them.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._streams: dict[int, set[Stream]] = {}
        self._steps: list[int] = []
        """A heap of the keys, and of some that are no longer there."""

    def add(self, stream: Stream, at: float) -> None:
        """Add a stream with its deadline."""
        step = math.ceil(at / self._step)
        if (streams := self._streams.get(step)) is None:
            self._streams[step] = {stream}
            heappush(self._steps, step)
            if len(self._steps) > 2 * len(self._streams) + 64:
                self._steps = list(self._streams)
                heapify(self._steps)
        else:
            streams.add(stream)

    def discard(self, stream: Stream, at: float) -> None:
        """Remove a stream, if it is there by that deadline."""
        step = math.ceil(at / self._step)
        if (streams := self._streams.get(step)) is not None:
            streams.discard(stream)
            if not streams:
                del self._streams[step]

    def has_due(self, now: float) -> bool:
        """Return whether there may be streams whose deadlines have passed."""
        return bool(self._steps) and self._steps[0] * self._step <= now

    def take_due(self, now: float) -> list[Stream]:
        """Remove the streams whose deadlines have passed, and return them."""
        due: list[Stream] = []
        while self._steps and self._steps[0] * self._step <= now:
            due += self._streams.pop(heappop(self._steps), ())
        return due


class Keepalive:
    """Visits a part of the streams at each tick, so that 10,000 pings spread over the interval.

    Each stream has its turn in the round, which takes one ping interval. A stream is dead when its client has
    acknowledged nothing since the last ping when the next is due, has left anything else that it was seen not to
    acknowledge for half an interval more, has kept its window closed for two, or when the socket has accepted nothing
    for two.

    The wall clock may be set at any time. A stream therefore ends at the earlier of two moments: when its token
    has lived for as long as was left of its life (`Stream.deadline`), and when the wall clock shows its expiry.

    Args:
        hub: whose streams.
        settings: how often a stream is pinged; fixed for the life of the process.
        unanswered: for how many seconds a client may acknowledge nothing of what was sent; 0 is half an interval.
    """

    def __init__(self, hub: Hub, settings: KeepaliveSettings, unanswered: float = 0.0) -> None:
        self._hub = hub
        self._interval = interval = settings.ping_interval
        self._tick = min(MAX_TICK, interval / 8)
        self._steps = round(interval / self._tick)
        self._turns = [_Turn(framing, hub.sender) for framing in _FRAMINGS for _ in range(self._steps)]
        """Those of each framing one after the other, as many as there are steps in a round."""
        self._filtered_turns = [
            _Turn(framing, hub.sender) for framing in _FRAMINGS for _ in range(self._steps)
        ]
        """As above, of streams that are sent some event types only: a ping tells each its position, which moves over
        what is left out: a client that comes back is not replayed all of it again."""
        self._step = 0
        self._left_out = 0
        """How many turns the next sweep has to make up for: those that were left out before it."""
        self._delivery = DeliveryWatch(unanswered or interval / 2, 2 * interval)
        self._deadlines = _DeadlineQueue(MAX_TICK)
        self._expiries = _DeadlineQueue(MAX_TICK)
        self.pings = 0
        self._callback = PeriodicCallback(self.sweep, self._tick)

    def start(self) -> None:
        """Begin to sweep."""
        self._callback.start()

    def stop(self) -> None:
        """Stop sweeping."""
        self._callback.stop()

    def watch(self, stream: Stream) -> None:
        """Take a stream into the round; its first ping comes within an interval."""
        step = int(random.random() * self._steps)
        turns = self._turns if stream.interest.types is None else self._filtered_turns
        turns[_FRAMINGS.index(stream.framing) * self._steps + step].add(stream)
        self._expect_expiry(stream)

    def forget(self, stream: Stream) -> None:
        """Take a stream out of the round."""
        if stream.ping_turn is not None:
            stream.ping_turn.remove(stream, stream.ping_slot)
        self._delivery.forget(stream)
        self._expect_no_expiry(stream)

    def renew(self, stream: Stream, lease: Lease) -> None:
        """Extend a stream to the expiry of a fresh token."""
        self._expect_no_expiry(stream)
        now = time.time()
        stream.subscriber = stream.subscriber.renewed(lease, now)
        stream.deadline = time.monotonic() + lease.remaining(now)
        self._expect_expiry(stream)

    def _expect_expiry(self, stream: Stream) -> None:
        self._deadlines.add(stream, stream.deadline)
        self._expiries.add(stream, stream.subscriber.lease.expires_at)

    def _expect_no_expiry(self, stream: Stream) -> None:
        self._deadlines.discard(stream, stream.deadline)
        self._expiries.discard(stream, stream.subscriber.lease.expires_at)

    async def sweep(self) -> None:
        """End the streams whose tokens have expired, close the dead ones, and ping those whose turn it is."""
        self._reap(time.monotonic())
        filtered: list[_Turn] = []
        for _ in range(self._left_out + 1):
            filtered += self._ping()
        self._left_out = 0
        now, wall = time.monotonic(), time.time()
        for number, stream in enumerate(self._deadlines.take_due(now) + self._expiries.take_due(wall), 1):
            if not self._callback.running:
                # A handover has begun: the next process ends the stream, or this one if the handover fails.
                if stream in self._hub.streams:
                    self._expect_expiry(stream)
            elif (
                stream.deadline <= now or stream.subscriber.lease.expires_at <= wall
            ):  # not renewed meanwhile
                stream.end("token_expired", None)
            if number % ENDED_AT_ONCE == 0:
                await asyncio.sleep(0)
        if filtered:
            await self._ping_between_fan_outs(filtered)
        if self._callback.running and self._may_leave_out_next(now + self._tick, wall + self._tick):
            self._left_out = int(self._callback.leave_out_next())

    def _may_leave_out_next(self, at: float, wall: float) -> bool:
        """Return whether no stream is to be ended then, or watched until it is to be closed.

        Pings may wait for the sweep after it: more of them at a time cost less.
        """
        return not (
            self._hub.laggards
            or self._delivery.watches
            or self._deadlines.has_due(at)
            or self._expiries.has_due(wall)
        )

    def _reap(self, now: float) -> None:
        stalled = (
            now - 2 * self._interval + self._tick / 2
        )  # as it looks at ticks only: two intervals on average
        leaving = now - min(CLOSING_TIMEOUT, 2 * self._interval)
        for stream in list(self._hub.laggards):
            if stream.stalled_since < (stalled if stream.ending is None else leaving):
                stream.ending = stream.ending or "stalled"
                stream.close()
        for stream, reason in list(self._delivery.dead(now)):
            stream.ending = stream.ending or reason
            stream.close()

    def _ping(self) -> list[_Turn]:
        """Ping the streams whose turn it is, and return the turns that are yet to be pinged with positions."""
        self._step = (self._step + 1) % self._steps
        for turn in self._turns[self._step :: self._steps]:
            if turn:
                turn.ping(self._delivery)
                self.pings += len(turn)
        return [turn for turn in self._filtered_turns[self._step :: self._steps] if turn]

    async def _ping_between_fan_outs(self, turns: list[_Turn]) -> None:
        """Ping streams with positions, when none of them has been given a part of what others are still to be given."""
        async with self._hub.between_fan_outs() as position:
            if self._callback.running:  # else a handover has begun, and the next process pings them
                for turn in turns:
                    turn.ping(self._delivery, position)
                    self.pings += len(turn)
