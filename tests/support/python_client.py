"""What the tests of the Python client share: an account that is logged in, and tests that leave nothing behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from sse_app.client import Backoff, Event, Session, Stream
from tests.support.server_process import ServerProcess

CHANNEL = "user.python"
DEADLINE = 120.0
"""Seconds after which a test stops waiting."""

QUICK = Backoff(0.1, 0.5)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop, and see that it leaves nothing behind."""

    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await test
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == [], "tasks were left"

    files = len(os.listdir("/proc/self/fd"))
    asyncio.run(bounded())
    assert len(os.listdir("/proc/self/fd")) <= files, "connections were left"


async def take(stream: Stream, count: int) -> list[Event]:
    """Return the next events; there must be no reset among them."""
    items = [await anext(stream) for _ in range(count)]
    assert all(isinstance(item, Event) for item in items), items
    return [item for item in items if isinstance(item, Event)]


def whats_in_the_log(server: ServerProcess, after: str) -> list[tuple[str, int]]:
    """Return id and number of the channel's events after an id, as the server's history has them."""
    found: list[tuple[str, int]] = []
    with server.publisher() as http:
        while True:
            page = http.get(f"/api/v1/sse/{CHANNEL}/history", params={"after": after, "limit": 1000}).json()
            assert page["complete"]
            if not page["events"]:
                return found
            found += [(event["id"], event["data"]["n"]) for event in page["events"]]
            after = found[-1][0]


@asynccontextmanager
async def logged_in(server: ServerProcess) -> AsyncIterator[Session]:
    """A session of an account that may publish to the channel and listen to it."""
    server.add_user("ann", "correct horse battery", subscribe=CHANNEL, publish=CHANNEL)
    async with Session(server.url, "ann", "correct horse battery") as session:
        yield session
