"""Structured logs: one line for each log event, on standard error, without tokens.

The rest of the package logs through the standard library, with the fields as ``extra``, so an application that
mounts it finds these events in its own logs.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from sse_app.core.errors import SSEAppError
from sse_app.core.private_apis import skip_caller_lookup
from sse_app.process.log_format import ConsoleFormatter, JSONFormatter
from sse_app.process.log_writer import LogWriter

LONGEST_PRINTED = 8192
"""After how many characters what is printed without a line end is a line."""

log = logging.getLogger(__name__)


@contextmanager
def to_standard_error(
    level: str, format: Literal["auto", "console", "json"], worker: int = 0
) -> Iterator[None]:
    """Send all logs of the process to standard error in one form, written by a thread (`LogWriter`).

    So is what would be printed there past the logs: by a library, of a warning, of an exception that is not caught.
    At the end what waits is written.

    Args:
        level: the least level that is shown.
        format: ``console`` for people, ``json`` for machines, ``auto`` by whether a terminal is there.
        worker: the number of the process among several, which each line then names; 0 where it is alone.

    Raises:
        SystemExit: something failed that the package does not raise on purpose; it is logged.
    """
    terminal = sys.stderr.isatty()
    console = format == "console" or (format == "auto" and terminal)
    handler = LogWriter()
    handler.setFormatter(ConsoleFormatter(terminal) if console else JSONFormatter())
    if worker:
        handler.addFilter(_naming(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # What no line shows need not be collected for each record (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    skip_caller_lookup()
    logging.captureWarnings(True)
    threading.excepthook = _log_of_thread
    sys.unraisablehook = _log_unraisable
    printed, sys.stderr = sys.stderr, _PrintedLines()
    try:
        yield
    except (SSEAppError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        log.critical("uncaught", exc_info=True)
        raise SystemExit(1) from None
    finally:
        sys.stderr = printed
        handler.flush()


def _naming(worker: int) -> Callable[[logging.LogRecord], bool]:
    """Return a filter that lets every record pass, with the worker among its fields."""

    def name(record: logging.LogRecord) -> bool:
        record.worker = worker
        return True

    return name


def dropped_lines() -> int:
    """Return how many lines have been dropped because standard error did not take them."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogWriter))


def set_level(level: str) -> None:
    """Change the least level that is shown."""
    logging.getLogger().setLevel(level.upper())


def _log_of_thread(uncaught: threading.ExceptHookArgs, /) -> None:
    """Log an exception that ends a thread (`threading.excepthook`)."""
    if uncaught.exc_type is not SystemExit and uncaught.exc_value is not None:
        thread = uncaught.thread.name if uncaught.thread else ""
        log.error("uncaught", exc_info=uncaught.exc_value, extra={"of_thread": thread})


def _log_unraisable(unraisable: sys.UnraisableHookArgs, /) -> None:
    """Log an exception that no caller can get, from a finaliser for instance (`sys.unraisablehook`)."""
    log.error(
        "uncaught", exc_info=unraisable.exc_value, extra={"detail": unraisable.err_msg or "in a finaliser"}
    )


class _PrintedLines(io.TextIOBase):
    """Takes the place of standard error: what is printed becomes log lines, for these cannot hold the process up."""

    def __init__(self) -> None:
        self._rest = ""

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of standard error, for a program that is started with it."""
        return 2

    def write(self, text: str, /) -> int:
        """Log the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        if len(self._rest) > LONGEST_PRINTED:
            lines.append(self._rest)
            self._rest = ""
        for line in lines:
            if line.strip():
                log.warning("printed", extra={"text": line})
        return len(text)
