"""What every event log does, tried on each of them; and what the one on SQLite does on disk."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable, IdempotencyKeyReused, StateError
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import (
    EMPTY_CHANNELS,
    EventLog,
    EventsTrimmed,
    IdempotencyKey,
    Page,
    Retention,
)
from sse_app.eventlog.sqlite.bells import Bells
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.eventlog.sqlite.reports import Commit
from tests.support.appender import Appender
from tests.support.log_processes import LogOfProcesses, SharedEventLog, log_at
from tests.support.waiting import until_async

A, B = ChannelName("a"), ChannelName("b")


def new(channel: ChannelName, text: str = "{}") -> NewEvent:
    return NewEvent(channel, "t", text.encode())


@asynccontextmanager
async def opened(log: EventLog) -> AsyncIterator[EventLog]:
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def take(tail: AsyncGenerator[list[Event], None], last: int) -> list[int]:
    """Return the numbers of a tail's events up to the last one that is asked for."""
    seen: list[int] = []
    while not seen or seen[-1] < last:
        seen += [event.seq for event in await asyncio.wait_for(anext(tail), 20)]
    return seen


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
        assert [event.seq for event in await log.latest([B], 2)] == [7, 9]
        assert await log.latest([ChannelName("c")], 2) == []
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
        assert [event.seq for event in await log.latest([A], 100)] == [3, 4, 5]


@pytest.mark.gen_test
async def test_what_is_appended_together_by_many_is_stored_once_and_in_order(
    make: Callable[..., EventLog],
) -> None:
    async with opened(make()) as log:
        tail = log.tail(0)
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
        appended = asyncio.get_running_loop().time()
        (second,) = await log.append([new(A)])
        kept = [event.seq for event in (await log.replay([A], 0, 99, 99)).events]
        assert kept == [second.seq] or asyncio.get_running_loop().time() - appended > 0.5, kept


@pytest.mark.gen_test
async def test_an_idempotency_key_answers_as_the_first_time(make: Callable[..., EventLog]) -> None:
    async with opened(make()) as log:
        key = IdempotencyKey("ann", "k", b"1")
        tail = log.tail(0)
        following = asyncio.ensure_future(anext(tail))
        await asyncio.sleep(0.1)  # it waits at the log's end
        first, again = await asyncio.gather(
            log.append([new(A), new(A)], key), log.append([new(A), new(A)], key)
        )
        assert first == again == await log.append([new(A), new(A)], key)
        assert log.head.seq == 2
        with pytest.raises(IdempotencyKeyReused):
            await log.append([new(A)], IdempotencyKey("ann", "k", b"2"))
        (other,) = await log.append([new(A)], IdempotencyKey("bob", "k", b"2"))
        assert other.seq == 3
        async with aclosing(tail):
            seen = [event.seq for event in await asyncio.wait_for(following, 20)]
            while seen[-1] < 3:
                seen += [event.seq for event in await asyncio.wait_for(anext(tail), 20)]
        assert seen == [1, 2, 3]


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
        tail = log.tail(0)
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
async def test_appends_wait_while_a_follower_at_the_head_takes_nothing(make: Callable[..., EventLog]) -> None:
    log = make()
    if isinstance(log, SharedEventLog):  # only what a process appends itself waits for its followers
        log._appends = 1
    async with opened(log):
        await log.append([new(A)])
        async with aclosing(log.tail(0)) as tail:
            assert await take(tail, 1) == [1]
            big = "x" * 1_000_000
            done = 0

            async def publish() -> None:
                nonlocal done
                target = log.first if isinstance(log, SharedEventLog | LogOfProcesses) else log
                for _ in range(20):
                    await target.append([new(A, big)])
                    done += 1

            publishing = asyncio.create_task(publish())

            async def held() -> bool:
                return done >= 8

            await until_async(held, "the appended events are held back")
            await asyncio.sleep(0.1)
            assert done <= 10
            assert await take(tail, 21) == list(range(2, 22))
            await publishing


@pytest.mark.gen_test
async def test_a_tail_begins_in_the_past_and_joins_the_present_while_others_append(
    make: Callable[..., EventLog],
) -> None:
    async with opened(make()) as log:
        await log.append([new(A)] * 700)  # more than is read at a time
        appending = True

        async def append() -> None:
            while appending:
                await log.append([new(A), new(B)])
                await asyncio.sleep(0)

        async def follow(after: int) -> list[int]:
            async with aclosing(log.tail(after)) as tail:
                return await take(tail, 1200)

        appends = [asyncio.create_task(append()) for _ in range(2)]
        followers = []
        for after in (0, 5, 699, 700):
            followers.append((after, asyncio.create_task(follow(after))))
            await asyncio.sleep(0.02)
        followers.append((log.head.seq, asyncio.create_task(follow(log.head.seq))))
        for after, follower in followers:
            seen = await follower
            assert seen == list(range(after + 1, seen[-1] + 1))
        appending = False
        await asyncio.gather(*appends)


@pytest.mark.gen_test
async def test_a_tail_that_is_stopped_anywhere_goes_on_from_its_last_event(
    make: Callable[..., EventLog],
) -> None:
    async with opened(make()) as log:
        seen: list[int] = []

        async def follow() -> None:
            async with aclosing(log.tail(len(seen))) as tail:
                async for events in tail:
                    seen.extend(event.seq for event in events)

        for round in range(30):
            following = asyncio.create_task(follow())
            await log.append([new(A)] * 3)
            for _ in range(round % 7):
                await asyncio.sleep(0)
            await log.append([new(B)])
            following.cancel()
            await asyncio.wait([following])
            assert seen == list(range(1, len(seen) + 1))
        following = asyncio.create_task(follow())

        async def complete() -> bool:
            return len(seen) >= 120

        await until_async(complete, "all events have come")
        following.cancel()
        await asyncio.wait([following])
        assert seen == list(range(1, 121))


@pytest.mark.gen_test
async def test_a_tail_with_nothing_after_its_position_waits_for_the_next_event(
    make: Callable[..., EventLog],
) -> None:
    async with opened(make()) as log:
        await log.append([new(A)] * 3)
        async with aclosing(log.tail(3)) as tail:
            coming = asyncio.create_task(anext(tail))
            await asyncio.sleep(0.3)
            assert not coming.done()
            await log.append([new(B)])
            assert [event.seq for event in await asyncio.wait_for(coming, 20)] == [4]


@pytest.mark.gen_test
async def test_a_tail_does_not_pass_over_events_that_are_no_longer_kept(
    make: Callable[..., EventLog],
) -> None:
    async with opened(make(size=5)) as log:
        await log.append([new(B)])
        for _ in range(40):
            await log.append([new(A)] * 5)
        for after in (0, 1, 10):
            with pytest.raises(EventsTrimmed) as trimmed:
                await anext(log.tail(after))
            assert trimmed.value.head == 201
        async with aclosing(log.tail(trimmed.value.head)) as tail:
            await log.append([new(A)])
            assert await take(tail, 202) == [202]


@pytest.mark.gen_test
async def test_a_tail_of_which_nothing_is_kept_says_so(make: Callable[..., EventLog]) -> None:
    async with opened(make(age=0.5)) as log:
        (first, last) = await log.append([new(A), new(B)])

        async def trimmed() -> bool:
            return len(await log.lost([A, B], EventId(first.epoch, 0))) == 2

        await until_async(trimmed, "the log is trimmed")
        with pytest.raises(EventsTrimmed) as error:
            await anext(log.tail(0))
        assert error.value.head == last.seq


@pytest.mark.gen_test
async def test_a_log_that_is_stored_goes_on_where_it_was(place: Path | str) -> None:
    async with opened(log_at(place, Retention(size=4))) as log:
        await log.append([new(A, '{"n":1}') for _ in range(6)], IdempotencyKey("ann", "k", b"1"))
        head = log.head
    async with opened(log_at(place, Retention(size=4))) as log:
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
        assert (await log.replay([A], 0, 4, 99)) == Page([], False, True)
        committed(held[0])
        await append
        assert await log.lost([A], EventId(log.head.epoch, 0)) == {A: "history_trimmed"}


@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable")
async def test_a_full_disk_refuses_appends_and_loses_nothing(tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "e.db")
    async with opened(log):
        await log.append([new(A)])
        assert log._writer is not None
        database = log._writer._file.db
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


@asynccontextmanager
async def two_processes(place: Path | str, retention: Retention) -> AsyncIterator[tuple[EventLog, EventLog]]:
    """Open a log twice."""
    async with opened(log_at(place, retention)) as one, opened(log_at(place, retention)) as other:
        yield one, other


@pytest.fixture
def lost_bells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each process learn of what others commit only by a look at the log, which is not soon."""
    monkeypatch.setattr(Bells, "ring", lambda *_: None)
    monkeypatch.setattr("sse_app.storage.postgres.listener.Listener.start", lambda _: None)
    for interval in ("postgres.log.LOOK_INTERVAL", "sqlite.log.LOOK_INTERVAL", "sqlite.writer.LOOK_INTERVAL"):
        monkeypatch.setattr(f"sse_app.eventlog.{interval}", 3600.0)
    monkeypatch.setattr("sse_app.eventlog.sqlite.writer.ALONE_INTERVAL", 3600.0)


@pytest.mark.gen_test
@pytest.mark.usefixtures("lost_bells")
async def test_a_position_ahead_of_what_a_process_knows_is_looked_up_in_the_log(place: Path | str) -> None:
    async with two_processes(place, Retention()) as (one, other):
        await one.append([new(A)])
        position = (await other.append([new(A), new(B)]))[0]
        assert one.head.seq == 1  # as far as it knows
        assert await one.lost([A, B], position) == {}
        assert one.head.seq == 3
        ahead = EventId(position.epoch, 4)
        assert await one.lost([A, B], ahead) == {A: "position_ahead", B: "position_ahead"}


@pytest.mark.gen_test
@pytest.mark.usefixtures("lost_bells")
async def test_of_those_that_ask_for_lost_channels_together_each_has_the_answer_for_its_own_position(
    place: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_processes(place, Retention(size=4)) as (one, other):
        ids = await other.append([new(A)] * 8)
        reads = 0
        reader, method = (one._reader, "read") if isinstance(one, SqliteEventLog) else (one, "_query")
        read = getattr(reader, method)

        def counted(*arguments: Any) -> Any:
            nonlocal reads
            reads += 1
            return read(*arguments)

        monkeypatch.setattr(reader, method, counted)
        together = asyncio.gather(*(one.lost([A], id) for id in ids for _ in range(10)))
        await asyncio.sleep(0)  # the read is under way
        (late,) = await other.append([new(A)])
        answers = await asyncio.gather(together, one.lost([A], late))
        trimmed = [
            id.seq
            for id, answer in zip((id for id in ids for _ in range(10)), answers[0], strict=True)
            if answer
        ]
        assert trimmed in ([seq for seq in range(1, 1 + until) for _ in range(10)] for until in (3, 4))
        assert answers[1] == {}  # although others had asked before the event was stored
        assert reads <= 3


@pytest.mark.gen_test
async def test_what_another_process_trims_is_lost_here_too(place: Path | str) -> None:
    async with two_processes(place, Retention(size=4)) as (one, other):
        (first,) = await one.append([new(A)])
        last = (await other.append([new(A)] * 8))[-1]
        assert await one.lost([A], last) == {}
        await other.append([new(A)] * 4)
        assert await one.lost([A], first) == {A: "history_trimmed"}
        assert await one.lost([A], last) == {}
        assert await one.published(A) == (13, 13)


@pytest.mark.gen_test
@pytest.mark.usefixtures("lost_bells")
async def test_what_is_read_is_not_limited_to_what_this_process_remembers(place: Path | str) -> None:
    async with two_processes(place, Retention()) as (one, other):
        await other.append([new(A), new(B)])
        assert one.head.seq == 0
        assert [event.seq for event in (await one.replay([A, B], 0, 99, 99)).events] == [1, 2]
        assert [event.seq for event in await one.latest([B], 9)] == [2]


@pytest.mark.gen_test
async def test_two_processes_keep_exactly_the_size_of_a_channel(place: Path | str) -> None:
    async with two_processes(place, Retention(size=6)) as (one, other):
        for n in range(20):
            await (one, other)[n % 2].append([new(A)] * (1 + n % 3))
        last = one.head.seq if one.head.seq > other.head.seq else other.head.seq
        for log in (one, other):
            page = await log.replay([A], 0, last, 99)
            assert [event.seq for event in page.events] == list(range(last - 5, last + 1))
            assert await log.published(A) == (last, last)


@pytest.mark.gen_test
async def test_events_of_another_process_are_followed_without_an_append_of_one_s_own(
    place: Path | str,
) -> None:
    async with two_processes(place, Retention()) as (one, other):
        async with aclosing(one.tail(0)) as tail:
            for n in range(1, 6):
                await other.append([new(A)])
                assert await take(tail, n) == [n]
        assert one.head.seq == 5


@pytest.mark.gen_test
async def test_a_process_that_is_alone_reads_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(SqliteEventLog(tmp_path / "e.db")) as log:
        await log.append([new(A)])
        async with aclosing(log.tail(1)) as tail:
            monkeypatch.delattr(SqliteEventLog, "_read")  # from here on to read fails
            coming = asyncio.create_task(anext(tail))
            await asyncio.sleep(0)
            for n in range(2, 50):
                await log.append([new(A)])
                assert [event.seq for event in await asyncio.wait_for(coming, 20)] == [n]
                coming = asyncio.create_task(anext(tail))
                await asyncio.sleep(0)
            assert await log.lost([A], EventId(log.head.epoch, 1)) == {}
            assert await log.replay([A], 49, 49, 9) == Page([], False, False)
            coming.cancel()
            await asyncio.wait([coming])


@pytest.mark.gen_test(timeout=60)
@pytest.mark.parametrize("killed", [pytest.param(False, marks=pytest.mark.slow), True])
async def test_events_of_another_process_come_once_and_in_order_among_one_s_own(
    place: Path | str, killed: bool
) -> None:
    async with opened(log_at(place)) as log:
        mine = [(await log.append([new(A)]))[0].seq]
        appender = Appender(place, "b", 0.001)
        try:
            async with aclosing(log.tail(0)) as tail:
                seen = []
                while len(appender.ids) < 100:
                    mine += [id.seq for id in await log.append([new(A), new(A)])]
                    seen += await anext(tail)
                    await asyncio.sleep(0.001)  # else this writer leaves the other one hardly a gap
                if killed:
                    appender.kill()
                else:
                    await asyncio.to_thread(appender.stop)
                (last,) = await log.append([new(A)])
                while seen[-1].seq < last.seq:
                    seen += await anext(tail)
        finally:
            appender.kill()
        # A database may still do what a client has asked for that was killed since.
        assert last.seq <= seen[-1].seq <= last.seq + killed
        assert [event.seq for event in seen] == list(range(1, seen[-1].seq + 1))
        assert [event.seq for event in seen if event.channel == A] == [*mine, last.seq]
        theirs = [event.seq for event in seen if event.channel == B]
        acknowledged = [int(id.rpartition("-")[2]) for id in appender.ids]
        assert theirs[: len(acknowledged)] == acknowledged
        assert len(theirs) <= len(acknowledged) + killed


@pytest.mark.gen_test
async def test_processes_that_make_a_log_at_once_agree_on_its_epoch(tmp_path: Path) -> None:
    for round in range(10):
        one, other = (SqliteEventLog(tmp_path / f"{round}.db") for _ in range(2))
        await one.open()
        await other.open()
        assert one.head.epoch == other.head.epoch
        await one.close()
        await other.close()


@pytest.mark.ci
@pytest.mark.gen_test
async def test_of_many_channels_used_once_a_thousand_empty_ones_are_remembered_and_no_gap_is_silent(
    make: Callable[..., EventLog],
) -> None:
    names = [ChannelName(f"once.{number}") for number in range(EMPTY_CHANNELS + 500)]
    async with opened(make(age=1.0)) as log:
        (start, *_) = [await log.append([new(A)])]
        for begin in range(0, len(names), 500):
            await log.append([new(name) for name in names[begin : begin + 500]])

        async def remembered() -> list[ChannelName]:
            return [name for name in names if await log.published(name) != (0, 0)]

        async def forgotten() -> bool:
            await log.append([new(B)])  # a log in memory looks around when something is appended
            return await log.published(names[-EMPTY_CHANNELS - 1]) == (0, 0)

        deadline = asyncio.get_running_loop().time() + 60
        while not await forgotten():
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.1)
        kept = await remembered()  # the next look may find that more are forgotten
        assert len(kept) <= EMPTY_CHANNELS
        assert kept == names[-len(kept) :]  # those that were used last
        position = start[0]
        first, last = names[0], names[-1]
        assert await log.lost([first, last], position) == dict.fromkeys([first, last], "history_trimmed")
        assert (await log.replay([first], position.seq, log.head.seq, 10)).gap
        # A channel that is used again does not hide what it once had.
        appended = time.monotonic()
        (id,) = await log.append([new(first)])
        assert id.seq == log.head.seq
        assert await log.published(first) == (1, id.seq)
        assert await log.lost([first], position) == {first: "history_trimmed"}
        lost = await log.lost([first], EventId(id.epoch, id.seq - 1))
        assert lost == {} or time.monotonic() - appended > 1.0, lost
        page = await log.replay([first], id.seq - 1, log.head.seq, 10)
        found = ([event.seq for event in page.events], page.gap)
        assert found == ([id.seq], False) or time.monotonic() - appended > 1.0, found


@pytest.mark.long
@pytest.mark.gen_test
async def test_a_log_all_of_whose_channels_are_forgotten_gives_no_number_twice(tmp_path: Path) -> None:
    names = [ChannelName(f"once.{number}") for number in range(EMPTY_CHANNELS + 500)]
    retention = Retention(10, 0.5)
    async with opened(SqliteEventLog(tmp_path / "e.db", retention)) as log:
        ids = await log.append([new(name) for name in reversed(names)])
        await until_channels(tmp_path, EMPTY_CHANNELS)
        with sqlite3.connect(tmp_path / "e.db") as database:  # as if the others had gone as well
            database.execute("UPDATE log SET forgotten = ?", (ids[-1].seq,))
            database.execute("DELETE FROM channels")
        database.close()
    async with opened(SqliteEventLog(tmp_path / "e.db", retention)) as log:
        assert log.head == ids[-1]
        (following,) = await log.append([new(A)])
        assert following.seq == ids[-1].seq + 1
        assert await log.lost([A], ids[0]) == {A: "history_trimmed"}
        assert await log.lost([A], ids[-1]) == {}


async def until_channels(directory: Path, count: int) -> None:
    """Wait until the log on disk remembers so many channels."""

    def remembered() -> int:
        with closing(sqlite3.connect(directory / "e.db")) as database:
            return int(database.execute("SELECT count(*) FROM channels").fetchone()[0])

    await until_async(lambda: remembered() == count, f"{count} channels are remembered")
