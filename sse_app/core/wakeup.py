"""Wakes a thread, or the event loop, from another thread of the process."""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress


class Wakeup:
    """What one thread waits for, or the event loop, and another calls; calls before it is taken are one.

    A call is a system call (eventfd(2)), and the interpreter's lock is free meanwhile. `queue.SimpleQueue` and
    ``call_soon_threadsafe`` call with that lock held: where the kernel then runs the called thread at once, on the same
    core, that one finds the lock taken, and the two hand it to and fro with six context switches in place of two.

    Raises:
        OSError: there are no descriptors left.
    """

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)
        self._closing = threading.Lock()
        """Held for a call too: the descriptor could be another file's by then."""

    def fileno(self) -> int:
        """Return the descriptor, which can be read when somebody has called."""
        return self._descriptor

    def call(self) -> None:
        """Wake who waits, or who waits next; nobody once it is closed."""
        with self._closing:
            if self._descriptor >= 0:
                os.eventfd_write(self._descriptor, 1)

    def take(self) -> None:
        """Take the calls that there are, if any."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def wait(self, timeout: float) -> None:
        """Wait for a call, and take it.

        Args:
            timeout: after how many seconds not to wait any longer.
        """
        if self._poll.poll(timeout * 1000):
            self.take()

    def close(self) -> None:
        """Give the descriptor back; nobody may wait for a call any more."""
        with self._closing:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1
