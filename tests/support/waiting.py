"""The one way to wait in the tests: for a condition, with a deadline that only bounds a hang."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

DEADLINE = 60.0
"""Seconds after which a wait is taken for a hang; it measures nothing, and a busy machine needs some of it."""

PAUSE = 0.005
"""Seconds between the first two looks."""

SHARE = 0.1
"""The next look comes after this share of the time that a wait has taken: a look may be a request, or a process."""

LONGEST_PAUSE = 0.1
"""Seconds between two looks at the most, so that a long wait ends at once too."""

ACCEPTING_TURNS = 5
"""Within so many turns of the event loop asyncio calls back for a connection that it has accepted: it takes four."""


def until(
    condition: Callable[[], object], what: str, seconds: float = DEADLINE, pause: float | None = None
) -> None:
    """Wait until a condition is true.

    Args:
        condition: what is looked at again and again.
        what: the condition in words, for the failure.
        seconds: after which the test fails.
        pause: seconds between two looks; by default it grows with the time that the wait takes.

    Raises:
        AssertionError: it has not become true in that time.
    """
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        assert waited < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(_pause(waited) if pause is None else pause)


async def until_async(
    condition: Callable[[], object] | Callable[[], Awaitable[object]],
    what: str,
    seconds: float = DEADLINE,
    pause: float | None = None,
) -> None:
    """Do as `until` does, in an event loop that runs meanwhile; the condition may be a coroutine function."""
    begun = time.monotonic()
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        waited = time.monotonic() - begun
        assert waited < seconds, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(_pause(waited) if pause is None else pause)


def _pause(waited: float) -> float:
    """Return the seconds until the next look of a wait that has taken so many."""
    return min(max(PAUSE, SHARE * waited), LONGEST_PAUSE)


async def stop_accepting(server: asyncio.Server) -> None:
    """Close a server's sockets, and wait until it has called back for each connection that it has accepted."""
    server.close()
    for _ in range(ACCEPTING_TURNS):
        await asyncio.sleep(0)
