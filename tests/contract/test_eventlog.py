"""What every event log does, tried on each of them; and what the one on SQLite does on disk."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable, IdempotencyKeyReused, StateError
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import EventLog, IdempotencyKey, Retention
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.eventlog.sqlite.writer import Commit
from tests.support.waiting import until_async

A, B = ChannelName("a"), ChannelName("b")


def new(channel: ChannelName, text: str = "{}") -> NewEvent:
    return NewEvent(channel, "t", text.encode())


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., EventLog]:
    def make(size: int = 10_000, age: float = 86_400.0) -> EventLog:
        retention = Retention(size, age)
        return (
            MemoryEventLog(retention)
            if request.param == "memory"
            else SqliteEventLog(tmp_path / "e.db", retention)
        )

    return make


@asynccontextmanager
async def opened(log: EventLog) -> AsyncIterator[EventLog]:
    await log.open()
    try:
        yield log
    finally:
        await log.close()


@pytest.mark.gen_test
async def test_ids_count_up_by_one_over_all_channels(make: Callable[..., EventLog]) -> None:
    async with opened(make()) as log:
        assert log.head.seq == 0
        ids = await log.append([new(A), new(B)]) + await log.append([new(A)])
        assert [id.seq for id in ids] == [1, 2, 3]
        assert {id.epoch for id in ids} == {log.head.epoch}
        assert log.head == ids[-1]
        assert await log.published(A) == (2, 3)
        assert await log.published(ChannelName("c")) == (0, 0)


@pytest.mark.gen_test
async def test_replay_merges_channels_in_log_order_by_pages(make: Callable[..., EventLog]) -> None:
    async with opened(make()) as log:
        await log.append([new((A, B)[n % 2], f'{{"n":{n}}}') for n in range(1, 11)])
        page = await log.replay([A, B, ChannelName("c")], 2, 9, 3)
        assert ([event.seq for event in page.events], page.more) == ([3, 4, 5], True)
        assert page.events[0] == Event(3, B, "t", b'{"n":3}', None)
        assert [event.seq for event in await log.latest(B, 2)] == [7, 9]
        assert await log.latest(ChannelName("c"), 2) == []
        page = await log.replay([B], 2, 9, 100)
        assert ([event.seq for event in page.events], page.more) == ([3, 5, 7, 9], False)


@pytest.mark.gen_test
async def test_large_events_are_read_a_few_at_a_time(make: Callable[..., EventLog]) -> None:
    async with opened(make()) as log:
        await log.append([new(A, "x" * 400_000) for _ in range(5)])
        page = await log.replay([A], 0, 5, 100)
        assert ([event.seq for event in page.events], page.more) == ([1, 2, 3], True)
        page = await log.replay([A], 3, 5, 100)
        assert ([event.seq for event in page.events], page.more) == ([4, 5], False)
        assert [event.seq for event in await log.latest(A, 100)] == [3, 4, 5]


@pytest.mark.gen_test
async def test_what_is_appended_together_by_many_is_stored_once_and_in_order(
    make: Callable[..., EventLog],
) -> None:
    async with opened(make()) as log:
        tail = log.tail()
        ids = await asyncio.gather(
            *(log.append([new(A, f'{{"n":{n},"m":{m}}}') for m in range(3)]) for n in range(50))
        )
        assert sorted(id.seq for batch in ids for id in batch) == list(range(1, 151))
        assert all(batch[2].seq == batch[0].seq + 2 for batch in ids)
        seen: list[Event] = []
        while len(seen) < 150:
            seen += await anext(tail)
        assert [event.seq for event in seen] == list(range(1, 151))
        assert seen == (await log.replay([A], 0, 150, 1000)).events


@pytest.mark.gen_test
async def test_a_channel_keeps_exactly_its_size_and_says_what_is_lost(make: Callable[..., EventLog]) -> None:
    async with opened(make(size=5)) as log:
        await log.append([new(B)])
        for _ in range(12):
            await log.append([new(A)])
        epoch = log.head.epoch
        for seq in range(14):
            lost = await log.lost([A, B], EventId(epoch, seq))
            assert lost == ({} if seq >= 8 else {A: "history_trimmed"})
        assert [event.seq for event in (await log.replay([A, B], 0, 99, 99)).events] == [1, 9, 10, 11, 12, 13]
        assert await log.lost([A, B], EventId(epoch, 14)) == {A: "position_ahead", B: "position_ahead"}
        assert await log.lost([B], EventId("other", 1)) == {B: "log_replaced"}


@pytest.mark.gen_test
async def test_a_batch_larger_than_the_history_keeps_its_end(make: Callable[..., EventLog]) -> None:
    async with opened(make(size=3)) as log:
        await log.append([new(A)])
        await log.append([new(A) for _ in range(10)])
        assert [event.seq for event in (await log.replay([A], 0, 99, 99)).events] == [9, 10, 11]
        assert await log.lost([A], EventId(log.head.epoch, 7)) == {A: "history_trimmed"}
        assert await log.lost([A], EventId(log.head.epoch, 8)) == {}


@pytest.mark.gen_test
async def test_events_beyond_their_age_are_lost(make: Callable[..., EventLog]) -> None:
    async with opened(make(age=0.5)) as log:
        (first,) = await log.append([new(A)])

        async def trimmed() -> bool:
            return await log.lost([A], EventId(first.epoch, 0)) == {A: "history_trimmed"}

        await until_async(trimmed, "the log is trimmed")
        assert await log.lost([A], first) == {}
        (second,) = await log.append([new(A)])
        assert [event.seq for event in (await log.replay([A], 0, 99, 99)).events] == [second.seq]


@pytest.mark.gen_test
async def test_an_idempotency_key_answers_as_the_first_time(make: Callable[..., EventLog]) -> None:
    async with opened(make()) as log:
        key = IdempotencyKey("ann", "k", b"1")
        first, again = await asyncio.gather(
            log.append([new(A), new(A)], key), log.append([new(A), new(A)], key)
        )
        assert first == again == await log.append([new(A), new(A)], key)
        assert log.head.seq == 2
        with pytest.raises(IdempotencyKeyReused):
            await log.append([new(A)], IdempotencyKey("ann", "k", b"2"))
        (other,) = await log.append([new(A)], IdempotencyKey("bob", "k", b"2"))
        assert other.seq == 3


@pytest.mark.gen_test
async def test_a_closed_log_refuses_appends(make: Callable[..., EventLog]) -> None:
    log = make()
    async with opened(log):
        await log.append([new(A)])
        assert log.available
    assert not log.available
    with pytest.raises(EventLogUnavailable):
        await log.append([new(A)])


@pytest.mark.gen_test
async def test_a_follower_that_lags_holds_appends_back(make: Callable[..., EventLog]) -> None:
    async with opened(make()) as log:
        tail = log.tail()
        big = "x" * 1_000_000
        appends = asyncio.gather(*(log.append([new(A, big)]) for _ in range(4)))
        await appends
        more = [asyncio.create_task(log.append([new(A, big)])) for _ in range(20)]
        seen = 0
        while seen < 24:
            seen += len(await anext(tail))
        await asyncio.gather(*more)
        assert log.head.seq == 24


@pytest.mark.gen_test
async def test_the_log_on_disk_goes_on_where_it_was(tmp_path: Path) -> None:
    async with opened(SqliteEventLog(tmp_path / "e.db", Retention(size=4))) as log:
        await log.append([new(A, '{"n":1}') for _ in range(6)], IdempotencyKey("ann", "k", b"1"))
        head = log.head
    async with opened(SqliteEventLog(tmp_path / "e.db", Retention(size=4))) as log:
        assert log.head == head
        assert await log.published(A) == (6, 6)
        assert await log.lost([A], EventId(head.epoch, 1)) == {A: "history_trimmed"}
        ids = await log.append([new(A)] * 6, IdempotencyKey("ann", "k", b"1"))
        assert [id.seq for id in ids] == [1, 2, 3, 4, 5, 6]
        (next_id,) = await log.append([new(A)])
        assert next_id == (head.epoch, 7)
        assert [event.seq for event in (await log.replay([A], 0, 99, 99)).events] == [4, 5, 6, 7]


@pytest.mark.gen_test
async def test_the_database_on_disk_does_not_grow_with_what_is_trimmed(tmp_path: Path) -> None:
    async with opened(SqliteEventLog(tmp_path / "e.db", Retention(size=100))) as log:
        for _ in range(60):
            await log.append([new(A)] * 50)
    with sqlite3.connect(tmp_path / "e.db") as database:
        assert database.execute("SELECT count(*) FROM events").fetchone()[0] <= 155
    database.close()


@pytest.mark.gen_test
async def test_a_page_knows_of_a_trim_that_the_event_loop_has_not_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = SqliteEventLog(tmp_path / "e.db", Retention(size=4))
    async with opened(log):
        await log.append([new(A)] * 4)
        held: list[Commit] = []
        committed = log._committed
        monkeypatch.setattr(log, "_committed", held.append)
        append = asyncio.create_task(log.append([new(A)] * 4))

        async def written() -> bool:
            return bool(held)

        await until_async(written, "the log is written")
        assert await log.lost([A], EventId(log.head.epoch, 0)) == {}
        assert (await log.replay([A], 0, 4, 99)) == ([], False, True)
        committed(held[0])
        await append
        assert await log.lost([A], EventId(log.head.epoch, 0)) == {A: "history_trimmed"}


@pytest.mark.gen_test
async def test_a_full_disk_refuses_appends_and_loses_nothing(tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "e.db")
    async with opened(log):
        await log.append([new(A)])
        assert log._writer is not None
        database = log._writer._db
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(EventLogUnavailable, match="full"):
            await log.append([new(A, "x" * 100_000)])
        assert not log.available
        database.execute("PRAGMA max_page_count = 1000000")

        async def back() -> bool:
            return log.available

        await until_async(back, "the log is available again")  # by itself: the writer probes
        (id,) = await log.append([new(A)])
        assert id.seq == 2
        assert [event.seq for event in (await log.replay([A], 0, 9, 9)).events] == [1, 2]


@pytest.mark.gen_test
async def test_another_kind_of_database_is_refused_by_name(tmp_path: Path) -> None:
    for content in (b"no database at all, but long enough to be read as one" * 50, None):
        path = tmp_path / f"{content is None}.db"
        if content is None:
            with sqlite3.connect(path) as database:
                database.execute("CREATE TABLE mine (x)")
            database.close()
        else:
            path.write_bytes(content)
        with pytest.raises(StateError, match=str(path)):
            await SqliteEventLog(path).open()
