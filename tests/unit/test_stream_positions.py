"""The positions that pings tell: never of an event that the stream has not been given, and never back."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sse_app.auth.tokens.claims import Lease
from sse_app.core.channels import ChannelName
from sse_app.core.events import FINAL, NewEvent
from sse_app.core.framing import UNFRAMED
from sse_app.eventlog.base import NO_FLOORS, Page
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.settings.model import KeepaliveSettings
from sse_app.streams import hub as hub_module
from sse_app.streams import past as past_module
from sse_app.streams.connection import StreamConnection
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.pump import Pump
from sse_app.streams.replay_cache import ReplayCache
from sse_app.streams.stream import Replay, Subscriber
from tests.support.room import sequence
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.waiting import until_async

A, B, C = ChannelName("a"), ChannelName("b"), ChannelName("c")
TYPES = ("x", "y", "z")


class SlowLog(MemoryEventLog):
    """A log that takes some turns of the event loop to answer."""

    turns = 0

    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return await super().replay(channels, after, until, min(limit, 7), floors)


class Room:
    """A hub whose streams are all pinged at each step of the sweep."""

    def __init__(self) -> None:
        self.log = SlowLog()
        self.hub = Hub(self.log, backlog_limit=1 << 24, retry=1000)
        self.keepalive = Keepalive(self.hub, KeepaliveSettings())
        self.pump = Pump(self.hub, self.keepalive)
        self.published: list[NewEvent] = []

    async def publish(self, *events: tuple[ChannelName, str], size: int = 10, flags: int = 0) -> None:
        new = [NewEvent(channel, type, b"." * size, flags=flags) for channel, type in events]
        self.published += new
        await self.log.append(new)

    async def ping(self) -> None:
        """Ping every stream, once: by steps that are taken here, and none of the timer's or for one left out by it."""
        keepalive, callback = self.keepalive, self.keepalive._callback
        callback.start()
        assert callback._timer is not None
        callback._timer.cancel()
        for _ in range(keepalive._steps):
            keepalive._left_out = 0
            await keepalive.sweep()
        callback.stop()


class Client:
    """A stream on a real socket pair, and what its client has received."""

    def __init__(
        self,
        room: Room,
        channels: tuple[str, ...],
        types: frozenset[str] | None,
        after: int,
        *,
        buffer: int = 0,
        rate: float | None = None,
    ) -> None:
        ours, self.socket = socket.socketpair()
        for end in (ours, self.socket):
            end.setblocking(False)
            if buffer:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.room, self.after = room, after
        subscriber = Subscriber("c", Lease("s", "i", "t", 0, 4e9), "x")
        self.stream = room.hub.register(subscriber, channels, types=types, rate=rate, framing=UNFRAMED)
        self.stream.replay = Replay(after)
        connection = StreamConnection(ours, UNFRAMED)
        connection.watch(room.hub.disconnects)
        self.stream.attach(connection)
        room.keepalive.watch(self.stream)
        self.task = asyncio.create_task(room.pump.run(self.stream, connection))
        self._reader = EventStreamReader()
        self.received: list[ReceivedEvent] = []
        self.ended = False

    def read(self, size: int = 1 << 20) -> None:
        """Take what has arrived."""
        try:
            while piece := self.socket.recv(size):
                self.received += self._reader.feed(piece)
            self.ended = True
        except BlockingIOError:
            pass

    @property
    def pings(self) -> list[ReceivedEvent]:
        return [event for event in self.received if event.type == "ping"]

    def wanted(self, until: int) -> list[int]:
        """Return the numbers of the events that the stream is to be given of a part of the log."""
        interest = self.stream.interest
        return [
            number
            for number, event in enumerate(self.room.published, 1)
            if self.after < number <= until
            and interest.selection.covers(event.channel)
            and interest.takes(event.type)
        ]

    def check(self) -> None:
        """Check that a client that comes back from any moment would have each event once."""
        last, numbers = self.after, list[int]()
        for event in self.received:
            if event.id is None:
                continue
            number = int(event.id.rpartition("-")[2])
            if event.type == "ping":
                assert number >= last, "it goes back"
                assert self.wanted(number) == numbers, "what it says is there was not given"
            else:
                assert number > last
                numbers.append(number)
            last = number
        assert numbers == self.wanted(len(self.room.published))[: len(numbers)]

    def leave(self) -> None:
        self.socket.close()


@asynccontextmanager
async def opened() -> AsyncIterator[Room]:
    room = Room()
    room.hub.begin()
    try:
        yield room
    finally:
        room.hub.end_all("shutdown")
        await asyncio.wait_for(room.hub.close(), 5)
        await room.log.close()


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 10))]
)
@pytest.mark.gen_test(timeout=60)
async def test_a_ping_tells_a_position_up_to_which_all_was_given_whatever_goes_on_meanwhile(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "FANOUT_SLICE", 2)  # so that pings come in the middle of a fan-out
    monkeypatch.setattr(past_module, "REPLAY_CACHE_BYTES", 2000)
    chance = random.Random(seed)
    async with opened() as room:
        room.log.turns = 3
        clients: list[Client] = []
        pings: list[asyncio.Task[None]] = []
        for _ in range(120):
            match chance.randrange(6):
                case 0:
                    channels = chance.choice([(A,), (B, A), ("*",), (C, "*"), (A, B, C)])
                    types = chance.choice([None, frozenset("x"), frozenset("yz")])
                    after = chance.randint(0, room.hub.head.seq)
                    clients.append(Client(room, channels, types, after, buffer=chance.choice([0, 4096])))
                case 1 if not pings or pings[-1].done():
                    pings.append(asyncio.create_task(room.ping()))
                case 2 if clients:
                    for client in chance.sample(clients, len(clients) // 2):
                        client.read()
                case _:
                    events = [
                        (chance.choice([A, B, C]), chance.choice(TYPES)) for _ in range(chance.randint(1, 6))
                    ]
                    await room.publish(*events, size=chance.choice([10, 2000]))
            await asyncio.sleep(0)
        await asyncio.gather(*pings)
        await room.hub.settled()

        def complete() -> bool:
            for client in clients:
                client.read()
            return not room.hub.laggards

        await until_async(complete, "each client has its events")
        await room.ping()
        told = 0
        for client in clients:
            client.read()
            client.check()
            filtered = client.stream.interest.types is not None
            last = client.pings[-1].id
            assert last == (str(room.hub.head) if filtered else None)
            told += sum(ping.id is not None for ping in client.pings)
            assert filtered or not any(ping.id for ping in client.pings)
            client.leave()
        assert told
        await until_async(lambda: not room.hub.streams, "the streams have ended")


@pytest.mark.gen_test
async def test_while_a_stream_is_replayed_to_its_pings_tell_no_position() -> None:
    async with opened() as room:
        room.log.turns = 50
        await room.publish(*[(A, "y")] * 40)
        await room.hub.settled()
        room.hub.past.cache = ReplayCache(room.hub.head.epoch, 0)
        client = Client(room, (A,), frozenset("x"), 0)
        await asyncio.sleep(0)
        await room.ping()
        assert client.stream.replay is not None
        await until_async(lambda: client.stream.parked, "the replay is over")
        await room.ping()
        client.read()
        assert [ping.id for ping in client.pings] == [None, str(room.hub.head)]
        client.leave()
        await until_async(lambda: not room.hub.streams, "the stream has ended")


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.gen_test
async def test_when_a_channel_ends_a_stream_of_some_types_is_told_the_position_before(joined: bool) -> None:
    """Else a client that was left out the final event would come back for ever."""
    async with opened() as room:
        client = Client(room, (A,), frozenset("x"), 0) if joined else None
        await room.hub.settled()
        await room.publish((A, "x"), (A, "y"))
        await room.publish((A, "y"), flags=FINAL)
        await room.hub.settled()
        client = client or Client(room, (A,), frozenset("x"), 0)

        def ended() -> bool:
            client.read()
            return client.ended

        await until_async(ended, "the stream has ended")
        assert [(event.type, event.id and event.id.rpartition("-")[2]) for event in client.received] == [
            ("x", "1"),
            ("ping", "3"),
            ("closing", None),
        ]
        client.leave()


@pytest.mark.gen_test
async def test_pings_with_positions_wait_for_a_fan_out_and_are_left_out_in_a_handover() -> None:
    async with opened() as room:
        client = Client(room, (A,), frozenset("x"), 0)
        await until_async(lambda: client.stream.parked, "the stream has caught up")
        async with room.hub.between_fan_outs():
            ping = asyncio.create_task(room.ping())
            for _ in range(1000):
                await asyncio.sleep(0)
            client.read()
            assert not client.pings
            room.keepalive.stop()
        await ping
        client.read()
        assert not client.pings, "the next process pings it"
        await room.ping()
        client.read()
        assert len(client.pings) == 1
        client.leave()
        await until_async(lambda: not room.hub.streams, "the stream has ended")


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.gen_test
async def test_a_stream_that_is_behind_has_all_before_it_is_ended_or_goes_on_where_its_channel_does(
    again: bool,
) -> None:
    async with opened() as room:
        slow, quick = Client(room, (A,), None, 0, buffer=4096), Client(room, (A,), None, 0)
        await until_async(lambda: not room.hub.laggards, "both have caught up")
        await room.publish(*[(A, "x")] * 20, size=5000)
        await room.publish((A, "x"), flags=FINAL)
        await room.hub.settled()
        assert slow.stream.ending is None
        if again:
            await room.publish((A, "y"))
            await room.hub.settled()

        def over() -> bool:
            slow.read()
            quick.read()
            return quick.ended and (slow.stream.parked if again else slow.ended)

        await until_async(over, "all was written")
        slow.read()
        assert [event.type for event in slow.received] == ["x"] * 21 + (["y"] if again else ["closing"])
        assert [event.type for event in quick.received] == ["x"] * 21 + ["closing"]
        slow.leave()
        quick.leave()
        await until_async(lambda: not room.hub.streams, "the streams have ended")


@pytest.mark.parametrize("rate", [100, 3])
@pytest.mark.gen_test
async def test_a_stream_with_a_rate_is_ended_whenever_its_turn_comes(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "FANOUT_SLICE", 1)
    async with opened() as room:
        slow = [Client(room, (A,), None, 0, rate=rate) for _ in range(3)]
        quick = [Client(room, (A,), None, 0) for _ in range(50)]
        await until_async(lambda: not room.hub.laggards, "all have caught up")
        await room.publish(*[(A, "x")] * 3)
        await until_async(lambda: all(client.stream.replay is None for client in slow), "each has all")
        await room.publish((A, "x"), flags=FINAL)

        def over() -> bool:
            for client in slow + quick:
                client.read()
            return all(client.ended for client in slow + quick)

        await until_async(over, "all are ended")
        for client in slow + quick:
            assert [event.type for event in client.received] == ["x"] * 4 + ["closing"]
            client.leave()


@pytest.mark.gen_test
async def test_a_stream_with_a_rate_is_left_alone_by_events_of_other_channels_and_types(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened() as room:
        client = Client(room, (A,), frozenset("x"), 0, rate=100)
        await until_async(lambda: client.stream.parked, "it has caught up")
        reads = 0
        read = room.hub.past.read

        def counted(*asked: Any) -> Awaitable[tuple[bytes, int]]:
            nonlocal reads
            reads += 1
            return read(*asked)

        monkeypatch.setattr(room.hub.past, "read", counted)
        for _ in range(10):
            await room.publish((B, "x"), (A, "y"))
            await room.hub.settled()
            await asyncio.sleep(0.02)  # longer than between two of its turns
        assert (reads, client.stream.parked) == (0, True)
        await room.publish((A, "x"))

        def has_come() -> bool:
            client.read()
            return bool(client.received)

        await until_async(has_come, "its own event comes")
        await until_async(lambda: client.stream.replay is None, "there is nothing else for it")
        assert reads == 1
        await room.publish((B, "x"))
        await room.hub.settled()
        await room.ping()
        client.read()
        assert [event.type for event in client.received] == ["x", "ping"]
        assert sequence(str(client.received[-1].id)) == room.hub.head.seq, (
            "the position moves over the others"
        )
        client.leave()
