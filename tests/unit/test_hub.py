"""The fan-out: every stream sees the log's order, each event once, whoever comes, goes or falls behind meanwhile."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sse_app.auth.tokens.claims import Lease
from sse_app.core.channel_rules import ChannelRule, ChannelRules
from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import EventId, NewEvent
from sse_app.core.framing import UNFRAMED
from sse_app.core.selection import interest_of
from sse_app.eventlog.base import Beginning, Page, Retention
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.settings.model import KeepaliveSettings
from sse_app.streams import hub as hub_module
from sse_app.streams.connection import StreamConnection
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.past import COMPARED_FLOORS
from sse_app.streams.pump import Pump
from sse_app.streams.stream import Replay, Stream, Subscriber
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.waiting import until_async

A, B, C = ChannelName("a"), ChannelName("b"), ChannelName("c")


class Client:
    """The far end of a stream on a real socket pair, and a pump for it."""

    def __init__(
        self,
        hub: Hub,
        channels: tuple[ChannelName, ...],
        *,
        buffer: int = 0,
        keepalive: Keepalive | None = None,
    ) -> None:
        ours, self.socket = socket.socketpair()
        for end in (ours, self.socket):
            end.setblocking(False)
            if buffer:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.hub = hub
        self.channels = channels
        self.start = hub.head.seq
        self.stream = hub.register(
            Subscriber("c", Lease("s", "i", "t", 0, 2e9), "x"), channels, framing=UNFRAMED
        )
        self.connection = StreamConnection(ours, UNFRAMED)
        self.connection.watch(hub.disconnects)
        self.stream.attach(self.connection)
        hub.join(self.stream)
        pump = Pump(hub, keepalive or Keepalive(hub, KeepaliveSettings()))
        self.loop = asyncio.create_task(pump.run(self.stream, self.connection))
        self.parser = EventStreamReader()
        self.received: list[ReceivedEvent] = []
        self.eof = False

    def read(self, size: int = 1 << 20) -> None:
        """Take what has arrived."""
        try:
            while piece := self.socket.recv(size):
                self.received += self.parser.feed(piece)
            self.eof = True
        except BlockingIOError:
            pass
        except ConnectionError:
            self.eof = True

    def numbers(self) -> list[int]:
        """Return the numbers of the events received."""
        return [int(event.last_id.partition("-")[2]) for event in self.received if event.type == "e"]

    def leave(self) -> None:
        """Go without a word."""
        self.read()
        self.socket.close()


@asynccontextmanager
async def opened(
    *, backlog_limit: int = 1 << 20
) -> AsyncIterator[tuple[Hub, Callable[..., Awaitable[None]]]]:
    log = MemoryEventLog()
    hub = Hub(log, backlog_limit=backlog_limit, retry=1000)
    hub.begin()

    async def publish(*channels: ChannelName, size: int = 10) -> None:
        await log.append([NewEvent(channel, "e", b"x" * size) for channel in channels])

    try:
        yield hub, publish
    finally:
        hub.end_all("shutdown")
        await asyncio.wait_for(hub.close(), 5)
        await log.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
@pytest.mark.gen_test(timeout=60)
async def test_each_stream_has_every_event_of_its_channels_once_and_in_order(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "FANOUT_SLICE", 3)  # so that much happens in the middle of a fan-out
    chance = random.Random(seed)
    async with opened() as (hub, publish):
        everyone: list[Client] = []
        present: list[Client] = []
        published: list[ChannelName] = []
        for _ in range(300):
            match chance.randrange(6):
                case 0 | 1:
                    channels = tuple(chance.sample([A, B, C], chance.randint(1, 3)))
                    client = Client(hub, channels, buffer=chance.choice([0, 4096]))
                    everyone.append(client)
                    present.append(client)
                case 2 if present:
                    leaver = present.pop(chance.randrange(len(present)))
                    leaver.leave()
                case 3 if present:
                    for client in chance.sample(present, len(present) // 2):
                        client.read()
                case _:
                    events = [chance.choice([A, B, C]) for _ in range(chance.randint(1, 5))]
                    published += events
                    await publish(*events, size=chance.choice([10, 3000]))
            if chance.random() < 0.7:
                await asyncio.sleep(0)
        await until_async(lambda: hub.head.seq == len(published), "the hub has all events")

        def expected(client: Client) -> list[int]:
            return [
                n for n, channel in enumerate(published, 1) if n > client.start and channel in client.channels
            ]

        def complete() -> bool:
            for client in present:
                client.read()
            return all(client.numbers() == expected(client) for client in present)

        await until_async(complete, "each client has its events")
        for client in everyone:
            numbers = client.numbers()
            assert numbers == expected(client)[: len(numbers)]
        for client in present:
            client.leave()
        await until_async(lambda: not hub.streams, "the streams have ended")
        assert not hub.laggards
        groups = hub._groups
        assert not groups._groups
        assert not groups._of_channel
        assert not groups._of_pattern
        assert not hub.streams_on_channel
        assert not hub.streams_of_subject


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize(
    "way", ["by its client", "at once", "with closing", "as the owner fails", "in a send"]
)
@pytest.mark.gen_test
async def test_a_descriptor_that_is_given_anew_gets_nothing_of_the_stream_that_had_it(
    way: str, count: int
) -> None:
    async with opened() as (hub, publish):
        keepalive = Keepalive(hub, KeepaliveSettings())
        others = [Client(hub, (A,), keepalive=keepalive) for _ in range(count - 1)]
        client = Client(hub, (A,), keepalive=keepalive)
        keepalive.watch(client.stream)
        await until_async(lambda: not hub.laggards, "all are parked")
        descriptor = client.connection.descriptor
        match way:
            case "at once":
                client.stream.close()
            case "with closing":
                client.stream.end("shutdown", 1)
            case "as the owner fails":

                def fail(stream: Stream) -> None:
                    raise RuntimeError

                client.stream.park(fail)
                with pytest.raises(RuntimeError):
                    client.stream.close()
            case "in a send":
                hub.disconnects.forget(descriptor)
                client.leave()
                await publish(A)
            case _:
                client.leave()
        await until_async(lambda: client.connection.closed, "the stream has ended")
        new = socket.socketpair()
        with new[0], new[1]:
            assert descriptor in (new[0].fileno(), new[1].fileno())
            await publish(A)
            for _ in range(round(KeepaliveSettings().ping_interval / 0.25) + 1):
                await keepalive.sweep()
            await hub.settled()
            for other in others:
                other.read()
                assert other.numbers()
            for end in new:
                end.setblocking(False)
                with pytest.raises(BlockingIOError):
                    end.recv(1)
        if way == "as the owner fails":
            hub.unregister(client.stream)
        for one in (*others, client):
            one.socket.close()


@pytest.mark.gen_test
async def test_a_stream_over_its_backlog_is_ended_with_its_frames_whole() -> None:
    async with opened(backlog_limit=100_000) as (hub, publish):
        slow, quick = Client(hub, (A,), buffer=4096), Client(hub, (A,))
        for _ in range(40):
            await publish(A, size=10_000)
            await asyncio.sleep(0)
            quick.read()
            assert slow.stream.backlog_bytes < 250_000
        await until_async(lambda: slow.stream.ending == "slow_consumer", "the slow stream is ended")
        assert slow.stream.backlog_bytes < 250_000

        def ended() -> bool:
            slow.read()
            quick.read()
            return slow.eof and len(quick.numbers()) == 40

        await until_async(ended, "the streams have ended")
        numbers = slow.numbers()
        assert numbers == list(range(1, len(numbers) + 1))
        assert slow.received[-1].type == "closing"
        assert '"slow_consumer"' in slow.received[-1].data
        assert quick.stream.ending is None
        slow.leave()
        quick.leave()


@pytest.mark.gen_test
async def test_a_stream_is_pinged_once_an_interval_although_every_second_sweep_is_left_out() -> None:
    async with opened() as (hub, _):
        keepalive = Keepalive(hub, KeepaliveSettings(ping_interval=0.8))  # eight turns
        left_out = 0

        async def counted() -> None:
            nonlocal left_out
            left_out += keepalive._left_out
            await keepalive.sweep()

        keepalive._callback._callback = counted
        keepalive.start()
        clients = [Client(hub, (A,)) for _ in range(3)]
        for step, client in zip((1, 2, 2), clients, strict=True):
            turns = keepalive._turns[step :: keepalive._steps]
            next(turn for turn in turns if turn.framing is client.stream.framing).add(client.stream)
        begun = asyncio.get_running_loop().time()

        def pinged() -> bool:
            for client in clients:
                client.read()
            return all(sum(event.type == "ping" for event in each.received) >= 3 for each in clients)

        await until_async(pinged, "each has three pings")
        elapsed = asyncio.get_running_loop().time() - begun
        keepalive.stop()
        assert keepalive.pings <= 3 * (elapsed / 0.8 + 1)
        assert left_out > 0
        for client in clients:
            client.leave()


@pytest.mark.gen_test
async def test_a_stream_that_accepts_nothing_for_two_intervals_is_closed_and_others_are_not() -> None:
    async with opened() as (hub, publish):
        keepalive = Keepalive(hub, KeepaliveSettings(ping_interval=0.4))
        keepalive.start()
        stalled, alive = (Client(hub, (A,), buffer=buffer, keepalive=keepalive) for buffer in (4096, 0))
        for client in (stalled, alive):
            keepalive.watch(client.stream)
        for _ in range(20):
            await publish(A, size=10_000)
        await until_async(lambda: len(hub.laggards) > 0, "a stream lags behind")
        begun = asyncio.get_running_loop().time()

        def gone() -> bool:
            alive.read()
            return stalled.stream not in hub.streams

        await until_async(gone, "the stream has gone")
        assert asyncio.get_running_loop().time() - begun < 3
        assert stalled.stream.ending == "stalled"
        assert alive.stream in hub.streams
        assert any(event.type == "ping" for event in alive.received)
        keepalive.stop()
        stalled.leave()
        alive.leave()


@pytest.mark.gen_test
async def test_a_large_fan_out_lets_others_run_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "FANOUT_SLICE", 10)
    async with opened() as (hub, publish):
        clients = [Client(hub, (A,)) for _ in range(100)]
        await until_async(lambda: all(client.stream.parked for client in clients), "all have joined")
        await publish(A)
        await hub.reached(hub.head._replace(seq=1))
        turns = 0
        while hub.deliveries and not clients[-1].received:
            turns += 1
            await asyncio.sleep(0)
            clients[-1].read()
        assert turns >= 9
        for client in clients:
            client.leave()


@pytest.mark.gen_test
async def test_streams_that_end_leave_nothing_behind_not_even_for_the_garbage_collector() -> None:
    async with opened() as (hub, publish):
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                clients = [Client(hub, (A, B)) for _ in range(50)]
                await publish(A, B)
                await asyncio.sleep(0)
                for client in clients:
                    client.leave()
                await until_async(lambda: not hub.streams, "the streams have ended")
                del clients, client
                await asyncio.sleep(0.01)
            assert sum(isinstance(thing, Stream | StreamConnection) for thing in gc.get_objects()) == 0
        finally:
            gc.enable()


@asynccontextmanager
async def process(path: Path) -> AsyncIterator[Hub]:
    """One of several processes on one log: a log of its own on the file, and a hub that does not follow it yet."""
    log = SqliteEventLog(path)
    await log.open()
    hub = Hub(log, backlog_limit=1 << 20, retry=1000)
    try:
        yield hub
    finally:
        hub.end_all("shutdown")
        await asyncio.wait_for(hub.close(), 5)
        await log.close()


def e(channel: ChannelName) -> NewEvent:
    return NewEvent(channel, "e", b"{}")


@pytest.mark.gen_test
async def test_a_paused_hub_sends_nothing_that_others_append_until_it_goes_on(tmp_path: Path) -> None:
    async with process(tmp_path / "e.db") as hub, process(tmp_path / "e.db") as other:
        hub.begin()
        client = Client(hub, (A, B))
        await asyncio.sleep(0)
        await other.eventlog.append([e(A)])
        await hub.eventlog.append([e(B)])
        await hub.reached(hub.head._replace(seq=2))
        position = await hub.pause()
        assert position.seq == 2
        for _ in range(3):
            await other.eventlog.append([e(A)])
            await hub.eventlog.append([e(B)])
        await hub.eventlog.lost([], (await other.eventlog.append([e(A)]))[0])  # it knows of them
        assert hub.eventlog.head.seq == 9
        await asyncio.sleep(0.3)
        client.read()
        assert client.numbers() == [1, 2]
        assert hub.head == position
        hub.resume()

        def complete() -> bool:
            client.read()
            return len(client.numbers()) >= 9

        await until_async(complete, "all events have come")
        await hub.settled()
        client.read()
        assert client.numbers() == list(range(1, 10))
        client.leave()


@pytest.mark.gen_test
async def test_the_next_process_begins_where_the_hub_was_paused_whatever_others_have_appended(
    tmp_path: Path,
) -> None:
    async with process(tmp_path / "e.db") as before, process(tmp_path / "e.db") as other:
        appending = True

        async def append() -> None:
            while appending:
                await other.eventlog.append([e(A)])

        appends = asyncio.create_task(append())
        before.begin()
        old = Client(before, (A,))
        await before.reached(before.head._replace(seq=20))
        position = await before.pause()
        old.read()
        assert old.numbers() == list(range(1, position.seq + 1))
        await until_async(lambda: other.eventlog.head.seq > position.seq + 10, "others have appended more")
        async with process(tmp_path / "e.db") as successor:
            new = Client(successor, (A,))
            new.start = position.seq
            successor.begin(position)
            await successor.reached(position._replace(seq=position.seq + 20))
            appending = False
            await appends
            (last,) = await other.eventlog.append([e(A)])
            await successor.reached(last)
            await successor.settled()
            new.read()
            old.read()
            assert new.numbers() == list(range(position.seq + 1, last.seq + 1))
            assert old.numbers() == list(range(1, position.seq + 1))
            new.leave()
        old.leave()


@pytest.mark.gen_test
async def test_a_pause_lets_the_fan_out_under_way_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "FANOUT_SLICE", 10)
    async with opened() as (hub, publish):
        clients = [Client(hub, (A,)) for _ in range(100)]
        await until_async(lambda: all(client.stream.parked for client in clients), "all have joined")
        await publish(A)
        await hub.reached(hub.head._replace(seq=1))
        await publish(A)
        position = await hub.pause()
        assert position.seq == 1
        for client in clients:
            client.read()
            assert client.numbers() == [1]
        hub.resume()
        await hub.reached(hub.head._replace(seq=2))
        await hub.settled()
        for client in clients:
            client.read()
            assert client.numbers() == [1, 2]
            client.leave()


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 5))]
)
@pytest.mark.gen_test(timeout=60)
async def test_pauses_at_any_time_lose_and_repeat_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "FANOUT_SLICE", 3)
    chance = random.Random(seed)
    async with opened() as (hub, publish):
        clients = [Client(hub, (A, B)) for _ in range(10)]
        published = 0
        for _ in range(200):
            await publish(*chance.choices([A, B], k=3))
            published += 3
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                position = await hub.pause()
                for client in clients:
                    client.read()
                    assert client.numbers() == list(range(1, position.seq + 1))
                hub.resume()
        await hub.reached(hub.head._replace(seq=published))
        await hub.settled()
        for client in clients:
            client.read()
            assert client.numbers() == list(range(1, published + 1))
            client.leave()


@pytest.mark.gen_test
async def test_a_hub_begins_at_the_head_where_the_log_does_not_go_on_from_a_position(tmp_path: Path) -> None:
    async with process(tmp_path / "e.db") as hub:
        (head,) = await hub.eventlog.append([e(A)])
        for position in (EventId("other", 0), EventId(head.epoch, 2)):
            assert not hub.continues(position)
            hub.begin(position)
            assert hub.head == head
            await hub.pause()


@pytest.mark.expects_logs("events_trimmed")
@pytest.mark.gen_test
async def test_streams_end_where_events_were_trimmed_before_the_hub_had_read_them() -> None:
    log = MemoryEventLog(Retention(size=5))
    hub = Hub(log, backlog_limit=1 << 20, retry=1000)
    hub.begin()
    client = Client(hub, (A,))
    await asyncio.sleep(0)
    await hub.pause()
    await log.append([e(A)] * 20)
    hub.resume()

    def ended() -> bool:
        client.read()
        return client.eof

    await until_async(ended, "the stream has ended")
    assert client.numbers() == []
    assert [event.type for event in client.received] == ["closing"]
    assert '"unavailable"' in client.received[0].data
    assert hub.head.seq == 20
    later = Client(hub, (A,))
    await log.append([e(A)])
    await hub.reached(hub.head._replace(seq=21))
    await hub.settled()
    later.read()
    assert later.numbers() == [21]
    for one in (client, later):
        one.leave()
    await hub.close()
    await log.close()


class CountedLog(MemoryEventLog):
    """Counts how often its past is read."""

    reads = 0

    async def replay(self, *asked: Any) -> Page:
        self.reads += 1
        await asyncio.sleep(0)
        return await super().replay(*asked)


@pytest.mark.parametrize("channels", [3, COMPARED_FLOORS + 1])
@pytest.mark.gen_test
async def test_streams_that_begin_together_in_the_past_cause_one_read_of_a_page(channels: int) -> None:
    names = [ChannelName(f"room.{number}") for number in range(channels)]
    log = CountedLog()
    await log.append([NewEvent(name, "e", b"{}") for name in names] * 3)
    hub = Hub(log, backlog_limit=1 << 20, retry=1000)
    start = await log.begin(names, Beginning(last=2))
    assert len(start.floors) == channels
    interest = interest_of(("room.*",))
    asked = [hub.past.read(interest, start.first - 1, log.head.seq, start.floors) for _ in range(20)]
    answers = await asyncio.gather(*asked)
    assert log.reads == 1
    assert {answer[0].count(b"event: e") for answer in answers} == {min(2 * channels, 500)}
    await log.close()


@pytest.mark.gen_test(timeout=30)
async def test_a_stream_with_a_rate_misses_nothing_that_comes_just_when_its_turn_has_come() -> None:
    async with opened() as (hub, publish):
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        subscriber = Subscriber("c", Lease("s", "i", "t", 0, 2e9), "x")
        stream = hub.register(subscriber, (A,), rate=20, framing=UNFRAMED)
        stream.replay = Replay(hub.head.seq)
        connection = StreamConnection(ours, UNFRAMED)
        connection.watch(hub.disconnects)
        stream.attach(connection)
        pump = Pump(hub, Keepalive(hub, KeepaliveSettings()))
        await pump.run(stream, connection)

        def has_all() -> bool:
            return stream.parked and (stream.replay is None or stream.replay.after == hub.head.seq)

        for steps in range(8):  # at one of these the event is given out right after the turn
            await publish(A)
            await until_async(lambda: hub.head.seq == 2 * steps + 1, "it is given out")  # noqa: B023
            await until_async(has_all, "the stream has it", pause=0.001)
            time.sleep(0.06)  # noqa: ASYNC251 - its next turn comes in the next step of the event loop
            for _ in range(steps):
                await asyncio.sleep(0)
            await publish(A)
            await until_async(lambda: hub.head.seq == 2 * steps + 2 and has_all(), "the stream has it")  # noqa: B023
        received = EventStreamReader().feed(theirs.recv(1 << 20))
        assert len(received) == hub.head.seq
        theirs.close()


@pytest.mark.gen_test(timeout=60)
async def test_a_reload_that_makes_a_channel_conflated_counts_for_the_streams_that_are_there() -> None:
    async with opened(backlog_limit=20_000) as (hub, publish):
        client = Client(hub, (A,), buffer=4096)
        await until_async(lambda: client.stream.parked, "it has joined")
        hub.use(
            ChannelRules([ChannelRule(ChannelPattern("a"), conflate="k")]), backlog_limit=20_000, retry=1000
        )
        for _ in range(100):
            await publish(A, size=3000)
        await until_async(lambda: hub.head.seq == 100, "all is given out")
        assert client.stream.ending is None

        def has_the_last() -> bool:
            client.read()
            return client.numbers()[-1:] == [100]

        await until_async(has_the_last, "the newest comes")
        assert len(client.numbers()) < 100
        client.leave()


class ReplacedLog(MemoryEventLog):
    """A log that becomes another one while it is asked, once, which channels have ended."""

    def __init__(self) -> None:
        super().__init__()
        self.is_replaced = False

    async def ended(self) -> dict[ChannelName, int]:
        found = await super().ended()
        if not self.is_replaced:
            self.is_replaced, self._epoch = True, "another"
            self._tails.replaced(self._seq)  # there is no tail yet that could notice
        return found


@pytest.mark.gen_test
@pytest.mark.expects_logs("log_replaced")
async def test_a_log_that_is_replaced_before_its_tail_begins_is_not_taken_for_the_one_before() -> None:
    log = ReplacedLog()
    hub = Hub(log, backlog_limit=20_000, retry=1000)
    await log.append([NewEvent(A, "e", b"1")] * 3)
    hub.begin()
    client = Client(hub, (A,))
    try:
        await until_async(lambda: hub.head == EventId("another", 3), "the hub follows the other log")
        assert client.stream.ending == "unavailable"
        await log.append([NewEvent(A, "e", b"4")])
        await until_async(lambda: hub.head == EventId("another", 4), "it brings that one's events")
    finally:
        client.socket.close()
        await hub.close()
        await client.loop


@pytest.mark.gen_test
async def test_the_newest_of_each_key_is_not_read_from_a_log_that_the_hub_does_not_follow_yet() -> None:
    log = MemoryEventLog()
    rules = ChannelRules([ChannelRule(ChannelPattern("a"), conflate="k")])
    hub = Hub(log, rules, backlog_limit=20_000, retry=1000)
    hub.begin()
    try:
        (id,) = await log.append([NewEvent(A, "e", b'{"k": 1}')])
        await hub.reached(id)
        log._epoch = "another"
        with pytest.raises(EventLogUnavailable, match="replaced"):
            await hub.past.read(interest_of((A,), None), 0, 1)
    finally:
        await hub.close()
