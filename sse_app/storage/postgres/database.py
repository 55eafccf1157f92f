"""The connections of one process to PostgreSQL: a pool for queries, and one that listens.

Everything is in the schema ``sse_app``, and every statement names it: a connection pooler may give each transaction
another session, so nothing is kept in one.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import conninfo, errors

from sse_app.core.errors import SSEAppError, StateError
from sse_app.storage.postgres.connections import Connection, Pool
from sse_app.storage.postgres.listener import FIRST_WAIT, LONGEST_WAIT, Listener
from sse_app.storage.postgres.schema import migrate, require_whole, version_of

CONNECT_TIMEOUT = 5
"""How many seconds a connection may take to be made, to each host that the URL names (libpq's ``connect_timeout``)."""

WAIT_WHILE_AWAY = 0.2
"""For how many seconds a query waits for the database to come back while it is away."""

ENOUGH = 0.9
"""After what share of the time that a query may take without an answer the database is away."""

FAILURES = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, TimeoutError)
"""What is no mistake in a statement: the database is away, short of something, read-only or damaged."""

CHANGED = (
    errors.InvalidCatalogName,
    errors.InvalidSchemaName,
    errors.InsufficientPrivilege,
    errors.UndefinedTable,
    errors.UndefinedColumn,
    errors.UndefinedFunction,
)
"""What the database says where what was there when it was opened has been taken away, as by a restore."""

LIVENESS = {
    "connect_timeout": CONNECT_TIMEOUT,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
"""Parameters of libpq with which a connection to a host that has gone is noticed within some ten seconds."""

log = logging.getLogger(__name__)

logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of is told here, once


class DatabaseUnavailable(SSEAppError):
    """PostgreSQL cannot be reached, or has not answered in time; a change may have been made, or not."""


class Database:
    """The connections that the parts of one process share; each part opens and closes it as if it were its own.

    Once the database has given a query no answer in all its time, or has ended a connection and lets none be made, it
    is *away*: queries fail after a moment, without one of them having to wait for its own timeout, and one task tries
    again and again whether it is back.

    Args:
        url: as libpq takes it (``postgresql://…``), also with several hosts. A password is better kept in a password
            file.
        connections: how many there are for queries, at most.
        timeout: how many seconds a query may take.
        listen_url: where to listen, if not there: what a pooler stands before listens for no client.
    """

    def __init__(self, url: str, *, connections: int = 4, timeout: float = 5.0, listen_url: str = "") -> None:
        self._url = with_defaults(url)
        self.timeout = timeout
        """How many seconds a query may take."""
        self.listener = Listener(with_defaults(listen_url or url))
        self._pool = Pool(self._url, connections)
        self._users = 0
        self._opening = asyncio.Lock()
        self._back = asyncio.Event()
        """Is set while the database is not away."""
        self._trying: asyncio.Task[None] | None = None

    @property
    def available(self) -> bool:
        """Whether it is open, and not away as far as is known."""
        return self._back.is_set()

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
        migrated = False
        try:
            async with asyncio.timeout(self._connect_timeout + CONNECT_TIMEOUT):
                connection = await self._pool.connect()
                try:
                    await migrate(connection)
                    await require_whole(connection)
                    migrated = True
                finally:
                    await self._pool.give(connection)
        except (*FAILURES, *CHANGED) as error:
            raise StateError(f"cannot use the database {self.address}: {text_of(error)}") from None
        finally:
            if not migrated:
                await self._pool.empty()
        self.listener.start()
        self._back.set()

    async def has_schema(self) -> bool:
        """Return whether there are tables of this program; it need not be open.

        Raises:
            StateError: it cannot be reached, or its schema is of a newer version that this one may not use.
        """
        try:
            async with asyncio.timeout(self._connect_timeout + CONNECT_TIMEOUT):
                async with await self._pool.connect() as connection:
                    return await version_of(connection) > 0
        except (*FAILURES, *CHANGED) as error:
            raise StateError(f"cannot use the database {self.address}: {text_of(error)}") from None

    @property
    def _connect_timeout(self) -> float:
        """Within how many seconds each host that the URL names has been tried."""
        given = conninfo.conninfo_to_dict(self._url)
        hosts = str(given.get("hostaddr") or given.get("host") or "").count(",") + 1
        return hosts * float(given["connect_timeout"] or CONNECT_TIMEOUT)

    async def close(self) -> None:
        """Close the connections, if no other part uses them; those in use when they come back."""
        async with self._opening:
            self._users = max(0, self._users - 1)
            if self._users == 0:
                self._back.clear()
                if self._trying is not None:
                    self._trying.cancel()
                    await asyncio.wait([self._trying])
                    self._trying = None
                await self.listener.stop()
                await self._pool.empty()

    @asynccontextmanager
    async def connection(
        self, within: float | None = None, *, apart: bool = False
    ) -> AsyncIterator[Connection]:
        """Lend a connection, on which each statement is a transaction of its own (autocommit).

        What takes too long is given up; where the server does not answer that either, its connection with it.

        Args:
            within: how many seconds it may take in all until there is a connection and the statements have ended;
                the setting's where it is None.
            apart: whether it has a connection that no other statement takes: commits may keep all others for as long as
                they wait for the disk or a standby.

        Raises:
            DatabaseUnavailable: there is none, or it fails meanwhile; what was asked for may have been done, or may
                not. A mistake in a statement stays what it is.
        """
        limit = self.timeout if within is None else within
        placed_at: float | None = None
        lent: Connection | None = None
        if asyncio.current_task() is None:  # a periodic call, which gets its task where it waits first
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(limit):
                await self._not_away()
                async with self._pool.place(apart):
                    placed_at = time.monotonic()
                    async with self._pool.connection() as lent:
                        if not self.available:  # since it waits for this one
                            raise DatabaseUnavailable("it is away")
                        yield lent
        except (*FAILURES, *CHANGED) as error:
            if isinstance(error, errors.ReadOnlySqlTransaction) and lent is not None:
                # The server is a primary no more: the next connection is made to the one that is.
                await lent.close()
            timed_out = isinstance(error, TimeoutError)
            if timed_out and (placed_at is None or time.monotonic() - placed_at < ENOUGH * self.timeout):
                pass  # the caller was in a hurry, or has waited for others: the database may answer
            elif lent is None:
                # Where it lets no more connections be made, it may answer those that have some.
                if timed_out or apart or not self._pool.is_full:
                    self._is_away(text_of(error))
            elif lent.closed:
                await self._pool.empty()  # the others are of the same time, and may be as dead
                self._is_away(text_of(error))
            raise DatabaseUnavailable(text_of(error)) from error

    async def _not_away(self) -> None:
        if self._users and not self.available:
            try:
                async with asyncio.timeout(WAIT_WHILE_AWAY):
                    # It may be away again before the turn comes here.
                    while self._users and not self.available:
                        await self._back.wait()
            except TimeoutError:
                raise DatabaseUnavailable("it is away") from None
        if not self.available:
            raise DatabaseUnavailable("it is not open")

    def _is_away(self, detail: str) -> None:
        """Let no query wait for its own timeout, and try until the database is back."""
        if self._users and self._trying is None:
            self._back.clear()
            self._trying = asyncio.create_task(self._try_until_back(detail), name="postgres-back")

    async def _try_until_back(self, detail: str) -> None:
        log.debug("database_failed", extra={"detail": detail})
        wait = FIRST_WAIT
        while not await self._answers():
            await asyncio.sleep(wait * (1 - random.random() / 2))
            wait = min(2 * wait, LONGEST_WAIT)
        self._trying = None
        self._back.set()

    async def _answers(self) -> bool:
        """Return whether a connection can be made and answers; the pool has it then."""
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._pool.connect()
                try:
                    await connection.execute("SELECT 1")
                finally:
                    await self._pool.give(connection)
        except (*FAILURES, *CHANGED):
            return False
        return True


def with_defaults(url: str) -> str:
    """Return where to connect, with what makes libpq notice a host that has gone, unless the URL says it.

    Raises:
        StateError: it is no URL as libpq takes it.
    """
    try:
        given = conninfo.conninfo_to_dict(url)
    except (
        psycopg.ProgrammingError
    ) as error:  # after the colon comes a part of the URL, perhaps of the password
        reason = text_of(error).partition(":")[0]
        raise StateError(f"cannot use the URL of the database: {reason}") from None
    if _is_cut_wrongly(url, given):
        raise StateError(
            "cannot use the URL of the database: in a user's name or password write @ as %40, : as %3A, / as %2F"
        )
    return conninfo.make_conninfo(
        url, **{name: value for name, value in LIVENESS.items() if name not in given}
    )


def _is_cut_wrongly(url: str, given: Mapping[str, Any]) -> bool:
    """Return whether libpq has taken a part of the user or the password for the host, the port or the database.

    Errors name these, and so would show the password: ``u:p@ss@h`` has the host ``ss@h``, ``u:p/ss@h`` the port ``p``.
    """
    hosts, ports = (str(given.get(name) or "").split(",") for name in ("host", "port"))
    authority, _, path = url.partition("://")[2].partition("?")[0].partition("/")
    return (
        any("@" in host[1:] and not host.startswith("/") for host in hosts)  # a socket's name may have one
        or not all(port.isdecimal() for port in filter(None, ports))
        or ("@" in path and ("@" not in authority or authority.endswith("@")))
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
