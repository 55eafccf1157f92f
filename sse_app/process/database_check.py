"""What ``check-config`` finds out about PostgreSQL, without a change to what is there."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from contextlib import suppress
from typing import Any

from psycopg import AsyncConnection, errors

from sse_app.core.errors import StateError
from sse_app.settings.model import Settings
from sse_app.settings.workers import worker_count
from sse_app.storage.postgres.database import address_of
from sse_app.storage.postgres.schema import OLDEST_SERVER, VERSION, require_whole, version_of
from sse_app.storage.postgres.single import connected

QUERIES = 5
"""Of so many queries the median time is told."""

HEARD_WITHIN = 5.0
"""How many seconds a notification may take to be heard."""

CLOCK_TOLERANCE = 1.0
"""By how many seconds the clocks may differ without a warning."""

CHANNEL = "sse_app_check"
"""On which it is tried whether a notification is heard; no server listens there."""


async def database_lines(settings: Settings) -> list[str]:
    """Return what there is to say of the database of the settings, a line each.

    Raises:
        StateError: a server could not start with it.
    """
    url = settings.event_log
    async with connected(url) as connection:
        number = connection.info.server_version
        lines = [
            f"event log: in the database {address_of(url)}, PostgreSQL {number // 10_000}.{number % 10_000}"
        ]
        if number < OLDEST_SERVER:
            raise StateError(f"PostgreSQL {number // 10_000} is too old: 15 or later is needed")
        if (await _values(connection, "SELECT pg_is_in_recovery()"))[0]:
            raise StateError(f"the database {address_of(url)} is a standby: nothing can be written there")
        lines.append(await _schema(connection, address_of(url)))
        lines.append(await _latency(connection))
        lines.append(await _clock(connection))
        lines.append(await _promise(connection))
        lines += await _connections(connection, settings)
        lines.append(await _notifications(connection, settings.postgres.listen_url or url))
    return lines


async def _values(connection: AsyncConnection[Any], statement: str) -> tuple[Any, ...]:
    row = await (await connection.execute(statement.encode())).fetchone()
    assert row is not None
    return tuple(row)


async def _schema(connection: AsyncConnection[Any], where: str) -> str:
    try:
        version = await version_of(connection)
        if version == VERSION:
            await require_whole(connection)
    except errors.InsufficientPrivilege as error:
        raise StateError(
            f"this user has not the rights it needs in the database {where}: {error.diag.message_primary}"
        ) from None
    user, create, there, owns = await _values(
        connection,
        "SELECT current_user, has_database_privilege(current_database(), 'CREATE'), "
        "to_regnamespace('sse_app') IS NOT NULL, "
        "coalesce((SELECT bool_and(pg_has_role(relowner, 'USAGE')) FROM pg_class "
        "WHERE relnamespace = to_regnamespace('sse_app')), true)",
    )
    if version == 0:
        if not (create or there):
            raise StateError(
                f"there is no schema sse_app in the database {where}, and the user {user} may not make it: "
                f"GRANT CREATE ON DATABASE … TO {user}"
            )
        return "schema: not there yet; the start makes it"
    if version < VERSION:
        if not owns:
            raise StateError(
                f"the schema has version {version}, and the user {user} may not bring it to {VERSION}: "
                "its owner must start first"
            )
        return f"schema: version {version}, which the start brings to {VERSION}"
    missing = await (
        await connection.execute(
            "SELECT relname, right_needed FROM pg_class, "
            "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS right_needed "
            "WHERE relnamespace = 'sse_app'::regnamespace AND relkind = 'r' AND relname <> 'schema' "
            "AND NOT has_table_privilege(pg_class.oid, right_needed) ORDER BY relname, right_needed LIMIT 1"
        )
    ).fetchone()
    if missing is not None:
        raise StateError(f"the user {user} has no right to {missing[1]} in the table sse_app.{missing[0]}")
    if version > VERSION:
        return f"schema: version {version}, newer than {VERSION}, which this program knows; it may use it"
    return f"schema: version {version}"


async def _latency(connection: AsyncConnection[Any]) -> str:
    times = []
    for _ in range(QUERIES):
        begun = time.perf_counter()
        await connection.execute("SELECT 1")
        times.append(time.perf_counter() - begun)
    return f"latency: a query takes {statistics.median(times) * 1000:.1f} ms"


async def _clock(connection: AsyncConnection[Any]) -> str:
    before = time.time()
    (there,) = await _values(connection, "SELECT extract(epoch FROM clock_timestamp())::double precision")
    ahead = there - (before + time.time()) / 2
    if abs(ahead) < CLOCK_TOLERANCE:
        return "clock: as the database's"
    direction = "ahead of" if ahead > 0 else "behind"
    return f"clock: warning: the database's is {abs(ahead):.1f} s {direction} the one of this machine"


async def _promise(connection: AsyncConnection[Any]) -> str:
    commit, standbys, fsync = await _values(
        connection,
        "SELECT current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), "
        "current_setting('fsync')",
    )
    named = f"synchronous_commit = {commit}, synchronous_standby_names = '{standbys}'"
    return f"a 201 promises: {promise_of(commit, standbys, fsync == 'on')} ({named})"


def promise_of(commit: str, standbys: str, fsync: bool = True) -> str:
    """Return what an acknowledged event has survived, in words.

    Args:
        commit: ``synchronous_commit`` as it is for the user of the server.
        standbys: ``synchronous_standby_names``.
        fsync: whether the server waits for its disk at all.
    """
    if not fsync:
        return "nothing, as fsync is off: a crash of the database's machine may destroy all"
    if commit in ("off", "local") or not standbys.strip():
        return "on disk here before the 201; a failover to an asynchronous standby loses the last events"
    if commit == "remote_write":
        return (
            "on disk here and in the memory of a synchronous standby before the 201; a failover to it loses the last "
            "events only where its machine has crashed too"
        )
    applied = ", and to be read there" if commit == "remote_apply" else ""
    loses = (
        f"on disk here and at a synchronous standby{applied} before the 201; a failover to it loses nothing"
    )
    if requires_all(standbys):
        return loses
    return f"{loses}, but gives a new epoch (clients get a reset), as not each standby that is named has all events"


def requires_all(standbys: str) -> bool:
    """Return whether a commit waits for each standby that ``synchronous_standby_names`` names."""
    match = re.fullmatch(r"\s*(?:(?:FIRST|ANY)?\s*(\d+)\s*\(([^()]*)\)|([^()]*))\s*", standbys, re.IGNORECASE)
    if match is None:
        return False
    names = {name.strip(' \t\n"').lower() for name in (match[2] or match[3] or "").split(",")}
    return not names & {"*", ""} and len(names) == int(match[1] or 1)


async def _connections(connection: AsyncConnection[Any], settings: Settings) -> list[str]:
    most, reserved, used, of_role, of_database = await _values(
        connection,
        "SELECT current_setting('max_connections')::integer, "
        "current_setting('superuser_reserved_connections')::integer, "
        "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') - 1, "
        "(SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), "
        "(SELECT datconnlimit FROM pg_database WHERE datname = current_database())",
    )
    limits = [most - reserved, *(limit for limit in (of_role, of_database) if limit >= 0)]
    processes = worker_count(settings)
    # One listens; and in a restart there are two processes for a moment.
    needed = processes * (settings.postgres.connections + 1)
    lines = [
        f"connections: up to {needed} for {processes} process{'es' if processes > 1 else ''} of this machine, twice as "
        f"many in a restart; the database allows {min(limits)}, of which {used} are in use"
    ]
    if 2 * needed > min(limits):
        lines.append(
            "connections: warning: these are too many: lower postgres.connections, or raise max_connections"
        )
    return lines


async def _notifications(connection: AsyncConnection[Any], url: str) -> str:
    async with connected(url) as listening:
        await listening.execute(f"LISTEN {CHANNEL}".encode())
        word = f"{time.time_ns()}"
        await connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, word))
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARD_WITHIN):
                async for notification in listening.notifies():
                    if notification.payload == word:
                        return "LISTEN: notifications are heard"
    return (
        "LISTEN: warning: notifications are not heard, as behind a pooler that gives each transaction another session: "
        "set postgres.listen_url to the server itself; until then events of other nodes come up to a second late"
    )
