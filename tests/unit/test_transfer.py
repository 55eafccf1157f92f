"""How a handover travels: it stays where it is until it is taken, it is whole or nothing, and no descriptor leaks."""

from __future__ import annotations

import gc
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from sse_app.handover.fd_passing import (
    SOCKETS_A_MESSAGE,
    Arrival,
    IncompleteHandover,
    channel,
    empty,
    send,
)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Fail a test that leaves a descriptor open."""
    gc.collect()  # what earlier tests have left to it
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert not set(os.listdir("/proc/self/fd")) - before


@pytest.fixture
def ends(no_descriptor_leaks: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A channel: the sending and the receiving end."""
    sending, receiving = channel()
    yield sending, receiving
    sending.close()
    receiving.close()


class Sockets:
    """Connections as a server has them: descriptors, which go on at the other end, and the clients' ends."""

    def __init__(self, count: int) -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        self.ours = [ours for ours, _ in pairs]
        self.clients = [client for _, client in pairs]
        self.descriptors = [ours.fileno() for ours in self.ours]

    def leave(self) -> None:
        """Close what the sender has of them."""
        for sock in self.ours:
            sock.close()

    def speak(self, descriptors: Sequence[int]) -> None:
        """Say something different over each descriptor, and have the right client hear it."""
        for number, descriptor in enumerate(descriptors):
            os.write(descriptor, f"to {number}".encode())
        for number, client in enumerate(self.clients):
            assert client.recv(64) == f"to {number}".encode()

    def has_ended(self) -> bool:
        """Return whether nobody has the server's end of any of them."""
        for client in self.clients:
            client.setblocking(False)
        try:
            return all(client.recv(64) == b"" for client in self.clients)
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.leave()
        for client in self.clients:
            client.close()


@contextmanager
def connections(*counts: int) -> Iterator[list[Sockets]]:
    """Open some for each part of a handover."""
    opened = [Sockets(count) for count in counts]
    try:
        yield opened
    finally:
        for sockets in opened:
            sockets.close()


@contextmanager
def files_allowed(count: int) -> Iterator[None]:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))


def close(arrival: Arrival) -> None:
    for _, descriptors in arrival.parts:
        for descriptor in descriptors:
            os.close(descriptor)


def texts(arrival: Arrival) -> list[bytes]:
    return [text for text, _ in arrival.parts]


Ends = tuple[socket.socket, socket.socket]


def test_each_part_arrives_with_its_text_and_its_sockets_in_order(ends: Ends) -> None:
    sending, receiving = ends
    sent = [b"first", b"", b"x" * 3_000_000]
    with connections(3, 0, 2) as parts:
        for text, sockets in zip(sent, parts, strict=True):
            send(sending, text, sockets.descriptors, last=text is sent[-1])
            sockets.leave()
        arrival = Arrival(receiving)
        assert arrival
        assert texts(arrival) == sent
        for sockets, (_, descriptors) in zip(parts, arrival.parts, strict=True):
            sockets.speak(descriptors)
        arrival.take()
        close(arrival)
        assert all(sockets.has_ended() for sockets in parts)


def test_the_sender_keeps_its_own(ends: Ends) -> None:
    sending, receiving = ends
    with connections(2) as (sockets,):
        send(sending, b"text", sockets.descriptors)
        Arrival(receiving).drop()
        sockets.speak(sockets.descriptors)


def test_no_descriptor_is_inherited_by_a_program_that_is_started(ends: Ends) -> None:
    sending, receiving = ends
    with connections(2) as (sockets,):
        send(sending, b"text", sockets.descriptors)
        arrival = Arrival(receiving)
        assert not any(os.get_inheritable(descriptor) for _, part in arrival.parts for descriptor in part)
        arrival.drop()


def test_in_an_empty_queue_is_no_handover(ends: Ends) -> None:
    _, receiving = ends
    arrival = Arrival(receiving)
    assert not arrival
    arrival.take()
    arrival.drop()


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_without_its_end_it_is_no_handover_and_its_connections_end(ends: Ends, parts: int) -> None:
    sending, receiving = ends
    with connections(*[2] * parts) as opened:
        for sockets in opened:
            send(sending, b"text", sockets.descriptors, last=False)
            sockets.leave()
        with pytest.raises(IncompleteHandover, match="no end"):
            Arrival(receiving)
        assert all(sockets.has_ended() for sockets in opened)
        assert not Arrival(receiving)


def test_a_sender_that_has_gone_without_the_end_left_no_handover(ends: Ends) -> None:
    sending, receiving = ends
    with connections(2) as (sockets,):
        send(sending, b"text", sockets.descriptors, last=False)
        sending.close()
        with pytest.raises(IncompleteHandover):
            Arrival(receiving)


def test_what_a_sender_left_is_whole_though_it_has_gone(ends: Ends) -> None:
    sending, receiving = ends
    with connections(2) as (sockets,):
        send(sending, b"text", sockets.descriptors)
        sending.close()
        sockets.leave()
        arrival = Arrival(receiving)
        ((_, descriptors),) = arrival.parts
        sockets.speak(descriptors)
        arrival.take()
        close(arrival)


def test_sockets_without_a_text_are_no_handover(ends: Ends) -> None:
    sending, receiving = ends
    with connections(1) as (sockets,):
        socket.send_fds(sending, [b"sockets"], sockets.descriptors)
        sockets.leave()
        with pytest.raises(IncompleteHandover):
            Arrival(receiving)
        assert sockets.has_ended()


def test_whoever_looks_leaves_everything_for_the_next_one(ends: Ends) -> None:
    sending, receiving = ends
    with connections(2, 1) as parts:
        send(sending, b"first", parts[0].descriptors, last=False)
        send(sending, b"second", parts[1].descriptors)
        for sockets in parts:
            sockets.leave()
        for _ in range(2):
            look = Arrival(receiving)
            assert texts(look) == [b"first", b"second"]
            for sockets, (_, descriptors) in zip(parts, look.parts, strict=True):
                sockets.speak(descriptors)
            close(look)
        assert not any(sockets.has_ended() for sockets in parts)
        last = Arrival(receiving)
        assert texts(last) == [b"first", b"second"]
        last.drop()
        assert all(sockets.has_ended() for sockets in parts)


def test_what_is_taken_is_out_of_the_queue_and_goes_on(ends: Ends) -> None:
    sending, receiving = ends
    with connections(2) as (sockets,):
        send(sending, b"text", sockets.descriptors)
        sockets.leave()
        arrival = Arrival(receiving)
        arrival.take()
        assert not Arrival(receiving)
        sockets.speak(arrival.parts[0][1])
        close(arrival)
        assert sockets.has_ended()


def test_a_channel_serves_one_handover_after_another(ends: Ends) -> None:
    sending, receiving = ends
    for number in range(50):
        with connections(2) as (sockets,):
            send(sending, b"%d" % number, sockets.descriptors)
            sockets.leave()
            arrival = Arrival(receiving)
            assert texts(arrival) == [b"%d" % number]
            arrival.take()
            sockets.speak(arrival.parts[0][1])
            close(arrival)


def test_what_is_emptied_out_ends(ends: Ends) -> None:
    sending, receiving = ends
    with connections(2) as (sockets,):
        send(sending, b"text", sockets.descriptors, last=False)
        sockets.leave()
        assert not sockets.has_ended()
        empty(receiving)
        assert sockets.has_ended()
        assert not Arrival(receiving)


@pytest.mark.parametrize("count", [SOCKETS_A_MESSAGE, SOCKETS_A_MESSAGE + 1, 3 * SOCKETS_A_MESSAGE + 7])
def test_more_sockets_than_fit_into_a_message_arrive_in_order(ends: Ends, count: int) -> None:
    sending, receiving = ends
    with files_allowed(3 * count + 1000), connections(count, 1) as (many, one):
        send(sending, b"many", many.descriptors, last=False)
        send(sending, b"one", one.descriptors)
        many.leave()
        arrival = Arrival(receiving)
        assert [len(descriptors) for _, descriptors in arrival.parts] == [count, 1]
        many.speak(arrival.parts[0][1])
        one.speak(arrival.parts[1][1])
        arrival.drop()
        assert many.has_ended()


def test_a_process_that_may_not_open_so_many_files_is_told_so_and_keeps_none_open(ends: Ends) -> None:
    sending, receiving = ends
    with connections(300) as (sockets,):
        send(sending, b"text", sockets.descriptors)
        before = open_descriptors()
        with files_allowed(before + 100), pytest.raises(IncompleteHandover, match="LimitNOFILE"):
            Arrival(receiving)
        assert open_descriptors() == before
        assert not Arrival(receiving)


def test_what_does_not_fit_is_an_error_and_waits_for_nobody(ends: Ends) -> None:
    sending, receiving = ends
    with connections(1) as (sockets,):
        with pytest.raises(BlockingIOError):
            send_for_ever(sending, sockets.descriptors)
        empty(receiving)
        send(sending, b"text", sockets.descriptors)
        Arrival(receiving).drop()


def send_for_ever(sending: socket.socket, descriptors: Sequence[int]) -> None:
    while True:
        send(sending, b"text", descriptors, last=False)


CROWD = """
import os, resource, socket, threading
from sse_app.handover.fd_passing import Arrival, channel, send

os.setgid(65534)
os.setuid(65534)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
others, theirs = socket.socketpair()
try:
    for _ in range(100):  # as another service of this user does, which may have more
        socket.send_fds(others, [b"x"], [0])
except OSError as error:
    print(error.strerror)
threading.Timer(0.3, theirs.close).start()
sending, receiving = channel()
send(sending, b"streams", [1, 2])
print(*[(text.decode(), len(sockets)) for text, sockets in Arrival(receiving).parts])
"""
"""Hands something over while too many descriptors of the same user are on their way, and for a while only."""


@pytest.mark.skipif(os.geteuid() != 0, reason="root takes another user's place")
def test_a_handover_waits_a_little_where_too_many_sockets_of_the_user_are_on_their_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CROWD], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines() == ["Too many references: cannot splice", "('streams', 2)"], done.stderr
