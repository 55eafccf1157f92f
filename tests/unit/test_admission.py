"""Admission: each check and their order, where a stream begins, and its first events; a real hub and log, no HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sse_app.auth.tokens.claims import Claims
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.cluster.base import Alone
from sse_app.core.channel_rules import ChannelRule, ChannelRules
from sse_app.core.channels import ADMIN_CHANNEL, ChannelName, ChannelPattern
from sse_app.core.counters import Metrics
from sse_app.core.errors import EventLogUnavailable, Forbidden, TokenRefused, TooManyStreams, UnknownChannel
from sse_app.core.events import FINAL, Event, EventId, NewEvent
from sse_app.core.framing import CHUNKED, UNFRAMED
from sse_app.core.lifecycle import Lifecycle
from sse_app.eventlog.base import Beginning, Floors, Retention
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.settings.channels import rules_of
from sse_app.settings.model import KeepaliveSettings, Limits
from sse_app.streams.admission import Admission, Admitted, NothingToCome, Subscription, TurnedAway
from sse_app.streams.connection import StreamConnection
from sse_app.streams.elsewhere import StreamsElsewhere
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.passing_on import PassingOn
from sse_app.streams.publisher import Publisher
from sse_app.streams.pump import Pump
from sse_app.streams.stream import Replay, Stream
from tests.support.sse_reader import ReceivedEvent, read_events

A, B, UNKNOWN = ChannelName("a"), ChannelName("b"), ChannelName("unknown")
NOW = 4e9
"""The time by the clock of the tokens; later than the real one, by which the streams live."""
KEPT = 5
"""How many events of a channel the log keeps."""

pytestmark = pytest.mark.gen_test


async def nothing() -> None:
    """Do nothing while the log is asked."""


class Log(MemoryEventLog):
    """A log that can be away, and on which a test does something while it is asked.

    Attributes:
        broken: whether it is away.
        asked: how often it was asked for lost channels.
        begun: how often it was asked where streams begin.
        meanwhile: is called before it answers that.
        then: is called once, when it has answered anything and the answer has not come yet.
    """

    broken = False
    asked = 0
    begun = 0
    meanwhile: Callable[[], Awaitable[object]] = staticmethod(nothing)
    then: Callable[[], Awaitable[object]] = staticmethod(nothing)

    async def lost(self, channels: Collection[str], position: EventId) -> dict[str, str]:
        self.asked += 1
        await self.meanwhile()
        if self.broken:
            raise EventLogUnavailable("the log is away")
        found = await super().lost(channels, position)
        await self._have_answered()
        return found

    async def begin(self, channels: Collection[str], beginning: Beginning) -> Floors:
        self.begun += 1
        begun = await super().begin(channels, beginning)
        await self._have_answered()
        return begun

    async def latest(self, channels: Collection[str], limit: int) -> list[Event]:
        found = await super().latest(channels, limit)
        await self._have_answered()
        return found

    async def _have_answered(self) -> None:
        then, self.then = self.then, nothing
        await then()

    def replace(self) -> None:
        """Become another log; the hub that follows it is told by `tell`."""
        self._epoch = "another"

    def tell(self) -> None:
        """Tell the hub that the log was replaced."""
        self._tails.replaced(self._seq)

    async def replaced(self, hub: Hub) -> None:
        """Become another log, which the hub follows."""
        self.replace()
        self.tell()
        await hub.reached(self.head)


class Room:
    """The parts that admission works with."""

    def __init__(self, keys: Path) -> None:
        self.now = NOW
        self.log = Log(Retention(size=KEPT))
        self.hub = Hub(self.log, backlog_limit=1 << 20, retry=1000)
        self.keepalive = Keepalive(self.hub, KeepaliveSettings())
        self.metrics = Metrics()
        self.lifecycle = Lifecycle()
        self.lifecycle.ready = True
        limits = Limits(streams_per_user=2, streams_per_address=3)
        passing_on = PassingOn(self.hub, Alone())
        self.admission = Admission(
            self.hub,
            self.keepalive,
            Publisher(self.log, rules_of(["a", "b"]), limits, passing_on),
            Tokens(KeyRing.load(keys), issuer="i", audience="a", longest=1e10, clock=lambda: self.now),
            self.metrics,
            self.lifecycle,
            limits,
            capacity=4,
            elsewhere=StreamsElsewhere(Alone(), self.hub, limits),
        )

    async def publish(self, channel: ChannelName, count: int = 1) -> EventId:
        """Publish events, wait until the fan-out of the last has begun, and return its id."""
        ids = await self.log.append([NewEvent(channel, "e", b"x")] * count)
        await self.hub.reached(ids[-1])
        return ids[-1]

    async def admit(
        self,
        *channels: ChannelName,
        user: str = "ann",
        grants: Grants | None = None,
        position: str | None = None,
        address: str = "here",
    ) -> Admitted | TurnedAway | NothingToCome:
        """Ask for a stream; the token grants the channels ``a`` and ``unknown`` unless told otherwise."""
        grants = Grants.of(["a", "unknown"]) if grants is None else grants
        claims = Claims(user, "session", "token", NOW - 10, NOW + 60, grants)
        wanted = Subscription("tab", channels or (A,), position, address, UNFRAMED)
        return await self.admission.admit(claims, wanted)

    async def opened(self, *channels: ChannelName, **asked: Any) -> Admitted:
        """Ask for a stream and get it; the token grants ``a`` and ``b``."""
        admitted = await self.admit(*channels, **{"grants": Grants.of(["a", "b"]), **asked})
        assert isinstance(admitted, Admitted)
        return admitted


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@asynccontextmanager
async def room_of(keys: Path) -> AsyncIterator[Room]:
    room = Room(keys)
    room.hub.begin()
    try:
        yield room
    finally:
        for stream in list(room.hub.streams):
            room.admission.abandon(stream)
        await room.hub.close()
        await room.log.close()


def events_of(admitted: Admitted) -> list[ReceivedEvent]:
    return read_events(admitted.first_events)


def connected(admitted: Admitted) -> tuple[ReceivedEvent, dict[str, Any]]:
    first = events_of(admitted)[0]
    assert first.type == "connected"
    return first, json.loads(first.data)


def resets(admitted: Admitted) -> dict[str, str]:
    return {
        data["channel"]: data["reason"]
        for event in events_of(admitted)[1:]
        if event.type == "reset" and (data := json.loads(event.data))
    }


# The checks and their order


async def test_a_channel_that_the_token_does_not_grant_is_forbidden(keys: Path) -> None:
    async with room_of(keys) as room:
        with pytest.raises(Forbidden, match=r"subscribe to b; it allows a, unknown$"):
            await room.admit(A, B)


async def test_a_channel_that_is_not_configured_is_unknown(keys: Path) -> None:
    async with room_of(keys) as room:
        with pytest.raises(UnknownChannel, match=r"no channel unknown; the settings have a, b$"):
            await room.admit(A, UNKNOWN)


async def test_the_admin_channel_takes_the_admin_grant_and_needs_no_configuration(keys: Path) -> None:
    async with room_of(keys) as room:
        with pytest.raises(Forbidden):
            await room.admit(ADMIN_CHANNEL, grants=Grants.of(["**"]))
        assert isinstance(await room.admit(ADMIN_CHANNEL, grants=Grants.of(admin=True)), Admitted)


@pytest.mark.parametrize("position", [None, "e-1"])
async def test_a_user_has_so_many_streams_and_others_still_theirs(keys: Path, position: str | None) -> None:
    async with room_of(keys) as room:
        for address in ("1", "2"):
            await room.opened(address=address, position=position)
        with pytest.raises(TooManyStreams, match="this user has 2 streams open"):
            await room.admit(address="3", position=position)
        await room.opened(user="bob", position=position)


async def test_an_address_has_so_many_streams_and_others_still_theirs(keys: Path) -> None:
    async with room_of(keys) as room:
        for user in ("1", "2", "3"):
            await room.opened(user=user)
        with pytest.raises(TooManyStreams, match="this address has 3 streams open"):
            await room.admit(user="4")
        await room.opened(user="4", address="there")


async def test_a_place_that_becomes_free_is_given_again(keys: Path) -> None:
    async with room_of(keys) as room:
        streams = [(await room.opened()).stream for _ in range(2)]
        room.admission.abandon(streams[0])
        await room.opened()
        with pytest.raises(TooManyStreams):
            await room.admit()


async def test_other_limits_hold_from_the_next_stream_on(keys: Path) -> None:
    async with room_of(keys) as room:
        await room.opened()
        room.admission.use(Limits(streams_per_user=1, streams_per_address=10), capacity=10)
        with pytest.raises(TooManyStreams, match="this user has 1 streams open"):
            await room.admit()


async def test_where_the_server_is_full_streams_are_turned_away(keys: Path) -> None:
    async with room_of(keys) as room:
        for user in ("1", "2", "3", "4"):
            await room.opened(user=user, address=user)
        turned_away = await room.admit(user="5", address="5")
        assert isinstance(turned_away, TurnedAway)
        assert turned_away.reason == "unavailable"
        (closing,) = read_events(turned_away.closing)
        assert closing.type == "closing"
        data = json.loads(closing.data)
        assert data == {"reason": "unavailable", "retry": closing.retry}
        assert 500 <= data["retry"] <= 1500
        assert room.metrics.refusals == {"unavailable": 1}
        assert len(room.hub.streams) == 4


async def test_while_the_server_drains_streams_are_turned_away(keys: Path) -> None:
    async with room_of(keys) as room:
        room.lifecycle.draining = True
        turned_away = await room.admit()
        assert isinstance(turned_away, TurnedAway)
        assert turned_away.reason == "shutdown"
        assert not room.hub.streams


async def test_while_the_log_is_away_streams_are_turned_away_also_those_without_a_position(
    keys: Path,
) -> None:
    async with room_of(keys) as room:
        await room.log.close()
        for position in (None, "e-1"):
            turned_away = await room.admit(position=position)
            assert isinstance(turned_away, TurnedAway)
            assert turned_away.reason == "unavailable"
        assert room.log.asked == 0


async def test_a_log_that_cannot_be_asked_turns_a_resuming_stream_away(keys: Path) -> None:
    async with room_of(keys) as room:
        room.log.broken = True
        turned_away = await room.admit(position="e-1")
        assert isinstance(turned_away, TurnedAway)
        assert turned_away.reason == "unavailable"
        assert not room.hub.streams


async def test_the_checks_come_in_the_order_of_the_contract(keys: Path) -> None:
    async with room_of(keys) as room:
        for address in ("here", "2"):  # ann has all of hers
            await room.opened(address=address)
        for user in ("1", "2"):  # here are all of theirs, and the server is full
            await room.opened(user=user)
        room.lifecycle.draining = True
        await room.log.close()
        everything = Grants.of(["**"])
        wrong: dict[str, Any] = {"position": "e-1", "grants": Grants.of(["unknown"])}
        with pytest.raises(Forbidden):
            await room.admit(UNKNOWN, A, **wrong)
        with pytest.raises(UnknownChannel):
            await room.admit(A, UNKNOWN, **wrong | {"grants": everything})
        with pytest.raises(TooManyStreams, match="user"):
            await room.admit(A, **wrong | {"grants": everything})
        with pytest.raises(TooManyStreams, match="address"):
            await room.admit(A, **wrong | {"grants": everything, "user": "bob"})
        turned_away = await room.admit(A, **wrong | {"grants": everything, "user": "bob", "address": "there"})
        assert isinstance(turned_away, TurnedAway)
        assert turned_away.reason == "shutdown"
        assert room.log.asked == 0


# What changes while the log is asked


async def test_streams_that_resume_together_do_not_exceed_the_limit(keys: Path) -> None:
    async with room_of(keys) as room:
        position = str(await room.publish(A))
        await room.publish(A)  # at the head the log would not have to be asked
        room.log.meanwhile = lambda: asyncio.sleep(0)
        answers = await asyncio.gather(
            *(room.admit(position=position) for _ in range(5)), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [Admitted] * 2 + [TooManyStreams] * 3
        assert len(room.hub.streams) == 2


async def test_a_drain_that_begins_while_the_log_is_asked_turns_the_stream_away(keys: Path) -> None:
    async with room_of(keys) as room:
        position = str(await room.publish(A))
        await room.publish(A)  # at the head the log would not have to be asked

        async def drain() -> None:
            room.lifecycle.draining = True

        room.log.meanwhile = drain
        turned_away = await room.admit(position=position)
        assert isinstance(turned_away, TurnedAway)
        assert turned_away.reason == "shutdown"
        assert not room.hub.streams


async def test_a_token_that_expires_while_the_log_is_asked_is_refused(keys: Path) -> None:
    async with room_of(keys) as room:
        position = str(await room.publish(A))
        await room.publish(A)  # at the head the log would not have to be asked

        async def wait() -> None:
            room.now += 60

        room.log.meanwhile = wait
        with pytest.raises(TokenRefused, match="expired"):
            await room.admit(position=position)
        assert not room.hub.streams
        assert not any(room.keepalive._turns)


async def test_at_the_head_a_stream_resumes_without_asking_the_log(keys: Path) -> None:
    async with room_of(keys) as room:
        position = str(await room.publish(A))
        admitted = await room.opened(position=position)
        assert admitted.recovered
        assert room.log.asked == 0
        assert [event.type for event in events_of(admitted)] == ["connected"]
        assert events_of(admitted)[0].id == position


async def test_what_the_log_has_behind_the_head_comes_to_a_stream_that_resumes_at_it(keys: Path) -> None:
    async with room_of(keys) as room:
        position = await room.publish(A)
        await room.hub.pause()  # from here on the hub knows of nothing that is appended
        await room.log.append([NewEvent(A, "e", b"later")])
        admitted = await room.opened(position=str(position))
        assert admitted.recovered
        assert admitted.stream.replay == Replay(position.seq)
        ours, client = socket.socketpair()
        with client:
            client.settimeout(30)
            ours.setblocking(False)
            connection = StreamConnection(ours, UNFRAMED)
            admitted.stream.attach(connection)
            await Pump(room.hub, room.keepalive).run(admitted.stream, connection)
            room.hub.resume()
            await room.hub.reached(position._replace(seq=position.seq + 1))
            await room.hub.settled()
            assert client.recv(4096) == b"id: %b-2\nevent: e\ndata: later\n\n" % position.epoch.encode()
            connection.close()


# Where a stream begins, and its first events


async def test_a_new_stream_begins_at_the_head(keys: Path) -> None:
    async with room_of(keys) as room:
        head = await room.publish(A, 3)
        admitted = await room.opened(A, B)
        assert admitted.stream.replay == Replay(head.seq)
        assert admitted.recovered is False
        event, data = connected(admitted)
        assert event.id == str(head)
        assert event.retry == data["retry"] == admitted.stream.retry
        assert 500 <= data["retry"] <= 1500
        assert data["channels"] == ["a", "b"]
        assert data["channel"] == "a"
        assert data["client_id"] == "tab"
        assert data["recovered"] is False
        assert data["message"] == "connected to a, b"
        assert data["expires_in"] > 0
        assert resets(admitted) == {}
        assert room.log.asked == 0
        assert (room.metrics.streams_opened, room.metrics.streams_resumed) == (1, 0)


async def test_a_stream_that_resumes_begins_at_its_position(keys: Path) -> None:
    async with room_of(keys) as room:
        position = await room.publish(A)
        await room.publish(A, 2)
        admitted = await room.opened(position=str(position))
        assert admitted.stream.replay == Replay(position.seq)
        assert admitted.recovered is True
        event, data = connected(admitted)
        assert (event.id, data["recovered"]) == (str(position), True)
        assert resets(admitted) == {}
        assert (room.metrics.streams_opened, room.metrics.streams_resumed) == (1, 1)


async def test_a_channel_that_cannot_be_continued_begins_at_the_head_and_the_others_replay(
    keys: Path,
) -> None:
    async with room_of(keys) as room:
        position = await room.publish(B)
        head = await room.publish(A, KEPT + 1)
        admitted = await room.opened(A, B, position=str(position))
        assert admitted.stream.replay == Replay(position.seq, {A: head.seq})
        assert admitted.recovered is False
        event, data = connected(admitted)
        assert (event.id, data["recovered"]) == (str(position), False)
        assert resets(admitted) == {"a": "history_trimmed"}


@pytest.mark.parametrize(
    ("position", "reason", "id"),
    [
        ("no id", "position_unreadable", "unreadable-0"),
        ("another-3", "log_replaced", "another-3"),
        ("EPOCH-999", "position_ahead", "EPOCH-999"),
    ],
)
async def test_where_no_channel_can_be_continued_all_begin_at_the_head(
    keys: Path, position: str, reason: str, id: str
) -> None:
    async with room_of(keys) as room:
        head = await room.publish(A, 3)
        admitted = await room.opened(A, B, position=position.replace("EPOCH", head.epoch))
        assert admitted.stream.replay == Replay(head.seq, {A: head.seq, B: head.seq})
        assert resets(admitted) == {"a": reason, "b": reason}
        event, data = connected(admitted)
        assert event.id == id.replace("EPOCH", head.epoch)
        assert data["recovered"] is False
        assert room.metrics.streams_resumed == 1


@pytest.mark.expects_logs("log_replaced")
async def test_no_stream_begins_in_a_log_that_was_replaced_before_the_hub_knows_of_it(keys: Path) -> None:
    async with room_of(keys) as room:
        head = await room.publish(A, 3)
        ahead = EventId(head.epoch, head.seq + 5)  # of another node, which had heard of more
        room.log.replace()
        opening = asyncio.create_task(room.opened(A, position=str(ahead)))
        await asyncio.sleep(0.05)
        assert (
            not room.hub.streams
        )  # one that began at the hub's old head would be told a position behind its own
        room.log.tell()
        admitted = await opening
        assert resets(admitted) == {"a": "log_replaced"}
        assert admitted.stream.replay == Replay(head.seq, {A: head.seq})
        assert (room.hub.head, admitted.stream.ending) == (EventId("another", head.seq), None)


@pytest.mark.parametrize("hub_knows", [True, False])
@pytest.mark.expects_logs("log_replaced")
async def test_a_stream_is_turned_away_where_the_log_is_replaced_while_it_is_asked_whether_channels_have_ended(
    keys: Path, hub_knows: bool
) -> None:
    async with room_of(keys) as room:
        (position,) = await room.log.append([NewEvent(A, "e", b"x", flags=FINAL)])
        await room.hub.settled()

        async def replace() -> None:
            room.log.replace()
            if hub_knows:
                room.log.tell()
                await room.hub.reached(room.log.head)

        room.log.then = replace
        admitted = await room.admit(A, position=str(position))
        assert isinstance(admitted, TurnedAway)
        assert not room.hub.streams


@pytest.mark.expects_logs("log_replaced")
async def test_an_answer_of_a_log_that_was_replaced_before_it_came_is_asked_for_again(keys: Path) -> None:
    async with room_of(keys) as room:
        position = await room.publish(A)
        await room.publish(A)
        room.log.then = partial(room.log.replaced, room.hub)
        admitted = await asyncio.wait_for(room.opened(position=str(position)), 20)
        assert resets(admitted) == {"a": "log_replaced"}


@pytest.mark.expects_logs("log_replaced")
@pytest.mark.parametrize("conflate", ["k", ""])
async def test_a_stream_begins_in_the_past_of_one_log(keys: Path, conflate: str) -> None:
    async with room_of(keys) as room:
        rules = ChannelRules([ChannelRule(ChannelPattern("a"), conflate=conflate)])
        room.hub.use(rules, backlog_limit=9, retry=1)
        await room.publish(A, 2)
        room.log.then = partial(room.log.replaced, room.hub)
        claims = Claims("ann", "session", "token", NOW - 10, NOW + 60, Grants.of(["a"]))
        wanted = Subscription("tab", (A,), None, "here", UNFRAMED, beginning=Beginning(last=1))
        admitted = await asyncio.wait_for(room.admission.admit(claims, wanted), 20)
        assert isinstance(admitted, Admitted)
        assert connected(admitted)[0].id == ("another-0" if conflate else "another-1")
        # Both times; where there is a table, of it and of the channels.
        assert room.log.begun == (4 if conflate else 2)


@pytest.mark.parametrize("flags", [0, FINAL])
async def test_an_event_on_an_ended_channel_that_is_yet_to_be_fanned_out_comes_to_a_client_that_returns(
    keys: Path, flags: int
) -> None:
    async with room_of(keys) as room:
        await room.log.append([NewEvent(A, "e", b"x", flags=FINAL)])
        await room.hub.settled()
        position = room.hub.head
        await room.hub.pause()
        await room.log.append([NewEvent(A, "e", b"later", flags=flags)])
        admitted = await room.opened(position=str(position))
        assert admitted.recovered
        assert admitted.stream.replay == Replay(position.seq)
        assert not room.hub.is_finished(admitted.stream)  # else it ended before the event comes


async def test_the_first_events_are_framed_as_the_stream_is(keys: Path) -> None:
    async with room_of(keys) as room:
        claims = Claims("ann", "session", "token", NOW - 10, NOW + 60, Grants.of(["a"]))
        admitted = await room.admission.admit(claims, Subscription("tab", (A,), "no id", "here", CHUNKED))
        assert isinstance(admitted, Admitted)
        size, _, rest = admitted.first_events.partition(b"\r\n")
        assert len(rest) == int(size, 16) + 2
        assert [event.type for event in read_events(rest)] == ["connected", "reset"]


async def test_an_admitted_stream_is_registered_and_pinged_and_an_abandoned_one_is_not(keys: Path) -> None:
    async with room_of(keys) as room:
        stream = (await room.opened(A, B)).stream

        def known() -> list[Collection[Stream]]:
            hub, turns = (
                room.hub,
                [stream for turn in room.keepalive._turns for stream in turn.streams if stream],
            )
            return [hub.streams, hub.streams_of_subject.get("ann"), turns]

        assert all(set(where) == {stream} for where in known())
        assert stream.ending is None
        assert room.hub.streams_of_address == {"here": 1}
        assert room.hub.streams_on_channel == {"a": 1, "b": 1}
        room.admission.abandon(stream)
        assert not any(known())
        assert not room.hub.streams_of_address
        assert not room.hub.streams_on_channel
