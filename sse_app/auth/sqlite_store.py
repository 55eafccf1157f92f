"""The database of who may come in: accounts, sessions, revocations and the audit trail, in one file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sse_app.storage.sqlite import connect, open_database

APPLICATION_ID = 0x53534541  # "SSEA"
MIGRATIONS = [
    """
    CREATE TABLE accounts (
        name TEXT PRIMARY KEY, password TEXT NOT NULL, grants TEXT NOT NULL,
        disabled INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY, subject TEXT NOT NULL,
        created_at REAL NOT NULL, used_at REAL NOT NULL, expires_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX sessions_of_subject ON sessions (subject);
    CREATE TABLE refresh_tokens (
        digest BLOB PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        spent INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX refresh_tokens_of_session ON refresh_tokens (session);
    CREATE TABLE revocations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, value TEXT NOT NULL,
        issued_until REAL NOT NULL, forget_at REAL NOT NULL
    );
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, address TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL
    );
    """,
]

T = TypeVar("T")


class AuthDatabase:
    """One connection that writes, used by one thread at a time, and one that the event loop may read with.

    The command line writes to the same file while the server runs; `changed` notices.

    Args:
        path: the database file.

    Raises:
        StateError: the database cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._writing = open_database(path, APPLICATION_ID, MIGRATIONS)
        self._reading = connect(path)
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "auth-database")
        self._version = -1
        self._closed = False

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write, all or nothing; on the disk when it is left. It blocks: not for the event loop."""
        with self._lock:
            if self._closed:
                raise sqlite3.OperationalError("the database is closed")
            self._writing.execute("BEGIN IMMEDIATE")
            try:
                yield self._writing
            except BaseException:
                self._writing.execute("ROLLBACK")
                raise
            self._writing.execute("COMMIT")

    def rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Read what is committed; only short reads, for it may be called on the event loop, and there only.

        Raises:
            sqlite3.OperationalError: the database cannot be used now, or no more.
        """
        if self._closed:  # a request that was under way when the server ended: unavailable, and no defect
            raise sqlite3.OperationalError("the database is closed")
        return self._reading.execute(statement, values).fetchall()

    def changed(self) -> bool:
        """Return whether anything was committed since this was last asked."""
        version = int(self.rows("PRAGMA data_version")[0][0])
        changed = version != self._version
        self._version = version
        return changed

    async def run(self, work: Callable[[], T]) -> T:
        """Do blocking work in the database's own thread.

        Raises:
            sqlite3.OperationalError: the database cannot be used now, or no more.
        """
        if self._closed:
            raise sqlite3.OperationalError("the database is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        """Finish what was begun, and close the file."""
        self._closed = True
        self._thread.shutdown()
        with self._lock:
            self._reading.close()
            self._writing.close()
