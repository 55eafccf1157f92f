"""One event log that several processes use at once: what is promised whatever becomes of one of them."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest

from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.errors import EventLogUnavailable, StateError
from sse_app.core.events import TEXT, Event, EventId, NewEvent
from sse_app.eventlog.base import EventLog, IdempotencyKey, Retention, RetentionRules
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.eventlog.sqlite import writer
from sse_app.eventlog.sqlite.bells import Bells
from sse_app.eventlog.sqlite.file import CHECKPOINT_PAGES, PAGE_BYTES
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.eventlog.sqlite.reports import Commit, Growth
from sse_app.eventlog.sqlite.schema import MIGRATIONS
from tests.support.appender import Appender
from tests.support.log_processes import RemoteLog, log_at, log_processes
from tests.support.server_process import ROOT
from tests.support.waiting import until, until_async

A, B = ChannelName("a"), ChannelName("b")


def new(channel: ChannelName = A, text: str = "{}") -> NewEvent:
    return NewEvent(channel, "t", text.encode())


@asynccontextmanager
async def opened(
    path: Path, retention: Retention | RetentionRules | None = None
) -> AsyncIterator[SqliteEventLog]:
    async with opened_at(path, retention) as log:
        assert isinstance(log, SqliteEventLog)
        yield log


@asynccontextmanager
async def opened_at(
    place: Path | str, retention: Retention | RetentionRules | None = None
) -> AsyncIterator[EventLog]:
    log = log_at(place, retention)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


class Follower:
    """Follows a log to its end, and keeps what its tail yields.

    Args:
        log: it is open.
    """

    def __init__(self, log: EventLog) -> None:
        self.seqs: list[int] = []
        self.events: list[Event] = []
        self.channels: dict[ChannelName, list[int]] = {}
        self._log = log
        self._task = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        async with aclosing(self._log.tail(0)) as tail:
            async for events in tail:
                self.events += events
                for event in events:
                    self.seqs.append(event.seq)
                    self.channels.setdefault(event.channel, []).append(event.seq)

    async def has(self, seq: int) -> None:
        """Wait until the tail has yielded an event, and check that it has yielded each before it once and in order."""
        await until_async(
            lambda: self._task.done() or (self.seqs and self.seqs[-1] >= seq), f"event {seq} has come"
        )
        assert self.seqs == list(range(1, len(self.seqs) + 1))

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


def rows_of(place: Path | str, statement: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement about the tables of a log."""
    if isinstance(place, Path):
        with closing(sqlite3.connect(place)) as database:
            return database.execute(statement).fetchall()
    with psycopg.connect(place, autocommit=True, options="-c search_path=sse_app") as connection:
        return connection.execute(statement.encode()).fetchall()


def stored_at(place: Path | str) -> dict[int, tuple[str, bytes]]:
    """Return the channel and the data of each event that is stored."""
    rows = rows_of(place, "SELECT seq, name, data FROM events JOIN channels ON channels.id = channel")
    return {seq: (name, data) for seq, name, data in rows}


def bells(path: Path) -> list[Path]:
    return list(Path(f"{path}-bells").iterdir())


async def kill_appenders(path: Path | str, kills: int) -> None:
    """Kill processes that append, at random moments, and account for every event that one of them acknowledged."""
    chance = random.Random(kills)
    appenders = [Appender(path, f"c{number}", 0) for number in range(3)]
    running = list(appenders)
    async with opened_at(path, Retention(size=1_000_000)) as log:
        follower = Follower(log)
        try:
            for _ in range(kills):
                await until_async(lambda: all(appender.ids for appender in running), "all append")
                await asyncio.sleep(chance.random() * 0.1)
                victim = running.pop(chance.randrange(3))
                await asyncio.to_thread(victim.kill)
                appenders.append(Appender(path, f"c{len(appenders)}", 0))
                running.append(appenders[-1])
            await until_async(lambda: all(appender.ids for appender in running), "all append")
            for appender in running:
                await asyncio.to_thread(appender.stop)
            (last,) = await log.append([new()])
            await follower.has(last.seq)
        finally:
            await follower.end()
            for appender in appenders:
                await asyncio.to_thread(appender.kill)
    stored = stored_at(path)
    assert sorted(stored) == follower.seqs
    acknowledged = set()
    for number, appender in enumerate(appenders):
        seqs = [int(id.rpartition("-")[2]) for id in appender.ids if id.startswith(f"{last.epoch}-")]
        assert len(seqs) >= len(appender.ids) - 1  # the last line of one that was killed may be cut
        for count, seq in enumerate(seqs, 1):
            assert seq not in acknowledged
            acknowledged.add(seq)
            assert stored[seq] == (f"c{number}", b'{"appended": %d}' % count)
        # One may be stored and not acknowledged, when a process is killed.
        assert len(follower.channels[ChannelName(f"c{number}")]) <= len(seqs) + 2


@pytest.mark.slow
@pytest.mark.gen_test(timeout=120)
async def test_of_processes_that_are_killed_nothing_acknowledged_is_lost_and_no_number_is_given_twice(
    place: Path | str,
) -> None:
    await kill_appenders(place, 6)


@pytest.mark.long
@pytest.mark.gen_test(timeout=600)
async def test_of_a_hundred_processes_that_are_killed_nothing_acknowledged_is_lost(place: Path | str) -> None:
    await kill_appenders(place, 100)


@pytest.mark.gen_test(timeout=120)
@pytest.mark.expects_logs("event_log_unavailable")
async def test_a_process_that_is_stopped_with_the_lock_costs_the_others_a_bounded_time_and_stores_nothing_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.db"
    appender = Appender(path, "b", 0)
    try:
        async with opened(path) as log:
            follower = Follower(log)
            await until_async(lambda: len(appender.ids) > 5, "others append")
            await log.append([new(A, '{"n":0}')])
            monkeypatch.setattr("sse_app.eventlog.sqlite.writer.LOCK_TIMEOUT", 1.0)
            await asyncio.to_thread(appender.stop_with_the_lock)
            begun = time.monotonic()
            answers = await asyncio.gather(
                *(log.append([new(A, f'{{"n":{number}}}')]) for number in range(1, 20)),
                return_exceptions=True,
            )
            assert time.monotonic() - begun < 20
            assert [type(answer) for answer in answers] == [EventLogUnavailable] * 19
            with pytest.raises(
                EventLogUnavailable, match="lock"
            ):  # and those that come later do not wait as long
                await log.append([new(A, '{"n":20}')])
            assert not log.available
            assert await log.lost([A], log.head) == {}  # what is stored can be read
            monkeypatch.undo()
            appender.resume()
            await until_async(lambda: log.available, "the log is available again")
            (last,) = await log.append([new(A, '{"n":21}')])
            await asyncio.to_thread(appender.stop)
            (last,) = await log.append([new(A, '{"n":22}')])
            await follower.has(last.seq)
            await follower.end()
    finally:
        appender.kill()
    mine = [data for _, (name, data) in sorted(stored_at(path).items()) if name == A]
    assert mine == [b'{"n":0}', b'{"n":21}', b'{"n":22}']


@pytest.mark.gen_test(timeout=120)
async def test_what_has_waited_too_long_behind_others_is_refused_and_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sse_app.eventlog.sqlite.writer.LOCK_TIMEOUT", 3.0)
    path = tmp_path / "e.db"
    ends = threading.Event()

    def take_turns() -> None:
        """Have the lock most of the time, as other processes that write much."""
        with path.with_name("e.db-lock").open("ab") as lock:
            while not ends.is_set():
                fcntl.flock(lock, fcntl.LOCK_EX)
                head = log.head
                taken.set()
                time.sleep(0.6)
                fcntl.flock(lock, fcntl.LOCK_UN)
                while log.head == head and not ends.is_set():
                    time.sleep(0.001)

    async with opened(path, Retention(size=1_000_000)) as log:
        taken = threading.Event()
        others = threading.Thread(target=take_turns)
        others.start()
        try:
            await asyncio.to_thread(taken.wait)
            many = [new(A, '{"n":0}')] * writer.MAX_EVENTS_PER_COMMIT
            answers = await asyncio.gather(*(log.append(many) for _ in range(20)), return_exceptions=True)
        finally:
            ends.set()
            others.join()
        assert log.available
        await log.append([new(A, '{"n":1}')])
    stored = [answer for answer in answers if isinstance(answer, list)]
    refused = [answer for answer in answers if isinstance(answer, EventLogUnavailable)]
    assert len(stored) + len(refused) == 20
    assert stored
    assert refused
    assert len(stored_at(path)) == len(stored) * writer.MAX_EVENTS_PER_COMMIT + 1


@pytest.mark.gen_test(timeout=120)
@pytest.mark.expects_logs("event_log_unavailable")
async def test_a_log_is_closed_and_opened_in_a_bounded_time_while_a_stopped_process_has_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.db"
    appender = Appender(path, "b", 0)
    try:
        async with opened(path) as log:
            await until_async(lambda: len(appender.ids) > 5, "others append")
            monkeypatch.setattr("sse_app.eventlog.sqlite.writer.LOCK_TIMEOUT", 1.0)
            await asyncio.to_thread(appender.stop_with_the_lock)
            append = asyncio.create_task(log.append([new()]))
            await asyncio.sleep(0.1)
        with pytest.raises(EventLogUnavailable):
            await append
        monkeypatch.setattr("sse_app.eventlog.sqlite.lock.OPEN_TIMEOUT", 1.0)
        with pytest.raises(StateError, match=r"another process has held .*e\.db-lock for 1 second"):
            await SqliteEventLog(path).open()
        monkeypatch.undo()
        appender.resume()
        await asyncio.to_thread(appender.stop)
        async with opened(path) as log:
            await log.append([new(A, '{"n":1}')])
    finally:
        appender.kill()
    assert [data for name, data in stored_at(path).values() if name == A] == [b'{"n":1}']


@pytest.mark.gen_test
async def test_events_of_others_come_in_order_when_every_bell_is_lost(
    place: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bells, "ring", lambda *_: None)
    monkeypatch.setattr(PostgresEventLog, "_heard", lambda *_: None)
    async with opened_at(place) as one, opened_at(place) as other:
        follower = Follower(one)
        for number in range(30):
            (last,) = await (one, other, other)[number % 3].append([new()])
        (last,) = await other.append([new()])
        await follower.has(last.seq)
        await follower.end()


@pytest.mark.gen_test
async def test_a_bell_that_is_full_holds_no_process_up_and_what_it_misses_is_read(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as log:
        follower = Follower(log)
        appender = Appender(tmp_path / "e.db", "b", 0)
        try:
            await until_async(lambda: appender.ids, "others append")
            for _ in range(3):
                enough = len(appender.ids) + 100
                until(lambda: len(appender.ids) > enough, "others append meanwhile")  # noqa: B023
                (last,) = await log.append([new()])
                await follower.has(last.seq)
            await asyncio.to_thread(appender.stop)
            await follower.has(int(appender.ids[-1].rpartition("-")[2]))
        finally:
            appender.kill()
            await follower.end()


@pytest.mark.gen_test
async def test_events_too_large_for_a_bell_come_from_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "e.db") as one, opened(tmp_path / "e.db") as other:
        follower = Follower(one)
        await other.append([new(A, "x" * 1_000_000), new()])
        await other.append([new()] * 1500)
        (last,) = await other.append([new()])
        await follower.has(last.seq)
        await follower.end()


@pytest.mark.gen_test
async def test_the_bell_of_a_process_that_was_killed_is_removed_by_the_next_commit(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with opened(path) as log:
        appender = Appender(path, "b", 0.01)
        await until_async(lambda: appender.ids, "others append")
        assert len(bells(path)) == 2
        await asyncio.to_thread(appender.kill)
        assert len(bells(path)) == 2
        await log.append([new()])
        assert len(bells(path)) == 1
    assert os.listdir(tmp_path).count("e.db-bells") == 0


@pytest.mark.gen_test
async def test_a_bell_and_a_lock_that_are_removed_are_made_again(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with opened(path) as one, opened(path) as other:
        shutil.rmtree(f"{path}-bells")
        os.unlink(f"{path}-lock")

        def are_back() -> bool:
            return {"e.db-lock", "e.db-bells"} <= set(os.listdir(tmp_path)) and len(bells(path)) == 2

        await until_async(are_back, "they are there again")
        follower = Follower(one)
        (last,) = await other.append([new()])
        await follower.has(last.seq)
        await follower.end()


@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable")
async def test_a_lock_that_cannot_be_made_again_for_a_while_ends_no_thread(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    lock = f"{path}-lock"
    async with opened(path) as one, opened(path) as other:
        os.unlink(lock)
        os.mkdir(lock)
        await until_async(lambda: not one.available and not other.available, "both say that they cannot")
        for _ in range(3):
            with suppress(EventLogUnavailable):
                await one.append([new()])
        os.rmdir(lock)
        await until_async(lambda: one.available and other.available, "both can again")
        follower = Follower(one)
        (last,) = await other.append([new()])
        await follower.has(last.seq)
        await follower.end()


@asynccontextmanager
async def told_of_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[SqliteEventLog, SqliteEventLog, Follower]]:
    """Open a log in two processes, of which one was told of the other's event, and does not look at the file itself."""
    monkeypatch.setattr(writer, "LOOK_INTERVAL", 3600)
    async with opened(path) as one, opened(path) as other:
        follower = Follower(one)
        (told,) = await other.append([new()])
        await follower.has(told.seq)
        yield one, other, follower
        await follower.end()


async def append_silently(log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch) -> EventId:
    """Append an event of which no bell tells the others."""
    await asyncio.sleep(0.05)  # a file's time of change is exact to some milliseconds only
    monkeypatch.setattr(Bells, "ring", lambda *_: None)
    (id,) = await log.append([new()])
    await asyncio.sleep(0.05)
    return id


@pytest.mark.gen_test
async def test_what_is_written_after_the_last_bell_has_the_file_looked_at_and_what_is_told_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told_of_one(tmp_path / "e.db", monkeypatch) as (one, other, follower):
        assert one._writer is not None
        assert not one._writer.may_be_written(one._told_at)
        untold = await append_silently(other, monkeypatch)
        await follower.has(untold.seq)


@pytest.mark.gen_test
async def test_what_is_written_while_a_look_at_the_file_is_being_reported_has_it_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told_of_one(tmp_path / "e.db", monkeypatch) as (one, other, follower):
        seen = Growth(one.head.seq, time.time())
        untold = await append_silently(other, monkeypatch)
        assert one._writer is not None
        one._writer._put(seen)
        await follower.has(untold.seq)


@pytest.mark.gen_test
async def test_what_is_written_while_a_commit_is_being_reported_has_the_file_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with told_of_one(tmp_path / "e.db", monkeypatch) as (one, other, follower):
        held: list[Commit] = []
        committed = one._committed
        monkeypatch.setattr(one, "_committed", held.append)
        append = asyncio.create_task(one.append([new()]))
        await until_async(lambda: held, "it is stored")
        untold = await append_silently(other, monkeypatch)
        monkeypatch.setattr(one, "_committed", committed)
        for commit in held:
            committed(commit)
        await append
        await follower.has(untold.seq)


@pytest.mark.gen_test
async def test_a_process_that_opens_the_log_is_rung_though_the_bells_are_not_looked_for_at_each_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for interval in ("bells.LOOK_AGAIN", "log.LOOK_INTERVAL", "writer.LOOK_INTERVAL"):
        monkeypatch.setattr(f"sse_app.eventlog.sqlite.{interval}", 3600)
    path = tmp_path / "e.db"
    async with opened(path) as one:
        await one.append([new()])
        async with opened(path) as other:
            await until_async(lambda: one._alone is None, "it has heard of the other one")
            follower = Follower(other)
            (last,) = await one.append([new()])
            await follower.has(last.seq)
            await follower.end()
        await one.append([new()])
        assert len(bells(path)) == 1


@pytest.mark.gen_test
async def test_a_bell_that_is_not_understood_has_the_file_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with opened(path) as log:
        follower = Follower(log)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ringer:
            for data in (
                b"",
                b"\x00",
                b"\xff" * 1000,
                b"\x95\x02\xa1x\x00\x09\x90",
                b"\x95\x01\xa1x\x00\x09\x90",
                b"\x95\x01\xa2\xff\xfe\x00\x09\x90",  # a text that is no UTF-8
                b"\x96\x01\xa1x\x00\x09\x90" + b"\x91" * 50_000 + b"\x01",  # lists, each in the one before
            ):
                ringer.sendto(data, str(bells(path)[0]))
        (last,) = await log.append([new()])
        await follower.has(last.seq)
        assert log.head == last
        await follower.end()


@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable")
async def test_events_of_another_log_at_the_same_path_do_not_come(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with opened(path) as log:
        (first,) = await log.append([new()])
        for suffix in ("", "-wal", "-shm"):
            os.rename(f"{path}{suffix}", tmp_path / f"aside{suffix}")
        async with opened(path) as other:
            follower = Follower(log)
            await other.append([new(B)] * 5)
            await until_async(lambda: not log.available, "it is noticed")
            await other.append([new(B)] * 5)
            await asyncio.sleep(2 * writer.FAILED_LOOK_INTERVAL)
            assert (follower.seqs, log.head) == ([1], first)
            with pytest.raises(EventLogUnavailable):
                await log.append([new()])
            await follower.end()


@pytest.mark.gen_test
async def test_what_is_appended_just_before_a_log_is_closed_is_answered(place: Path | str) -> None:
    async with opened_at(place) as log:
        appends = [asyncio.create_task(log.append([new()])) for _ in range(20)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(log.close())
        await asyncio.sleep(0)
        with pytest.raises(EventLogUnavailable):
            await log.append([new()])
        ids = await asyncio.wait_for(asyncio.gather(*appends), 20)
        await closing
        assert [id.seq for (id,) in ids] == list(range(1, 21))


@pytest.mark.gen_test
async def test_a_process_that_is_alone_knows_at_once_when_another_opens_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ALONE_INTERVAL", 0.3)
    path = tmp_path / "e.db"
    async with opened(path) as one:
        assert one._alone is not None
        other = SqliteEventLog(path)
        await other.open()
        await until_async(lambda: one._alone is None, "it knows, and looks at the file more often")
        await other.close()
        await until_async(lambda: one._alone is not None, "it knows that it is alone")


@pytest.mark.gen_test
async def test_what_a_process_without_a_bell_commits_reaches_one_that_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.db"
    monkeypatch.setattr(Bells, "ring", lambda *_: None)
    async with opened(path) as one:
        follower = Follower(one)
        with pytest.MonkeyPatch.context() as without_bell:
            without_bell.setattr(Bells, "_bind", _refuse)
            other = SqliteEventLog(path)
            await other.open()
            for _ in range(3):
                (last,) = await other.append([new()])
                await follower.has(last.seq)
            await other.close()
        await follower.end()


def _refuse(bells: Bells) -> None:
    raise OSError(errno.EMFILE, "too many open files")


@pytest.mark.gen_test
async def test_a_bell_that_could_not_be_made_is_made_later_and_nothing_is_missed_meanwhile(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.db"
    with pytest.MonkeyPatch.context() as no_files_left:

        def fail(bells: Bells) -> None:
            raise OSError(errno.EMFILE, "too many open files")

        no_files_left.setattr(Bells, "_bind", fail)
        log = SqliteEventLog(path)
        await log.open()
        follower = Follower(log)
        async with opened(path) as other:
            (last,) = await other.append([new()])
            await follower.has(last.seq)
            assert bells(path) == []
            no_files_left.undo()
            await until_async(lambda: len(bells(path)) == 2, "both have a bell")
            (last,) = await other.append([new()])
            await follower.has(last.seq)
        await follower.end()
        await log.close()


@pytest.mark.gen_test
async def test_a_log_whose_path_is_longer_than_a_socket_s_can_be_has_bells(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30) / ("longer" * 20)
    directory.mkdir(parents=True)
    path = directory / "e.db"
    async with opened(path) as one, opened(path) as other:
        assert len(bells(path)) == 2
        follower = Follower(one)
        (last,) = await other.append([new()])
        await follower.has(last.seq)
        await follower.end()


@pytest.mark.gen_test(timeout=120)
async def test_what_another_process_appends_to_a_log_that_is_prepared_is_in_it_when_it_is_opened(
    place: Path | str,
) -> None:
    """As where a process takes over from another one, which serves until then."""
    async with opened_at(place) as before:
        first = await before.append([new(A, "1")])
        log = log_at(place)
        await log.prepare()
        ids = [(await before.append([new(A, str(n))]))[0] for n in range(2, 42)]  # more than a bell holds
        await log.open()
        try:
            assert log.head == before.head == ids[-1]
            assert await log.lost([A], ids[-1]) == {}
            follower = Follower(log)
            await follower.has(ids[-1].seq)
            (last,) = await before.append([new(A, "42")])
            await follower.has(last.seq)
            assert [event.data for event in follower.events] == [str(n).encode() for n in range(1, 43)]
            assert (await log.append([new(B)]))[0] == (first[0].epoch, last.seq + 1)
            await follower.end()
        finally:
            await log.close()


@pytest.mark.gen_test(timeout=120)
async def test_a_log_that_is_prepared_erases_nothing_and_is_closed_without_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    files = set(os.listdir("/proc/self/fd"))
    async with opened(path) as before:
        await before.append([new()] * 9)
        log = SqliteEventLog(path, Retention(size=1))
        await log.prepare()
        await before.append([new()])
        await asyncio.sleep(0.2)
        await log.close()
        assert await before.lost([A], EventId(before.head.epoch, 1)) == {}
        assert len(os.listdir(f"{path}-bells")) == 1
    assert set(os.listdir("/proc/self/fd")) == files


@pytest.mark.gen_test(timeout=120)
async def test_rules_that_come_to_a_log_that_is_prepared_are_in_force_when_it_is_opened(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path / "log.db") as before:
        await before.append([new()] * 9)
        log = SqliteEventLog(tmp_path / "log.db")
        await log.prepare()
        log.use(Retention(size=1))
        await log.open()
        try:
            await log.append([new()])
            assert await log.lost([A], EventId(log.head.epoch, 8)) == {A: "history_trimmed"}
        finally:
            await log.close()


@pytest.mark.gen_test(timeout=120)
async def test_a_log_of_an_older_schema_is_left_as_it_is_until_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    older, current = ([(len(MIGRATIONS) - back,)] for back in (1, 0))
    async with opened(path):
        with closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA user_version = {older[0][0]}")
        log = SqliteEventLog(path)
        await log.prepare()
        assert rows_of(path, "PRAGMA user_version") == older
        assert len(os.listdir(f"{path}-bells")) == 1
        await log.close()
        with closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA user_version = {current[0][0]}")
        await log.prepare()
        assert len(os.listdir(f"{path}-bells")) == 2
        await log.close()


@pytest.mark.gen_test(timeout=120)
async def test_a_log_that_was_replaced_after_it_was_prepared_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    files = set(os.listdir("/proc/self/fd"))
    async with opened(path) as before:
        await before.append([new()])
    log = SqliteEventLog(path)
    await log.prepare()
    path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(StateError, match="put it back, or restart"):
        await log.open()
    await log.close()
    assert set(os.listdir("/proc/self/fd")) == files


@pytest.mark.gen_test
async def test_a_process_that_was_not_alone_and_is_again_asks_the_file_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.db"
    async with opened(path, Retention(100, 2.0)) as one:
        async with opened(path, Retention(100, 2.0)) as other:
            await other.append([new(), new(B)])
            assert await one.published(A) == (1, 1)
        await until_async(lambda: one._alone is not None, "it knows that it is alone")
        monkeypatch.delattr(SqliteEventLog, "_read")  # from here on to read fails
        (last,) = await one.append([new()])
        assert await one.published(A) == (2, last.seq)
        assert await one.published(B) == (1, 2)
        assert await one.lost([A, B], last) == {}


@pytest.mark.gen_test
async def test_a_process_that_is_alone_does_not_take_its_own_checkpoints_for_another_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.db"
    async with opened(path) as log:
        for _ in range(3):
            await log.append([new(A, "x" * 20_000)] * 300)
            assert os.stat(f"{path}-wal").st_size > PAGE_BYTES * CHECKPOINT_PAGES
        await until_async(lambda: os.stat(path).st_size > 900 * 20_000, "it is moved into the database")
        await asyncio.sleep(1.4 * writer.LOOK_INTERVAL)
        assert log._alone is not None
        (last,) = await log.append([new()])
        assert await log.lost([A], last) == {}


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with log_processes(4, tmp_path_factory.mktemp("processes")) as addresses:
        yield addresses


@pytest.mark.slow
@pytest.mark.gen_test(timeout=120)
async def test_four_processes_that_open_a_fresh_log_at_once_all_can_use_it(
    place: Path | str, processes: list[str], request: pytest.FixtureRequest
) -> None:
    for number in range(25 if isinstance(place, Path) else 5):
        if isinstance(place, Path):
            fresh: Path | str = place.with_name(f"{number}.db")
        else:
            fresh = request.getfixturevalue("postgres").new_database()
        logs = [RemoteLog(address, fresh, Retention()) for address in processes]
        heads = await asyncio.gather(*(log.open() for log in logs))
        assert len({head.epoch for head in heads}) == 1
        ids = await asyncio.gather(*(log.append([new()]) for log in logs))
        assert sorted(ids) == [[EventId(heads[0].epoch, seq)] for seq in range(1, 5)]
        await asyncio.gather(*(log.close() for log in logs))


READER = """
import sqlite3, sys, threading
def read():
    database = sqlite3.connect(sys.argv[1], isolation_level=None)
    while True:  # each sees a part of the log for a while, and one always does
        database.execute("BEGIN")
        for _ in database.execute("SELECT data FROM events ORDER BY seq DESC LIMIT 100"):
            pass
        database.execute("COMMIT")
for _ in range(3):
    threading.Thread(target=read, daemon=True).start()
print("reading", flush=True)
sys.stdin.read()
"""


@contextmanager
def overlapping_readers(path: Path) -> Iterator[None]:
    """Have another process read the log all the time, each time anew before the time before has ended."""
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline()
            yield
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.gen_test(timeout=120)
async def test_the_write_ahead_log_stays_bounded_with_writers_and_readers_that_overlap(
    tmp_path: Path, processes: list[str]
) -> None:
    path = tmp_path / "e.db"
    logs = [RemoteLog(address, path, Retention(size=1000)) for address in processes[:2]]
    for log in logs:
        await log.open()
    await logs[0].append([new(A, "x" * 500)] * 300)
    largest = 0
    with overlapping_readers(path):
        for _ in range(120):
            await asyncio.gather(*(log.append([new(A, "x" * 500)] * 200) for log in logs))
            largest = max(largest, os.stat(f"{path}-wal").st_size)
    for log in logs:
        await log.close()
    assert largest < 12 * CHECKPOINT_PAGES * PAGE_BYTES


@pytest.mark.slow
@pytest.mark.gen_test(timeout=120)
async def test_the_write_ahead_log_stays_bounded_while_much_is_erased_at_once(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with opened(path, Retention(1_000_000)) as log:
        for _ in range(20):
            await log.append([new(A, "x" * 1000)] * 1500)
    largest = 0

    def erased() -> bool:
        nonlocal largest
        largest = max(largest, os.stat(f"{path}-wal").st_size)
        # Nothing is checkpointed while it is read: to read all of it takes a busy machine so long that this would show.
        return not rows_of(path, "SELECT 1 FROM events LIMIT 1")

    async with opened(path, Retention(1_000_000, 0.001)):
        await until_async(erased, "the events are erased")
    assert largest < 5 * CHECKPOINT_PAGES * PAGE_BYTES


@pytest.mark.gen_test
async def test_a_commit_of_another_process_does_not_have_all_channels_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ALONE_INTERVAL", 3600)  # a look whether others have the log open counts all
    path = tmp_path / "e.db"
    async with opened(path) as one, opened(path) as other:
        for begin in range(0, 5000, 500):
            await one.append([new(ChannelName(f"c{number}")) for number in range(begin, begin + 500)])
        assert one._writer is not None
        database, steps = one._writer._file.db, 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        database.set_progress_handler(step, 1)  # for each instruction of SQLite's machine
        for _ in range(10):
            await other.append([new(A)])
            await one.append([new(B)])
        database.set_progress_handler(None, 0)
        assert steps < 20 * 1000


class EarlierVersion:
    """Writes to a log as the version did that knew nothing of other processes' locks: with its statements.

    Args:
        path: the database file.
    """

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, timeout=10, isolation_level=None)
        self.seqs: list[int] = []

    def append(self, channel: str, size: int = 10_000) -> int:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        (last,) = database.execute("SELECT max(last_seq) FROM channels").fetchone()
        (forgotten,) = database.execute("SELECT forgotten FROM log").fetchone()
        seq = int(max(last or 0, forgotten)) + 1
        row = database.execute(
            "SELECT id, published, trimmed FROM channels WHERE name = ?", (channel,)
        ).fetchone()
        if row is None:
            id = database.execute(
                "INSERT INTO channels (name, published, last_seq, trimmed) VALUES (?, 0, 0, ?)",
                (channel, forgotten),
            ).lastrowid
            row = (id, 0, forgotten)
        id, published, trimmed = row
        database.execute(
            "INSERT INTO events (seq, channel, type, data, retry, at) VALUES (?, ?, ?, ?, ?, ?)",
            (seq, id, "t", b"{}", None, time.time()),
        )
        kept = database.execute(
            "SELECT seq FROM events WHERE channel = ? AND seq > ? ORDER BY seq", (id, trimmed)
        ).fetchall()
        if len(kept) > size:
            trimmed = kept[len(kept) - size - 1][0]
        database.execute(
            "UPDATE channels SET published = ?, last_seq = ?, trimmed = ? WHERE id = ?",
            (published + 1, seq, trimmed, id),
        )
        database.execute("COMMIT")
        self.seqs.append(seq)
        return seq

    def erase_all(self) -> None:
        """Erase every event, as when all are too old."""
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        (until,) = database.execute("SELECT max(seq) FROM events").fetchone()
        last = database.execute("SELECT channel, max(seq) FROM events GROUP BY channel").fetchall()
        database.execute("DELETE FROM events WHERE seq <= ?", (until,))
        for channel, seq in last:
            database.execute("UPDATE channels SET trimmed = ? WHERE id = ?", (seq, channel))
        database.execute("COMMIT")

    def close(self) -> None:
        self._database.close()


@pytest.mark.ci
@pytest.mark.gen_test
async def test_a_process_of_the_version_before_may_write_beside_this_one(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    retention = Retention(size=5)
    async with opened(path, retention) as log:
        follower = Follower(log)
        with closing(EarlierVersion(path)) as earlier:
            for number in range(12):
                (last,) = await log.append([new(A)])
                assert earlier.append("a", 5) == last.seq + 1
                await follower.has(last.seq + number % 2)
                page = await log.replay([A], 0, 99, 99)
                assert [event.seq for event in page.events] == list(range(last.seq + 1, 0, -1))[:5][::-1]
            assert earlier.append("b") == 25
            earlier.erase_all()
            assert await log.lost([A, B], EventId(last.epoch, 24)) == {B: "history_trimmed"}
            (last,) = await log.append([new(A)])
            assert last.seq == 26
            assert earlier.append("a", 5) == 27
            earlier.erase_all()
        await follower.end()
    async with opened(path, retention) as log:
        assert log.head.seq == 27
        (last,) = await log.append([new(A)])
        assert last.seq == 28
        assert await log.published(A) == (27, 28)
        assert await log.lost([A], EventId(last.epoch, 26)) == {A: "history_trimmed"}


class EventOfBefore(NamedTuple):
    """An event to a process of the version before, which knows of no flags."""

    seq: int
    channel: str
    type: str
    data: bytes
    retry: int | None = None


class BellOfBefore(msgspec.Struct, array_like=True):
    """What a process of the version before rings, and takes a bell for."""

    version: int
    epoch: str
    previous: int
    head: int
    events: list[EventOfBefore] = []


@pytest.mark.gen_test
async def test_processes_of_this_version_and_of_the_one_before_hear_or_look_up_each_other_s_events(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.db"
    name = "0123456789abcdef"
    async with opened(path) as log:
        follower = Follower(log)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as before:
            before.bind(str(tmp_path / "e.db-bells" / name))
            before.settimeout(20)
            async with opened(path) as other:  # which finds the bell
                (first,) = await other.append([NewEvent(A, "t", b"text", None, TEXT)])
                told = before.recv(100_000)
                while not msgspec.msgpack.decode(told)[4]:  # as one does that opens the log
                    told = before.recv(100_000)
                with pytest.raises(
                    msgspec.ValidationError
                ):  # and then it looks at the file, which it can read
                    msgspec.msgpack.decode(told, type=BellOfBefore)
                await follower.has(first.seq)
            statement = "SELECT seq, type, data, retry FROM events"
            assert rows_of(path, statement) == [(1, "t", b"text", None)]
            with closing(EarlierVersion(path)) as earlier:
                seq = earlier.append("b")
            ours = BellOfBefore(1, first.epoch, 1, seq, [EventOfBefore(seq, "b", "t", b"{}")])
            (bell,) = (bell for bell in bells(path) if bell.name != name)
            before.sendto(msgspec.msgpack.encode(ours), str(bell))
            await follower.has(seq)
        os.unlink(tmp_path / "e.db-bells" / name)
        assert [event.flags for event in follower.events] == [TEXT, 0]
        assert (await log.replay([A, B], 0, 2, 9)).events == follower.events
        await follower.end()


@pytest.mark.gen_test
async def test_what_is_found_untold_when_something_else_is_done_with_the_file_comes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ALONE_INTERVAL", 0.02)
    path = tmp_path / "e.db"
    key = IdempotencyKey("ann", "key", b"digest")
    async with opened(path) as log:
        follower = Follower(log)
        await log.append([new(A)], key)
        with closing(EarlierVersion(path)) as earlier:
            for _ in range(3):
                seq = earlier.append("a")
                await asyncio.sleep(0.1)
                await follower.has(seq)
                seq = earlier.append("a")
                await log.append([new(A)], key)  # was stored before
                await follower.has(seq)
        await follower.end()


@pytest.mark.gen_test
async def test_no_number_is_given_twice_when_all_events_were_erased_by_their_age(place: Path | str) -> None:
    async with opened_at(place, Retention(10, 0.5)) as log:
        ids = await log.append([new(A), new(B)])

        def erased() -> bool:
            return not stored_at(place)

        await until_async(erased, "the events are erased")
    async with opened_at(place, Retention(10, 0.5)) as log:
        assert log.head == ids[-1]
        (following,) = await log.append([new(A)])
        assert following.seq == 3


@pytest.mark.gen_test
async def test_a_value_that_is_replaced_before_another_process_has_read_it_ends_no_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "e.db"
    async with opened(path, Retention(size=1)) as log, opened(path, Retention(size=1)) as other:
        await log.append([new()])
        follower = Follower(log)
        monkeypatch.setattr(Bells, "ring", lambda *_: None)
        for _ in range(50):
            last = (await other.append([new(A), new(B)]))[-1]
        await follower.has(last.seq)
        assert [event.seq for event in follower.events] == list(range(1, last.seq + 1))
        await follower.end()
        assert [event.seq for event in await log.latest([A, B], 9)] == [last.seq - 1, last.seq]
        assert (await log.replay([A], 0, last.seq, 9)).gap


@pytest.mark.gen_test
async def test_sizes_that_were_made_smaller_are_in_force_after_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    names = [ChannelName(f"room.{number}") for number in range(130)]
    async with opened(path) as log:
        for _ in range(4):
            await log.append([new(name) for name in names])
    rules = RetentionRules(Retention(size=3), [(ChannelPattern("room.7"), Retention(size=1))])
    async with opened(path, rules) as log:
        await until_async(lambda: len(stored_at(path)) == 3 * 130 - 2, "what is over the sizes is erased")
        position = EventId(log.head.epoch, 130)
        assert await log.lost(["room.*"], position) == {"room.7": "history_trimmed"}
        assert len(await log.latest(["room.*"], 1000)) == 3 * 130 - 2
        (id,) = await log.append([new(names[7])])
        assert [event.seq for event in await log.latest([names[7]], 9)] == [id.seq]
        assert await log.published(names[7]) == (5, id.seq)


@pytest.mark.gen_test
async def test_events_of_different_ages_are_looked_at_once_to_find_those_that_are_too_old(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.db"
    rules = RetentionRules(Retention(), [(ChannelPattern("a"), Retention(age=1.0))])
    async with opened(path, rules) as log:
        await log.append([new(B)] * 5000)
        await log.append([new(A)])

        async def erased() -> bool:
            return not await log.latest([A], 1)

        await until_async(erased, "the event that is kept for a second is erased")
        assert log._writer is not None
        database = log._writer._file.db
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        database.set_progress_handler(step, 100)  # so many instructions of SQLite's machine
        await asyncio.sleep(1)  # some looks for what is too old
        database.set_progress_handler(None, 0)
        assert 0 < steps < 200
        assert len(stored_at(path)) == 5000


@pytest.mark.gen_test
async def test_two_processes_erase_what_is_too_old_once(place: Path | str) -> None:
    retention = Retention(10_000, 1.0)
    async with opened_at(place, retention) as one, opened_at(place, retention) as other:
        for log in (one, other):
            await log.append([new(A)] * 2500)
        await until_async(lambda: not stored_at(place), "the events are erased")
        for log in (one, other):
            assert await log.lost([A], EventId(log.head.epoch, 4999)) == {A: "history_trimmed"}
            assert await log.published(A) == (5000, 5000)
        dropped = "dropped" if isinstance(place, Path) else "removed"
        assert rows_of(place, f"SELECT trimmed, {dropped} FROM channels") == [(5000, 5000)]


def make_the_lock_a_link(path: Path) -> None:
    Path(f"{path}-lock").symlink_to(path.parent / "other")


def open_the_lock_to_others(path: Path) -> None:
    Path(f"{path}-lock").touch()
    Path(f"{path}-lock").chmod(0o666)


def open_the_bells_to_others(path: Path) -> None:
    Path(f"{path}-bells").mkdir()
    Path(f"{path}-bells").chmod(0o777)


def make_the_bells_a_file(path: Path) -> None:
    Path(f"{path}-bells").touch()


@pytest.mark.gen_test
@pytest.mark.parametrize(
    "spoil",
    [make_the_lock_a_link, open_the_lock_to_others, open_the_bells_to_others, make_the_bells_a_file],
)
async def test_what_lies_beside_the_log_and_is_not_this_user_s_alone_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = tmp_path / "e.db"
    spoil(path)
    with pytest.raises(StateError, match=r"e\.db"):
        await SqliteEventLog(path).open()
    assert not (tmp_path / "other").exists()


@pytest.mark.gen_test
async def test_beside_a_file_that_is_not_ours_nothing_is_left(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "e.db")) as database:
        database.execute("CREATE TABLE mine (x)")
    with pytest.raises(StateError):
        await SqliteEventLog(tmp_path / "e.db").open()
    assert os.listdir(tmp_path) == ["e.db"]


@pytest.mark.slow
@pytest.mark.gen_test
async def test_a_log_that_another_process_has_open_is_given_no_new_epoch(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.db"
    arguments = ["eventlog", "new-epoch", "--state-dir", str(tmp_path / "state")]
    environment = os.environ | {"SSE_APP_EVENT_LOG": f"sqlite:{path}"}
    (tmp_path / "state").mkdir()
    (tmp_path / "state/accounts.db").touch(mode=0o600)

    async def command() -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "main.py"), *arguments, env=environment, stdout=-1, stderr=-2
        )
        printed, _ = await process.communicate()
        return process.returncode or 0, printed.decode()

    async with opened(path) as log:
        status, printed = await command()
        assert (status, "in use by another process" in printed) == (1, True), printed
        await log.append([new()])
    status, printed = await command()
    assert (status, printed.strip() != log.head.epoch) == (0, True), printed
    async with opened(path) as log:
        assert log.head == EventId(printed.strip(), 1)


@pytest.mark.gen_test
@pytest.mark.expects_logs("event_log_unavailable")
async def test_another_epoch_under_a_process_is_noticed_and_nothing_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "e.db"
    async with opened(path) as log:
        await log.append([new()])
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE log SET epoch = 'other'")
        with pytest.raises(EventLogUnavailable, match="another epoch"):
            await log.append([new()])
        with pytest.raises(EventLogUnavailable, match="another epoch"):
            await log.append([new()])
    assert sorted(stored_at(path)) == [1]
