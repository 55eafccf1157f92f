"""The audit trail: who did what to whom, from where; in the log at once, in the database a moment later."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from typing import NamedTuple

from sse_app.auth.sqlite_store import AuthDatabase

KEPT = 100_000
"""How many entries are kept."""

MAX_WAITING = 1000
"""How many entries may wait to be written; what comes beyond is counted, and the count is an entry."""

MAX_TEXT = 200

log = logging.getLogger("sse_app.audit")


class AuditEntry(NamedTuple):
    """An entry of the audit trail; there is no secret in it.

    Args:
        at: when, in seconds since the epoch.
        action: what, e.g. ``login``.
        subject: who did it; empty for somebody unknown.
        address: from where.
        target: to whom or what.
        detail: what else there is to say.
    """

    at: float
    action: str
    subject: str
    address: str
    target: str
    detail: str


class Audit:
    """Keeps the audit trail.

    Args:
        database: where to.
    """

    def __init__(self, database: AuthDatabase) -> None:
        self._database = database
        self._waiting: list[AuditEntry] = []
        self._dropped = 0
        self._flushing = asyncio.Lock()

    def record(
        self,
        action: str,
        *,
        subject: str = "",
        address: str = "",
        target: str = "",
        detail: str = "",
        level: int = logging.INFO,
    ) -> None:
        """Note what has happened; it does not block."""
        texts = [text[:MAX_TEXT] for text in (subject, address, target, detail)]
        entry = AuditEntry(time.time(), action, *texts)
        fields = {
            name: value for name, value in entry._asdict().items() if name not in ("at", "action") and value
        }
        log.log(level, action, extra=fields)
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(entry)
        else:
            self._dropped += 1

    async def flush(self) -> None:
        """Write what waits; when it returns, what was recorded before is in the database."""
        async with self._flushing:
            entries, self._waiting = self._waiting, []
            if self._dropped:
                overflow = f"{self._dropped} entries"
                entries.append(AuditEntry(time.time(), "audit_overflow", "", "", "", overflow))
                self._dropped = 0
            if entries:
                await self._database.run(lambda: self._write(entries))

    def _write(self, entries: list[AuditEntry]) -> None:
        with self._database.transaction() as connection:
            for entry in entries:
                write_entry(connection, entry)

    async def entries(self, limit: int, before: int | None = None) -> list[tuple[int, AuditEntry]]:
        """Return the newest entries with their numbers, newest first.

        Args:
            limit: how many at the most.
            before: only those with a smaller number.
        """
        await self.flush()
        rows = self._database.rows(
            "SELECT number, at, action, subject, address, target, detail FROM audit "
            "WHERE number < ? ORDER BY number DESC LIMIT ?",
            (2**62 if before is None else before, limit),
        )
        return [(row[0], AuditEntry(*row[1:])) for row in rows]


def write_entry(connection: sqlite3.Connection, entry: AuditEntry) -> None:
    """Write an entry within a transaction, and let go of the oldest."""
    cursor = connection.execute(
        "INSERT INTO audit (at, action, subject, address, target, detail) VALUES (?, ?, ?, ?, ?, ?)", entry
    )
    connection.execute("DELETE FROM audit WHERE number <= ?", ((cursor.lastrowid or 0) - KEPT,))
