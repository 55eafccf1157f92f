"""Calls a function again and again, by the monotonic clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class PeriodicCallback:
    """Calls a function from the event loop, so many seconds after each other; a call waits for the one before.

    Tornado's class of this name goes by the wall clock: when that is set back by an hour it is silent for an hour.
    Calls that were missed, because one took too long or the event loop was busy, are left out. What the
    function raises is logged, and it is called again.

    Args:
        callback: what to call; a coroutine function is awaited.
        interval: seconds from the beginning of one call to that of the next.
    """

    def __init__(self, callback: Callable[[], Awaitable[None] | None], interval: float) -> None:
        self._callback = callback
        self._interval = interval
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._loop is not None

    def start(self) -> None:
        """Begin to call, for the first time after one interval; does nothing where that was done before."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._due_at = self._loop.time()
            self._schedule()

    def stop(self) -> None:
        """Call no more; a call under way is not cut off."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        if self._loop is not None and self._timer is None:
            missed = max(0.0, self._loop.time() - self._due_at) // self._interval
            self._due_at += (missed + 1) * self._interval
            self._timer = self._loop.call_at(self._due_at, self._call)

    def _call(self) -> None:
        self._timer = None
        if self._running is not None and not self._running.done():  # stopped and started again meanwhile
            self._schedule()
            return
        try:
            result = self._callback()
        except Exception:
            log.exception("a periodic callback failed")
        else:
            if result is not None:
                self._running = asyncio.ensure_future(self._finish(result))
                return
        self._schedule()

    async def _finish(self, result: Awaitable[None]) -> None:
        try:
            await result
        except Exception:
            log.exception("a periodic callback failed")
        self._schedule()
