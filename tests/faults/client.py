"""Clients in a process of their own: they listen, leave, are cut off and come back, and write down what they are sent.

    python -m tests.faults.client '[{"name": "c1", …}, …]'

It takes the fields of `Settings` of each, and their tokens from ``SSE_FAULTS_TOKEN``. SIGTERM ends them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest

from tests.faults.journal import Asked, Ended, Journal, Malformed, Opened, Pinged, Received, Reset
from tests.faults.publisher import COMES_BACK, TIMEOUT, TOKEN
from tests.support.sse_reader import EventStreamReader, ReceivedEvent


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
        pause: seconds between two reads.
        away: for how many seconds it stays away between two streams, on the average.
    """

    name: str
    seed: str
    journal: str
    ports: Sequence[int]
    channels: Sequence[str]
    stays: float = 3.0
    reads: int = 65_536
    pause: float = 0.0
    away: float = COMES_BACK
    host: str = "127.0.0.1"


class Client(threading.Thread):
    """Has one stream after another, each from the position of the one before."""

    def __init__(self, settings: Settings, token: str, ends: threading.Event) -> None:
        super().__init__(name=settings.name)
        self._settings = settings
        self._token = token
        self._ends = ends
        self._journal = Journal(Path(settings.journal))
        self._chance = random.Random(settings.seed)
        self._position = ""

    def run(self) -> None:
        """Listen until it is told to end."""
        while not self._ends.is_set():
            try:
                self._listen()
            except (OSError, HTTPException):
                pass  # the server, or what was done to it, has ended the stream
            except (AssertionError, LookupError, ValueError, pytest.fail.Exception) as error:
                self._journal.write(Malformed(at=time.monotonic(), why=f"{type(error).__name__}: {error}"))
            self._ends.wait(self._chance.expovariate(1 / self._settings.away))

    def _listen(self) -> None:
        settings = self._settings
        by_header = self._chance.random() < 0.5
        query = {"token": self._token} | (
            {"last_event_id": self._position} if self._position and not by_header else {}
        )
        header = f"Last-Event-ID: {self._position}\r\n" if self._position and by_header else ""
        path = f"/api/v1/sse/{','.join(settings.channels)}?{urlencode(query)}"
        with socket.create_connection((settings.host, self._chance.choice(settings.ports)), TIMEOUT) as sock:
            self._journal.write(
                Asked(at=time.monotonic(), channels=settings.channels, position=self._position)
            )
            ended = Ended(at=0.0)
            try:
                sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {settings.host}\r\n{header}\r\n".encode())
                response = HTTPResponse(sock)
                response.begin()
                with response:
                    served = response.status == 200
                    ended = self._read(response) if served else Ended(at=0.0, status=response.status)
            finally:
                self._journal.write(msgspec.structs.replace(ended, at=time.monotonic()))

    def _read(self, response: HTTPResponse) -> Ended:
        """Read a stream, and return how it ended."""
        settings = self._settings
        leaves_at = time.monotonic() + self._chance.expovariate(1 / settings.stays)
        reader = EventStreamReader()
        while not self._ends.is_set() and time.monotonic() < leaves_at:
            piece = response.read1(settings.reads)
            if not piece:
                return Ended(at=0.0)
            for event in reader.feed(piece):
                if event.type == "closing":
                    return Ended(at=0.0, reason=event.json()["reason"])
                self._take(event)
            if settings.pause:
                time.sleep(settings.pause)
        return Ended(at=0.0, left=True)

    def _take(self, event: ReceivedEvent) -> None:
        now, data = time.monotonic(), event.json()
        if event.type == "ping":
            self._journal.write(Pinged(at=now))
        elif event.type == "reset":
            self._journal.write(Reset(at=now, channel=data["channel"], reason=data["reason"]))
        else:
            assert event.id is not None, event
            if event.type == "connected":
                self._journal.write(Opened(at=now, id=event.id, recovered=data["recovered"]))
            else:
                self._journal.write(
                    Received(at=now, id=event.id, channel=data["channel"], payload=data["of"])
                )
            self._position = event.id


def launch(
    clients: Sequence[Settings], tokens: Mapping[str, str], within: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start a process with clients.

    Args:
        clients: each of them.
        tokens: theirs, by their names.
        within: a command that runs another one where the clients are to be.
    """
    command = [*within, sys.executable, "-m", __name__, msgspec.json.encode(clients).decode()]
    return subprocess.Popen(command, env=os.environ | {TOKEN: json.dumps(tokens)})


def main() -> None:
    tokens = json.loads(os.environ[TOKEN])
    ends = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    clients = [
        Client(settings, tokens[settings.name], ends)
        for settings in msgspec.json.decode(sys.argv[1], type=list[Settings])
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()


if __name__ == "__main__":
    main()
