"""Who has vanished, by what the kernel says of data under way."""

from __future__ import annotations

import socket
import time
from contextlib import closing, suppress
from typing import cast

import pytest

from sse_app.auth.tokens.claims import Lease
from sse_app.core.framing import CHUNKED
from sse_app.core.selection import interest_of
from sse_app.streams.bulk_send import BulkSender
from sse_app.streams.connection import StreamConnection
from sse_app.streams.delivery import DeliveryWatch
from sse_app.streams.fanout import FanoutGroup
from sse_app.streams.keepalive import _Turn
from sse_app.streams.stream import Replay, Stream, Subscriber
from sse_app.streams.tcp_info import Unacknowledged, settled
from tests.support.waiting import until

INTERVAL = 30.0
PINGED_AT = 1000.0
NEXT = PINGED_AT + INTERVAL


class Connection:
    """A connection of which the kernel says what a test has it say."""

    owner: object = None
    state: Unacknowledged | None = None

    def unacknowledged(self) -> Unacknowledged | None:
        return self.state


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture
def stream(connection: Connection) -> Stream:
    lease = Lease("ann", "session", "token", time.time(), time.time() + 60)
    stream = Stream(
        1,
        Subscriber("client", lease, "here"),
        ("a",),
        interest=interest_of(("a",)),
        framing=CHUNKED,
        backlog_limit=1000,
        laggards=set(),
    )
    stream.attach(cast(StreamConnection, connection))
    return stream


@pytest.fixture
def watch() -> DeliveryWatch:
    return DeliveryWatch(INTERVAL / 2, 2 * INTERVAL)


def test_a_client_that_has_not_answered_its_last_ping_has_vanished(
    watch: DeliveryWatch, stream: Stream, connection: Connection
) -> None:
    connection.state = Unacknowledged(500, True, 1.5 * INTERVAL)
    assert watch.look(stream, PINGED_AT, NEXT)


@pytest.mark.parametrize("took", [0.0, 0.001, 0.5, 20.0])
def test_a_client_that_has_answered_it_lives_though_an_event_is_under_way_just_now(
    watch: DeliveryWatch, stream: Stream, connection: Connection, took: float
) -> None:
    connection.state = Unacknowledged(500, True, INTERVAL - took + 0.01)  # counted in jiffies
    assert not watch.look(stream, PINGED_AT, NEXT)
    assert not list(watch.dead(NEXT + INTERVAL / 4))
    connection.state = None
    assert not list(watch.dead(NEXT + INTERVAL))


def test_a_client_that_answered_the_ping_and_nothing_after_it_has_half_an_interval_more(
    watch: DeliveryWatch, stream: Stream, connection: Connection
) -> None:
    connection.state = Unacknowledged(500, True, INTERVAL)
    assert not watch.look(stream, PINGED_AT, NEXT)
    assert not list(watch.dead(NEXT + INTERVAL / 2 - 0.1))
    connection.state = Unacknowledged(500, True, 1.5 * INTERVAL + 0.1)
    assert list(watch.dead(NEXT + INTERVAL / 2 + 0.1)) == [(stream, None)]


def test_a_stream_that_is_replayed_has_half_an_interval_for_its_ping_may_have_waited(
    watch: DeliveryWatch, stream: Stream, connection: Connection
) -> None:
    stream.replay = Replay(5)
    connection.state = Unacknowledged(500, True, 1.5 * INTERVAL)
    assert not watch.look(stream, PINGED_AT, NEXT)
    assert list(watch.dead(NEXT + INTERVAL / 2)) == [(stream, None)]


def test_a_longer_time_that_the_operator_allows_is_kept(stream: Stream, connection: Connection) -> None:
    watch = DeliveryWatch(2 * INTERVAL, 2 * INTERVAL)
    connection.state = Unacknowledged(500, True, 1.5 * INTERVAL)
    assert not watch.look(stream, PINGED_AT, NEXT)
    assert not list(watch.dead(NEXT + 1.9 * INTERVAL))
    connection.state = Unacknowledged(500, True, 3.5 * INTERVAL)
    assert list(watch.dead(NEXT + 2 * INTERVAL)) == [(stream, None)]


def test_a_client_that_lives_and_does_not_read_has_two_intervals(
    watch: DeliveryWatch, stream: Stream, connection: Connection
) -> None:
    connection.state = Unacknowledged(500, False, 1.5 * INTERVAL)
    assert not watch.look(stream, PINGED_AT, NEXT)
    assert not list(watch.dead(NEXT + 1.9 * INTERVAL))
    assert list(watch.dead(NEXT + 2 * INTERVAL)) == [(stream, "stalled")]


@pytest.mark.gen_test
async def test_a_client_that_stops_reading_before_its_first_ping_is_seen_at_that_ping(
    stream: Stream, watch: DeliveryWatch
) -> None:
    turn = _Turn(CHUNKED, BulkSender())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    connection = StreamConnection(ours, CHUNKED)
    with client, closing(connection):
        stream.attach(connection)
        with suppress(BlockingIOError):
            while True:
                ours.send(bytes(65_536))
        turn.add(stream)
        turn.ping(watch)
        assert watch.watches
        assert not connection.closed


def test_only_sockets_whose_clients_have_acknowledged_all_are_settled() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pairs = [(socket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(3)]
    (_, quiet), (reader, full), (_, closed) = pairs
    try:
        for _, ours in pairs:
            ours.setblocking(False)
            assert ours.send(b"ping") == 4
        with suppress(BlockingIOError):
            while True:
                full.send(bytes(65_536))
        closed.close()
        sockets = [quiet, full, closed]
        until(
            lambda: [*map(settled, sockets)] == [True, False, False], "what went to the first is acknowledged"
        )
        reader.settimeout(0.1)
        with suppress(TimeoutError):
            while reader.recv(1_000_000):
                pass
        until(
            lambda: [*map(settled, sockets)] == [True, True, False], "what went to the second is acknowledged"
        )
    finally:
        for pair in pairs:
            for one in pair:
                one.close()


@pytest.mark.gen_test
async def test_a_stream_that_is_not_parked_is_not_settled_whatever_its_socket_says(stream: Stream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    connection = StreamConnection(ours, CHUNKED)
    with client, closing(connection):
        stream.attach(connection)
        group: FanoutGroup[Stream] = FanoutGroup(stream.interest, CHUNKED, BulkSender())
        group.add(stream)
        assert connection.settled()
        assert not stream.settled
        stream.park(lambda _: None)
        assert stream.settled
        stream.fall_behind(b"a ping that the socket did not take", 0)
        assert connection.settled()
        assert not stream.settled
