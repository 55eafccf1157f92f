"""Structured logs: one line for each log event, on standard error, without tokens.

The rest of the package logs through the standard library, with the fields as ``extra``, so an application that
mounts it finds these events in its own logs. The formatters are written here, without a logging library, because
each stream that opens or closes is a line: in a reconnect storm the formatting is a good part of the work.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import orjson

from sse_app.core.events import timestamp
from sse_app.core.private_apis import skip_caller_lookup
from sse_app.core.redaction import redact
from sse_app.process.log_writer import LogWriter

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31;1m"}


def configure(level: str, format: Literal["auto", "console", "json"]) -> None:
    """Send all logs of the process to standard error in one form, written by a thread (`LogWriter`).

    Args:
        level: the least level that is shown.
        format: ``console`` for people, ``json`` for machines, ``auto`` by whether a terminal is there.
    """
    terminal = sys.stderr.isatty()
    console = format == "console" or (format == "auto" and terminal)
    handler = LogWriter()
    handler.setFormatter(ConsoleFormatter(terminal) if console else JSONFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # What no line shows need not be collected for each record (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    skip_caller_lookup()


def dropped_lines() -> int:
    """Return how many lines have been dropped because standard error did not take them."""
    return sum(handler.dropped for handler in logging.getLogger().handlers if isinstance(handler, LogWriter))


def set_level(level: str) -> None:
    """Change the least level that is shown."""
    logging.getLogger().setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JSONFormatter(logging.Formatter):
    """Formats each record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, Any] = {
            "timestamp": timestamp(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
            "logger": record.name,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redact(orjson.dumps(line, default=str).decode())


class ConsoleFormatter(logging.Formatter):
    """Formats each record as a line for people: time, level, event, fields."""

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it where there is one."""
        head = f"{timestamp(record.created)[11:23]}  {record.levelname.lower():7}  {record.getMessage()}"
        line = "  ".join([head, *(f"{name}={value}" for name, value in _fields(record).items())])
        line = line if line.isprintable() else ascii(line)[1:-1]  # a field must not forge a line of its own
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        colour = _COLOURS.get(record.levelname) if self._colours else None
        line = redact(line)
        return f"{colour}{line}\x1b[0m" if colour else line
