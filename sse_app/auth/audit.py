"""The audit trail: which user did what, and from which address; in the log at once, in the store a little later."""

from __future__ import annotations

import asyncio
import logging
import time

from sse_app.auth.records import AuditEntry
from sse_app.auth.store import AuthStore

MAX_WAITING = 1000
"""How many entries may wait to be written; what comes beyond is counted, and the count is an entry."""

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
        """Log what has happened, and have it written by the next `flush`; it does not block."""
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
        """Write what waits; when it returns, what was recorded before is in the store.

        Raises:
            AuthStoreUnavailable: it is not, and waits for the next time.
        """
        async with self._flushing:
            entries = self._waiting.copy()
            dropped = self._dropped
            if dropped:
                entries.append(AuditEntry(time.time(), "audit_overflow", "", "", "", f"{dropped} entries"))
            if entries:
                await self._store.append_audit(entries)
                del self._waiting[: len(entries) - bool(dropped)]
                self._dropped -= dropped

    async def entries(self, limit: int, before: int | None = None) -> list[tuple[int, AuditEntry]]:
        """Return the newest entries with their numbers, newest first, those that still wait among them.

        Args:
            limit: how many at the most.
            before: only those with a smaller number.
        """
        await self.flush()
        return await self._store.audit_entries(limit, before)
