"""Copies accounts, sessions, revocations and the audit trail from SQLite into PostgreSQL, as they are at one moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from sse_app.auth import sqlite_store
from sse_app.auth.postgres_store import written
from sse_app.core.errors import StateError
from sse_app.storage.sqlite import connect, is_missing_or_empty, open_database, unusable


class _Table(NamedTuple):
    """A table of both stores: its columns, and their types in PostgreSQL."""

    name: str
    columns: tuple[str, ...]
    types: tuple[str, ...]


_TABLES = (
    _Table(
        "accounts",
        ("name", "password", "grants", "disabled", "created_at"),
        ("text", "text", "text", "bool", "float8"),
    ),
    _Table(
        "sessions",
        ("id", "subject", "created_at", "used_at", "expires_at"),
        ("text", "text", "float8", "float8", "float8"),
    ),
    _Table(
        "refresh_tokens",
        ("digest", "session", "spent", "spent_at", "seed"),
        ("bytea", "text", "bool", "float8", "bytea"),
    ),
    _Table(
        "revocations",
        ("number", "kind", "value", "issued_until", "forget_at", "made_at"),
        ("int8", "text", "text", "float8", "float8", "float8"),
    ),
    _Table(
        "audit",
        ("number", "at", "action", "subject", "address", "target", "detail"),
        ("int8", "float8", "text", "text", "text", "text", "text"),
    ),
)


async def copy_auth(connection: AsyncConnection[Any], path: Path) -> dict[str, int]:
    """Have the tables of a schema be those of a file, and return how many rows each has.

    Args:
        connection: to PostgreSQL, with autocommit; what its tables have is replaced.
        path: of the file.

    Raises:
        StateError: there is no such file, it cannot be read, or the copy is not the same.
    """
    if is_missing_or_empty(path):
        raise StateError(f"there are no accounts at {path}: restore a backup of it")
    open_database(path, sqlite_store.APPLICATION_ID, sqlite_store.MIGRATIONS).close()
    try:
        with closing(connect(path)) as source:
            tables, id, revoked = _read(source)
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    counts = {name: len(rows) for name, rows in tables.items()}
    async with connection.transaction():
        await connection.execute(
            "DELETE FROM sse_app.audit; DELETE FROM sse_app.revocations; DELETE FROM sse_app.refresh_tokens; "
            "DELETE FROM sse_app.sessions; DELETE FROM sse_app.accounts"
        )
        for table in _TABLES:
            await _fill(connection, table, tables[table.name])
        await connection.execute(
            "INSERT INTO sse_app.auth (id, revoked) VALUES (%s, %s) "
            "ON CONFLICT (one) DO UPDATE SET id = excluded.id, revoked = excluded.revoked",
            (id, revoked),
        )
        await connection.execute(
            "SELECT setval(pg_get_serial_sequence('sse_app.audit', 'number'), greatest(max(number), 1)) "
            "FROM sse_app.audit"
        )
        for table in _TABLES:
            (there,) = await _row(connection, f"SELECT count(*) FROM sse_app.{table.name}")
            if there != counts[table.name]:
                raise StateError(
                    f"the copy is not whole: {there} of {counts[table.name]} rows of {table.name}"
                )
    return counts


def _read(source: sqlite3.Connection) -> tuple[dict[str, list[tuple[Any, ...]]], str, int]:
    """Return the rows of all tables, what the file is known by, and the number of the last revocation."""
    source.execute("BEGIN")
    tables = {
        table.name: source.execute(f"SELECT {', '.join(table.columns)} FROM {table.name}").fetchall()
        for table in _TABLES
    }
    (id,) = source.execute("SELECT id FROM identity").fetchone()
    (revoked,) = source.execute(
        "SELECT ifnull(max(seq), 0) FROM sqlite_sequence WHERE name = 'revocations'"
    ).fetchone()
    source.execute("ROLLBACK")
    return tables, str(id), int(revoked)


async def _fill(connection: AsyncConnection[Any], table: _Table, rows: Iterable[tuple[Any, ...]]) -> None:
    kinds = dict(zip(table.columns, table.types, strict=True))
    async with (
        connection.cursor() as cursor,
        cursor.copy(
            f"COPY sse_app.{table.name} ({', '.join(kinds)}) FROM STDIN (FORMAT BINARY)".encode()
        ) as copy,
    ):
        copy.set_types(table.types)
        for row in rows:
            await copy.write_row(
                [_converted(value, kind) for value, kind in zip(row, kinds.values(), strict=True)]
            )


def _converted(value: Any, kind: str) -> Any:
    if value is None:
        return None
    match kind:
        case "bool":
            return bool(value)
        case "float8":
            return float(value)
        case "text":
            return written(value)
        case _:
            return value


async def _row(connection: AsyncConnection[Any], statement: str) -> tuple[Any, ...]:
    row = await (await connection.execute(statement.encode())).fetchone()
    assert row is not None
    return tuple(row)
