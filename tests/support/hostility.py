"""A server, and requests to it written byte by byte, so that they can be anything at all."""

from __future__ import annotations

import json
import re
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

import pytest

from tests.support.server_process import ServerProcess, running
from tests.support.sse_reader import EventStreamReader, ReceivedEvent, strict_json

ORIGINS = ("http://localhost:3020", "https://desk.example.com")
CHANNELS = ["dashboard", "alerts", "training", "backtest", "user.**"]
MIB = 1 << 20


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return strict_json(self.body)


class Stream:
    """An open stream."""

    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self._response = response
        self._reader = EventStreamReader()
        self._events: deque[ReceivedEvent] = deque()

    def __iter__(self) -> Iterator[ReceivedEvent]:
        while True:
            while self._events:
                yield self._events.popleft()
            piece = self._response.read1(65_536)
            if not piece:
                break
            self._events += self._reader.feed(piece)
        self._reader.end()

    def next(self, *types: str) -> ReceivedEvent:
        """Return the next event that is no ping, which may come at any time, or the next of these types."""
        for event in self:
            if event.type in types or (not types and event.type != "ping"):
                return event
        pytest.fail("the stream ended")

    def events_until(self, type: str) -> list[ReceivedEvent]:
        """Return the events before the first of this type."""
        found: list[ReceivedEvent] = []
        for event in self:
            if event.type == type:
                return found
            found.append(event)
        pytest.fail("the stream ended")


def request(
    method: str, target: str | bytes, *headers: str | bytes, body: bytes | None = None, version: str = "1.1"
) -> bytes:
    """Return a request's bytes; a ``Content-Length`` is added to a body unless the headers frame it."""
    as_bytes = [header if isinstance(header, bytes) else header.encode() for header in headers]
    framed = any(re.match(rb"(?i)(content-length|transfer-encoding):", header) for header in as_bytes)
    if body is not None and not framed:
        as_bytes.append(b"Content-Length: %d" % len(body))
    target = target if isinstance(target, bytes) else target.encode()
    start = [b"%s %s HTTP/%s" % (method.encode(), target, version.encode()), b"Host: localhost"]
    return b"\r\n".join([*start, *as_bytes, b"", body or b""])


class Target:
    """The server under attack, with a token of each kind that is good for every channel."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.access = server.access_token()
        self.stream_token = server.stream_token("**")
        self.bearer = f"Authorization: Bearer {self.access}"

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.server.port), timeout=timeout)

    def send(self, data: bytes, timeout: float = 10) -> Answer:
        """Send bytes and return the first answer to them."""
        method = data.split(b" ", 1)[0].decode("latin-1")
        with self.connect(timeout) as connection:
            connection.sendall(data)
            with closing(HTTPResponse(connection, method=method)) as response:
                response.begin()
                headers = {name.lower(): value for name, value in response.getheaders()}
                return Answer(response.status, headers, response.read())

    def raw(self, data: bytes) -> bytes:
        """Send bytes, end the sending side, and return all that comes back."""
        received = b""
        with self.connect() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while piece := connection.recv(65536):
                    received += piece
            except TimeoutError:
                raise
            except OSError:
                pass  # The server has hung up on it: what came until then is the answer.
        return received

    def get(self, target: str | bytes, *headers: str | bytes) -> Answer:
        return self.send(request("GET", target, "Connection: close", *headers))

    def history(self, channel: str, query: str = "") -> Answer:
        return self.get(f"/api/v1/sse/{channel}/history{query}", self.bearer)

    def stored(self, channel: str) -> list[Any]:
        """Return all that the log has of a channel."""
        answer = self.history(channel, "?limit=1000")
        assert answer.status == 200, answer
        events = answer.json()["events"]
        assert isinstance(events, list)
        return events

    def post(self, target: str, body: bytes | object, *headers: str | bytes, bearer: bool = True) -> Answer:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        own = [header for header in (self.bearer,) if bearer]
        return self.send(request("POST", target, "Connection: close", *own, *headers, body=payload))

    def publish(self, channel: str, body: bytes | object, *headers: str | bytes) -> Answer:
        return self.post(f"/api/v1/sse/{channel}", body, *headers)

    @contextmanager
    def stream(
        self, channels: str, query: str = "", *headers: str | bytes, version: str = "1.1"
    ) -> Iterator[Stream]:
        target = f"/api/v1/sse/{channels}?token={self.stream_token}{query}"
        with self.connect() as connection:
            connection.sendall(request("GET", target, *headers, version=version))
            with closing(HTTPResponse(connection)) as response:
                response.begin()
                yield Stream(response)

    def open(self, channels: str, query: str = "", *headers: str | bytes) -> Answer:
        """Open a stream and leave at once; the body is that of a refusal, and empty for a stream."""
        with self.stream(channels, query, *headers) as stream:
            body = b"" if stream.status == 200 else stream._response.read()
            return Answer(stream.status, stream.headers, body)


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server that the hostile tests share."""
    with running(
        state_dir=tmp_path_factory.mktemp("hostile") / "state",
        expected=("login_refused", "proxy_not_trusted"),
        CORS_ORIGINS=list(ORIGINS),
        CHANNELS=CHANNELS,
    ) as server:
        yield Target(server)


@pytest.fixture
def the_log_stays_quiet_and_the_server_alive(target: Target) -> Iterator[None]:
    """Fail a test after which the server does not answer, or that has brought anything unexpected into the log."""
    with target.server.log_stays_quiet():
        yield
        assert target.get("/healthz").status == 200


def assert_refused(answer: Answer, *statuses: int) -> str:
    """Check that an answer is one of these errors, in the form of all errors, and return its message."""
    assert answer.status in statuses, answer
    assert answer.headers["content-type"].startswith("application/json"), answer
    document = answer.json()
    assert set(document) == {"error"}
    assert set(document["error"]) >= {"code", "message"}
    assert isinstance(document["error"]["message"], str)
    assert re.fullmatch(r"[a-z_0-9]+", document["error"]["code"])
    if answer.status == 401:
        assert answer.headers["www-authenticate"].startswith('Bearer error="invalid_token"')
    if answer.status == 405:
        assert answer.headers["allow"]
    message: str = document["error"]["message"]
    return message


def body_of(size: int) -> bytes:
    """Return a good body of exactly so many bytes."""
    body = b'{"event":"big","data":{"a":""}}'
    return body.replace(b'""', b'"%s"' % (b"a" * (size - len(body))))
