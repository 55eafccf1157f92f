"""Calls a function again and again, by the monotonic clock."""

from __future__ import annotations

import asyncio
import logging
import os
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

log = logging.getLogger(__name__)


class PeriodicCallback:
    """Calls a function from the event loop, so many seconds after each other; a call waits for the one before.

    Tornado's class of this name goes by the wall clock: when that is set back by an hour it is silent for an hour.
    Calls that were missed, because one took too long or the event loop was busy, are left out. What the
    function raises is logged, and it is called again.

    Calls of the same interval, or of a multiple of it, fall on the same moments in a process, which then wakes up
    once for all of them; several processes of a machine do so at different moments.

    Args:
        callback: what to call; a coroutine function is awaited. It gets a task only where it has to wait for something:
            until then `asyncio.current_task` is not its own, which `asyncio.timeout` needs.
        interval: seconds from the beginning of one call to that of the next.
        phase: where in each second the moments lie, by the monotonic clock, which all processes of a machine have in
            common; where it is None, they are this process's.
    """

    def __init__(
        self,
        callback: Callable[[], Coroutine[Any, Any, None] | None],
        interval: float,
        phase: float | None = None,
    ) -> None:
        self._callback = callback
        self._interval = interval
        self._phase = _phase_of_process() if phase is None else phase
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._loop is not None

    def start(self) -> None:
        """Begin to call, for the first time after about one interval; does nothing where that was done before."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            now = self._loop.time()
            since = (now - self._phase) % self._interval
            self._due_at = now - since  # half an interval to one and a half before the first call
            if since > self._interval / 2:
                self._due_at += self._interval
            self._schedule()

    def stop(self) -> None:
        """Call no more; a call under way is not cut off."""
        self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def leave_out_next(self) -> bool:
        """Leave out the next call if it falls on every second moment; for the function that is called.

        So a function that calls this each time is called with those that have twice the interval.

        Returns:
            Whether it is left out.
        """
        number = round((self._due_at + self._interval - self._phase) / self._interval)
        if number % 2 == 0:
            return False
        self._due_at += self._interval
        return True

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
            rest = _begun(self._callback())
        except Exception:
            log.exception("a periodic callback failed")
        else:
            if rest is not None:
                self._running = asyncio.ensure_future(self._finish(rest))
                return
        self._schedule()

    async def _finish(self, rest: Coroutine[Any, Any, None]) -> None:
        try:
            await rest
        except Exception:
            log.exception("a periodic callback failed")
        self._schedule()


def _phase_of_process() -> float:
    """Return where in each second this process's moments lie: apart from those of others started before and after."""
    return os.getpid() * 618 % 1000 / 1000


def _begun(call: Coroutine[Any, Any, None] | None) -> Coroutine[Any, Any, None] | None:
    """Do what can be done of a call without waiting, and return the rest; a task would cost more than most calls do."""
    if call is None:
        return None
    try:
        awaited = call.send(None)
    except StopIteration:
        return None
    return _rest(call, awaited)


@types.coroutine
def _rest(begun: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    """Do what is left of a coroutine that waits for something, in the task that awaits this."""
    try:
        while True:
            try:
                result = yield awaited
            except BaseException as error:
                awaited = begun.throw(error)
            else:
                awaited = begun.send(result)
    except StopIteration:
        return
