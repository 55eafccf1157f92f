"""Shows on standard error how far a long command has come: a bar at a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

WIDTH = 30
"""How many characters the bar has."""

BAR_INTERVAL, LINE_INTERVAL = 0.1, 5.0
"""How many seconds pass at least between two drawings of the bar, and between two lines."""


class Progress:
    """Counts what has been done of a number of things.

    Args:
        what: the things, in the plural.
        total: how many there are; more may come.
    """

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._begun = self._shown_at = time.monotonic()
        self._at_terminal = sys.stderr.isatty()

    def add(self, count: int) -> None:
        """Count some more as done."""
        self._done += count
        now = time.monotonic()
        if now - self._shown_at >= (BAR_INTERVAL if self._at_terminal else LINE_INTERVAL):
            self._shown_at = now
            self._show(now)

    def end(self) -> None:
        """Leave the last state on a line of its own at a terminal."""
        if self._at_terminal:
            self._show(time.monotonic())
            self._write("\n")

    def _show(self, now: float) -> None:
        total = max(self._total, self._done)
        part = self._done / total if total else 1.0
        rate = self._done / max(now - self._begun, 0.001)
        counts = f"{self._done:,}/{total:,} {self._what}, {rate:,.0f} {self._what}/s"
        if not self._at_terminal:
            self._write(f"{part:.0%}: {counts}\n")
            return
        bar = "#" * int(part * WIDTH)
        left = (total - self._done) / rate if rate else 0.0
        self._write(f"\r{part:4.0%} [{bar:-<{WIDTH}}] {counts}, {_clock(left)} left\x1b[K")

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"
