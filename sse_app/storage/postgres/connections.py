"""Connections to PostgreSQL that never hold their users up for long, and a pool of them.

The pool makes a connection where one is needed and none waits, in the task that needs it. It knows without a round
trip which of those that wait have been ended by the server, as all are when that is started again: they cost no
request its answer.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, Notify
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus

CANCEL_TIMEOUT = 1.0
"""How many seconds a statement that is given up has to end; then its connection is cut."""

IDLE_AGE = 60.0
"""After how many seconds without use a connection is closed."""

LAST_WORDS = 3
"""How often something is read from a connection that is not in use: what the server says last, and the end."""

SESSION_ENDS = "57P"
"""How the codes begin with which a server ends sessions; one that is stopped in immediate mode sends a warning."""


class _Ending:
    """Whether the server has said that it ends a connection: the socket ends only with the server's process."""

    def __init__(self) -> None:
        self.is_announced = False

    def heed(self, notice: Diagnostic) -> None:
        """Take a notice; an error is one too where no statement waits for its answer."""
        is_fatal = notice.severity_nonlocalized in ("FATAL", "PANIC")
        if is_fatal or (notice.sqlstate or "").startswith(SESSION_ENDS):
            self.is_announced = True


class Connection(AsyncConnection[tuple[Any, ...]]):
    """A connection whose statements end soon after they are given up, also where the server does not answer.

    psycopg asks the server then to cancel the statement, and waits up to ten seconds for that and for the end of the
    statement, and so does the task that has given it up. Here that takes `CANCEL_TIMEOUT`.
    """

    _cut: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ending = _Ending()
        self.add_notice_handler(self._ending.heed)

    async def wait(self, *arguments: Any, **options: Any) -> Any:
        """Wait for what was sent, as `AsyncConnection.wait` does."""
        try:
            return await super().wait(*arguments, **options)
        finally:
            if self._cut is not None:
                self._cut.cancel()
                self._cut = None

    async def cancel_safe(self, *, timeout: float = CANCEL_TIMEOUT) -> None:  # noqa: ASYNC109 (psycopg's)
        """Ask the server to cancel the statement; where it does not end in time, cut the connection.

        Args:
            timeout: is not taken longer than `CANCEL_TIMEOUT`.
        """
        self._cut = asyncio.get_running_loop().call_later(CANCEL_TIMEOUT, self.shut_down)
        with suppress(psycopg.Error):
            await super().cancel_safe(timeout=min(timeout, CANCEL_TIMEOUT))

    def shut_down(self) -> None:
        """End both directions of the socket, which stays open: who waits for it reads its end."""
        with suppress(OSError), socket.socket(fileno=os.dup(self.pgconn.socket)) as shared:
            shared.shutdown(socket.SHUT_RDWR)

    def notifications(self) -> list[Notify]:
        """Return the notifications that have arrived, without waiting; no statement is waited for meanwhile.

        Raises:
            psycopg.OperationalError: the connection has ended.
        """
        self.pgconn.consume_input()
        arrived = []
        while (one := self.pgconn.notifies()) is not None:
            arrived.append(Notify(one.relname.decode(), one.extra.decode(errors="replace"), one.be_pid))
        return arrived

    @property
    def is_usable(self) -> bool:
        """Whether it waits for a statement and, as far as can be seen without asking, the server does too."""
        if self.closed or self.pgconn.transaction_status != TransactionStatus.IDLE:
            return False
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        for _ in range(LAST_WORDS):
            self.pgconn.is_busy()  # libpq looks then for notices in what it has read
            if self._ending.is_announced:
                return False
            if not poll.poll(0):
                return True
            try:
                self.pgconn.consume_input()
            except psycopg.OperationalError:
                break
        return False


class Pool:
    """Lends connections on which each statement is a transaction of its own (autocommit).

    Args:
        url: as libpq takes it.
        most: how many there are at most; who asks for one more waits. One more is for what must not wait behind others.
    """

    def __init__(self, url: str, most: int) -> None:
        self._url = url
        self._places = asyncio.Semaphore(most)
        self._place_apart = asyncio.Semaphore(1)
        self._waiting: list[tuple[float, Connection]] = []
        """Those that wait for a statement, each with the time of its return; the last is taken first."""
        self._generation = 0

    async def connect(self) -> Connection:
        """Make a connection, which the pool does not know.

        Raises:
            psycopg.OperationalError: it cannot be made.
        """
        # Prepared statements belong to a session, and behind a pooler the next statement may come to another.
        return await Connection.connect(self._url, autocommit=True, prepare_threshold=None)

    @property
    def is_full(self) -> bool:
        """Whether who asks for a connection has to wait for one."""
        return self._places.locked()

    def place(self, apart: bool = False) -> asyncio.Semaphore:
        """Return what is to be held while a connection is lent.

        Args:
            apart: whether it is the one more, which the others leave free.
        """
        return self._place_apart if apart else self._places

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Lend a connection to the holder of a place; one that comes back in the middle of something is closed.

        Raises:
            psycopg.OperationalError: none can be made.
        """
        generation = self._generation
        connection = await self._taken() or await self.connect()
        try:
            yield connection
        finally:
            if generation == self._generation:
                await self.give(connection)
            else:
                await connection.close()

    async def _taken(self) -> Connection | None:
        while self._waiting:
            _, connection = self._waiting.pop()
            if connection.is_usable:
                return connection
            await connection.close()
        return None

    async def give(self, connection: Connection) -> None:
        """Have a connection wait for its next use, and close those that have waited for long."""
        now = time.monotonic()
        if connection.is_usable:
            self._waiting.append((now, connection))
        else:
            await connection.close()
        while self._waiting and now - self._waiting[0][0] > IDLE_AGE:
            _, idle = self._waiting.pop(0)
            await idle.close()

    async def empty(self) -> None:
        """Close all connections: those in use when they come back."""
        self._generation += 1
        waiting, self._waiting = self._waiting, []
        for _, connection in waiting:
            await connection.close()
