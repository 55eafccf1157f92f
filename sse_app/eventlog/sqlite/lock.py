"""The lock that the processes which share an event log take in turn, before they begin to write.

SQLite has a lock of its own, which alone keeps the file whole. But who waits for that one asks again and again with
longer and longer pauses, so that a busy process can keep another one out for half a second; here the kernel wakes
the next one. What a process tells the others (see `bells`) it tells before it releases the lock, so in log order.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sse_app.core.errors import StateError
from sse_app.storage.ownership import require_private
from sse_app.storage.sqlite import unusable

OPEN_TIMEOUT = 10.0
"""How long a process that opens a log waits for the lock, in seconds."""


class LogLock:
    """A lock on a file beside the database, which the kernel releases when its holder ends, in whatever way.

    Args:
        database: the event log's file.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self.path = Path(f"{database}-lock")
        self._name = os.fspath(self.path)
        self._descriptor = -1

    def open(self) -> None:
        """Make or open the file.

        Raises:
            StateError: it cannot be, or is not this user's alone.
        """
        self._descriptor = self._opened()

    def open_again(self) -> None:
        """Make or open the file that others find, if it is not the one that is open; that one stays open until then.

        Raises:
            StateError: as of `open`.
        """
        if not self.is_in_place():
            descriptor = self._opened()
            self.close()
            self._descriptor = descriptor

    def _opened(self) -> int:
        try:
            require_private(self.path, "the lock")
            flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(self.path, flags, 0o600)
        except OSError as error:
            raise unusable(self._database, error) from None

    def close(self) -> None:
        """Close the file, which releases the lock."""
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1

    def is_in_place(self) -> bool:
        """Return whether the file that is locked is the one that others find."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self._name))
        except OSError:
            return False

    def try_acquire(self) -> bool:
        """Take the lock if no other process has it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self) -> None:
        """Take the lock, however long another process holds it: nothing can end this call but that."""
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def acquire_within(self, seconds: float) -> None:
        """Take the lock, or give it up for good after a time: the file is closed then.

        Raises:
            StateError: another process did not release it in time.
        """
        if self.try_acquire():
            return
        acquired = threading.Event()

        def wait() -> None:
            self.acquire()
            acquired.set()

        # Nothing else can end this wait. Where it is granted after the file was closed, the kernel releases the lock.
        threading.Thread(target=wait, name="eventlog-lock", daemon=True).start()
        if not acquired.wait(seconds):
            self.close()
            raise StateError(
                f"cannot open {self._database}: another process has held {self.path} for {seconds:g} seconds"
            )

    def release(self) -> None:
        """Have the next one take the lock."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)


@contextmanager
def log_lock(database: Path) -> Iterator[LogLock]:
    """Hold the lock of an event log for a while; its file is made where there is none, and removed on an error then.

    Args:
        database: the event log's file.

    Raises:
        StateError: another process does not release the lock, or its file cannot be used.
    """
    lock = LogLock(database)
    made = not lock.path.exists()
    lock.open()
    try:
        lock.acquire_within(OPEN_TIMEOUT)
        yield lock
    except BaseException:
        if made:  # nothing stays behind beside a file that is not ours
            with suppress(OSError):
                lock.path.unlink()
        raise
    finally:
        lock.close()
