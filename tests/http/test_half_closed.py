"""Clients that end their sending side, as ``printf … | nc -N`` does: they still want their answer (RFC 9112 §9.6)."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Callable

import pytest

from tests.support.hostility import Target, request
from tests.support.room import DEADLINE, Room, first, frames_of, listen, numbers, take
from tests.support.waiting import until


@pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")
def test_a_publish_of_a_client_that_ends_its_side_is_answered_and_stored_once(target: Target) -> None:
    body = b'{"event":"e","data":{}}'
    for count in (1, 2):
        one = request("POST", "/api/v1/sse/user.half", target.bearer, body=body)
        received = target.raw(one * count)
        assert received.count(b"HTTP/1.1 201 ") == count, received
    assert len(target.stored("user.half")) == 3


@pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")
def test_all_requests_of_a_client_that_ends_its_side_are_answered_also_those_refused_at_once(
    target: Target,
) -> None:
    refused = request("POST", "/api/v1/sse/user.half", "Authorization: none", body=b'{"data":{}}')
    missing = request("POST", "/api/v1/sse/user.half")
    looked = request("GET", "/healthz")
    stored = request("POST", "/api/v1/sse/user.other", target.bearer, body=b'{"event":"e","data":{}}')
    for requests in (
        [refused, refused, refused],
        [refused, stored, missing, looked, refused, looked],
        [missing, b"\r\n", stored],
        [refused, b"GET / HT"],
    ):
        received = target.raw(b"".join(requests))
        expected = [
            {refused: b"401", missing: b"401", looked: b"200", stored: b"201"}[one]
            for one in requests
            if one.endswith((b"}", b"\r\n\r\n"))
        ]
        assert re.findall(rb"HTTP/1\.1 (\d+) ", received) == expected, received


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_stream_of_a_client_that_ends_its_side_continues(room: Room, version: str) -> None:
    channel = room.channel()
    position = room.head(channel)
    room.publish(channel, 1)
    path = room.url(channel, last_event_id=position).removeprefix(room.server.url)
    with socket.create_connection(("127.0.0.1", room.server.port), timeout=DEADLINE) as client:
        client.sendall(request("GET", path, version=version))
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            assert file.readline().split()[1] == b"200"
            head = b"".join(iter(file.readline, b"\r\n"))
            chunked = b"chunked" in head
            assert chunked == (version == "1.1")

            def pieces() -> object:
                while line := file.readline():
                    if not chunked:
                        yield line
                    elif size := int(line, 16):
                        yield file.read(size)
                        file.readline()

            frames = frames_of(pieces())  # type: ignore[arg-type]
            first(frames)
            assert numbers(take(frames, 1)) == [1]
            while next(frames).type != "ping":
                pass
            for n in (2, 3):
                room.publish(channel, n)
                assert numbers(take(frames, 1)) == [n]


def leave(client: socket.socket, how: str) -> None:
    """Leave a stream in one of the ways in which clients do."""
    if how == "read all, and close":
        client.recv(65536)
    elif how == "reset":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "end both sides":
        client.recv(65536)
        client.shutdown(socket.SHUT_RDWR)
    client.close()


@pytest.mark.parametrize(
    "how",
    [
        "close",
        pytest.param("read all, and close", marks=pytest.mark.slow),
        "reset",
        pytest.param("end both sides", marks=pytest.mark.slow),
    ],
)
def test_a_client_that_leaves_is_noticed_at_once_and_not_by_the_next_ping(
    start_room: Callable[..., Room], how: str
) -> None:
    room = start_room(KEEPALIVE__PING_INTERVAL=3600)
    path = room.url("dashboard").removeprefix(room.server.url)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(5):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", room.server.port), DEADLINE))
            client.sendall(request("GET", path))
            clients.append(client)
        until(lambda: room.status()["total_connections"] == 5, "the streams are open")
        for client in clients:
            leave(client, how)
        until(lambda: room.status()["total_connections"] == 0, "all have left")


def test_a_client_that_has_ended_its_side_and_then_leaves_is_noticed_by_the_next_write(room: Room) -> None:
    until(lambda: room.status()["total_connections"] == 0, "the clients of other tests are gone")
    path = room.url("dashboard").removeprefix(room.server.url)
    with (
        socket.create_connection(("127.0.0.1", room.server.port), DEADLINE) as client,
        listen(room.url("dashboard")) as frames,
    ):
        first(frames)
        client.sendall(request("GET", path))
        client.shutdown(socket.SHUT_WR)
        until(lambda: room.status()["total_connections"] == 2, "both are open")
        client.close()
        until(lambda: room.status()["total_connections"] == 1, "one has left")
        room.publish("dashboard", 1)
        assert numbers(take(frames, 1)) == [1]
