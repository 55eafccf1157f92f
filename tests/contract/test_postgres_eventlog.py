"""The event log on PostgreSQL: what becomes of it when the database is restored, promoted, or waits for a standby."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable, OutcomeUnknown
from sse_app.core.events import FINAL, Event, EventId, NewEvent
from sse_app.eventlog.base import EventsTrimmed, IdempotencyKey, LogReplaced, Retention
from sse_app.eventlog.postgres import appends
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.eventlog.postgres.notices import Notices
from sse_app.storage.postgres.database import Database, DatabaseUnavailable
from tests.support.postgres import Postgres, cluster
from tests.support.waiting import until_async

A, B = ChannelName("a"), ChannelName("b")


def new(channel: ChannelName = A, text: str = "{}") -> NewEvent:
    return NewEvent(channel, "t", text.encode())


@asynccontextmanager
async def opened(
    place: str | Database,
    retention: Retention | None = None,
    query_timeout: float = 5.0,
    memory: Path | None = None,
) -> AsyncIterator[PostgresEventLog]:
    database = Database(place, timeout=query_timeout) if isinstance(place, str) else place
    log = PostgresEventLog(database, retention, memory)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def forget_the_end(url: str) -> None:
    """Bring the log back to what it was two events ago, as a copy of its files from then would."""
    rows(url, "UPDATE sse_app.log SET seq = seq - 2")
    rows(url, "DELETE FROM sse_app.events WHERE seq > (SELECT seq FROM sse_app.log)")
    rows(url, "UPDATE sse_app.channels SET published = published - 2, last_seq = last_seq - 2")


def move_to_another_server(url: str) -> None:
    """Have the log be one that another cluster has written."""
    rows(url, "UPDATE sse_app.log SET system = system + 1, started = started - interval '1 day'")


def leave_unlooked(log: PostgresEventLog) -> None:
    """Have a process look at the log only where something is asked of it."""
    assert log._watching is not None
    log._watching.cancel()


def give_another_epoch(url: str) -> None:
    rows(url, "UPDATE sse_app.log SET epoch = 'other'")


@pytest.mark.slow
@pytest.mark.gen_test
@pytest.mark.parametrize("asked", ["append", "lost", "tail", "nothing"])
@pytest.mark.parametrize("become", [forget_the_end, move_to_another_server, give_another_epoch])
async def test_a_log_that_was_replaced_is_noticed_whatever_is_asked_of_it(
    database_url: str, become: Callable[[str], None], asked: str
) -> None:
    async with opened(database_url) as log:
        before = (await log.append([new()] * 5))[-1]
        async with aclosing(log.tail(before.seq)) as tail:
            following = asyncio.ensure_future(anext(tail))
            await asyncio.sleep(0.1)
            become(database_url)
            if asked == "append":
                (stored,) = await log.append([new(A, '{"n":1}')])
                assert stored.epoch != before.epoch
            elif asked == "lost":
                await until_async(lambda: log.head.epoch != before.epoch, "it is noticed by a look")
                assert await log.lost([A, B], before) == dict.fromkeys([A, B], "log_replaced")
                assert await log.lost([A], log.head) == {}
            elif asked == "tail":
                give_another_epoch(database_url)
                with pytest.raises(LogReplaced):
                    await asyncio.wait_for(anext(log.tail(before.seq)), 20)
            with pytest.raises(LogReplaced):
                await asyncio.wait_for(following, 20)
        assert log.head.epoch != before.epoch
        (last,) = await log.append([new(B)])
        assert last.epoch == log.head.epoch
        async with aclosing(log.tail(last.seq - 1)) as tail:
            assert [event.seq for event in await asyncio.wait_for(anext(tail), 20)] == [last.seq]


@pytest.mark.gen_test
@pytest.mark.parametrize("become", [forget_the_end, move_to_another_server])
async def test_all_processes_learn_of_the_one_new_epoch(
    database_url: str, become: Callable[[str], None]
) -> None:
    async with opened(database_url) as one, opened(database_url) as other:
        before = (await one.append([new()] * 5))[-1]
        await until_async(lambda: other.head == before, "both know of it")
        become(database_url)
        await until_async(
            lambda: one.head.epoch == other.head.epoch != before.epoch, "both know of the new epoch"
        )
        assert {one.head.epoch, other.head.epoch} == {
            rows(database_url, "SELECT epoch FROM sse_app.log")[0][0]
        }


@pytest.mark.gen_test
async def test_a_position_of_an_epoch_that_this_process_has_not_heard_of_is_looked_up(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.eventlog.postgres.log.LOOK_INTERVAL", 3600.0)
    async with opened(database_url) as log:
        (before,) = await log.append([new()])
        give_another_epoch(database_url)
        assert await log.lost([A], EventId("other", 1)) == {}
        assert log.head == ("other", 1)
        assert await log.lost([A], before) == {A: "log_replaced"}


@pytest.mark.gen_test
async def test_a_position_that_a_promoted_standby_lacks_is_of_the_log_before(database_url: str) -> None:
    async with opened(database_url) as log:
        leave_unlooked(log)
        (before,) = await log.append([new()])
        move_to_another_server(database_url)
        assert await log.lost([A], before._replace(seq=before.seq + 1)) == {A: "log_replaced"}
        assert log.head.epoch != before.epoch


@pytest.mark.gen_test
async def test_where_it_is_asked_which_channels_have_ended_another_epoch_is_noticed(
    database_url: str,
) -> None:
    async with opened(database_url) as log:
        leave_unlooked(log)
        assert await log.ended() == {}
        (last,) = await log.append([NewEvent(A, "e", b"{}", None, FINAL)])
        give_another_epoch(database_url)
        assert await log.ended() == {A: last.seq}
        assert log.head == ("other", last.seq)


@pytest.mark.gen_test
async def test_a_process_that_remembers_the_end_of_the_log_reads_what_comes_before_it(
    database_url: str, tmp_path: Path
) -> None:
    memory = tmp_path / "position"
    async with opened(database_url, memory=memory) as log:
        last = (await log.append([new()] * 3))[-1]
    assert memory.read_text().strip() == str(last)
    async with opened(database_url, memory=memory) as log, aclosing(log.tail(last.seq - 2)) as tail:
        events = await asyncio.wait_for(anext(tail), 20)  # as after a handover whose position is behind
        assert [event.seq for event in events] == [last.seq - 1, last.seq]


def test_a_dump_that_is_restored_is_another_log(postgres: Postgres, database_url: str) -> None:
    async def run() -> None:
        async with opened(database_url) as log:
            (before,) = await log.append([new()])
        restored = postgres.new_database()
        file = str(postgres.directory / "dump.sql")
        postgres.run("pg_dump", f"--dbname={database_url}", f"--file={file}")
        postgres.run("psql", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={restored}", f"--file={file}")
        async with opened(restored) as log:
            assert log.head.epoch != before.epoch
            assert log.head.seq == 1

    asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("standbys", "had"),
    [
        ("here", True),
        ("Here", True),
        ('"here"', True),
        ("FIRST 1 (here)", True),
        ("first 2 (here, there)", True),
        ("ANY 2 (there, here)", True),
        ("2 (there, here)", True),
        ("", False),
        ("*", False),
        ("ANY 1 (*)", False),
        ("there", False),
        ("here, there", False),  # the first of them that is there
        ("FIRST 1 (here, there)", False),
        ("ANY 1 (here, there)", False),
        ("ANY 2 (here, there, anywhere)", False),
        ("2 (here, here)", False),
        ("ANY 3 (here, there)", False),
        ("nowhere here", False),
    ],
)
def test_a_standby_had_all_only_where_the_primary_waited_for_it_each_time(
    postgres: Postgres, database_url: str, standbys: str, had: bool
) -> None:
    async def migrate() -> None:
        database = Database(database_url)
        await database.open()
        await database.close()

    asyncio.run(migrate())
    name = database_url.rpartition("/")[2]
    with psycopg.connect(postgres.url(name)) as connection:
        # In place of the function's own look at the name of this server, which only a start can set.
        source = connection.execute("SELECT pg_get_functiondef('sse_app.had_all'::regproc)").fetchone()
        assert source is not None
        connection.execute(source[0].replace("current_setting('cluster_name')", "'here'"))
        assert connection.execute("SELECT sse_app.had_all(%s)", (standbys,)).fetchone() == (had,)
        connection.rollback()


def promote(server: Postgres) -> None:
    """Have a server begin a new timeline, as a standby does that is promoted; it has all that it had."""
    server.stop()
    (server.data / "standby.signal").touch()
    server.start()
    server.run("pg_ctl", "promote", "-w", f"--pgdata={server.data}")


@pytest.mark.parametrize(
    ("standbys", "kept"),
    [
        pytest.param("", False, marks=pytest.mark.slow),
        ("FIRST 1 (here)", True),
        pytest.param("ANY 1 (here, x)", False, marks=pytest.mark.slow),
    ],
)
def test_a_promotion_keeps_the_epoch_only_of_the_standby_that_was_waited_for(
    standbys: str, kept: bool
) -> None:
    with cluster(cluster_name="here", max_wal_senders="2") as server:
        url = server.new_database()

        async def run() -> None:
            async with opened(url) as log:
                (before,) = await log.append([new()])
            # As if the last append had been made by a primary that waited for these.
            server.execute(f"UPDATE sse_app.log SET standbys = '{standbys}'", url.rpartition("/")[2])
            await asyncio.to_thread(promote, server)
            async with opened(url) as log:
                assert (log.head.epoch == before.epoch) is kept
                assert log.head.seq == 1
                (last,) = await log.append([new()])
                assert last == (log.head.epoch, 2 + 10**9 if kept else 2)

        asyncio.run(run())


@pytest.fixture
def waiting_for_a_standby() -> Iterator[Postgres]:
    """A server of its own whose commits can be made to wait for a standby that is not there."""
    with cluster(max_wal_senders="2") as server:
        yield server


def wait_for(server: Postgres, standbys: str) -> None:
    server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{standbys}'")
    server.execute("SELECT pg_reload_conf()")


@pytest.mark.expects_logs("event_log_unavailable")
def test_a_commit_that_waits_for_a_standby_is_no_success_and_the_key_resolves_it(
    waiting_for_a_standby: Postgres,
) -> None:
    server = waiting_for_a_standby
    url = server.new_database()
    name = url.rpartition("/")[2]
    key = IdempotencyKey("ann", "k", b"1")

    def waiting() -> int:
        found = server.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sse_app.append%' AND datname = "
            f"'{name}' AND state = 'active'"
        )
        return int(str(found[0][0]))

    async def run() -> None:
        database = Database(url, timeout=60.0)
        async with opened(database) as log:
            await log.append([new()])
            await asyncio.to_thread(wait_for, server, "absent")
            database.timeout = 1.0

            async def refused() -> bool:
                try:
                    await log.append([new(B)])  # until the setting is in force
                except EventLogUnavailable:  # which a machine that stands still may bring about too
                    return server.execute(
                        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                    ) == [(True,)]
                return False

            await until_async(refused, "a commit waits")
            with pytest.raises(EventLogUnavailable):
                await log.append([new(A, '{"n":1}')], key)
            kinds: set[type[object]] = set()
            for _ in range(3):  # on a busy machine the database may refuse too late for that to be known
                begun = time.monotonic()
                answers = await asyncio.gather(
                    *(log.append([new(A, '{"n":2}')]) for _ in range(50)), return_exceptions=True
                )
                assert time.monotonic() - begun < 30
                kinds = {type(answer) for answer in answers}
                assert kinds <= {EventLogUnavailable, OutcomeUnknown}
                if kinds == {EventLogUnavailable}:
                    break
            assert kinds == {EventLogUnavailable}
            assert not log.available
            assert waiting() <= 3  # what waits for the first one is refused, and not left behind
            database.timeout = 60.0
            seen = (await log.replay([B], 0, 99, 99)).events
            assert len(seen) == log.head.seq - 1  # what was not acknowledged is sent to no client
            await asyncio.to_thread(wait_for, server, "")
            await until_async(lambda: log.available, "it can be written again")
            first = await log.append([new(A, '{"n":1}')], key)
            assert await log.append([new(A, '{"n":1}')], key) == first
            data = [event.data for event in (await log.replay([A], 1, 99, 99)).events]
            assert data.count(b'{"n":1}') == 1
            assert b'{"n":2}' not in data

    asyncio.run(run())


@pytest.mark.expects_logs("event_log_unavailable")
def test_a_wait_for_a_standby_that_an_administrator_cancels_is_no_success(
    waiting_for_a_standby: Postgres,
) -> None:
    server = waiting_for_a_standby
    url = server.new_database()

    def cancel() -> bool:
        found = server.execute(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        return found == [(True,)]

    async def run() -> None:
        async with opened(url, query_timeout=30.0) as log:
            await log.append([new()])
            await asyncio.to_thread(wait_for, server, "absent")

            async def appends() -> None:
                while True:
                    await log.append([new(B)])

            appending = asyncio.ensure_future(appends())
            await until_async(cancel, "a commit waits, and is cancelled")
            with pytest.raises(EventLogUnavailable, match="canceling wait"):
                await appending
            await asyncio.to_thread(wait_for, server, "")
            await until_async(lambda: log.available, "it can be written again")

    asyncio.run(run())


@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable")
async def test_an_append_whose_row_is_locked_is_refused_in_time_and_not_stored_later(
    database_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    # The server refuses it long before this process would give it up, of which nothing could be said.
    monkeypatch.setattr("sse_app.eventlog.postgres.appends.patience", lambda _: 800)
    async with opened(database_url, query_timeout=10.0) as log:
        await log.append([new()])
        with psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM sse_app.log FOR UPDATE")
            begun = time.monotonic()
            for _ in range(2):
                with pytest.raises(EventLogUnavailable, match="lock timeout") as refused:
                    await log.append([new(B)])
                assert not isinstance(refused.value, OutcomeUnknown)
            assert time.monotonic() - begun < 20
            assert not log.available
            assert len((await log.replay([A], 0, 9, 9)).events) == 1  # it can be read
            assert not log.available
            holder.rollback()
        await until_async(lambda: log.available, "it can be written again")
        assert [event.channel for event in (await log.replay([A, B], 0, 9, 9)).events] == [A]
        messages = [record.getMessage() for record in caplog.records if "event_log" in record.getMessage()]
        assert messages == ["event_log_unavailable", "event_log_available"]


@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable")
async def test_an_append_whose_connection_ends_may_be_stored_and_one_that_gets_none_is_not(
    postgres: Postgres, database_url: str
) -> None:
    async with opened(database_url) as log:
        await log.append([new()])
        with psycopg.connect(database_url, autocommit=True) as other, psycopg.connect(database_url) as holder:
            holder.execute("SELECT FROM sse_app.log FOR UPDATE")
            appending = asyncio.ensure_future(log.append([new()]))
            held_up = "wait_event_type = 'Lock' AND query LIKE '%sse_app.append%'"
            waiting = f"SELECT pid FROM pg_stat_activity WHERE {held_up}"
            await until_async(lambda: other.execute(waiting).fetchone() is not None, "it waits")
            other.execute(f"SELECT pg_terminate_backend(pid) FROM ({waiting}) AS waiting")
            with pytest.raises(OutcomeUnknown, match="terminating connection"):
                await appending
            holder.rollback()
            await until_async(lambda: log.available, "it can be written again")
        name = database_url.rpartition("/")[2].partition("?")[0]
        postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            ending = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            await until_async(lambda: not postgres.execute(ending), "none takes what is sent any more")
            with pytest.raises(EventLogUnavailable) as refused:
                await log.append([new()])
            assert not isinstance(refused.value, OutcomeUnknown)
        finally:
            postgres.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await until_async(lambda: log.available, "it can be written again")


@pytest.mark.gen_test
async def test_a_notification_that_another_role_has_made_up_changes_nothing(database_url: str) -> None:
    async with opened(database_url) as log:
        (first,) = await log.append([new()])
        async with aclosing(log.tail(1)) as tail:
            following = asyncio.ensure_future(anext(tail))
            for payload in (
                "", "x", f"{first.epoch} 99999 y", f"{first.epoch} -1 y", f"{first.epoch} {'9' * 5000} y",
                f"{first.epoch} ² y", "other 5 y", f"{first.epoch}",
            ):  # fmt: skip
                rows(database_url, f"NOTIFY sse_app_events, '{payload}'")
            await asyncio.sleep(0.5)
            assert log.head == first
            assert await log.lost([A], first) == {}
            await log.append([new()])
            assert [event.seq for event in await asyncio.wait_for(following, 20)] == [2]
            assert log.head == (first.epoch, 2)


@pytest.mark.gen_test
async def test_a_small_commit_reaches_another_node_without_a_query_of_it(database_url: str) -> None:
    # Its looks at the log wait until the test gives the connection back.
    database = Database(database_url, connections=1, timeout=60.0)
    async with opened(database_url) as log, opened(database) as other, aclosing(other.tail(0)) as tail:
        await until_async(lambda: database.listener.connected, "it listens")
        await log.append([new(A, '{"n":1}')])
        assert [event.seq for event in await asyncio.wait_for(anext(tail), 20)] == [1]
        async with database.connection():  # the only one that it has
            for number in range(2, 6):
                stored = await log.append([new(A, f'{{"n":{number}}}'), new(B, '{"é":""}')][: number % 2 + 1])
                events = await asyncio.wait_for(anext(tail), 20)
                assert [event.seq for event in events] == [position.seq for position in stored]
                assert (events[0].channel, events[0].type) == (A, "t")
                assert events[0].data == f'{{"n":{number}}}'.encode()
            assert other.head == log.head
        assert await other.lost([A, B], log.head) == {}


@pytest.mark.gen_test
async def test_commits_with_and_without_a_notice_come_in_order(database_url: str) -> None:
    async with opened(database_url) as log, opened(database_url) as other, aclosing(other.tail(0)) as tail:
        sizes = [1, 2000, 4300, 5600, 5700, 5800, 6000, 100_000]  # some are too long for a notification

        async def publish(publisher: PostgresEventLog) -> None:
            for round_ in range(4):
                for size in sizes:
                    key = IdempotencyKey("ann", f"{size} {round_}", b"")  # one of both publishers stores it
                    await publisher.append([new(A, "x" * size), new(B)], key)
                    await publisher.append([new(A, "x" * size)])

        publishing = asyncio.gather(publish(log), publish(other))
        seen: list[Event] = []
        while len(seen) < 4 * 4 * len(sizes):
            seen += await asyncio.wait_for(anext(tail), 20)
        await publishing
        assert [event.seq for event in seen] == list(range(1, len(seen) + 1))
        stored = rows(database_url, "SELECT seq, octet_length(data) FROM sse_app.events ORDER BY seq")
        assert [(event.seq, len(event.data)) for event in seen] == stored
        assert other.head.seq == len(seen)


@pytest.mark.gen_test
async def test_what_nodes_say_of_their_events_no_other_role_can_read_or_forge(
    postgres: Postgres, database_url: str
) -> None:
    if not postgres.execute("SELECT 1 FROM pg_roles WHERE rolname = 'stranger'"):
        postgres.execute("CREATE ROLE stranger LOGIN")
    stranger_url = postgres.url(database_url.rpartition("/")[2], "stranger")
    async with opened(database_url) as log, opened(database_url) as other, aclosing(other.tail(0)) as tail:
        stranger = await psycopg.AsyncConnection.connect(stranger_url, autocommit=True)
        async with stranger:
            await stranger.execute("LISTEN sse_app_events")
            (first,) = await log.append([new(ChannelName("salaries"), '{"of":"a secret"}')])
            (heard,) = [one.payload async for one in stranger.notifies(timeout=20, stop_after=1)]
            assert [event.seq for event in await asyncio.wait_for(anext(tail), 20)] == [1]
            epoch, seq, sender, notice = heard.split()
            assert (epoch, int(seq)) == first
            assert not {b"secret", b"salaries"} & set(re.findall(rb"[a-z]+", base64.b64decode(notice)))
            forger = Notices()
            forger.use(b"guess")
            forged = forger.close(first, [new(A, '{"forged":1}')])
            for payload in (
                heard, f"{epoch} 2 {sender} {notice}", f"{epoch} 2 x {notice}", f"{epoch} 2 x {forged}",
                f"{epoch} 2 x {notice[:-4]}AAA=", f"{epoch} 2 x {notice} {notice}", f"{epoch} 2 x é",
            ):  # fmt: skip
                await stranger.execute("SELECT pg_notify('sse_app_events', %s)", (payload,))
        following = asyncio.ensure_future(anext(tail))
        await asyncio.sleep(0.3)
        assert other.head == first
        await log.append([new()])
        assert [event.seq for event in await asyncio.wait_for(following, 20)] == [2]
        assert log.head == other.head == (epoch, 2)


@pytest.mark.gen_test
async def test_appends_and_the_tail_use_indexes_also_where_they_began_on_empty_tables(
    database_url: str,
) -> None:
    async def read_through() -> list[tuple[Any, ...]]:
        sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        await until_async(lambda: rows(database_url, sessions) == [(1,)], "what others have counted is there")
        return rows(
            database_url,
            "SELECT relname, seq_scan FROM pg_stat_user_tables "
            "WHERE relname IN ('channels', 'events', 'idempotency') ORDER BY relname",
        )

    async with opened(database_url):
        pass  # the schema is there, and the log
    before = await read_through()
    with psycopg.connect(database_url, autocommit=True) as session:
        for number in range(50):
            for channels in [f"c{number}"], [f"d{number}", f"d{number // 2}", "e"]:
                many = len(channels)
                session.execute(
                    "SELECT sse_app.append('', 0, 1000, 'x', %s, %s, %s, NULL, NULL, %s, %s, %s, %s, NULL)",
                    (
                        channels, ["t"] * many, [b"{}"] * many, [many],
                        [b"ann"], [f"{channels[0]}"], [b"digest"],
                    ),
                )  # fmt: skip
            (_, first, *_) = session.execute("SELECT * FROM sse_app.following(%s, 1, 100)", (number,))
            assert first[0] == number + 1
    assert rows(database_url, "SELECT count(*), max(seq) FROM sse_app.events") == [(200, 200)]
    assert await read_through() == [(name, scans + (name == "events")) for name, scans in before]


@pytest.mark.gen_test
async def test_a_listener_that_is_lost_costs_no_event(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the last statement of the connection that listens is another one after a while.
    monkeypatch.setattr("sse_app.storage.postgres.listener.LIVENESS_INTERVAL", 3600.0)
    listening = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
    databases = [Database(database_url) for _ in range(2)]

    def both_listen() -> bool:
        connected = all(database.listener.connected for database in databases)
        return connected and rows(database_url, f"SELECT count(*) {listening}") == [(2,)]

    log_of, other_of = map(opened, databases)
    async with log_of as log, other_of as other, aclosing(log.tail(0)) as tail:
        seen: list[int] = []
        for number in range(1, 6):
            await until_async(both_listen, "both listen")
            ended = rows(database_url, f"SELECT pg_terminate_backend(pid, 60000) {listening}")
            assert ended == [(True,), (True,)]
            await other.append([new()] * number)
            while len(seen) < number * (number + 1) // 2:
                seen += [event.seq for event in await asyncio.wait_for(anext(tail), 20)]
        assert seen == list(range(1, 16))


@pytest.mark.gen_test
async def test_a_node_that_lags_is_given_what_is_too_much_for_a_channel_meanwhile(database_url: str) -> None:
    retention = Retention(size=5)
    async with opened(database_url, retention) as log, opened(database_url, retention) as other:
        async with aclosing(log.tail(0)) as tail:
            (first,) = await other.append([new()])
            assert [event.seq for event in await asyncio.wait_for(anext(tail), 20)] == [1]
            for _ in range(20):
                await other.append([new()] * 40)
            seen: list[int] = []
            while len(seen) < 800:
                seen += [event.seq for event in await asyncio.wait_for(anext(tail), 20)]
            assert seen == list(range(2, 802))
        assert await log.lost([A], first) == {A: "history_trimmed"}


@pytest.mark.gen_test
async def test_what_is_not_kept_is_erased_for_good(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.eventlog.postgres.expiry.LAG", 0.0)
    monkeypatch.setattr("sse_app.eventlog.postgres.expiry.STEP", 70)
    async with opened(database_url, Retention(size=50)) as log:
        await log.append([new(B)] * 3)
        for _ in range(10):
            await log.append([new(A)] * 100, IdempotencyKey("ann", str(_), b""))
        rows(database_url, "UPDATE sse_app.idempotency SET at = at - 100000 WHERE key <> '9'")

        def left() -> list[tuple[Any, ...]]:
            return rows(
                database_url,
                "SELECT (SELECT count(*) FROM sse_app.events), (SELECT count(*) FROM sse_app.idempotency)",
            )

        await until_async(lambda: left() == [(53, 1)], "it is erased")
        assert rows(database_url, "SELECT name, trimmed, removed FROM sse_app.channels ORDER BY name") == [
            ("a", 953, 950),
            ("b", 0, 0),
        ]
        page = await log.replay([A, B], 0, 9999, 9999)
        assert ([event.seq for event in page.events], page.gap) == ([1, 2, 3, *range(954, 1004)], True)
        with pytest.raises(EventsTrimmed):
            await anext(log.tail(0))


@pytest.mark.gen_test
async def test_a_key_is_forgotten_after_a_day_also_where_it_is_not_erased_yet(database_url: str) -> None:
    async with opened(database_url) as log:
        key = IdempotencyKey("a\0b\ud800", "k", b"1")  # whatever a provider calls a subject
        first = await log.append([new()], key)
        assert await log.append([new()], key) == first
        rows(database_url, "UPDATE sse_app.idempotency SET at = at - 86401")
        (second,) = await log.append([new()], key._replace(digest=b"2"))
        assert second.seq == 2


@pytest.mark.gen_test
async def test_dates_never_go_back_and_go_on_from_where_a_clock_was_ahead(database_url: str) -> None:
    async with opened(database_url) as log:
        await log.append([new()])
        # As if the server's clock had been an hour ahead then.
        rows(database_url, "UPDATE sse_app.log SET at = at + 3600, wall = wall + 3600")
        await log.append([new()])
        await asyncio.sleep(0.2)
        await log.append([new()])
        ((first,), (second,), (third,)) = rows(database_url, "SELECT at FROM sse_app.events ORDER BY seq")
        assert first + 3600 <= second < third < second + 60


@pytest.mark.gen_test
async def test_many_appends_go_in_calls_of_a_bounded_size_each_answered_for_itself(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    call = appends.Appends._call

    async def counted(self: appends.Appends, parameters: list[Any]) -> tuple[str, int, list[int]]:
        sizes.append(len(parameters[4]))
        return await call(self, parameters)

    monkeypatch.setattr(appends.Appends, "_call", counted)
    async with opened(database_url) as log:
        keys = [IdempotencyKey("ann", str(number % 40), b"%d" % (number // 80)) for number in range(120)]
        answers = await asyncio.gather(
            *(log.append([new(A, f'{{"n":{number}}}')] * 30, key) for number, key in enumerate(keys)),
            *(log.append([new(B)] * 30) for _ in range(200)),
            log.append([new(B)] * 5000),
            log.append([new(B, "x" * 6_000_000)]),
            return_exceptions=True,
        )
        of_keys = answers[:120]
        assert of_keys[:40] == of_keys[40:80]
        assert all("another request" in str(answer) for answer in of_keys[80:])
        seqs = [id.seq for ids in (*answers[:40], *answers[120:]) for id in ids]  # type: ignore[union-attr]
        assert sorted(seqs) == list(range(1, 40 * 30 + 200 * 30 + 5001 + 1))
        assert max(sizes) <= appends.MAX_GROUP_EVENTS + 5000
        assert len(sizes) < 20
        stored = (await log.replay([A], 0, 99999, 9999)).events
        assert [event.data for event in stored[::30]] == [b'{"n":%d}' % number for number in range(40)]


@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable", "event_log_not_erased")  # which may come in its way
async def test_tables_that_are_emptied_under_a_process_are_a_new_log(database_url: str) -> None:
    async with opened(database_url) as log:
        (before,) = await log.append([new()])
        rows(database_url, "TRUNCATE sse_app.log, sse_app.events, sse_app.channels")
        try:
            assert await log.lost([A], before) == {A: "log_replaced"}
        except EventLogUnavailable:  # until it has been noticed
            await until_async(lambda: log.head.epoch != before.epoch, "it is noticed")
        (first,) = await log.append([new()])
        assert first == (log.head.epoch, 1)


@pytest.mark.gen_test
async def test_a_commit_whose_answer_was_lost_comes_to_the_process_s_own_tail(
    database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(database_url) as log:
        await log.append([new()])
        key = IdempotencyKey("ann", "k", b"1")
        async with aclosing(log.tail(1)) as tail:
            following = asyncio.ensure_future(anext(tail))
            await asyncio.sleep(0.1)
            call = appends.Appends._call

            async def lose(self: appends.Appends, parameters: list[Any]) -> tuple[str, int, list[int]]:
                await call(self, parameters)
                monkeypatch.undo()
                raise DatabaseUnavailable("the connection was lost")

            monkeypatch.setattr(appends.Appends, "_call", lose)
            caplog.set_level(logging.CRITICAL)
            with pytest.raises(EventLogUnavailable, match="connection was lost"):
                await log.append([new()], key)
            assert [event.seq for event in await asyncio.wait_for(following, 20)] == [2]
            await until_async(lambda: log.available, "it can be written again")
            assert [id.seq for id in await log.append([new()], key)] == [2]
