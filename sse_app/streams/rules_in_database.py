"""Tells the database what may be published, for applications that publish in transactions of their own there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sse_app.core.channel_rules import ChannelRules
from sse_app.core.errors import SSEAppError
from sse_app.settings.model import Limits

if TYPE_CHECKING:
    from sse_app.storage.postgres.database import Database

RETRY = 1.0
"""Seconds until the database is told again, if it could not be reached."""

_SET = "SELECT sse_app.set_publishing(%s::text[], %s::text[], %s::boolean[], %s::text[], %s)"


class RulesInDatabase:
    """Writes the configured channels and limits of this node to the database when it starts and when they change.

    They are one row: of nodes with different settings those count that started, or were reloaded, last.

    Args:
        database: None where files keep the log; then there is nothing to do.
        channels: those that are configured, and what is for each of them.
        limits: how large an event may be.
    """

    def __init__(self, database: Database | None, channels: ChannelRules, limits: Limits) -> None:
        self._database = database
        self._rules = _rules_of(channels, limits)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Write the rules, and from now on each change of them.

        Raises:
            StateError: the database cannot be used.
        """
        if self._database is not None:
            await self._database.open()
            await self._write()
            self._task = asyncio.create_task(self._follow())

    def use(self, channels: ChannelRules, limits: Limits) -> None:
        """Take other rules; they are in force once the database has been told, which is done at once."""
        self._rules = _rules_of(channels, limits)
        self._changed.set()

    async def stop(self) -> None:
        """Write nothing more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
            assert self._database is not None
            await self._database.close()

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            await self._write()
            if self._changed.is_set():
                await asyncio.sleep(RETRY)

    async def _write(self) -> None:
        assert self._database is not None
        self._changed.clear()
        try:
            async with self._database.connection() as connection:
                await connection.execute(_SET, self._rules)
        except SSEAppError:  # it cannot be reached; the log says so where it matters
            self._changed.set()


def _rules_of(channels: ChannelRules, limits: Limits) -> list[object]:
    rules = channels.rules
    return [
        [rule.pattern.text for rule in rules],
        [None if rule.types is None else " ".join(sorted(rule.types)) for rule in rules],
        [rule.stored for rule in rules],
        [rule.conflate for rule in rules],
        limits.body_bytes,
    ]
