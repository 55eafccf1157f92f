"""A publisher in a process of its own: it publishes until it is told to end, and writes down all that is said.

    python -m tests.faults.publisher '{"name": "p1", …}'

It takes the fields of `Settings`, and the token from ``SSE_FAULTS_TOKEN``. SIGTERM ends it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import msgspec

from tests.faults.journal import Answered, Journal, Sent, payload_of
from tests.faults.ledger import REFUSALS

TIMEOUT = 45.0
"""Within how many seconds each request is answered, or its connection ends."""

COMES_BACK = 0.05
"""Seconds after which a request is repeated."""

GIVES_UP = 120.0
"""Seconds within which a request with a key is acknowledged, whatever is done to the servers."""

REPEATED = 50
"""Of how many of its last requests a publisher repeats one now and then."""

PADDING = "".join(random.Random(1).choices('abcdefghijklmnopqrstuvwxyz 0123456789"\\\n\r\t:ä€😀', k=20_000))
"""Of which each event has a piece of its own."""

TOKEN = "SSE_FAULTS_TOKEN"
"""The environment variable that has the token of a publisher or of clients."""


class Settings(msgspec.Struct, kw_only=True):
    """What a publisher does.

    Attributes:
        name: no other has it.
        seed: of what it leaves to chance.
        journal: the path of its journal.
        ports: of the servers on this machine; each connection goes to one of them.
        channels: that it publishes on.
        keyed: whether each request has an idempotency key, and is repeated until it is acknowledged.
        kept: whether it keeps its connection.
        batch: how many events a request has at most.
        pause: seconds between two requests, on the average.
        size: of the payload's padding in characters, at most.
    """

    name: str
    seed: str
    journal: str
    ports: Sequence[int]
    channels: Sequence[str]
    keyed: bool = True
    kept: bool = True
    batch: int = 8
    pause: float = 0.06
    size: int = 200


class Publisher:
    """Publishes one request after another."""

    def __init__(self, settings: Settings, token: str) -> None:
        self._settings = settings
        self._journal = Journal(Path(settings.journal))
        self._chance = random.Random(settings.seed)
        self._headers = {"Authorization": f"Bearer {token}"}
        self._connection: HTTPConnection | None = None
        self._count = 0
        self._repeatable: deque[tuple[str, Sequence[tuple[str, str]]]] = deque(maxlen=REPEATED)
        self.ends = False

    def run(self) -> None:
        """Publish until it is told to end; a request with a key is then still brought to its answer."""
        while not self.ends:
            settings = self._settings
            self._count += 1
            name = f"{settings.name}.{self._count}"
            # The choices for a request do not depend on how often those before it were refused.
            chance = self._chance = random.Random(f"{settings.seed} {self._count}")
            channels = chance.choices(settings.channels, k=chance.randint(1, settings.batch))
            pause = chance.expovariate(1 / settings.pause) if settings.pause else 0
            repeats = settings.keyed and chance.random() < 0.1
            events = [(channel, f"{name}.{part}") for part, channel in enumerate(channels)]
            self._repeatable.append((name, events))
            repeated = self._repeatable[
                -1 if chance.random() < 0.5 else chance.randrange(len(self._repeatable))
            ]
            self.publish(name, events)
            if repeats:  # perhaps at another process
                self._leave()
                self.publish(*repeated)
            time.sleep(pause)

    def publish(self, name: str, events: Sequence[tuple[str, str]]) -> None:
        """Send a request, where it has a key until it is acknowledged.

        Args:
            name: of the request.
            events: of each of its events the channel and the name.

        Raises:
            RuntimeError: it was not acknowledged within `GIVES_UP`, or answered what no publisher may be.
        """
        content: list[dict[str, Any]] = [
            {"channel": channel, "event": "e", "data": {"of": event, "pad": self._pad_of(event)}}
            for channel, event in events
        ]
        sent = [(channel, payload_of(one["data"])) for (channel, _), one in zip(events, content, strict=True)]
        path, body = "/api/v1/sse", json.dumps({"events": content})
        if len(content) == 1:
            path, body = f"{path}/{content[0].pop('channel')}", json.dumps(content[0])
        ends = time.monotonic() + GIVES_UP
        headers = self._headers | ({"Idempotency-Key": name} if self._settings.keyed else {})
        while True:
            status = self._send(name, sent, path, body, headers)
            if status not in (0, 201, *REFUSALS):
                raise RuntimeError(f"{name} was answered {status}")
            if status == 201 or not self._settings.keyed:
                return
            if time.monotonic() > ends:
                raise RuntimeError(f"{name} was never acknowledged")
            if self._chance.random() < 0.2:  # another server may take it
                self._leave()
            time.sleep(COMES_BACK)

    def _pad_of(self, event: str) -> str:
        """Return the padding of an event, which is the same when it is repeated."""
        chance = random.Random(event)
        begin = chance.randrange(len(PADDING) - self._settings.size)
        return PADDING[begin : begin + chance.randint(0, self._settings.size)]

    def _send(
        self, name: str, events: Sequence[tuple[str, str]], path: str, body: str, headers: dict[str, str]
    ) -> int:
        connection = self._connected()
        if connection is None:
            return 0
        self._journal.write(Sent(at=time.monotonic(), name=name, events=events))
        status, ids, code = 0, list[str](), ""
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            status = answer.status
            if status == 201:
                ids = content["ids"] if "ids" in content else [content["id"]]
            code = content.get("error", {}).get("code", "")
        except TimeoutError as error:
            raise RuntimeError(f"{name} was not answered within {TIMEOUT} s") from error
        except (OSError, HTTPException):
            self._leave()
        self._journal.write(Answered(at=time.monotonic(), name=name, status=status, ids=ids, code=code))
        if not self._settings.kept:
            self._leave()
        return status

    def _connected(self) -> HTTPConnection | None:
        if self._connection is None:
            connection = HTTPConnection(
                "127.0.0.1", self._chance.choice(self._settings.ports), timeout=TIMEOUT
            )
            try:
                connection.connect()
            except OSError:  # nothing is sent
                return None
            self._connection = connection
        return self._connection

    def close(self) -> None:
        """Close its connection and its journal."""
        self._leave()
        self._journal.close()

    def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def main() -> None:
    publisher = Publisher(msgspec.json.decode(sys.argv[1], type=Settings), os.environ[TOKEN])
    signal.signal(signal.SIGTERM, lambda *_: setattr(publisher, "ends", True))
    publisher.run()


if __name__ == "__main__":
    main()
