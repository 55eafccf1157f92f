"""Writes log lines from a thread of its own, so that a reader that does not read keeps nothing else from its work."""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import stat
import threading
import time
from contextlib import suppress
from queue import Empty, SimpleQueue

from sse_app.process.log_limits import LogLimits

QUEUE_BYTES = 8 * 1024 * 1024
"""How many bytes of lines may wait for the reader; what comes beyond is dropped, and counted."""

ITEM_OVERHEAD = 64
"""About how many bytes a line takes in the queue beside its text."""

FLUSH_TIMEOUT = 1.0
"""For how many seconds the end of the process waits for the lines that are queued."""

REST = 0.02
"""For how many seconds the thread rests once it has written twice within that time: where lines come thick and fast,
they are written together. To wake it costs the thread that logs more than the line."""

BATCH_BYTES = 32 * 1024
"""How many bytes are written at once, except into a pipe: a Unix socket takes so many without mixing them with those of
another process."""

DROPPED = "log_lines_dropped"
"""The event of the line that says how many lines are missing before it."""


class LogWriter(logging.Handler):
    """Queues lines, and has a thread write them, which may wait for the reader as long as it likes.

    The descriptor stays a blocking one: other programs may share it, a shell its terminal for instance. A pipe is
    given whole lines, at most PIPE_BUF bytes at once, so lines of two processes do not mix (pipe(7)); that holds
    for lines of up to that length. Lines that cannot be written, because the disk is full or the reader has gone,
    are dropped and counted too; each later line is tried again.

    Args:
        descriptor: what to write to; standard error.
        limit: how many bytes may wait.
    """

    def __init__(self, descriptor: int = 2, limit: int = QUEUE_BYTES) -> None:
        super().__init__()
        self.dropped = 0
        """How many lines have been dropped since the start."""
        self._descriptor = descriptor
        self._limit = limit
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._limits = LogLimits()
        self._accounts = threading.RLock()  # a finaliser may log while its thread counts a line
        self._waiting_bytes = 0
        self._overflowing = False
        """Whether lines are dropped until all that waits is written, so that the gap is at one place."""
        self._reported = 0
        self._hurry = threading.Event()
        """Set while a caller waits until all is written."""
        self._torn = False
        """Whether the last line was written only in part."""
        self._thread: threading.Thread | None = None
        self._is_timed = False
        """Whether the thread will look for lines that were left out, as soon as it is time to report them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record, unless there are too many like it.

        It is formatted here, so that what waits can be counted in bytes.
        """
        with self._accounts:
            if not self._limits.admits(record):
                if self._thread is not None and not self._is_timed:  # it waits for lines, without an end
                    self._is_timed = True
                    self._queue.put(threading.Event())
                return
        try:
            line = self._encoded(record)
        except Exception:
            line = self._encoded(_unformattable(record))
        size = len(line) + ITEM_OVERHEAD
        with self._accounts:
            self._limits.charge(record, len(line))
            if self._overflowing or self._waiting_bytes + size > self._limit:
                self._overflowing = True
                self.dropped += 1
                return
            self._waiting_bytes += size
            self._queue.put(line)
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        """Start the thread, at the first line only: a process without threads starts faster."""
        thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
        # It takes no signals: where the main thread blocks them, they have to wait for that.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with suppress(RuntimeError):  # no thread can be started now; the next line tries again
                thread.start()
                self._thread = thread
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def flush(self) -> None:
        """Wait until what is queued now is written, but at most `FLUSH_TIMEOUT`."""
        if self._thread is not None:
            written = threading.Event()
            self._queue.put(written)
            self._hurry.set()
            written.wait(FLUSH_TIMEOUT)
            self._hurry.clear()

    def _encoded(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    # -- in the thread --------------------------------------------------------------------------------------

    def _write_lines(self) -> None:
        try:
            of_pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
        except OSError:
            of_pipe = False
        batch_bytes = select.PIPE_BUF if of_pipe else BATCH_BYTES
        following: bytes | threading.Event | None = None
        now = -math.inf
        while True:
            if following is None and self._queue.empty():
                self._report_gap()
                self._report_left_out()
            try:
                first = self._queue.get(timeout=self._pause()) if following is None else following
            except Empty:
                continue
            following = None
            if isinstance(first, threading.Event):
                first.set()
                continue
            lines = [first]
            size = len(first)
            while not self._queue.empty():  # no other thread takes from it
                following = self._queue.get()
                if isinstance(following, threading.Event) or size + len(following) > batch_bytes:
                    break
                lines.append(following)
                size += len(following)
                following = None
            is_written = self._write(b"".join(lines))
            before, now = now, time.monotonic()
            if now - before < REST and following is None and self._queue.empty():
                self._hurry.wait(REST)
            with self._accounts:
                self._waiting_bytes -= size + ITEM_OVERHEAD * len(lines)
                if not is_written:
                    self.dropped += len(lines)

    def _report_gap(self) -> None:
        """Say how many lines are missing, once all that came before them is written, and take new ones again."""
        with self._accounts:
            dropped = self.dropped
            if dropped == self._reported or not self._queue.empty():
                return
            self._overflowing = False
        if self._write(self._encoded(_gap(dropped - self._reported))):
            self._reported = dropped

    def _pause(self) -> float | None:
        """Return in how many seconds there is something to report; None for as long as no line is left out."""
        with self._accounts:
            due_in = self._limits.due_in
            self._is_timed = due_in is not None
            return due_in

    def _report_left_out(self) -> None:
        """Say how many lines were left out of those that were too many, once an interval."""
        with self._accounts:
            records = self._limits.report() if self._limits.due_in == 0 else []
        for record in records:
            self._write(self._encoded(record))

    def _write(self, data: bytes) -> bool:
        """Write all of it, however long that takes; return False if it cannot be written."""
        if self._torn:
            data = b"\n" + data
        written = 0
        try:
            while written < len(data):
                try:
                    written += os.write(self._descriptor, data[written:])
                except BlockingIOError:  # another program has made it non-blocking
                    poll = select.poll()
                    poll.register(self._descriptor, select.POLLOUT)
                    poll.poll()
        except OSError:
            self._torn = self._torn or written > 0
            return False
        self._torn = False
        return True


def _gap(lines: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING", "msg": DROPPED, "lines": lines}
    )


def _unformattable(record: logging.LogRecord) -> logging.LogRecord:
    """Return what is logged in the place of a record that cannot be formatted."""
    fields = {"name": record.name, "levelno": record.levelno, "levelname": record.levelname}
    return logging.makeLogRecord({**fields, "msg": "log_line_failed"})
