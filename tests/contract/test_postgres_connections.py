"""The connections to PostgreSQL when it is slow, stopped, started again, or out of reach: each query ends in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import psycopg
import pytest

from sse_app.storage.postgres.connections import Connection, Pool
from sse_app.storage.postgres.database import Database, DatabaseUnavailable
from tests.support.namespaces import links
from tests.support.postgres import Postgres, cluster, ending, server_directory, standby
from tests.support.waiting import until_async

TIMEOUT = 1.0
BOUND = TIMEOUT + 5
"""Seconds within which a query has ended that may take `TIMEOUT`: generous, for machines are shared."""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that these tests may stop."""
    with cluster() as postgres:
        yield postgres


@asynccontextmanager
async def opened(url: str, connections: int = 4) -> AsyncIterator[Database]:
    database = Database(url, connections=connections, timeout=TIMEOUT)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def ask(database: Database, statement: str = "SELECT 1", within: float | None = 60) -> object:
    async with database.connection(within) as connection:
        row = await (await connection.execute(statement.encode())).fetchone()
        return row and row[0]


async def answers(database: Database) -> bool:
    try:
        return await ask(database, within=None) == 1
    except DatabaseUnavailable:
        return False


async def fail(database: Database, statement: str = "SELECT 1") -> float:
    """Ask, which has to fail, and return how many seconds that took."""
    begun = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        await ask(database, statement, within=None)
    return time.monotonic() - begun


async def fill(database: Database, connections: int = 4) -> None:
    """Have all connections made, which then wait for use."""
    await asyncio.gather(*(ask(database, "SELECT pg_sleep(0.1)", within=60) for _ in range(connections)))


def held_up(server: Postgres) -> object:
    """Return how many queries wait for an advisory lock."""
    ((count,),) = server.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'")
    return count


class LateEnds:
    """Passes connections on to a server, and all that it says, but not that it has ended them.

    So it is for a moment without this too: a process of the server says that it ends some time before it does.

    Args:
        server: where to.
    """

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._tasks: set[asyncio.Task[None]] = set()
        self.begun = self.ended = 0
        """How many connections there were, and how many of them the server has ended."""

    @asynccontextmanager
    async def url(self) -> AsyncIterator[str]:
        """Listen, and give the URL of the server here."""
        listening = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        async with listening:
            port = listening.sockets[0].getsockname()[1]
            yield self._server.url().replace(f":{self._server.port}/", f":{port}/")
        await asyncio.gather(*self._tasks)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answers, server = await asyncio.open_connection(self._server.host, self._server.port)
        self.begun += 1
        said = asyncio.ensure_future(_copy(answers, writer))
        said.add_done_callback(self._is_ended)
        with suppress(ConnectionError):
            await _copy(reader, server)
        for end in (server, writer):
            end.close()
            with suppress(ConnectionError):
                await end.wait_closed()
        await asyncio.wait([said])

    def _is_ended(self, _: object) -> None:
        self.ended += 1


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while piece := await source.read(65_536):
        target.write(piece)
        await target.drain()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def to_its_end() -> None:
        await test()

    asyncio.run(to_its_end())


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_after_a_restart_of_the_server_no_request_meets_a_connection_of_before(
    server: Postgres, mode: str
) -> None:
    async def test() -> None:
        async with opened(server.url()) as database:
            await fill(database)
            await asyncio.to_thread(server.stop, mode)
            await asyncio.to_thread(server.start)
            for _ in range(8):
                assert await ask(database) == 1

    run(test)


def test_while_the_server_is_away_queries_fail_soon_and_when_it_is_back_they_succeed(
    server: Postgres,
) -> None:
    async def test() -> None:
        async with opened(server.url()) as database:
            await fill(database)
            await asyncio.to_thread(server.kill)
            try:
                took = sorted([await fail(database) for _ in range(10)])
                assert (
                    took[7] < TIMEOUT
                )  # a machine that stands still meanwhile does so in one or two of them
                assert not database.available
            finally:
                await asyncio.to_thread(server.start)
            await until_async(lambda: database.available, "it is noticed without a query")
            for _ in range(8):
                assert await ask(database) == 1

    run(test)


def test_a_query_that_waits_until_the_server_is_back_waits_on_where_it_is_away_again_at_once(
    server: Postgres,
) -> None:
    async def test() -> None:
        async with opened(server.url()) as database:
            database._is_away("as after an error")
            asking = asyncio.ensure_future(ask(database, "SELECT 7"))
            await asyncio.sleep(0)
            database._back.set()
            database._back.clear()
            assert await asking == 7

    run(test)


def test_what_a_caller_gives_up_before_a_query_s_time_is_over_says_nothing_of_the_server(
    server: Postgres,
) -> None:
    """On an overloaded machine a connection may take some seconds, and a node tells that it is there each second."""

    async def test() -> None:
        async with opened(server.url()) as database:
            await fill(database)
            database.timeout = 60.0
            server.pause()
            try:
                for _ in range(2):  # the first one has a connection, the second one needs a new one
                    with pytest.raises(DatabaseUnavailable):
                        async with database.connection(0.2, apart=True) as connection:
                            await connection.execute("SELECT 1")
                    await database._pool.empty()
                assert database.available
                database.timeout = 0.2
                await fail(database)
                assert not database.available
            finally:
                server.resume()
            await until_async(lambda: answers(database), "it answers again")

    run(test)


def test_a_server_that_does_not_answer_holds_no_query_up_for_longer_than_it_may_take(
    server: Postgres,
) -> None:
    async def test() -> None:
        async with opened(server.url()) as database:
            await fill(database)
            server.pause()
            try:
                begun = time.monotonic()
                await asyncio.gather(*(fail(database) for _ in range(20)))
                assert time.monotonic() - begun < BOUND
                assert min([await fail(database) for _ in range(3)]) < TIMEOUT
            finally:
                server.resume()
            await until_async(lambda: answers(database), "it answers again")

    run(test)


def test_a_task_that_is_cancelled_while_the_server_does_not_answer_ends_soon(server: Postgres) -> None:
    async def test() -> None:
        async with opened(server.url()) as database:
            await fill(database)
            server.pause()
            try:
                asking = asyncio.create_task(ask(database))
                await asyncio.sleep(0.1)
                begun = time.monotonic()
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking
                assert time.monotonic() - begun < BOUND
            finally:
                server.resume()

    run(test)


def test_a_slow_query_is_cancelled_at_the_server_and_costs_no_connection(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.storage.postgres.connections.CANCEL_TIMEOUT", 30.0)

    async def test() -> None:
        async with opened(server.url(), connections=1) as database:
            pid = await ask(database, "SELECT pg_backend_pid()")
            assert await fail(database, "SELECT pg_sleep(100)") < BOUND
            assert database.available
            assert await ask(database, "SELECT pg_backend_pid()") == pid
            assert (
                await ask(database, "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'") == 0
            )

    run(test)


def test_queries_beyond_the_connections_there_are_wait_for_one_and_are_refused_in_time(
    server: Postgres,
) -> None:
    async def test() -> None:
        async with opened(server.url(), connections=2) as database:
            slow = [
                asyncio.create_task(ask(database, "SELECT pg_advisory_xact_lock_shared(1)", within=60))
                for _ in range(2)
            ]
            await until_async(lambda: held_up(server) == 2, "all connections are in use")
            assert await fail(database) < BOUND
            assert database.available  # it answers those that have the connections
            async with database.connection(BOUND, apart=True) as connection:
                assert await (await connection.execute("SELECT 2")).fetchone() == (2,)
            assert held_up(server) == 2
            waiting = asyncio.create_task(ask(database, within=60))
            await asyncio.sleep(0)
            holder.execute("SELECT pg_advisory_unlock(1)")
            assert await waiting == 1
            await asyncio.gather(*slow)

    with psycopg.connect(server.url(), autocommit=True) as holder:
        holder.execute("SELECT pg_advisory_lock(1)")
        run(test)


def test_a_connection_that_the_server_ends_while_it_waits_costs_nothing(server: Postgres) -> None:
    async def test() -> None:
        async with opened(server.url()) as database:
            await fill(database)
            await asyncio.to_thread(
                server.execute,
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'",
            )
            for _ in range(8):
                assert await ask(database) == 1

    run(test)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_connection_of_which_the_server_has_said_that_it_ends_costs_nothing_also_before_it_has_ended(
    server: Postgres, mode: str
) -> None:
    async def test() -> None:
        late = LateEnds(server)
        async with late.url() as url, opened(url) as database:
            await fill(database)
            await asyncio.to_thread(server.stop, mode)
            await until_async(lambda: late.ended == late.begun, "all that the server has said is there")
            await asyncio.to_thread(server.start)
            for _ in range(8):
                assert await ask(database) == 1

    run(test)


def test_what_was_taken_away_is_no_mistake_of_a_statement(server: Postgres) -> None:
    async def test() -> None:
        async with opened(server.url()) as database:
            for statement in (
                "SELECT * FROM sse_app.gone",
                "SELECT sse_app.gone()",
                "SELECT gone FROM sse_app.schema",
            ):
                await fail(database, statement)
            with pytest.raises(psycopg.errors.DivisionByZero):
                await ask(database, "SELECT 1/0")

    run(test)


def test_a_url_with_several_hosts_follows_a_promotion() -> None:
    with cluster() as first, standby(first, "second") as second:
        url = (
            f"postgresql://postgres@{first.host}:{first.port},{second.host}:{second.port}/postgres"
            "?target_session_attrs=read-write"
        )

        async def test() -> None:
            async with opened(url) as database:
                assert await ask(database, "SHOW port") == str(first.port)
                await asyncio.to_thread(first.kill)
                await fail(database)
                await asyncio.to_thread(second.promote)
                await until_async(lambda: answers(database), "the promoted one answers")
                assert await ask(database, "SHOW port") == str(second.port)

        run(test)


@pytest.mark.slow
def test_a_primary_that_has_become_read_only_is_left_for_the_one_that_is_not() -> None:
    with cluster() as first, standby(first, "second") as second:
        url = (
            f"postgresql://postgres@{first.host}:{first.port},{second.host}:{second.port}/postgres"
            "?target_session_attrs=read-write"
        )

        async def test() -> None:
            async with opened(url) as database:
                first.execute("CREATE TABLE kept (i int)")
                await asyncio.to_thread(first.set, "default_transaction_read_only", "on")
                await asyncio.to_thread(second.promote)

                async def stored() -> bool:
                    try:
                        return await ask(database, "INSERT INTO kept VALUES (1) RETURNING i") == 1
                    except DatabaseUnavailable:
                        return False

                await until_async(stored, "it is stored on the other one")

        run(test)


@pytest.mark.netns
def test_a_server_out_of_reach_is_noticed_in_bounded_time_and_used_again_when_it_is_in_reach() -> None:
    with server_directory() as directory, links(1) as (within, (link,)):
        postgres = Postgres(directory, {"listen_addresses": "*"}, within=within)
        postgres.host = link.far

        async def test() -> None:
            async with opened(postgres.url()) as database:
                await fill(database)
                link.drop()
                begun = time.monotonic()
                await asyncio.gather(*(fail(database) for _ in range(10)))
                assert time.monotonic() - begun < BOUND
                assert min([await fail(database) for _ in range(3)]) < TIMEOUT
                link.mend()
                await until_async(lambda: answers(database), "it answers again")

        with ending(postgres):
            postgres.make()
            postgres.allow(f"{link.near}/24")
            postgres.start()
            run(test)


@pytest.mark.slow
def test_many_processes_try_now_and_then_and_at_different_times_until_the_server_is_back(
    server: Postgres,
) -> None:
    tries: list[float] = []

    async def test() -> None:
        async with AsyncExitStack() as ends:
            databases = [await ends.enter_async_context(opened(server.url())) for _ in range(30)]
            await asyncio.to_thread(server.kill)
            try:
                await asyncio.gather(*(fail(database) for database in databases))
                connect = Pool.connect

                async def counted(pool: Pool) -> Connection:
                    tries.append(time.monotonic())
                    return await connect(pool)

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(Pool, "connect", counted)
                    await asyncio.sleep(3)
            finally:
                await asyncio.to_thread(server.start)
            await until_async(lambda: all(database.available for database in databases), "all are back")

    run(test)
    assert 30 < len(tries) < 30 * 8, "with pauses that grow"
    begun = min(tries)
    late = [at - begun for at in tries if at > begun + 1]
    assert max(late) - min(late) > 0.5, "and vary"
