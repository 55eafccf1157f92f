"""Password hashing with argon2id, in a few threads of its own, so that guessers cannot keep the server busy."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from sse_app.core.errors import SSEAppError

MAX_PASSWORD_LENGTH = 1024
THREADS = 2
MAX_WAITING = 32
"""How many logins may be in a thread or wait for one; one more is refused, or takes the place of another."""

NICENESS = 10
"""How much lower than the event loop's the threads' priority is."""

_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
"""argon2id at OWASP's parameters: 19 MiB, 2 passes."""

_UNMATCHED = (
    "$argon2id$v=19$m=19456,t=2,p=1$JQg5+whLHnKGeDgaI0atGg$zVgQhLoTYEqc+MuJHPI0qdlOQk3TYvQUel7y3vdQU70"
)
"""The hash to check a password against where there is no account: as much work as that of an account."""

T = TypeVar("T")


class TooManyLogins(SSEAppError):
    """More logins wait for their turn than can be served soon."""


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, in the PHC string format."""
    return _HASHER.hash(password)


def check_password(password: str, hashed: str | None, *, renew: bool) -> tuple[bool, str | None]:
    """Return whether a password fits, and a new hash of it where the old one has other parameters than today's.

    Args:
        password: what was typed.
        hashed: what it must fit; where there is no hash it does not, after the same amount of work.
        renew: whether a new hash is wanted.
    """
    try:
        right = _HASHER.verify(hashed or _UNMATCHED, password) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False, None
    outdated = right and renew and hashed is not None and _HASHER.check_needs_rehash(hashed)
    return right, _HASHER.hash(password) if outdated else None


class _Job(NamedTuple):
    work: Callable[[], Any]
    done: asyncio.Future[Any]


class PasswordThreads:
    """Runs what hashes passwords off the event loop, a few at a time, in fair shares.

    Networks take turns, and where all places are taken one that has fewer gets a place of the one that has most: so
    a network that fills the queue fills it for itself.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "passwords", _lower_priority)
        self._waiting: dict[str, deque[_Job]] = {}
        """By network, the one whose turn it is first."""
        self._running: Counter[str] = Counter()
        self._closed = False

    async def run(self, work: Callable[[], T], network: str = "") -> T:
        """Run ``work`` in one of the threads.

        Args:
            work: what to run.
            network: for which network's share it counts.

        Raises:
            TooManyLogins: too many wait already, or so many of others came meanwhile that this one lost its place.
        """
        if self._closed:
            raise TooManyLogins("the server is ending")
        if self._running.total() + sum(map(len, self._waiting.values())) >= MAX_WAITING:
            self._make_room(network)
        job = _Job(work, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(network, deque()).append(job)
        self._start_next()
        result: T = await job.done
        return result

    def _make_room(self, network: str) -> None:
        largest = max(self._waiting, key=self._places, default=network)
        if self._places(network) + 1 >= self._places(largest):
            raise TooManyLogins("too many logins at once")
        waiting = self._waiting[largest]
        _fail(waiting.pop(), "too many logins at once")
        if not waiting:
            del self._waiting[largest]

    def _places(self, network: str) -> int:
        return self._running[network] + len(self._waiting.get(network, ()))

    def _start_next(self) -> None:
        while self._waiting and self._running.total() < THREADS and not self._closed:
            network = next(iter(self._waiting))
            jobs = self._waiting.pop(network)
            job = jobs.popleft()
            if jobs:
                self._waiting[network] = jobs  # behind the others
            if job.done.done():
                continue  # its caller has gone
            self._running[network] += 1
            running = asyncio.get_running_loop().run_in_executor(self._executor, job.work)
            running.add_done_callback(partial(self._finished, network, job))

    def _finished(self, network: str, job: _Job, running: asyncio.Future[Any]) -> None:
        self._running[network] -= 1
        if not self._running[network]:
            del self._running[network]
        error = None if running.cancelled() else running.exception()
        if running.cancelled():
            _fail(job, "the server is ending")
        elif not job.done.done():
            if error is None:
                job.done.set_result(running.result())
            else:
                job.done.set_exception(error)
        self._start_next()

    def close(self) -> None:
        """Stop the threads; logins that still wait are refused."""
        self._closed = True
        for jobs in self._waiting.values():
            for job in jobs:
                _fail(job, "the server is ending")
        self._waiting.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _fail(job: _Job, reason: str) -> None:
    if not job.done.done():
        job.done.set_exception(TooManyLogins(reason))


def _lower_priority() -> None:
    """Have the event loop's thread run first where both want a processor; only Linux has priorities of threads."""
    if sys.platform == "linux":
        with suppress(PermissionError):  # a hardened unit may not
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
