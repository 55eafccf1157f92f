"""From log records to lines: escaped, bounded and without secrets, whatever a library or an attacker puts into them.

The formatters are written here, without a logging library, because each stream that opens or closes is a line: in
a reconnect storm the formatting is a good part of the work.
"""

from __future__ import annotations

import logging
import select
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from sse_app.core.events import timestamp
from sse_app.core.redaction import LONGEST_READ, loggable, may_hold_secret, printable, redact

LINE_BYTES = select.PIPE_BUF - 1
"""How many bytes a line has at most, its end aside: a pipe takes it whole (pipe(7))."""

TEXT_LENGTH = 512
"""How many characters of the event and of each field are kept."""

TRACEBACK_LENGTH = 2600
"""How many characters of a traceback are kept, of its beginning and its end."""

MAX_FIELDS = 24

_PLAIN_LENGTH = 1000
"""A line of at most so many characters needs no shortening."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_COLOURS = {"WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[31;1m"}
_LARGEST = 2**63 - 1


class Content(NamedTuple):
    """What a line says, each text on one line, but for the traceback."""

    event: str
    fields: dict[str, Any]
    traceback: str


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was given as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _value(value: object, length: int) -> object:
    """Return the value of a field as JSON can have it."""
    if (
        value is None
        or isinstance(value, (bool, float))
        or (isinstance(value, int) and abs(value) <= _LARGEST)
    ):
        return value
    try:
        return loggable(str(value), length)
    except Exception:  # of a library's object
        return f"<{type(value).__name__}>"


def _shortened(traceback: str, length: int) -> str:
    """Return a traceback without secrets and control characters, and without its middle where it is long."""
    if len(traceback) > 2 * LONGEST_READ:
        traceback = traceback[:LONGEST_READ] + "\n...\n" + traceback[-LONGEST_READ:]
    text = redact(traceback)
    if len(text) > length:
        text = (
            f"{text[: length // 3]}\n... ({len(text) - length} characters) ...\n{text[-(length * 2 // 3) :]}"
        )
    return "\n".join(map(printable, text.split("\n")))


@lru_cache(256)
def _loggable_name(name: str) -> str:
    return loggable(name, 100)


class LineFormatter(logging.Formatter, ABC):
    """Formats a record within `LINE_BYTES`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, shortened as far as needed."""
        line = ""
        for share in (1, 2, 4, 16, 64):
            line = self.line(record, self._content(record, share))
            if len(line) <= LINE_BYTES and len(line.encode("utf-8", "backslashreplace")) <= LINE_BYTES:
                break
        return line

    @abstractmethod
    def line(self, record: logging.LogRecord, content: Content) -> str:
        """Return the line of such content."""

    def _content(self, record: logging.LogRecord, share: int) -> Content:
        length = TEXT_LENGTH // share
        fields = list(_fields(record).items())[: MAX_FIELDS // share + 1]
        traceback = self.formatException(record.exc_info) if record.exc_info else record.exc_text or ""
        return Content(
            loggable(record.getMessage(), length),
            {loggable(str(name), length): _value(value, length) for name, value in fields},
            _shortened(traceback, TRACEBACK_LENGTH // share),
        )


class JSONFormatter(LineFormatter):
    """Formats each record as a JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        if not record.exc_info:
            try:
                line = self.line(record, Content(record.getMessage(), _fields(record), ""))
            except orjson.JSONEncodeError:
                return super().format(record)
            # Nearly every line is like this. What is escaped in it may be printed by those who read it.
            if (
                len(line) <= _PLAIN_LENGTH
                and "\\" not in line
                and line.isprintable()
                and not may_hold_secret(line)
            ):
                return line
        return super().format(record)

    def line(self, record: logging.LogRecord, content: Content) -> str:
        """Return the line of such content."""
        line: dict[str, Any] = {
            "timestamp": timestamp(record.created),
            "level": record.levelname.lower(),
            "event": content.event,
            **content.fields,
            "logger": _loggable_name(record.name),
        }
        if content.traceback:
            line["exception"] = content.traceback
        return orjson.dumps(line).decode()


class ConsoleFormatter(LineFormatter):
    """Formats each record as a line for people: time, level, event, fields; a traceback follows, indented."""

    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def line(self, record: logging.LogRecord, content: Content) -> str:
        """Return the line of such content."""
        head = f"{timestamp(record.created)[11:23]}  {record.levelname.lower():7}  {content.event}"
        line = "  ".join([head, *(f"{name}={value}" for name, value in content.fields.items())])
        for traced in content.traceback.splitlines():  # a text in it must not pass for a line of its own
            line += f"\n    | {traced}"
        colour = _COLOURS.get(record.levelname) if self._colours else None
        return f"{colour}{line}\x1b[0m" if colour else line
