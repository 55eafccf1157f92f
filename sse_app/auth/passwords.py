"""Password hashing with argon2id, in few threads of its own so that guesses cannot occupy the server."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import argon2

from sse_app.errors import SSEAppError

MAX_PASSWORD_LENGTH = 1024
THREADS = 2
MAX_WAITING = 32
"""How many logins may wait for a thread; one more is refused instead of adding to the queue."""

NICENESS = 10

T = TypeVar("T")

_HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)  # OWASP: 19 MiB, 2 passes
_NOBODY = _HASHER.hash("nobody has this password")


class TooManyLogins(SSEAppError):
    """More logins wait for their turn than can be served soon."""


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password, in the PHC string format."""
    return _HASHER.hash(password)


def verify_password(password: str, hashed: str | None) -> bool:
    """Return whether the password fits; where there is no hash, False after the same amount of work."""
    try:
        return _HASHER.verify(hashed or _NOBODY, password) and hashed is not None
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False


def needs_rehash(hashed: str) -> bool:
    """Return whether a hash was made with other parameters than those of today."""
    return _HASHER.check_needs_rehash(hashed)


class PasswordThreads:
    """Runs what hashes passwords off the event loop, a few at a time."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, "passwords", _give_way)
        self._waiting = 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in one of the threads.

        Raises:
            TooManyLogins: too many wait already.
        """
        if self._waiting >= MAX_WAITING:
            raise TooManyLogins("too many logins at once")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Let go of the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    """Let the event loop's thread go first where both want a processor; only Linux tells threads apart here."""
    if sys.platform == "linux":
        with suppress(PermissionError):  # a hardened unit may not
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
