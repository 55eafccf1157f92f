"""A flood of requests to publish, from one process: as many as are answered, or at a rate whatever is answered.

    python -m tests.faults.flood '{"name": "flood-1", …}'

It takes the fields of `Settings`, and the token from ``SSE_FAULTS_TOKEN``. It ends by itself, and prints a `Flooded`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from tests.faults import publisher
from tests.faults.journal import Answered, Journal, Sent, payload_of

ANSWERED_WITHIN = 60.0
"""Seconds; a request that is not answered by then ends the flood as a failure."""


class Settings(publisher.Settings, kw_only=True):
    """What is sent, besides what a publisher's settings say.

    Attributes:
        seconds: for how long.
        rate: requests a second, each sent when it is due whether or not earlier ones are answered; 0: each connection
            sends one when its last one is answered.
        connections: how many there are at most.
    """

    seconds: float
    rate: float = 0.0
    connections: int


class Flooded(msgspec.Struct, kw_only=True):
    """What became of a flood.

    Attributes:
        seconds: from the first request to the last one.
        sent: how many requests were sent; one that is due and has no connection is not.
        statuses: how often each was answered; 0 where a connection ended without an answer.
        bare: how many refusals had no ``Retry-After``.
        acknowledged: how many events within its seconds.
        delays: of the requests that were acknowledged, in seconds from when each was due, in order of size.
        refused_within: the longest time in which one was refused, in seconds from when it was due.
    """

    seconds: float
    sent: int = 0
    statuses: dict[int, int]
    bare: int = 0
    acknowledged: int = 0
    delays: list[float]
    refused_within: float = 0.0


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Flood:
    """Sends the requests.

    Args:
        settings: how many.
        token: of the publisher.
    """

    def __init__(self, settings: Settings, token: str) -> None:
        self._settings = settings
        lines = (
            "POST /api/v1/sse HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {token}",
            "Content-Length: ",
        )
        self._head = "\r\n".join(lines)
        self._pad = "x" * settings.size
        self._journal = Journal(Path(settings.journal))
        self._chance = random.Random(settings.seed)
        self._idle: list[Connection] = []
        self._open = self._count = 0
        self._statuses: Counter[int] = Counter()
        self._result = Flooded(seconds=0.0, statuses={}, delays=[])

    async def run(self) -> Flooded:
        """Send them, and return what became of them."""
        settings, result = self._settings, self._result
        self._begun = time.monotonic()
        if settings.rate:
            await self._at_a_rate()
        else:
            await asyncio.gather(*(self._one_by_one() for _ in range(settings.connections)))
        for _, writer in self._idle:
            writer.close()
        self._journal.close()
        result.statuses = dict(self._statuses)
        result.delays.sort()
        return result

    async def _one_by_one(self) -> None:
        while time.monotonic() < self._begun + self._settings.seconds:
            await self._send(time.monotonic())

    async def _at_a_rate(self) -> None:
        settings, result = self._settings, self._result
        under_way: set[asyncio.Task[None]] = set()
        due = self._begun
        while due < self._begun + settings.seconds and time.monotonic() < self._begun + 2 * settings.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self._idle or self._open < settings.connections:
                task = asyncio.create_task(self._send(due))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
            due += 1 / settings.rate
        result.seconds = time.monotonic() - self._begun
        async with asyncio.timeout(ANSWERED_WITHIN):
            await asyncio.gather(*under_way)

    async def _send(self, due: float) -> None:
        """Send a request, on a connection that is free or on a new one."""
        settings, result = self._settings, self._result
        self._count += 1
        name = f"{settings.name}.{self._count}"
        content: list[dict[str, Any]] = [
            {"channel": self._chance.choice(settings.channels), "event": "e", "data": data}
            for data in ({"of": f"{name}.{part}", "pad": self._pad} for part in range(settings.batch))
        ]
        events = [(one["channel"], payload_of(one["data"])) for one in content]
        body = json.dumps({"events": content})
        self._open += not self._idle
        status, retry_after = 0, False
        answer: dict[str, Any] = {}
        sent = False
        try:
            reader, writer = connection = (
                self._idle.pop()
                if self._idle
                else await asyncio.open_connection(
                    "127.0.0.1", settings.ports[self._count % len(settings.ports)]
                )
            )
            self._journal.write(Sent(at=time.monotonic(), name=name, events=events))
            sent = True
            result.sent += 1
            writer.write(f"{self._head}{len(body)}\r\n\r\n{body}".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            answer = json.loads(
                await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
            )
            status, retry_after = int(head.split()[1]), "retry-after: " in head
            self._idle.append(connection)
        except (OSError, asyncio.IncompleteReadError):
            self._open -= 1
        now = time.monotonic()
        if sent:
            ids, code = answer.get("ids", []), answer.get("error", {}).get("code", "")
            self._journal.write(Answered(at=now, name=name, status=status, ids=ids, code=code))
            self._note(status, retry_after, len(ids), due, now)

    def _note(self, status: int, retry_after: bool, count: int, due: float, now: float) -> None:
        result = self._result
        self._statuses[status] += 1
        if status == 201:
            result.delays.append(now - due)
            result.acknowledged += count if now < self._begun + self._settings.seconds else 0
        elif status:
            result.bare += not retry_after
            result.refused_within = max(result.refused_within, now - due)


def main() -> None:
    with suppress(PermissionError):  # what comes from other machines does not wait for this one's processors
        os.nice(-10)
    settings = msgspec.json.decode(sys.argv[1], type=Settings)
    result = asyncio.run(Flood(settings, os.environ[publisher.TOKEN]).run())
    sys.stdout.buffer.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
