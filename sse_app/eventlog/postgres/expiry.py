"""Erases what the log on PostgreSQL no longer keeps: events, channels, and the answers to idempotency keys."""

from __future__ import annotations

import asyncio
import logging

import psycopg

from sse_app.core.repeated_event import RepeatedEvent
from sse_app.eventlog.base import EMPTY_CHANNELS
from sse_app.eventlog.postgres.appends import patience
from sse_app.storage.postgres.database import Database, DatabaseUnavailable, text_of

INTERVAL = 1.0
"""How often it is looked whether something is to be erased, in seconds; of several nodes one does it at a time."""

STEP = 5000
"""How many events one transaction erases."""

LAG = 10.0
"""For how many seconds at least a node can read from the tail what is too much for its channel."""

MAX_SWEEP_INTERVAL = 30.0
"""The longest time between two looks for channels to forget, in seconds."""

log = logging.getLogger(__name__)


class Expiry:
    """Erases from time to time, in a task of its own.

    Args:
        database: is open meanwhile.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._failures = RepeatedEvent(log, logging.ERROR, "event_log_not_erased")
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._stopping.clear()
        self._task = asyncio.create_task(self._run(), name="postgres-expiry")

    async def stop(self) -> None:
        """End, after the step that is under way."""
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        wait = patience(self._database)
        steps: tuple[tuple[str, list[float]], ...] = (
            ("SELECT sse_app.expire(%s, %s, %s)", [LAG, STEP, wait]),
            ("SELECT sse_app.expire_answers(%s) > 0", [STEP]),
            (
                "SELECT sse_app.forget_channels(%s, %s, (SELECT least(min(age) / 20, %s) FROM sse_app.ages), %s) > 0",
                [EMPTY_CHANNELS, STEP, MAX_SWEEP_INTERVAL, wait],
            ),
        )
        while not await self._stopped_within(INTERVAL):
            for statement, parameters in steps:
                try:
                    while not self._stopping.is_set() and await self._step(statement, parameters):
                        pass
                except DatabaseUnavailable as error:  # that is told where it is written and read
                    log.debug("event_log_not_erased", extra={"detail": text_of(error)})
                except psycopg.Error as error:
                    self._failures.add(text_of(error))

    async def _step(self, statement: str, parameters: list[float]) -> bool:
        """Erase some, and return whether there may be more."""
        async with self._database.connection() as connection:
            row = await (await connection.execute(statement.encode(), parameters)).fetchone()
        return bool(row and row[0])

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True
