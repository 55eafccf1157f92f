"""The event loop of the synchronous client: one for each process, in a daemon thread that ends with the program."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

Result = TypeVar("Result")

START_TIMEOUT = 10.0
"""Seconds in which the thread has to run."""

STOP_TIMEOUT = 5.0
"""Seconds that open connections may take to close when the program ends."""


class Closable(Protocol):
    """What is closed in a loop."""

    async def aclose(self) -> None:
        """Close it."""


class LoopThread:
    """An event loop in a thread of its own.

    Args:
        name: the thread's.

    Attributes:
        open: what is closed in the loop when it ends.
        is_ending: whether the program is ending.

    Raises:
        RuntimeError: the thread does not run.
    """

    def __init__(self, name: str) -> None:
        self.open: WeakSet[Closable] = WeakSet()
        self.is_ending = False
        self._runs = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        if not self._runs.wait(START_TIMEOUT):
            raise RuntimeError("threads do not run in this process (under uWSGI, set enable-threads)")

    def call(self, call: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine in the loop, wait for it, and return its result.

        An exception that comes while it is waited for, such as KeyboardInterrupt, cancels it.

        Raises:
            RuntimeError: a callback has called, in the loop's own thread, which would wait for itself; or all ends.
        """
        if threading.current_thread() is self._thread:
            call.close()
            raise RuntimeError("on_state and report are called by the client itself: they may not call it")
        if self.is_ending:
            call.close()
            raise _ended()
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise _ended() if self.is_ending else RuntimeError("the call was cancelled") from None
        except BaseException:
            future.cancel()
            raise

    def begin(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run what a function returns in the loop without waiting for it; do nothing where the loop has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._begin, call)

    def _begin(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = self._loop.create_task(call())
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    def stop(self) -> None:
        """End the loop, with all that is under way in it."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join(STOP_TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            self._ends = asyncio.Event()
            self._begun: set[asyncio.Task[None]] = set()
            self._runs.set()
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._ends.wait()
        for each in list(self.open):
            with suppress(Exception):
                await each.aclose()


def _ended() -> RuntimeError:
    """Return the error of a call at the end of the program; a daemon thread waits here until it is ended with that."""
    if threading.current_thread().daemon:
        threading.Event().wait()
    return RuntimeError("the program is ending")


async def in_a_thread(call: Callable[[], Result]) -> Result:
    """Return the result of a function that may block, and must not hold up the loop.

    Its thread is a daemon, unlike those of `asyncio.to_thread`: one that hangs does not keep a program from ending.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised to the caller
            errors.append(error)
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="sse_app.client.sync: token", daemon=True).start()
    await ended.wait()
    for error in errors:
        raise error
    return results[0]


_lock = threading.Lock()
_current: LoopThread | None = None
_of_parents: list[object] = []
"""What belongs to processes that this one was forked from."""


def loop_thread() -> LoopThread:
    """Return the process's own loop, and start it where there is none yet, as after a fork."""
    global _current
    with _lock:
        if _current is None:
            _current = LoopThread("sse_app.client.sync")
        return _current


def running_loop_thread() -> LoopThread | None:
    """Return the process's own loop; None where there is none."""
    return _current


def keep_of_parent(it: object) -> None:
    """Keep for good what was made in a process that this one was forked from, whose connections it would close."""
    _of_parents.append(it)


def _after_fork() -> None:
    """Forget the parent's loop, whose thread is not in this process."""
    global _current, _lock
    _lock = threading.Lock()  # another thread may have had it
    if _current is not None:
        keep_of_parent(_current)
        _current = None


def _at_exit() -> None:
    if _current is not None:
        _current.is_ending = True
        _current.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
