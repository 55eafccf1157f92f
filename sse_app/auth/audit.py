"""The audit trail: which user did what, and from which address; in the log at once, in the store a little later."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter

from sse_app.auth.records import AuditEntry
from sse_app.auth.store import AuthStore

MAX_WAITING = 500
"""How many entries of one action may wait to be written; what comes beyond is counted, and the count is an entry."""

COUNTED_INTERVAL = 60.0
"""Seconds between two entries that say how often something happened that is not listed one by one."""

MAX_TEXT = 200
"""How many characters of each text of an entry are kept."""

log = logging.getLogger("sse_app.audit")


class Audit:
    """Keeps the audit trail.

    Args:
        store: where entries are written.
    """

    def __init__(self, store: AuthStore) -> None:
        self._store = store
        self._waiting: list[AuditEntry] = []
        self._waiting_of: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._counted: Counter[tuple[str, str]] = Counter()
        self._told_at = -math.inf
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
        """Log what has happened, and have it written by the next `flush`; it does not block."""
        texts = [text[:MAX_TEXT] for text in (subject, address, target, detail)]
        entry = AuditEntry(time.time(), action, *texts)
        fields = {
            name: value for name, value in entry._asdict().items() if name not in ("at", "action") and value
        }
        log.log(level, action, extra=fields)
        if self._waiting_of[action] < MAX_WAITING:
            self._waiting.append(entry)
            self._waiting_of[action] += 1
        else:
            self._dropped[action] += 1

    def count(self, action: str, what: str) -> None:
        """Count what strangers can do as often as they like: an entry now and then says how often.

        Args:
            action: of that entry.
            what: was done; one of few texts.
        """
        self._counted[action, what] += 1

    async def flush(self, *, last: bool = False) -> None:
        """Write what waits; when it returns, what was recorded before is in the store.

        Args:
            last: whether what was counted is written too before its time, as there will be no other.

        Raises:
            AuthStoreUnavailable: it is not, and waits for the next time.
        """
        if not (self._waiting or self._counted or self._dropped):  # several times a second
            return
        async with self._flushing:
            if self._counted and (last or time.monotonic() >= self._told_at + COUNTED_INTERVAL):
                self._told_at = time.monotonic()
                counted, self._counted = self._counted, Counter()
                for (action, what), count in counted.items():
                    self.record(action, detail=f"{what}: {count}")
            entries, dropped = self._waiting.copy(), self._dropped.copy()
            count = len(entries)
            entries += [
                AuditEntry(time.time(), "audit_overflow", "", "", action, f"{number} entries")
                for action, number in dropped.items()
            ]
            if entries:
                await self._store.append_audit(entries)
                self._waiting_of.subtract(entry.action for entry in self._waiting[:count])
                del self._waiting[:count]
                self._dropped -= dropped  # which drops what is 0

    async def entries(self, limit: int, before: int | None = None) -> list[tuple[int, AuditEntry]]:
        """Return the newest entries with their numbers, newest first, those that still wait among them.

        Args:
            limit: how many at the most.
            before: only those with a smaller number.
        """
        await self.flush()
        return await self._store.audit_entries(limit, before)
