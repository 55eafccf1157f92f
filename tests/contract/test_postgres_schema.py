"""The schema on PostgreSQL: made, brought forward, and refused where it is too new; and its connections."""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.errors import StateError
from sse_app.core.events import NewEvent
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.storage.postgres.database import Database, DatabaseUnavailable
from sse_app.storage.postgres.schema import FILES, VERSION
from tests.support.waiting import until_async


async def _value(database: Database, statement: bytes) -> object:
    async with database.connection() as connection:
        row = await (await connection.execute(statement)).fetchone()
    assert row is not None
    return row[0]


def test_several_processes_that_start_at_once_make_the_schema_once(database_url: str) -> None:
    async def start() -> None:
        databases = [Database(database_url) for _ in range(6)]
        await asyncio.gather(*(database.open() for database in databases))
        assert await _value(databases[3], b"SELECT version FROM sse_app.schema") == VERSION
        await asyncio.gather(*(database.close() for database in databases))

    asyncio.run(start())


def test_a_schema_that_is_too_new_is_refused_and_one_that_allows_it_is_used(database_url: str) -> None:
    async def start() -> None:
        database = Database(database_url)
        await database.open()
        await database.close()
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("UPDATE sse_app.schema SET version = version + 1")
            await database.open()
            await database.close()
            connection.execute("UPDATE sse_app.schema SET oldest = version")
        with pytest.raises(StateError, match="made by a newer version of this program"):
            await database.open()

    asyncio.run(start())


def test_a_schema_of_before_is_brought_forward_while_programs_of_before_go_on_using_it(
    database_url: str,
) -> None:
    begun = "SELECT name, floor, first FROM sse_app.beginning('{{a,b}}', 2, NULL, NULL{})"

    async def append(types: str) -> None:
        log = PostgresEventLog(Database(database_url))
        await log.open()
        await log.append([NewEvent(ChannelName("a"), type, b"{}") for type in types])
        await log.close()

    with psycopg.connect(database_url, autocommit=True) as earlier:
        for file in FILES[:7]:
            earlier.execute(file.read_bytes())
        earlier.execute("UPDATE sse_app.schema SET version = 7")
        earlier.execute("SELECT sse_app.look('', 0, 1000)")
        assert earlier.execute(begun.format("").encode()).fetchall()[1:] == []
        asyncio.run(append("txttyt"))
        assert earlier.execute("SELECT version, oldest FROM sse_app.schema").fetchone() == (VERSION, 1)
        assert earlier.execute(begun.format("").encode()).fetchall()[1:] == [("a", 4, 5)]
        assert earlier.execute(begun.format(", NULL").encode()).fetchall()[1:] == [("a", 4, 5)]
        assert earlier.execute(begun.format(", '{x,y}'").encode()).fetchall()[1:] == [("a", 1, 2)]
        assert earlier.execute(begun.format(", '{none}'").encode()).fetchall()[1:] == [("a", 6, None)]
        foreign = "SELECT count(*) FROM pg_proc WHERE proname = 'beginning' AND proacl::text LIKE '{=%'"
        assert earlier.execute(foreign.encode()).fetchone() == (0,)


def test_a_server_that_does_not_answer_is_named_without_the_password() -> None:
    async def start() -> None:
        database = Database("postgresql://me:secret@127.0.0.1:1/events")
        with pytest.raises(StateError) as raised:
            await database.open()
        assert str(raised.value).startswith("cannot use the database events on 127.0.0.1:1: ")
        assert "secret" not in str(raised.value)
        with pytest.raises(DatabaseUnavailable):
            await _value(database, b"SELECT 1")

    asyncio.run(start())


def test_a_query_that_takes_too_long_is_given_up_and_the_next_one_is_answered(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.storage.postgres.connections.CANCEL_TIMEOUT", 30.0)

    async def start() -> None:
        database = Database(database_url, timeout=0.5)
        await database.open()
        with pytest.raises(DatabaseUnavailable):
            await _value(database, b"SELECT pg_sleep(60)")
        database.timeout = 60.0
        assert await _value(database, b"SELECT 1") == 1
        assert database.available
        await database.close()

    asyncio.run(start())


def test_notifications_are_heard_and_a_lost_connection_is_told(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the last statement of the connection that listens is another one after a while.
    monkeypatch.setattr("sse_app.storage.postgres.listener.LIVENESS_INTERVAL", 3600.0)
    heard: list[str] = []
    missed: list[bool] = []

    async def start() -> None:
        database = Database(database_url)
        database.listener.listen(
            "sse_app_test", heard.append, lambda: missed.append(database.listener.connected)
        )
        await database.open()
        await until_async(lambda: missed == [True], "it listens")
        await _value(database, b"SELECT pg_notify('sse_app_test', 'one')")
        await until_async(lambda: heard == ["one"], "it has heard")
        with psycopg.connect(database_url, autocommit=True) as connection:
            ended = connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
            )
            assert (True,) in ended.fetchall()
        await until_async(lambda: missed == [True, False, True], "it listens again")
        await _value(database, b"SELECT pg_notify('sse_app_test', 'two')")
        await until_async(lambda: heard == ["one", "two"], "it has heard again")
        await database.close()

    asyncio.run(start())
