"""The pump: whatever is published at whichever await of a replay, a stream has each event once and in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager

import pytest

from sse_app.auth.tokens.claims import Lease
from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import NewEvent
from sse_app.core.framing import CHUNKED, UNFRAMED, Framing
from sse_app.eventlog.base import NO_FLOORS, Page
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.settings.model import KeepaliveSettings
from sse_app.streams import past as past_module
from sse_app.streams.connection import StreamConnection
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.pump import Pump, Writer
from sse_app.streams.stream import Replay, Subscriber
from tests.support.sse_reader import ReceivedEvent, read_events
from tests.support.waiting import until_async

A, B, C = ChannelName("a"), ChannelName("b"), ChannelName("c")
PAST = 10
"""How many events are in the log before the hub is made, so that a replay has to read them."""

Interruption = Callable[[], Awaitable[None]]


async def nothing() -> None:
    """Do nothing at an await."""


class Log(MemoryEventLog):
    """A log on which a test does something before and after each read of a replay."""

    at_await: Interruption = staticmethod(nothing)
    broken = False

    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        await self.at_await()
        if self.broken:
            raise EventLogUnavailable("the log is away")
        page = await super().replay(channels, after, until, limit, floors)
        await self.at_await()
        return page


class Room:
    """A log with a past, a hub, and a pump.

    Args:
        log: with the past in it.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.hub = Hub(log, backlog_limit=1 << 20, retry=1000)
        self.keepalive = Keepalive(self.hub, KeepaliveSettings())
        self.pump = Pump(self.hub, self.keepalive)
        self.published: list[ChannelName] = []
        self.clients: list[Client] = []

    async def publish(self, *channels: ChannelName) -> None:
        """Publish an event on each channel, and wait until the fan-out of the last has begun."""
        ids = await self.log.append([NewEvent(channel, "e", b"x" * 10) for channel in channels])
        self.published += channels
        await self.hub.reached(ids[-1])

    def numbers(self, channels: tuple[ChannelName, ...], after: int, until: int) -> list[int]:
        """Return the numbers of the channels' events in a part of the log."""
        return [n for n in range(after + 1, until + 1) if self.published[n - 1] in channels]


class Client:
    """A stream on a real socket pair, and what its client has received."""

    def __init__(
        self,
        room: Room,
        channels: tuple[ChannelName, ...],
        replay: Replay | None,
        framing: Framing = UNFRAMED,
    ) -> None:
        ours, self.socket = socket.socketpair()
        for end in (ours, self.socket):
            end.setblocking(False)
        subscriber = Subscriber("c", Lease("s", "i", "t", 0, 2e9), "x")
        self.stream = room.hub.register(subscriber, channels, framing=framing)
        self.stream.replay = replay
        self.connection = StreamConnection(ours, framing)
        self.connection.watch(room.hub.disconnects)
        self.stream.attach(self.connection)
        self.raw = b""
        self.eof = False
        room.clients.append(self)

    def receive(self) -> None:
        """Take what has arrived."""
        try:
            while piece := self.socket.recv(1 << 20):
                self.raw += piece
            self.eof = True
        except BlockingIOError:
            pass

    def read(self) -> list[ReceivedEvent]:
        """Return all events that have arrived so far."""
        self.receive()
        return read_events(self.raw)

    def has_ended(self) -> bool:
        """Return whether the connection has been closed from the other end."""
        self.receive()
        return self.eof

    def numbers(self) -> list[int]:
        """Return the numbers of the events that have arrived."""
        return [int(event.last_id.partition("-")[2]) for event in self.read() if event.type == "e"]


class RequestWriter:
    """Writes to a connection as the handler of a request does: what is written goes out with the flush.

    Args:
        connection: where to.
        at_await: awaited before and after each flush.
    """

    def __init__(self, connection: StreamConnection, at_await: Interruption = nothing) -> None:
        self._connection = connection
        self._at_await = at_await
        self._written: list[bytes] = []

    def write(self, chunk: bytes) -> None:
        self._written.append(chunk)

    async def flush(self) -> None:
        written, self._written = self._written, []
        sent = self._connection.write(b"".join(written))
        await self._at_await()
        await sent
        await self._at_await()


@asynccontextmanager
async def opened(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    monkeypatch.setattr(past_module, "REPLAY_PAGE_EVENTS", 2)  # so that a replay takes several reads
    log = Log()
    past = [(A, B, C)[n % 3] for n in range(PAST)]
    await log.append([NewEvent(channel, "e", b"x" * 10) for channel in past])
    room = Room(log)
    room.hub.begin()
    room.published += past
    try:
        yield room
    finally:
        room.hub.end_all("shutdown")
        await room.hub.close()
        for client in room.clients:
            client.socket.close()
        await until_async(lambda: not room.hub.streams, "the streams have ended")
        await log.close()


async def run(room: Room, client: Client, writer: Writer) -> None:
    """Run a stream as the handler of its request does."""
    await room.pump.run(client.stream, writer)


POSITIONS = [
    pytest.param((A, B, C), Replay(0), id="from the beginning"),
    pytest.param((A, B, C), Replay(4), id="from the middle"),
    pytest.param((B,), Replay(1), id="one channel of three"),
    pytest.param((A, C), Replay(2, {A: PAST}), id="one channel is lost"),
]


async def replay_with_events_published_at(
    room: Room, channels: tuple[ChannelName, ...], replay: Replay, publishes: Callable[[int], bool]
) -> int:
    """Run a stream whose replay is interrupted by publishes, and return how many awaits it took.

    Args:
        room: with a past of `PAST` events.
        channels: the stream's.
        replay: where it begins.
        publishes: whether to publish at an await, by its number.
    """
    client = Client(room, channels, replay)
    stream = client.stream
    awaits = 0

    def expected(until: int) -> list[int]:
        kept = tuple(channel for channel in channels if channel not in replay.floors)
        resumed = room.numbers(kept, replay.after, min(until, PAST))
        return resumed + room.numbers(channels, max(replay.after, PAST), until)

    async def at_await() -> None:
        nonlocal awaits
        if stream.replay is None:
            return
        assert client.numbers() == expected(stream.replay.after)  # the invariant
        if publishes(awaits):
            await room.publish(A, B, C)
        awaits += 1

    room.log.at_await = at_await
    running = asyncio.create_task(run(room, client, RequestWriter(client.connection, at_await)))
    await until_async(lambda: stream.replay is None or running.done(), "the replay is over")
    if not running.done():
        await room.publish(C, B, A)
        await until_async(
            lambda: client.numbers() == expected(len(room.published)), "the client has its events"
        )
    stream.end("shutdown", None)
    await running
    assert client.numbers() == expected(len(room.published))
    return awaits


@pytest.mark.parametrize(("channels", "replay"), POSITIONS)
@pytest.mark.gen_test
async def test_what_is_published_at_any_await_of_a_replay_comes_once_and_in_order(
    channels: tuple[ChannelName, ...], replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    for when in range(100):
        async with opened(monkeypatch) as room:
            awaits = await replay_with_events_published_at(room, channels, replay, when.__eq__)
        if awaits <= when:
            break  # there is no such await any more
    assert when >= 4


@pytest.mark.parametrize(("channels", "replay"), POSITIONS)
@pytest.mark.gen_test
async def test_what_is_published_at_each_await_of_a_replay_comes_once_and_in_order(
    channels: tuple[ChannelName, ...], replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(monkeypatch) as room:
        awaits = await replay_with_events_published_at(room, channels, replay, range(30).__contains__)
        assert awaits >= 30


@pytest.mark.gen_test
async def test_pings_of_a_replay_go_out_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A, B, C), Replay(0))

        async def at_await() -> None:
            client.stream.write(b"event: ping\ndata: x\n\n")

        room.log.at_await = at_await
        running = asyncio.create_task(run(room, client, RequestWriter(client.connection)))
        await until_async(lambda: client.numbers() == list(range(1, PAST + 1)), "the client has its events")
        types = [event.type for event in client.read()]
        assert types[:6] == ["e", "e", "ping", "ping", "e", "e"]
        client.stream.end("shutdown", None)
        await running


@pytest.mark.gen_test
async def test_a_stream_that_is_ended_while_it_is_replayed_to_has_its_closing_after_whole_events(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A, B, C), Replay(0))

        async def at_await() -> None:
            if client.stream.replay and client.stream.replay.after >= 4:
                client.stream.end("revoked", None)

        room.log.at_await = at_await
        await run(room, client, RequestWriter(client.connection, at_await))
        numbers = client.numbers()
        assert 4 <= len(numbers) < PAST
        assert numbers == list(range(1, len(numbers) + 1))
        assert client.read()[-1].type == "closing"
        assert client.eof
        assert client.stream not in room.hub.streams
        assert not room.hub.laggards


@pytest.mark.gen_test
async def test_a_client_that_goes_while_it_is_replayed_to_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A, B, C), Replay(0))
        room.keepalive.watch(client.stream)

        async def at_await() -> None:
            if client.stream.replay and client.stream.replay.after >= 4:
                client.socket.close()
                await until_async(lambda: client.stream.closed, "the stream is closed")

        room.log.at_await = at_await
        await run(room, client, RequestWriter(client.connection))
        assert not room.hub.streams
        assert not room.hub.laggards
        assert not any(room.keepalive._turns)
        assert room.hub.endings == {"client": 1}


@pytest.mark.expects_logs("replay_failed")
@pytest.mark.gen_test
async def test_a_replay_that_cannot_be_read_ends_the_stream_as_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A, B, C), Replay(0))

        async def at_await() -> None:
            room.log.broken = client.numbers() != []

        room.log.at_await = at_await
        await run(room, client, RequestWriter(client.connection))
        assert client.numbers() == [1, 2]
        closing = client.read()[-1]
        assert (closing.type, '"unavailable"' in closing.data) == ("closing", True)


@pytest.mark.parametrize("framing", [CHUNKED, UNFRAMED], ids=repr)
@pytest.mark.gen_test
async def test_a_replay_is_framed_as_the_stream_is(framing: Framing, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A, B, C), Replay(0), framing)
        running = asyncio.create_task(run(room, client, RequestWriter(client.connection)))
        await running
        client.stream.end("shutdown", None)
        await until_async(client.has_ended, "the stream has ended")
        body, payload = client.raw, b""
        if framing is CHUNKED:
            while (size := int(body[: body.index(b"\r\n")], 16)) != 0:
                _, _, body = body.partition(b"\r\n")
                payload += body[:size]
                assert body[size : size + 2] == b"\r\n"
                body = body[size + 2 :]
            assert body == CHUNKED.end
        else:
            payload = body
        events = read_events(payload)
        assert [event.type for event in events] == ["e"] * PAST + ["closing"]


@pytest.mark.gen_test
async def test_streams_that_resume_together_from_one_position_cause_one_read_of_each_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        reads = 0

        async def at_await() -> None:
            nonlocal reads
            reads += 1
            await asyncio.sleep(0)

        room.log.at_await = at_await
        clients = [Client(room, (A, B, C), Replay(0)) for _ in range(50)]
        await asyncio.gather(*(run(room, client, client.connection) for client in clients))
        assert all(client.numbers() == list(range(1, PAST + 1)) for client in clients)
        assert reads == 2 * PAST / 2  # before and after each page of two events


@pytest.mark.expects_logs("replay_failed")
@pytest.mark.gen_test
async def test_a_read_that_fails_ends_all_streams_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(monkeypatch) as room:
        room.log.broken = True
        clients = [Client(room, (A, B, C), Replay(0)) for _ in range(5)]
        await asyncio.gather(*(run(room, client, client.connection) for client in clients))
        assert [client.read()[-1].type for client in clients] == ["closing"] * 5


@pytest.mark.gen_test
async def test_a_stream_that_is_given_up_while_its_past_is_read_takes_it_from_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        room.log.at_await = lambda: asyncio.sleep(0.01)
        first, second = (Client(room, (A, B, C), Replay(0)) for _ in range(2))
        running = [asyncio.create_task(run(room, client, client.connection)) for client in (first, second)]
        await asyncio.sleep(0)
        running[0].cancel()
        await asyncio.wait(running)
        assert running[0].cancelled()
        assert first.stream not in room.hub.streams
        assert second.numbers() == list(range(1, PAST + 1))


# Streams of an earlier process


@pytest.mark.gen_test
async def test_an_adopted_stream_at_the_head_gets_a_task_only_once_it_falls_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A,), None)
        tasks = asyncio.all_tasks()
        room.pump.adopt(client.stream)
        await room.publish(A)
        await until_async(lambda: client.numbers() == [PAST + 1], "the client has its events")
        assert asyncio.all_tasks() == tasks
        client.stream.end("shutdown", None)
        assert len(asyncio.all_tasks() - tasks) == 1
        await until_async(client.has_ended, "the stream has ended")
        assert client.read()[-1].type == "closing"
        assert not room.hub.streams


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.gen_test
async def test_an_adopted_stream_goes_from_the_past_to_the_present_as_others_do(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A, B, C), Replay(2))
        published = 0

        async def at_await() -> None:
            nonlocal published
            if interrupted and published < 5:
                published += 1
                await room.publish(A, B, C)

        room.log.at_await = at_await
        room.pump.adopt(client.stream)
        await until_async(lambda: client.stream.replay is None, "the replay is over")
        await room.publish(A)
        await until_async(
            lambda: client.numbers() == list(range(3, len(room.published) + 1)), "the client has its events"
        )


@pytest.mark.gen_test
async def test_what_an_adopted_stream_still_had_to_be_sent_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A,), None)
        rest = b"".join(b"id: x-%d\nevent: e\ndata: %b\n\n" % (n, b"y" * 1000) for n in range(1000))
        client.connection.queue_rest(rest, 0)
        room.pump.adopt(client.stream)
        await room.publish(A)
        await until_async(lambda: client.numbers() == [*range(1000), PAST + 1], "the client has its events")


@pytest.mark.gen_test
async def test_an_adopted_stream_that_is_to_be_ended_gets_its_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(monkeypatch) as room:
        client = Client(room, (A,), None, CHUNKED)
        client.stream.end("revoked", None)
        room.pump.adopt(client.stream)
        await until_async(client.has_ended, "the stream has ended")
        assert b'"revoked"' in client.raw
        assert client.raw.endswith(CHUNKED.end)
        assert not room.hub.streams
