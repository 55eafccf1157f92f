"""Password hashing with argon2id, in a few threads of its own, so that guessers cannot keep the server busy."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from sse_app.core.errors import SSEAppError

MAX_PASSWORD_LENGTH = 1024
THREADS = 2
MAX_WAITING = 32
"""How many logins may wait for a thread; one more is refused instead of adding to the queue."""

NICENESS = 10
"""How much lower than the event loop's the threads' priority is."""

_HASHER = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
"""argon2id at OWASP's parameters: 19 MiB, 2 passes."""

T = TypeVar("T")


class TooManyLogins(SSEAppError):
    """More logins wait for their turn than can be served soon."""


@cache
def _unmatched() -> str:
    """Return the hash to check a password against where there is no account."""
    return _HASHER.hash("no account has this password")


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
    unmatched = _unmatched()
    try:
        right = _HASHER.verify(hashed or unmatched, password) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False, None
    outdated = right and renew and hashed is not None and _HASHER.check_needs_rehash(hashed)
    return right, _HASHER.hash(password) if outdated else None


class PasswordThreads:
    """Runs what hashes passwords off the event loop, a few at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "passwords", _lower_priority)
        self._waiting = 0
        self._closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in one of the threads.

        Raises:
            TooManyLogins: too many wait already.
        """
        if self._waiting >= MAX_WAITING:
            raise TooManyLogins("too many logins at once")
        if self._closed:
            raise TooManyLogins("the server is ending")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        except asyncio.CancelledError:
            if self._closed:  # it is the work that was cancelled
                raise TooManyLogins("the server is ending") from None
            raise
        finally:
            self._waiting -= 1

    async def warm_up(self) -> None:
        """Make the first login as quick as the others."""
        with suppress(TooManyLogins):  # or the server ends before that
            await self.run(_unmatched)

    def close(self) -> None:
        """Stop the threads; logins that still wait are refused."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)


def _lower_priority() -> None:
    """Have the event loop's thread run first where both want a processor; only Linux has priorities of threads."""
    if sys.platform == "linux":
        with suppress(PermissionError):  # a hardened unit may not
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
