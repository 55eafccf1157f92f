"""The connections of one process to PostgreSQL: a pool for queries, and one that listens.

Everything is in the schema ``sse_app``, and every statement names it: a connection pooler may give each transaction
another session, so nothing is kept in one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg import AsyncConnection, conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from sse_app.core.errors import SSEAppError, StateError
from sse_app.storage.postgres.listener import Listener
from sse_app.storage.postgres.schema import migrate

CONNECT_TIMEOUT = 5
"""How many seconds a connection may take to be made (libpq's ``connect_timeout``)."""

WAIT_WHILE_AWAY = 0.2
"""For how many seconds a query waits for a connection while the last attempt to use the database failed."""

MAX_RECONNECT_WAIT = 5.0
"""The longest pause between two attempts to connect again, in seconds."""

LIVENESS = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Parameters of libpq with which a connection to a host that has gone is noticed within some ten seconds."""

log = logging.getLogger(__name__)


class DatabaseUnavailable(SSEAppError):
    """PostgreSQL cannot be reached, or has not answered in time; a change may have been made, or not."""


class Database:
    """The connections that the parts of one process share; each part opens and closes it as if it were its own.

    Args:
        url: as libpq takes it (``postgresql://…``). A password is better kept in a password file.
        connections: how many there are for queries, at most.
        timeout: how many seconds a query may take.
        listen_url: where to listen, if not there: what a pooler stands before listens for no client.
    """

    def __init__(self, url: str, *, connections: int = 4, timeout: float = 5.0, listen_url: str = "") -> None:
        self._url = _with_defaults(url)
        self.timeout = timeout
        """How many seconds a query may take."""
        self.listener = Listener(_with_defaults(listen_url or url))
        self._most = connections
        self._pool: AsyncConnectionPool[AsyncConnection] | None = None
        self._users = 0
        self._opening = asyncio.Lock()
        self.available = False
        """Whether the last attempt to use it succeeded."""

    @property
    def address(self) -> str:
        """Where it is, without a password, for people."""
        return address_of(self._url)

    async def open(self) -> None:
        """Connect, and bring the schema to the version of this program; a second caller waits for the first.

        Raises:
            StateError: it cannot be reached or used, or its schema is of a newer version that this one may not use.
        """
        async with self._opening:
            if self._users == 0:
                await self._open()
            self._users += 1

    async def _open(self) -> None:
        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                async with await AsyncConnection.connect(self._url, autocommit=True) as connection:
                    await migrate(connection)
        except (psycopg.Error, TimeoutError) as error:
            raise StateError(f"cannot use the database {self.address}: {text_of(error)}") from None
        self._pool = AsyncConnectionPool(
            self._url,
            kwargs={"autocommit": True, "prepare_threshold": None},
            min_size=1,
            max_size=self._most,
            max_idle=60.0,
            timeout=self.timeout,
            reconnect_timeout=MAX_RECONNECT_WAIT,
            open=False,
            name="sse_app",
        )
        await self._pool.open()
        self.listener.start()
        self.available = True

    async def close(self) -> None:
        """Close the connections, if no other part uses them."""
        async with self._opening:
            self._users = max(0, self._users - 1)
            if self._users == 0 and self._pool is not None:
                pool, self._pool = self._pool, None
                self.available = False
                await self.listener.stop()
                await pool.close(timeout=self.timeout)

    @asynccontextmanager
    async def connection(self, within: float | None = None) -> AsyncIterator[AsyncConnection]:
        """Lend a connection, on which each statement is a transaction of its own (autocommit).

        What takes too long is given up, and its connection with it.

        Args:
            within: how many seconds the statements may take in all; the setting's where it is None.

        Raises:
            DatabaseUnavailable: there is none, or it fails meanwhile. A mistake in a statement stays what it is.
        """
        pool = self._pool
        if pool is None:
            raise DatabaseUnavailable("it is not open")
        limit = self.timeout if within is None else within
        try:
            async with asyncio.timeout(limit):
                async with pool.connection(limit if self.available else WAIT_WHILE_AWAY) as connection:
                    yield connection
            self.available = True
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout, TimeoutError) as error:
            if self.available:
                self.available = False
                log.debug("database_failed", extra={"detail": text_of(error)})
            raise DatabaseUnavailable(text_of(error)) from error


def _with_defaults(url: str) -> str:
    """Return where to connect, with what makes libpq notice a host that has gone, unless the URL says it."""
    given = conninfo.conninfo_to_dict(url)
    return conninfo.make_conninfo(
        url, **{name: value for name, value in LIVENESS.items() if name not in given}
    )


def address_of(url: str) -> str:
    """Return where a database is, without a password.

    Args:
        url: as libpq takes it.
    """
    given = conninfo.conninfo_to_dict(url)
    host = given.get("host") or "localhost"
    return f"{given.get('dbname') or given.get('user') or ''} on {host}:{given.get('port') or 5432}"


def text_of(error: BaseException) -> str:
    """Return what an error of PostgreSQL, of libpq or of the time says, on one line, without a password."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return error.diag.message_primary
    return " ".join(str(error).split()) or "it does not answer in time"
