"""Structured logs: one line an event, on standard error, with nothing in it that opens a door.

The rest of the package logs through the standard library, the fields as ``extra``; so whoever mounts it in
an application of their own has it in their logs. The formatters are written here because a line is made for
every stream that opens and closes: in a reconnect storm they are a good part of the work.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, Literal
from urllib.parse import unquote

import orjson

from sse_app.core.events import timestamp

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_SECRETS = re.compile(r"eyJ[\w-]{5,}(?:\.[\w.-]*)?|(?<=token=)[^&\s\"'\\]+|(?<=Bearer )[^\s\"'\\]+")
_SIGNS = ("eyJ", "token=", "Bearer ")
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31;1m"}


def redact(text: str) -> str:
    """Return the text without what looks like a token: the last line of defence, not the first."""
    if any(sign in text for sign in _SIGNS):  # much quicker than the expression, and hardly ever so
        return _SECRETS.sub("[redacted]", text)
    return text


def loggable_path(path: str) -> str:
    """Return the path of a request for a log line; one in which somebody put a token, even encoded, is left out."""
    decoded = unquote(path)
    return path if redact(decoded) == decoded else "[redacted]"


def configure(level: str, format: Literal["auto", "console", "json"]) -> None:
    """Send all logs of the process to standard error in one form.

    Args:
        level: the least level that is shown.
        format: ``console`` for people, ``json`` for machines, ``auto`` by whether a terminal is there.
    """
    terminal = sys.stderr.isatty()
    console = format == "console" or (format == "auto" and terminal)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(ConsoleFormatter(terminal) if console else JSONFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    # What no line shows need not be gathered for each (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None


def set_level(level: str) -> None:
    """Change the least level that is shown."""
    logging.getLogger().setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JSONFormatter(logging.Formatter):
    """A JSON object a line."""

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
    """A line for people: time, level where it is worth a look, event, fields."""

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it where there is one."""
        head = f"{timestamp(record.created)[11:23]}  {record.levelname.lower():7}  {record.getMessage()}"
        line = "  ".join([head, *(f"{name}={value}" for name, value in _fields(record).items())])
        line = line if line.isprintable() else ascii(line)[1:-1]  # nobody else writes lines of their own here
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        colour = _COLOURS.get(record.levelname) if self._colours else None
        line = redact(line)
        return f"{colour}{line}\x1b[0m" if colour else line
