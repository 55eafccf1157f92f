"""What the log on PostgreSQL says of the past of many channels, by their names and by patterns."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.events import FINAL, TEXT, Event, EventId, NewEvent
from sse_app.eventlog.base import Beginning, EventLog, Retention, RetentionRules
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.eventlog.postgres import log as postgres_log
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.storage.postgres.database import Database
from tests.support.postgres import Postgres, cluster
from tests.support.waiting import until_async

SEGMENTS = ("a", "b", "ab", "a-b", "a_1", "sse_app", "z" * 64)
PATTERNS = (
    "**",
    "*",
    "*.*",
    "a.**",
    "a.*",
    "a.*.b",
    "*.b",
    "*.b.**",
    "ab.**",
    "a-b.*",
    "sse_app.**",
    "a.b.**",
    "*.*.*",
)


def a_name(chance: random.Random) -> ChannelName:
    return ChannelName(".".join(chance.choices(SEGMENTS, k=chance.choice((1, 1, 2, 2, 2, 3)))))


@asynccontextmanager
async def opened(
    url: str, retention: Retention | RetentionRules | None = None
) -> AsyncIterator[PostgresEventLog]:
    log = PostgresEventLog(Database(url, timeout=30.0), retention)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def all_pages(
    log: EventLog, channels: list[str], after: int, floors: dict[str, int], limit: int
) -> list[Event]:
    """Return what a stream gets that replays from a position."""
    events: list[Event] = []
    head = log.head.seq
    while True:
        page = await log.replay(channels, after, head, limit, floors)
        assert not page.gap
        assert len(page.events) <= limit
        assert all(after < event.seq <= head for event in page.events)
        events += page.events
        if not page.more:
            return events
        assert page.reached > after
        after = page.reached


@pytest.mark.slow
@pytest.mark.gen_test
@pytest.mark.parametrize("budget", [20_000, 7])
@pytest.mark.parametrize("seed", range(2))
async def test_it_says_of_patterns_what_the_log_in_memory_says(
    database_url: str, monkeypatch: pytest.MonkeyPatch, seed: int, budget: int
) -> None:
    monkeypatch.setattr(postgres_log, "SCANNED_EVENTS", budget)
    chance = random.Random(seed)
    size = 5
    memory = MemoryEventLog(Retention(size))
    async with opened(database_url, Retention(size)) as log:
        names = [a_name(chance) for _ in range(120)]
        for _ in range(15):
            some = chance.choices(names, k=chance.randrange(1, 40))
            events = [
                NewEvent(
                    name,
                    chance.choice("tttu"),
                    b"%d" % chance.randrange(99),
                    None,
                    chance.choice((0, 0, TEXT, FINAL)),
                )
                for name in some
            ]
            await memory.append(events)
            await log.append(events)
        assert await log.ended() == await memory.ended()
        for _ in range(25):
            channels: list[str] = chance.choices(PATTERNS, k=chance.choice((1, 1, 2))) + chance.choices(
                [*names, ChannelName("none")], k=chance.choice((0, 0, 1, 3))
            )
            beginning = Beginning(
                last=chance.choice((None, 1, 2, 4)), types=chance.choice((None, None, frozenset("u")))
            )
            begun, expected = await log.begin(channels, beginning), await memory.begin(channels, beginning)
            assert begun.first == expected.first
            if beginning.last is None or beginning.types is None:
                assert begun.floors == expected.floors
            limit = chance.choice((1, 3, 50, 1000))
            replayed = await all_pages(log, channels, begun.first - 1, begun.floors, limit)
            assert replayed == await all_pages(memory, channels, begun.first - 1, begun.floors, limit)
            assert await log.latest(channels, limit) == await memory.latest(channels, limit)
            position = chance.randrange(memory.head.seq + 1)
            lost = await log.lost(channels, EventId(log.head.epoch, position))
            assert lost == await memory.lost(channels, EventId(memory.head.epoch, position))
            floors = dict.fromkeys(lost, memory.head.seq)
            assert await all_pages(log, channels, position, floors, limit) == await all_pages(
                memory, channels, position, floors, limit
            )
            page = await log.replay(channels, position, memory.head.seq, limit)
            assert page.gap == (await memory.replay(channels, position, memory.head.seq, limit)).gap


# -- what a question costs -----------------------------------------------------------------------------------------


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


_READ = (
    "SELECT relname, idx_tup_fetch + seq_tup_read FROM pg_stat_user_tables "
    "WHERE relname IN ('channels', 'events') ORDER BY relname"
)


async def looked_at(url: str) -> dict[str, int]:
    """Return how many rows have been read of tables, once no other session has something to add."""
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    await until_async(lambda: rows(url, sessions) == [(1,)], "what others have counted is there")
    return dict(rows(url, _READ))


def ask(session: psycopg.Connection[Any], text: str, after: int, until: int) -> None:
    """Ask what a stream asks that comes back, one that begins in the past, and the history."""
    log = "(SELECT l FROM sse_app.log AS l)"
    for statement in (
        "SELECT * FROM sse_app.lost_after(%(texts)s, %(after)s)",
        "SELECT * FROM sse_app.beginning(%(texts)s, 2, NULL, 60, NULL)",
        "SELECT * FROM sse_app.beginning(%(texts)s, 2, NULL, NULL, '{u}')",
        "SELECT * FROM sse_app.page(%(texts)s, '{}', %(after)s, %(until)s, 10, 9999, 100, false)",
        "SELECT * FROM sse_app.page(%(texts)s, '{}', 0, %(until)s, 10, 9999, 100, true)",
        f"SELECT * FROM sse_app.selected({log}, %(texts)s, %(after)s, '{{\"{text}\": 1}}')",
    ):
        session.execute(statement.encode(), {"texts": [text], "after": after, "until": until})


@pytest.mark.gen_test
async def test_a_stream_on_an_own_pattern_does_not_look_at_the_others_channels(database_url: str) -> None:
    count = 2000
    async with opened(database_url) as log:
        for _ in range(3):
            await log.append([NewEvent(ChannelName(f"user.u{n}.orders"), "t", b"{}") for n in range(count)])
    before = await looked_at(database_url)
    patterns = ("user.u1000.**", "user.u1000.*", "user.u1500.orders.**")
    with psycopg.connect(database_url, autocommit=True) as session:
        for text in patterns:
            ask(session, text, 3 * count - 50, 3 * count)
    after = await looked_at(database_url)
    assert after["channels"] - before["channels"] < 20 * len(patterns)
    assert after["events"] - before["events"] < 200 * len(patterns)


@pytest.mark.gen_test
async def test_the_past_is_read_by_indexes_also_in_sessions_that_began_on_empty_tables(
    database_url: str,
) -> None:
    async with opened(database_url):
        pass  # the schema is there, and the log
    with psycopg.connect(database_url, autocommit=True) as session, psycopg.connect(database_url) as other:
        for _ in range(10):
            for text in ("c5.x", "c5.**", "*.x"):
                ask(session, text, 0, 0)
        for _ in range(3):
            names = [f"c{n}.x" for n in range(3000)]
            other.execute(
                "SELECT sse_app.append('', 0, 1000, 'x', %s::text[], %s, %s, NULL, NULL, ARRAY[%s], "
                "NULL, NULL, NULL, NULL)",
                (names, ["t"] * len(names), [b"{}"] * len(names), len(names)),
            )
        other.commit()
        ask(session, "c5.x", 0, 9000)
        session.execute("SELECT pg_stat_force_next_flush()")
        before = dict(rows(database_url, _READ))
        for text in ("c5.x", "c5.**"):
            ask(session, text, 0, 9000)
        session.execute("SELECT pg_stat_force_next_flush()")
        after = dict(rows(database_url, _READ))
    assert after["channels"] - before["channels"] < 40
    assert after["events"] - before["events"] < 200


# -- how much is kept ----------------------------------------------------------------------------------------------


def rules(*kept: tuple[str, int, float]) -> RetentionRules:
    """Return rules that keep of patterns so many events for so many seconds."""
    return RetentionRules(
        Retention(), [(ChannelPattern(text), Retention(size, age)) for text, size, age in kept]
    )


@pytest.mark.gen_test
async def test_rules_are_in_the_rows_of_channels_and_the_last_node_that_tells_of_them_counts(
    database_url: str,
) -> None:
    kept = "SELECT name, size, age FROM sse_app.channels ORDER BY name"
    first = rules(("a.*", 5, 60.0), ("a.**", 6, 70.0))
    async with opened(database_url, first) as log:
        await log.append([NewEvent(ChannelName(name), "t", b"{}") for name in ("a.b", "a", "b")])
        assert rows(database_url, kept) == [("a", 6, 70.0), ("a.b", 5, 60.0), ("b", 10_000, 86_400.0)]
        async with opened(database_url, rules(("b", 1, 1e6))):
            default = (10_000, 86_400.0)
            assert rows(database_url, kept) == [("a", *default), ("a.b", *default), ("b", 1, 1e6)]
            assert rows(database_url, "SELECT age FROM sse_app.ages ORDER BY age") == [(86_400.0,), (1e6,)]
            log.use(first)
            await until_async(
                lambda: rows(database_url, kept)[0] == ("a", 6, 70.0), "the last rules are in force"
            )


@pytest.mark.expects_logs("event_log_unavailable")
def test_rules_that_change_while_the_database_is_away_are_in_force_once_it_is_back() -> None:
    kept = "SELECT patterns[1], sizes[1] FROM sse_app.retention"

    async def run(server: Postgres) -> None:
        url = server.new_database()
        async with opened(url, rules(("a", 5, 60.0))) as log:
            assert rows(url, kept) == [("a", 5)]
            await asyncio.to_thread(server.stop, "immediate")
            log.use(rules(("b", 6, 60.0)))
            await until_async(lambda: not log.available, "it is known to be away")
            await asyncio.to_thread(server.start)
            await until_async(lambda: rows(url, kept) == [("b", 6)], "it is told")

    with cluster() as server:
        asyncio.run(run(server))


@pytest.mark.slow
@pytest.mark.gen_test
async def test_what_other_rules_keep_no_more_is_erased_also_of_channels_that_are_idle(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.eventlog.postgres.expiry.LAG", 0.0)
    monkeypatch.setattr("sse_app.eventlog.postgres.expiry.STEP", 30)

    def left() -> list[tuple[Any, ...]]:
        return rows(
            database_url,
            "SELECT name, count(*) FROM sse_app.events AS e JOIN sse_app.channels AS c ON c.id = e.channel "
            "GROUP BY name ORDER BY name",
        )

    names = [ChannelName(name) for name in ("short", "small", "whole")]
    async with opened(database_url, rules(("brief", 10_000, 0.2))) as log:
        await log.append([NewEvent(name, "t", b"{}") for name in names] * 50)
        await log.append([NewEvent(ChannelName("brief"), "t", b"{}")] * 50)
        await until_async(
            lambda: left() == [("short", 50), ("small", 50), ("whole", 50)], "the brief are gone"
        )
        log.use(rules(("short", 10_000, 0.1), ("small", 3, 86_400.0)))
        await until_async(lambda: left() == [("small", 3), ("whole", 50)], "the others are gone too")
        lost = await log.lost(["**"], log.head._replace(seq=10))
        assert lost == dict.fromkeys(("brief", "short", "small"), "history_trimmed")


@pytest.mark.gen_test
async def test_events_that_are_kept_for_longer_are_looked_at_once_for_each_age(database_url: str) -> None:
    ages = rules(*((f"a{age}", 10_000, float(age)) for age in (100, 200, 300)))
    async with opened(database_url, ages) as log:
        await log.append([NewEvent(ChannelName("long"), "t", b"{}")] * 1000)
        await log.append([NewEvent(ChannelName("a100"), "t", b"{}")])
    rows(database_url, "UPDATE sse_app.events SET at = at - 1000")
    expire = "SELECT sse_app.expire(10, 400, 1000)"
    with psycopg.connect(database_url, autocommit=True) as session:
        await until_async(lambda: session.execute(expire).fetchone() == (False,), "all have been looked at")
    looked = "SELECT count(*) FROM sse_app.ages WHERE erased = 1001 AND age < 1000"
    assert rows(database_url, looked) == [(3,)]
    assert rows(database_url, "SELECT count(*), max(seq) FROM sse_app.events") == [(1000, 1000)]
    before = await looked_at(database_url)
    with psycopg.connect(database_url, autocommit=True) as session:
        for _ in range(10):
            assert session.execute(expire).fetchone() == (False,)
    after = await looked_at(database_url)
    assert after["events"] - before["events"] < 10 * 10


@pytest.mark.gen_test
async def test_a_position_that_is_beyond_all_numbers_of_events_is_ahead_also_on_a_pattern(
    database_url: str,
) -> None:
    async with opened(database_url) as log:
        (first,) = await log.append([NewEvent(ChannelName("a"), "t", b"{}")])
        for seq in (2**63 - 1, 2**63, 9_999_999_999_999_999_999):
            assert await log.lost(["**", "a"], first._replace(seq=seq)) == dict.fromkeys(
                ("**", "a"), "position_ahead"
            )
        assert log.available


@pytest.mark.slow
@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable", "event_log_not_erased")
async def test_in_a_log_that_begins_anew_events_are_erased_from_the_first_on(database_url: str) -> None:
    count = "SELECT count(*) FROM sse_app.events"
    async with opened(database_url, rules(("brief", 10_000, 0.2))) as log:
        before = log.head
        await log.append([NewEvent(ChannelName("brief"), "t", b"{}")] * 20)
        await until_async(lambda: rows(database_url, count) == [(0,)], "they are erased")
        rows(database_url, "TRUNCATE sse_app.log, sse_app.events, sse_app.channels")
        await until_async(lambda: log.available and log.head.epoch != before.epoch, "it is noticed")
        await log.append([NewEvent(ChannelName("brief"), "t", b"{}")] * 3)
        await until_async(lambda: rows(database_url, count) == [(0,)], "these are erased too")
