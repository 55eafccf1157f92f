"""More publishes than are stored: what waits is bounded, the next is refused and not stored, and all else goes on."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app.handlers.base import SMALL_BODY_BYTES
from sse_app.node import LARGE_BODIES_BYTES
from tests.support.fleet import Client
from tests.support.server_process import ROOT, ServerProcess, starting
from tests.support.usage import MEBIBYTE, Usage
from tests.support.waiting import until

PATIENT = """
from sse_app.eventlog.sqlite import file, log, writer
file.LOCK_TIMEOUT = log.LOCK_TIMEOUT = writer.LOCK_TIMEOUT = 60.0
"""
"""Has publishes wait longer for the lock of the event log than a busy machine needs for all that is tried meanwhile."""


@pytest.fixture
def start_patient(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """A function that starts a server whose publishes are not given up while the event log is locked."""
    (tmp_path / "injected").mkdir()
    (tmp_path / "injected/sitecustomize.py").write_text(PATIENT)

    def make(**settings: Any) -> ServerProcess:
        server = ServerProcess(state_dir=tmp_path / "state", **settings)
        server.environment["PYTHONPATH"] = f"{tmp_path / 'injected'}:{ROOT}"
        return server

    yield from starting(make)


@contextmanager
def locked(server: ServerProcess) -> Iterator[None]:
    """Hold the lock of the event log, so that nothing is stored."""
    with (server.state_dir / "events.db-lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Publish:
    """A request to publish, on a connection of its own.

    Args:
        server: that is asked.
        token: its access token.
        number: the event's data have it.
        size: of the padding in the data, in bytes.
        blank: of the padding behind the JSON, in bytes.
        kept_back: how many bytes of the body are not sent.
        method: of the request.
    """

    def __init__(
        self,
        server: ServerProcess,
        token: str,
        number: int,
        size: int = 0,
        blank: int = 0,
        kept_back: int = 0,
        method: str = "POST",
    ) -> None:
        content = json.dumps({"event": "e", "data": {"number": number, "pad": "x" * size}})
        body = content.encode() + b" " * blank
        head = (
            f"{method} /api/v1/sse/alerts HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.number = number
        self._socket = socket.create_connection(("127.0.0.1", server.port), 60)
        self._socket.sendall(head.encode() + body[: len(body) - kept_back])
        self._rest = body[len(body) - kept_back :]

    def send_the_rest(self) -> None:
        """Send what was kept back of the body."""
        self._socket.sendall(self._rest)

    def answer(self) -> tuple[HTTPResponse, dict[str, Any]]:
        """Return the answer and its body."""
        response = HTTPResponse(self._socket)
        response.begin()
        return response, json.loads(response.read())

    def is_answered(self) -> bool:
        """Return whether there is an answer now."""
        self._socket.setblocking(False)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self._socket.settimeout(60)

    def reset(self) -> None:
        """Close the connection as a client does that is killed."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def assert_refused(publish: Publish) -> None:
    response, content = publish.answer()
    assert (response.status, content["error"]["code"]) == (503, "busy")
    assert int(response.headers["Retry-After"]) > 0


def numbers(server: ServerProcess) -> list[int]:
    """Return which events the log has, in order: requests on connections of their own may overtake each other."""
    found: list[int] = []
    with server.publisher() as http:
        epoch = http.get("/api/v1/sse/status").json()["channels"]["alerts"]["last_event_id"] or "none-0"
        after = f"{epoch.partition('-')[0]}-0"
        while page := http.get("/api/v1/sse/alerts/history", params={"after": after}).json()["events"]:
            found += (event["data"]["number"] for event in page)
            after = page[-1]["id"]
    return sorted(found)


@pytest.mark.ci
def test_publishes_that_wait_take_half_of_the_connections_and_the_next_are_refused_and_not_stored(
    start_patient: Callable[..., ServerProcess],
) -> None:
    server = start_patient(LIMITS__CONNECTIONS=40, KEEPALIVE__PING_INTERVAL=0.2)
    token = server.access_token()
    with ExitStack() as stack:
        stream = Client(server.port, f"/api/v1/sse/alerts?token={server.stream_token('alerts')}")
        stack.callback(stream.socket.close)
        stream.read_until("event: connected")
        with locked(server):
            waiting = [stack.enter_context(closing(Publish(server, token, number))) for number in range(20)]
            begun = time.monotonic()
            assert httpx.get(f"{server.url}/healthz").status_code == 200  # by now all of them have begun
            for number in range(20, 40):
                with closing(Publish(server, token, number)) as publish:
                    assert_refused(publish)
            assert httpx.get(f"{server.url}/healthz").status_code == 200
            assert numbers(server) == []
            unknown = {"events": [{"channel": "nowhere", "event": "e", "data": {}}]}
            with server.publisher() as http:
                assert http.post("/api/v1/sse", json=unknown).status_code == 404  # and no reason to try again
            assert time.monotonic() - begun < 30, "they waited too"
            assert not any(publish.is_answered() for publish in waiting)
            stream.received.clear()
            stream.read_until("event: ping")
        for publish in waiting:
            assert publish.answer()[0].status == 201
        stream.read_until('"number":19')
        assert numbers(server) == list(range(20))
        with closing(Publish(server, token, 40)) as publish:
            assert publish.answer()[0].status == 201


@pytest.mark.long
def test_publishes_that_wait_have_a_bound_in_bytes(start_patient: Callable[..., ServerProcess]) -> None:
    server = start_patient(LIMITS__STREAMS=100)
    token = server.access_token()
    with ExitStack() as stack:
        with locked(server):
            all_of_them = [
                stack.enter_context(closing(Publish(server, token, number, size=1_000_000)))
                for number in range(60)
            ]
            until(lambda: all(publish.is_answered() for publish in all_of_them[40:]), "the last are refused")
            refused = [publish for publish in all_of_them if publish.is_answered()]
        for publish in refused:
            assert_refused(publish)
        waiting = [publish for publish in all_of_them if publish not in refused]
        assert 25 < len(waiting) < 40
        for publish in waiting:
            assert publish.answer()[0].status == 201
    assert numbers(server) == [publish.number for publish in waiting]


@pytest.mark.long
def test_large_bodies_that_are_being_sent_have_a_bound_together(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(LIMITS__STREAMS=100)  # the other descriptors are for connections
    assert server.process is not None
    token = server.access_token()
    with ExitStack() as stack:
        before = Usage(server.process.pid).resident
        slow = [
            stack.enter_context(closing(Publish(server, token, number, size=1_000_000, kept_back=1)))
            for number in range(200)
        ]
        with closing(Publish(server, token, 200, size=50_000)) as small:
            assert small.answer()[0].status == 201
        room_for = LARGE_BODIES_BYTES // (1_000_000 - SMALL_BODY_BYTES)
        until(
            lambda: sum(publish.is_answered() for publish in slow) == 200 - room_for, "the others are refused"
        )
        refused = [publish for publish in slow if publish.is_answered()]
        grown = (Usage(server.process.pid).resident - before) / MEBIBYTE
        assert grown < 120, f"{grown:.0f} MiB more"
        for publish in refused:
            assert_refused(publish)
        for publish in slow:
            if publish not in refused:
                publish.send_the_rest()
                assert publish.answer()[0].status == 201
    with closing(Publish(server, token, 201, size=1_000_000)) as publish:
        assert publish.answer()[0].status == 201
    assert numbers(server) == sorted(
        publish.number for publish in (*slow, small, publish) if publish not in refused
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["PUT", "GET", "OPTIONS", "POST"])
def test_bodies_of_those_who_may_not_publish_leave_room_for_those_of_publishers(
    method: str, start_server: Callable[..., ServerProcess]
) -> None:
    server = start_server(LIMITS__STREAMS=100)
    token = server.access_token(publish="")  # and another method takes none
    with ExitStack() as stack:
        for number in range(100):
            request = Publish(server, token, number, size=900_000, kept_back=1, method=method)
            stack.callback(request.close)
        with closing(Publish(server, server.access_token(), 100, size=900_000)) as publish:
            assert publish.answer()[0].status == 201
        assert method != "POST" or request.answer()[0].status == 403


@pytest.mark.long
def test_bodies_count_for_as_long_as_they_are_kept_also_where_their_publishers_have_left(
    start_patient: Callable[..., ServerProcess],
) -> None:
    server = start_patient(LIMITS__STREAMS=100)
    token = server.access_token()
    room_for = LARGE_BODIES_BYTES // (1_000_000 - SMALL_BODY_BYTES)
    with httpx.Client(base_url=server.url) as other, ExitStack() as stack:
        with locked(server):
            leaving = [Publish(server, token, number, blank=1_000_000) for number in range(room_for)]
            for _ in range(100):  # by now the bodies have been read
                assert other.get("/healthz").status_code == 200
            for publish in leaving:
                publish.reset()
            with closing(Publish(server, token, 100, blank=1_000_000)) as publish:
                assert_refused(publish)
        until(lambda: len(numbers(server)) == room_for, "what was taken is stored")
        slow = [Publish(server, token, number, blank=900_000, kept_back=1) for number in range(room_for)]
        for publish in slow:  # and no room is lost
            stack.callback(publish.close)
            publish.send_the_rest()
            assert publish.answer()[0].status == 201
