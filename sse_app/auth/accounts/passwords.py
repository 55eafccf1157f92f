"""Password hashing with argon2id, in few threads of its own so that guesses cannot occupy the server."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from sse_app.core.errors import SSEAppError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

MAX_PASSWORD_LENGTH = 1024
THREADS = 2
MAX_WAITING = 32
"""How many logins may wait for a thread; one more is refused instead of adding to the queue."""

NICENESS = 10

T = TypeVar("T")


class TooManyLogins(SSEAppError):
    """More logins wait for their turn than can be served soon."""


@cache
def _hasher() -> PasswordHasher:
    """Return argon2id at OWASP's parameters: 19 MiB, 2 passes. Imported when first needed: it slows a restart down."""
    from argon2 import PasswordHasher

    return PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)


@cache
def _unmatched() -> str:
    """Return a hash to check a password against where there is none."""
    return _hasher().hash("no account has this password")


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, in the PHC string format."""
    return _hasher().hash(password)


def check_password(password: str, hashed: str | None, *, renew: bool) -> tuple[bool, str | None]:
    """Return whether a password fits, and a new hash of it where the old one has other parameters than today's.

    Args:
        password: what was typed.
        hashed: what it must fit; where there is no hash it does not, after the same amount of work.
        renew: whether a new hash is wanted.
    """
    unmatched, hasher = _unmatched(), _hasher()
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        right = hasher.verify(hashed or unmatched, password) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False, None
    outdated = right and renew and hashed is not None and hasher.check_needs_rehash(hashed)
    return right, hasher.hash(password) if outdated else None


class PasswordThreads:
    """Runs what hashes passwords off the event loop, a few at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "passwords", _give_way)
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


def _give_way() -> None:
    """Let the event loop's thread go first where both want a processor; only Linux tells threads apart here."""
    if sys.platform == "linux":
        with suppress(PermissionError):  # a hardened unit may not
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
