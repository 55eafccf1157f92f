"""Clients in a process of their own: they listen, leave, are cut off and come back, and write down what they are sent.

    python -m tests.faults.client '[{"name": "c1", …}, …]'

It takes the fields of `Settings` of each, and their tokens from ``SSE_FAULTS_TOKEN``. After SIGUSR1 they neither leave
nor stay away. SIGTERM ends them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlencode

import msgspec

from tests.faults.journal import Asked, Ended, Journal, Malformed, Opened, Pinged, Received, Reset, payload_of
from tests.faults.publisher import COMES_BACK, TIMEOUT, TOKEN
from tests.support.sse_reader import EventStreamReader, ReceivedEvent

HERE = "127.0.0.1"


class Settings(msgspec.Struct, kw_only=True):
    """What a client does.

    Attributes:
        name: no other has it.
        seed: of what it leaves to chance.
        journal: the path of its journal.
        ports: of the servers; each stream goes to one of them.
        host: where they are.
        channels: that it listens to.
        stays: for how many seconds it keeps a stream on the average.
        reads: bytes that it reads at a time; with few it is slow.
        types: whether it asks for the events of the one type that there is, so that pings tell it positions.
        away: for how many seconds it stays away between two streams, on the average.
    """

    name: str
    seed: str
    journal: str
    ports: Sequence[int]
    channels: Sequence[str]
    stays: float = 3.0
    reads: int = 65_536
    types: bool = False
    away: float = COMES_BACK
    host: str = HERE


class Client(threading.Thread):
    """Has one stream after another, each from the position of the one before."""

    def __init__(
        self, settings: Settings, token: str, ends: threading.Event, remains: threading.Event
    ) -> None:
        super().__init__(name=settings.name)
        self._settings = settings
        self._token = token
        self._ends = ends
        self._remains = remains
        self._journal = Journal(Path(settings.journal))
        self._streams = 0
        self._position = ""

    def run(self) -> None:
        """Listen until it is told to end."""
        while not self._ends.is_set():
            self._streams += 1
            # The choices for a stream do not depend on how those before it have ended.
            chance = random.Random(f"{self._settings.seed} {self._streams}")
            away = chance.expovariate(1 / self._settings.away)
            try:
                self._listen(chance)
            except TimeoutError:
                if self._settings.host != HERE:  # over a link the end of a stream may have been lost
                    continue
                self._journal.write(Malformed(at=time.monotonic(), why=f"nothing came for {TIMEOUT} s"))
            except (OSError, HTTPException):
                pass  # the server, or what was done to it, has ended the stream
            except (AssertionError, LookupError, ValueError) as error:
                self._journal.write(Malformed(at=time.monotonic(), why=f"{type(error).__name__}: {error}"))
            self._remains.wait(away)
            self._ends.wait(COMES_BACK)

    def _listen(self, chance: random.Random) -> None:
        settings = self._settings
        by_header, port = chance.random() < 0.5, chance.choice(settings.ports)
        stays = chance.expovariate(1 / settings.stays)
        query = {"token": self._token} | ({"types": "e"} if settings.types else {})
        query |= {"last_event_id": self._position} if self._position and not by_header else {}
        header = f"Last-Event-ID: {self._position}\r\n" if self._position and by_header else ""
        path = f"/api/v1/sse/{','.join(settings.channels)}?{urlencode(query)}"
        with socket.create_connection((settings.host, port), TIMEOUT) as sock:
            self._journal.write(
                Asked(at=time.monotonic(), channels=settings.channels, position=self._position)
            )
            ended = Ended(at=0.0)
            try:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {settings.host}\r\n{header}\r\n".encode())
                response = HTTPResponse(sock)
                response.begin()
                with response:
                    if response.status == 200:
                        ended = self._read(sock, response, stays)
                    else:
                        ended = Ended(at=0.0, status=response.status)
            finally:
                self._journal.write(msgspec.structs.replace(ended, at=time.monotonic()))

    def _read(self, sock: socket.socket, response: HTTPResponse, stays: float) -> Ended:
        """Read a stream for so many seconds at most, and return how it ended."""
        settings = self._settings
        leaves_at = time.monotonic() + stays
        reader = EventStreamReader()
        while not self._ends.is_set() and (self._remains.is_set() or time.monotonic() < leaves_at):
            try:
                piece = response.read1(settings.reads)
            except HTTPException as error:
                if _is_open(sock):
                    raise ValueError(f"the body is not as its framing says: {error!r}") from error
                raise
            if not piece:
                return Ended(at=0.0)
            events = reader.feed(piece)
            for event in events:
                if event.type == "closing":
                    with suppress(OSError, HTTPException):
                        assert (events[-1], response.read()) == (event, b""), "something after closing"
                    return Ended(at=0.0, reason=event.json()["reason"])
                self._take(event)
        return Ended(at=0.0, left=True)

    def _take(self, event: ReceivedEvent) -> None:
        now, data = time.monotonic(), event.json()
        if event.type == "ping":
            self._journal.write(Pinged(at=now, id=event.id or ""))
            self._position = event.id or self._position
        elif event.type == "reset":
            self._journal.write(Reset(at=now, channel=data["channel"], reason=data["reason"]))
        else:
            assert event.id is not None, event
            if event.type == "connected":
                self._journal.write(Opened(at=now, id=event.id, recovered=data["recovered"]))
            else:
                assert event.type == "e", event
                self._journal.write(
                    Received(
                        at=now,
                        id=event.id,
                        channel=data["channel"],
                        payload=payload_of(data),
                        timestamp=data["timestamp"],
                    )
                )
            self._position = event.id


def _is_open(sock: socket.socket) -> bool:
    """Return whether a connection goes on: within a second or two there is a ping at least."""
    sock.settimeout(5)
    try:
        return bool(sock.recv(1))
    except ConnectionError:
        return False
    except TimeoutError:
        return True


def main() -> None:
    tokens = json.loads(os.environ[TOKEN])
    ends, remains = threading.Event(), threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: remains.set())

    def end(*_: object) -> None:
        remains.set()
        ends.set()

    signal.signal(signal.SIGTERM, end)
    clients = [
        Client(settings, tokens[settings.name], ends, remains)
        for settings in msgspec.json.decode(sys.argv[1], type=list[Settings])
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()


if __name__ == "__main__":
    main()
