"""What commands ask of the event log on PostgreSQL, beside servers that use it."""

from __future__ import annotations

from typing import Any

from psycopg import AsyncConnection

from sse_app.core.errors import StateError
from sse_app.storage.postgres.schema import version_of

_EPOCH = "substr(replace(gen_random_uuid()::text, '-', ''), 1, 8)"

_BEGUN_BY_A_COPY = f"""
INSERT INTO sse_app.log (epoch, seq, at, wall, forgotten, system, timeline, made)
SELECT {_EPOCH}, copied.seq, clock, clock, coalesce((SELECT max(trimmed) FROM sse_app.channels), 0), system_identifier,
    sse_app.timeline(), 'sse_app.log'::regclass::oid::bigint
FROM sse_app.copied, pg_control_system(),
    (SELECT extract(epoch FROM clock_timestamp())::double precision AS clock) AS now
WHERE NOT finished AND NOT EXISTS (SELECT FROM sse_app.log)
RETURNING epoch
"""


async def log_and_channels(
    connection: AsyncConnection[Any],
) -> tuple[str, int, list[tuple[str, int, int]]]:
    """Return the log's epoch and head, and each channel with the number of its events and the ``seq`` of the last one.

    Raises:
        StateError: there is no log.
    """
    await _require_log(connection)
    async with connection.transaction():
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        rows = await connection.execute("SELECT epoch, seq FROM sse_app.log")
        log = await rows.fetchone()
        rows = await connection.execute(
            'SELECT name, published, last_seq FROM sse_app.channels ORDER BY name COLLATE "C"'
        )
        channels = await rows.fetchall()
    return log[0] if log else "none", log[1] if log else 0, channels


async def new_epoch(connection: AsyncConnection[Any]) -> str:
    """Give the log another epoch, which running servers learn of, and return it; a copy that is not finished is ended.

    Raises:
        StateError: there is no log.
    """
    await _require_log(connection)
    async with connection.transaction():
        rows = await connection.execute(f"UPDATE sse_app.log SET epoch = {_EPOCH} RETURNING epoch".encode())
        row = await rows.fetchone()
        if row is None:
            row = await (await connection.execute(_BEGUN_BY_A_COPY.encode())).fetchone()
        if row is None:
            raise StateError("there is no event log in the database yet: the first server makes it")
        await connection.execute("UPDATE sse_app.copied SET finished = true")
        await connection.execute(
            "SELECT pg_notify('sse_app_events', concat_ws(' ', epoch, seq, '-')) FROM sse_app.log"
        )
    return str(row[0])


async def _require_log(connection: AsyncConnection[Any]) -> None:
    if await version_of(connection) < 2:
        raise StateError("there is no event log in the database yet: the first server makes it")
