"""Keeps what repeats from flooding the log: lines of one kind have a budget of bytes; what is beyond it is counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

RATE = 1000
"""How many bytes a second lines of one kind may take in the long run."""

BURST = 16 * 1000
"""How many bytes they may take at once."""

ACCESS_SHARE = 3
"""The access lines, which are of many kinds, may take so many times as much a second, and twice as much at once."""

REPORT_INTERVAL = 10.0
"""After how many seconds lines that were left out are reported, with their number."""

MAX_KINDS = 256
"""How many kinds are told apart; beyond that all others are one."""

LEFT_OUT = "log_lines_left_out"
"""The event of the line that says how many lines were left out."""

UNLIMITED = frozenset({"stream_opened", "stream_closed", "log_lines_dropped", LEFT_OUT})
"""Events that only a client with a valid token brings about, or that are rare by themselves."""

_ACCESS = "sse_app.access"

Kind = tuple[str, int, str]


class _Budget:
    """What lines of one kind may still take."""

    def __init__(self, kind: Kind, now: float) -> None:
        share = ACCESS_SHARE if kind[0] == _ACCESS else 1
        self.rate = RATE * share
        self.most = BURST * min(share, 2)
        self.room = float(self.most)
        self.at = now
        self.left_out = 0


class LogLimits:
    """Says which records are left out, and what to report of them. Its user keeps other threads out.

    Lines at level debug have no budget: they are shown only where they are asked for.

    Args:
        clock: in seconds; it never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._budgets: dict[Kind, _Budget] = {}
        self._reported_at = clock()
        self.pending = False
        """Whether something was left out that has not been reported."""

    def admits(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be logged; count it if it is not."""
        budget = self._budget(record)
        if budget is None:
            return True
        now = self._clock()
        budget.room = min(budget.most, budget.room + (now - budget.at) * budget.rate)
        budget.at = now
        if budget.room > 0:
            return True
        budget.left_out += 1
        if not self.pending:
            self.pending = True
            self._reported_at = now
        return False

    def charge(self, record: logging.LogRecord, size: int) -> None:
        """Take the bytes of a record's line off its budget."""
        budget = self._budget(record)
        if budget is not None:
            budget.room -= size

    @property
    def due_in(self) -> float | None:
        """In how many seconds `report` has something to say; None if nothing was left out."""
        return max(0.0, self._reported_at + REPORT_INTERVAL - self._clock()) if self.pending else None

    def report(self) -> list[logging.LogRecord]:
        """Return a record for each kind of which lines were left out since the last report."""
        records = []
        for (name, level, event), budget in self._budgets.items():
            if budget.left_out:
                fields = {"name": __name__, "levelno": level, "levelname": logging.getLevelName(level)}
                fields |= {"msg": LEFT_OUT, "of": event or name, "lines": budget.left_out}
                records.append(logging.makeLogRecord(fields))
                budget.left_out = 0
        self.pending = False
        return records

    def _budget(self, record: logging.LogRecord) -> _Budget | None:
        text = record.msg if isinstance(record.msg, str) else ""
        if record.levelno <= logging.DEBUG or text in UNLIMITED:
            return None
        # The texts of others may hold what a client has sent, so that each would be a kind of its own.
        event = text[:100] if record.name.startswith("sse_app") else ""
        if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
            event = f"{event} {record.exc_info[0].__name__}".strip()
        kind = (record.name, record.levelno, event)
        if kind not in self._budgets and len(self._budgets) >= MAX_KINDS:
            kind = ("others", record.levelno, "")
        if (budget := self._budgets.get(kind)) is None:
            budget = self._budgets[kind] = _Budget(kind, self._clock())
        return budget
