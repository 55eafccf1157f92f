"""The one way to wait in the tests: for a condition, with a deadline that only bounds a hang."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

DEADLINE = 60.0
"""Seconds after which a wait is taken for a hang; it measures nothing, and a busy machine needs some of it."""

PAUSE = 0.005
"""Seconds between two looks."""


def until(
    condition: Callable[[], object], what: str, seconds: float = DEADLINE, pause: float = PAUSE
) -> None:
    """Wait until a condition is true.

    Args:
        condition: what is looked at again and again.
        what: the condition in words, for the failure.
        seconds: after which the test fails.
        pause: seconds between two looks.

    Raises:
        AssertionError: it has not become true in that time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(pause)


async def until_async(
    condition: Callable[[], object] | Callable[[], Awaitable[object]],
    what: str,
    seconds: float = DEADLINE,
    pause: float = PAUSE,
) -> None:
    """Do as `until` does, in an event loop that runs meanwhile; the condition may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(pause)
