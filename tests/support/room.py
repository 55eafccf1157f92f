"""A room of clients that listen, drop and come back, and publishers that do not give up."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.server_process import ServerProcess, running
from tests.support.sse_reader import EventStreamReader, ReceivedEvent

Start = Callable[..., ServerProcess]
DEADLINE = 120.0
"""Seconds after which a test stops waiting; it measures nothing, and a busy machine needs much of it."""

PING_INTERVAL = 1.0
"""Seconds between two pings of these servers."""


class Frame(NamedTuple):
    """One event as it came over the wire; fields that were not there are None."""

    type: str
    id: str | None
    data: dict[str, Any]
    retry: int | None


class Acknowledged(NamedTuple):
    """One event that the server answered with 201."""

    id: str
    channel: str
    n: int


def sequence(id: str) -> int:
    return int(id.rpartition("-")[2])


def frames_of(pieces: Iterable[bytes]) -> Iterator[Frame]:
    """Decode a stream strictly, from pieces cut anywhere; all data has to be JSON objects."""
    reader = EventStreamReader()
    for piece in pieces:
        for event in reader.feed(piece):
            data = event.json()
            assert isinstance(data, dict)
            yield Frame(event.type, event.id, data, event.retry)
    reader.end()


@contextlib.contextmanager
def listen(
    url: str, *, after: str | bytes | None = None, client: httpx.Client | None = None
) -> Iterator[Iterator[Frame]]:
    """Open a stream, with a position for the Last-Event-ID header, and give its frames; drop it at the end."""
    with opened(url, after=after, client=client) as pieces:
        yield frames_of(pieces)


@contextlib.contextmanager
def receive(url: str, *, after: str | None = None) -> Iterator[Iterator[ReceivedEvent]]:
    """Open a stream as `listen` does, whose data may be any text, and give its events, pings left out."""

    def events(pieces: Iterable[bytes]) -> Iterator[ReceivedEvent]:
        reader = EventStreamReader(texts=True)
        for piece in pieces:
            yield from (event for event in reader.feed(piece) if event.type != "ping")
        reader.end()

    with opened(url, after=after) as pieces:
        yield events(pieces)


@contextlib.contextmanager
def opened(
    url: str, *, after: str | bytes | None = None, client: httpx.Client | None = None
) -> Iterator[Iterator[bytes]]:
    """Open a stream, and give its bytes in pieces; drop it at the end."""
    headers = {} if after is None else {b"Last-Event-ID": after.encode() if isinstance(after, str) else after}
    with contextlib.ExitStack() as stack:
        client = client or stack.enter_context(httpx.Client(timeout=DEADLINE))
        response = stack.enter_context(client.stream("GET", url, headers=headers))
        if response.status_code != 200:
            raise AssertionError((response.status_code, response.read()))
        deadline = time.monotonic() + DEADLINE

        def pieces() -> Iterator[bytes]:
            for piece in response.iter_bytes():
                assert time.monotonic() < deadline, "pings, and not what the test waits for"
                yield piece

        yield pieces()


def first(frames: Iterator[Frame]) -> Frame:
    """Return the first frame, which has to be `connected`."""
    frame = next(frames)
    assert frame.type == "connected", frame
    assert frame.id is not None
    return frame


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    """Return the next frames, pings left out."""
    return list(itertools.islice((frame for frame in frames if frame.type != "ping"), count))


def numbers(frames: Iterable[Frame]) -> list[int]:
    return [frame.data["n"] for frame in frames]


class Room:
    """A running server with one token that may read everything and one that may publish everything."""

    names = itertools.count()

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.access = server.access_token()
        self.token = server.stream_token("**")
        self.http = httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {self.access}"}, timeout=DEADLINE
        )

    def channel(self) -> str:
        """Return the name of a channel that no other test uses."""
        return f"test.c{next(self.names)}"

    def url(self, channels: str, **query: str) -> str:
        return self.server.stream_url(channels, self.token, **query)

    def head(self, channels: str) -> str:
        """Return where a fresh stream begins."""
        with listen(self.url(channels)) as frames:
            id = first(frames).id
        assert id is not None
        return id

    def publish(self, channel: str, n: int, event: str = "e", **more: object) -> str:
        """Publish one event and return its id."""
        answer = self.http.post(f"/api/v1/sse/{channel}", json={"event": event, "data": {"n": n, **more}})
        assert answer.status_code == 201, answer.text
        assert answer.json()["channel"] == channel
        return str(answer.json()["id"])

    def publish_batch(self, events: Iterable[tuple[str, int]], **more: object) -> list[str]:
        """Publish (channel, n) pairs at once and return their ids."""
        answer = self.http.post(
            "/api/v1/sse",
            json={
                "events": [
                    {"channel": channel, "event": "e", "data": {"n": n, **more}} for channel, n in events
                ]
            },
        )
        assert answer.status_code == 201, answer.text
        return [str(id) for id in answer.json()["ids"]]

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.server.url}/api/v1/sse/status").json()
        return answer

    def metric(self, name: str) -> float:
        """Return the value of one line of /metrics."""
        for line in httpx.get(f"{self.server.url}/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")


CHANNELS = ["dashboard", "alerts", "training", "backtest", "test.**"]
LIMITS: dict[str, Any] = {"LIMITS__STREAMS_PER_USER": 1000}


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A server that the tests of this folder share, each on channels of its own."""
    state_dir = tmp_path_factory.mktemp("delivery") / "state"
    with running(
        state_dir=state_dir, CHANNELS=CHANNELS, KEEPALIVE__PING_INTERVAL=PING_INTERVAL, **LIMITS
    ) as server:
        room = Room(server)
        with room.http:
            yield room


@pytest.fixture
def start_room(start_server: Start) -> Iterator[Callable[..., Room]]:
    """A function that starts a server of the test's own."""
    with contextlib.ExitStack() as stack:

        def start(**settings: object) -> Room:
            room = Room(
                start_server(
                    **{"CHANNELS": CHANNELS, "KEEPALIVE__PING_INTERVAL": PING_INTERVAL, **LIMITS, **settings}
                )
            )
            stack.enter_context(room.http)
            return room

        yield start


def publish_stubbornly(
    room: Room, jobs: Iterable[tuple[str, int]], acknowledged: list[Acknowledged], pace: float = 0
) -> None:
    """Publish (channel, n) pairs one by one, each again with the same Idempotency-Key until it is answered 201."""
    headers = {"Authorization": f"Bearer {room.access}"}
    with httpx.Client(base_url=room.server.url, headers=headers, timeout=DEADLINE) as client:
        for channel, n in jobs:
            key = str(uuid.uuid4())
            deadline = time.monotonic() + DEADLINE
            while True:
                assert time.monotonic() < deadline, "not acknowledged in time"
                try:
                    answer = client.post(
                        f"/api/v1/sse/{channel}",
                        json={"event": "e", "data": {"n": n}},
                        headers={"Idempotency-Key": key},
                    )
                except httpx.TransportError:
                    time.sleep(0.02)
                    continue
                if answer.status_code == 503:
                    assert answer.headers["Retry-After"]
                    time.sleep(0.02)
                    continue
                break
            assert answer.status_code == 201, answer.text
            acknowledged.append(Acknowledged(answer.json()["id"], channel, n))
            if pace:
                time.sleep(pace)
