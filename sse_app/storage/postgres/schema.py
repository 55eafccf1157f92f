"""The versions of the schema in PostgreSQL: each file of ``sql`` brings it to the version that its name begins with.

Nodes of two versions of the program run beside each other during a rolling upgrade. So the schema says which is the
oldest version of it that a program may have been written for (``oldest``), and a migration that such a program cannot
live with raises that.
"""

from __future__ import annotations

from pathlib import Path

import psycopg
from psycopg import AsyncConnection

from sse_app.core.errors import StateError

FILES = sorted((Path(__file__).parent / "sql").glob("[0-9]*.sql"))
"""The migrations, in their order."""

VERSION = len(FILES)
"""The version that this program brings a schema to."""

LOCK = 0x5353_4541
"""The advisory lock under which one process at a time migrates."""

OLDEST_SERVER = 150_000
"""The oldest server that is supported, as PostgreSQL numbers itself: 15."""


async def migrate(connection: AsyncConnection) -> None:
    """Bring the schema to the version of this program, where it is older; several processes may do it at once.

    Args:
        connection: with autocommit.

    Raises:
        StateError: the server is too old, or the schema is newer than this program may use, or cannot be made.
        psycopg.Error: something else has failed; the schema is as it was.
    """
    if connection.info.server_version < OLDEST_SERVER:
        raise StateError(
            f"PostgreSQL {connection.info.server_version // 10_000} is too old: 15 or later is needed"
        )
    if await version_of(connection) == VERSION:
        return
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            version = await version_of(connection)
            for file in FILES[version:]:
                await connection.execute(file.read_bytes())
            if version < VERSION:
                await connection.execute("UPDATE sse_app.schema SET version = %s", (VERSION,))
    except psycopg.errors.InsufficientPrivilege as error:
        raise StateError(
            f"the database's schema has version {version}, and this user may not bring it to {VERSION}: "
            f"{error.diag.message_primary}"
        ) from None


async def require_whole(connection: AsyncConnection) -> None:
    """Make sure that no copy into the schema has been begun and not been finished.

    Args:
        connection: to a schema of this version.

    Raises:
        StateError: one has.
    """
    rows = await connection.execute("SELECT source FROM sse_app.copied WHERE NOT finished")
    if (row := await rows.fetchone()) is not None:
        raise StateError(
            f"a copy of {row[0]} into the database has not finished: stop the server there, and give the command "
            "'sse-app eventlog copy' once more"
        )


async def version_of(connection: AsyncConnection) -> int:
    """Return the version of the schema; 0 where there is none.

    Raises:
        StateError: it is newer than this program may use.
    """
    # Not by to_regclass: what a session has not found once it may not find later in the same transaction.
    tables = await connection.execute(
        "SELECT FROM pg_tables WHERE (schemaname, tablename) = ('sse_app', 'schema')"
    )
    if await tables.fetchone() is None:
        return 0
    row = await (await connection.execute("SELECT version, oldest FROM sse_app.schema")).fetchone()
    if row is None:
        raise StateError("the table sse_app.schema is empty: restore a backup of the database")
    version, oldest = row
    if oldest > VERSION:
        raise StateError(
            f"the database's schema has version {version}, made by a newer version of this program; "
            f"this one knows {VERSION}"
        )
    return int(version)
