"""The same bytes to many sockets: in one system call by a ring, or one by one, with the same outcome."""

from __future__ import annotations

import errno
import random
import socket
import sys
from array import array
from collections.abc import Iterator

import pytest

from sse_app.streams import bulk_send
from sse_app.streams.bulk_send import BulkSender
from sse_app.streams.send_ring import ENTRIES, SendRing

SOCKETS = 2 * ENTRIES + 40


@pytest.fixture(params=["ring", "one by one"])
def sender(request: pytest.FixtureRequest) -> Iterator[BulkSender]:
    sender = BulkSender()
    if request.param == "ring":
        try:
            SendRing().close()
        except OSError as error:
            pytest.skip(f"no rings on this system: {error}")
        sender.prepare()
    yield sender
    sender.close()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    pairs = [socket.socketpair() for _ in range(SOCKETS)]
    for pair in pairs:
        for end in pair:
            end.setblocking(False)
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


def received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return b""


@pytest.mark.slow
def test_each_socket_has_its_bytes_in_order_and_what_it_does_not_take_is_told(
    sender: BulkSender, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    rng = random.Random(7)
    expected = [b""] * SOCKETS
    cut = full = missing = 0
    for number in range(400):
        count = rng.randint(1, SOCKETS)
        start = rng.randint(0, SOCKETS - count)
        frames = b"%d;" % number * rng.choice((1, 100, 10_000))
        sockets = array("i", [ours.fileno() for ours, _ in pairs[start : start + count]])
        for _ in range(count // 10):
            sockets[rng.randrange(count)] = -1
        told = sender.send(sockets, frames)
        outcomes = dict(told)
        assert len(outcomes) == len(told)
        assert len(frames) not in outcomes.values()
        for place, descriptor in enumerate(sockets):
            outcome = outcomes.get(place, len(frames))
            if descriptor == -1:
                missing += 1
                assert outcome == -errno.EBADF
            elif outcome == -errno.EAGAIN:
                full += 1
            else:
                cut += outcome != len(frames)
                assert outcome > 0
                expected[start + place] += frames[:outcome]
        for place in rng.sample(range(SOCKETS), SOCKETS // 4):
            piece = received(pairs[place][1])
            assert expected[place].startswith(piece)
            expected[place] = expected[place][len(piece) :]
    assert cut
    assert full
    assert missing
    for place, (_, theirs) in enumerate(pairs):
        assert received(theirs) == expected[place]


def test_a_client_that_is_gone_is_an_error_for_its_own_place_only(
    sender: BulkSender, pairs: list[tuple[socket.socket, socket.socket]]
) -> None:
    for place in (3, 150):
        pairs[place][1].close()
    told = sender.send(array("i", [ours.fileno() for ours, _ in pairs]), b"event")
    assert told == [(3, -errno.EPIPE), (150, -errno.EPIPE)]
    assert [received(theirs) for place, (_, theirs) in enumerate(pairs) if place not in (3, 150)] == [
        b"event"
    ] * (SOCKETS - 2)


@pytest.mark.skipif(sys.platform != "linux", reason="there are rings on Linux only")
def test_where_rings_are_forbidden_all_is_sent_one_by_one(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden() -> SendRing:
        raise PermissionError(errno.EPERM, "as a container's filter of system calls answers")

    monkeypatch.setattr(bulk_send, "SendRing", forbidden)
    sender = BulkSender()
    sender.prepare()
    assert not sender.send(array("i", [ours.fileno() for ours, _ in pairs]), b"event")
    assert {received(theirs) for _, theirs in pairs} == {b"event"}
    sender.close()


def test_what_the_kernel_did_not_take_counts_as_not_sent_and_is_not_sent_later(
    pairs: list[tuple[socket.socket, socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sse_app.streams import send_ring

    try:
        ring = SendRing()
    except OSError as error:
        pytest.skip(f"no rings on this system: {error}")
    sockets = array("i", [ours.fileno() for ours, _ in pairs[:ENTRIES]])
    system_call = send_ring._system_call

    def half(number: int, descriptor: int, count: int, *more: object) -> int:
        return system_call(number, descriptor, count // 2, 0, *more[1:])

    monkeypatch.setattr(send_ring, "_system_call", half)
    told = ring.send(sockets, b"first")
    monkeypatch.setattr(send_ring, "_system_call", system_call)
    assert told == [(place, -errno.EAGAIN) for place in range(ENTRIES // 2, ENTRIES)]
    assert ring.send(sockets, b"second") == []
    ring.close()
    for place, (_, theirs) in enumerate(pairs[:ENTRIES]):
        assert received(theirs) == (b"firstsecond" if place < ENTRIES // 2 else b"second")
