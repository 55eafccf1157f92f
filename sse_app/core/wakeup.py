"""Wakes a thread, or the event loop, from another thread of the process."""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress


class Wakeup:
    """Is set and cleared as a `threading.Event` is; the event loop can watch it too: it is readable while it is set.

    To set it is a system call (eventfd(2)), and the interpreter's lock is free meanwhile. `queue.SimpleQueue` and
    ``call_soon_threadsafe`` hold that lock while they wake a thread: where the kernel runs that thread at once, on the
    same core, it finds the lock taken, and the two hand it to and fro with six context switches in place of two.

    Raises:
        OSError: there are no descriptors left.
    """

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._closing = threading.Lock()
        """Held while it is set too: the descriptor must not become another file's meanwhile."""

    def fileno(self) -> int:
        """Return the descriptor, which is readable while this is set."""
        return self._descriptor

    def set(self) -> None:
        """Set it, which wakes the thread or the event loop that waits; does nothing after `close`."""
        with self._closing:
            if self._descriptor >= 0:
                os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Clear it; does nothing where it is not set."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def wait(self, timeout: float) -> None:
        """Wait until it is set, and clear it.

        Args:
            timeout: after how many seconds not to wait any longer.
        """
        if self._poll.poll(timeout * 1000):
            self.clear()

    def close(self) -> None:
        """Close the descriptor; no thread waits, and no event loop watches it any more."""
        with self._closing:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1
