"""The one connection of a process on which PostgreSQL notifies it (LISTEN, NOTIFY)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import NamedTuple

import psycopg
from psycopg import Notify, sql

from sse_app.storage.postgres.connections import Connection

LIVENESS_INTERVAL = 2.0
"""After how many seconds without a notification the connection is tried, and within how many it has to answer."""

FIRST_WAIT, LONGEST_WAIT = 0.1, 3.0
"""Seconds between attempts to connect again: the first, doubled each time up to the longest, each up to a half less."""

log = logging.getLogger(__name__)


class _Callbacks(NamedTuple):
    heard: Callable[[str], None]
    missed: Callable[[], None]


class Listener:
    """Listens on channels, connects again when the connection is lost, and tells then that something may be missed.

    Args:
        url: as libpq takes it; a connection to the server itself.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._channels: dict[str, _Callbacks] = {}
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        """Whether it listens just now."""

    def listen(self, channel: str, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        """Listen on a channel from the next connection on; it is called before the database is opened.

        Args:
            channel: a name of lower-case letters and underscores.
            heard: is called with the payload of each notification.
            missed: is called when the connection has been made or made again, and each time that it is lost.
        """
        self._channels[channel] = _Callbacks(heard, missed)

    def start(self) -> None:
        """Begin to listen."""
        if self._task is None and self._channels:
            self._task = asyncio.create_task(self._run(), name="postgres-listener")

    async def stop(self) -> None:
        """End the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _run(self) -> None:
        wait = FIRST_WAIT
        while True:
            try:
                async with await Connection.connect(self._url, autocommit=True) as connection:
                    # Also what comes while a statement is waited for is handed on.
                    connection.add_notify_handler(self._notified)
                    for channel in self._channels:
                        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    self._set_connected(True)
                    wait = FIRST_WAIT
                    await self._hear(connection)
            except (psycopg.Error, TimeoutError) as error:
                if self.connected:
                    log.debug("database_listener_lost", extra={"detail": " ".join(str(error).split())})
            finally:
                if self.connected:
                    self._set_connected(False)
            await asyncio.sleep(wait * (1 - random.random() / 2))
            wait = min(2 * wait, LONGEST_WAIT)

    async def _hear(self, connection: Connection) -> None:
        """Hand on each notification in the step in which it arrives: a task that waited for it would run later."""
        loop, descriptor = asyncio.get_running_loop(), connection.fileno()
        while True:
            lost: asyncio.Future[None] = loop.create_future()
            loop.add_reader(descriptor, self._read, connection, descriptor, lost)
            try:
                await asyncio.wait([lost], timeout=LIVENESS_INTERVAL)
            finally:
                if not lost.done():
                    loop.remove_reader(descriptor)
            if lost.done():
                lost.result()
            async with asyncio.timeout(LIVENESS_INTERVAL):
                await connection.execute("SELECT 1")

    def _read(self, connection: Connection, descriptor: int, lost: asyncio.Future[None]) -> None:
        try:
            for notification in connection.notifications():
                self._notified(notification)
        except Exception as error:
            asyncio.get_running_loop().remove_reader(descriptor)  # at once: another one may get its number
            lost.set_exception(error)

    def _notified(self, notification: Notify) -> None:
        if (callbacks := self._channels.get(notification.channel)) is not None:
            callbacks.heard(notification.payload)

    def _set_connected(self, connected: bool) -> None:
        self.connected = connected
        for callbacks in self._channels.values():
            callbacks.missed()
