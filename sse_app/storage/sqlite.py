"""SQLite files in the state directory: opened privately, checked for their schema version, migrated forward."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sse_app.core.errors import StateError
from sse_app.storage.ownership import require_private_database

BUSY_TIMEOUT = 10.0
"""How long a connection waits for another one's transaction, in seconds."""


def open_database(path: Path, application_id: int, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open or create a database and bring it to the newest schema version.

    The schema version is the number of ``migrations`` applied, kept in ``PRAGMA user_version``.
    The connection is in autocommit mode and may be used from any thread, by one at a time.

    Args:
        path: the file; it is made with mode 0600.
        application_id: marks the file as ours, and as the kind of ours that it is.
        migrations: SQL scripts; the n-th leads from version n to n + 1.

    Raises:
        StateError: the file cannot be opened, is not this user's alone (see `storage.ownership`), is no database of
            this kind, or is of a newer version.
    """
    require_private_database(path)
    try:
        # Only a new file is opened here: to close one that this process has open in SQLite would drop the locks
        # that SQLite holds on it, and another process could then take it for its own (fcntl(2)).
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"cannot open {path}: {error}") from error
    try:
        _migrate(connection, path, application_id, migrations)
    except sqlite3.Error as error:
        connection.close()
        raise StateError(f"cannot open {path}: {error}") from error
    except StateError:
        connection.close()
        raise
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """Return one more connection to a database that `open_database` has opened before."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    # A commit in WAL mode reaches the disk only with FULL; it is what a 201 promises.
    # Temporary tables stay in memory: for a file of theirs there may be no descriptor left.
    connection.executescript(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY;"
    )
    return connection


def _migrate(
    connection: sqlite3.Connection, path: Path, application_id: int, migrations: Sequence[str]
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        found = int(connection.execute("PRAGMA application_id").fetchone()[0])
        empty = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0
        if found != application_id and not (empty and version == 0):
            raise StateError(f"{path} is not a database of this kind")
        if version > len(migrations):
            raise StateError(
                f"{path} has schema version {version}; this program knows versions up to {len(migrations)} "
                "and does not open newer ones"
            )
        for script in migrations[version:]:
            for statement in script.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
        if version < len(migrations) or found != application_id:
            connection.execute(f"PRAGMA application_id = {application_id}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
