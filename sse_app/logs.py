"""Structured logs: one line an event, on standard error, with nothing in it that opens a door.

The rest of the package logs through the standard library, with the fields as ``extra``; so whoever mounts
it in an application of their own has it in their logs.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Literal

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_SECRETS = re.compile(r"eyJ[\w-]{5,}(?:\.[\w.-]*)?|(?<=token=)[^&\s\"']+|(?<=Bearer )\S+")


def redact(text: str) -> str:
    """Return the text without what looks like a token: the last line of defence, not the first."""
    return _SECRETS.sub("[redacted]", text)


def configure(level: str, format: Literal["auto", "console", "json"]) -> None:
    """Send all logs of the process to standard error in one form.

    Args:
        level: the least level that is shown.
        format: ``console`` for people, ``json`` for machines, ``auto`` by whether a terminal is there.
    """
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if console:
        last += [_redact_values, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    else:
        last += [structlog.processors.format_exc_info, _redact_values, _render_json]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=last))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _redact_values(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = redact(value)
    return event


def _render_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    return orjson.dumps(event, default=repr).decode()
