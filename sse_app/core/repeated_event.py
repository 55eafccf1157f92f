"""Log lines about what can happen thousands of times a second."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

INTERVAL = 60.0
"""Seconds between two lines about the same."""


class RepeatedEvent:
    """Logs an event at once when it happens first, and then once an interval, with how often it has happened since.

    Args:
        log: where to.
        level: of the lines.
        event: the message; the fields are ``count`` and ``detail``, which has the kinds of what happened.
        interval: seconds.
    """

    def __init__(self, log: logging.Logger, level: int, event: str, interval: float = INTERVAL) -> None:
        self._log = log
        self._level = level
        self._event = event
        self._interval = interval
        self._counts: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, kind: str) -> None:
        """Count it once more, on the event loop; the kinds are few, and none holds what a client has sent."""
        self._counts[kind] += 1
        if self._timer is None:
            self._report()

    def _report(self) -> None:
        self._timer = None
        if not self._counts:
            return
        counts, self._counts = self._counts, Counter()
        detail = next(iter(counts)) if len(counts) == 1 else _listed(counts)
        self._log.log(self._level, self._event, extra={"count": counts.total(), "detail": detail})
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._report)


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))
