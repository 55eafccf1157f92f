"""The event log on SQLite: one writer thread whose commits are shared, and a reader thread for replay."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.errors import EventLogUnavailable, StateError
from sse_app.core.events import Event, EventId, NewEvent, held_bytes
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.selection import Selection, selection_of
from sse_app.core.shared_reads import SharedReads
from sse_app.eventlog.base import (
    NO_FLOORS,
    Beginning,
    EventLog,
    Floors,
    IdempotencyKey,
    Page,
    Retention,
    RetentionRules,
    floors_of,
    retention_rules,
)
from sse_app.eventlog.sqlite.bells import MAX_BELL_BYTES, MAX_QUEUED, Bell
from sse_app.eventlog.sqlite.file import LOCK_TIMEOUT
from sse_app.eventlog.sqlite.reader import Kept, SqliteReader
from sse_app.eventlog.sqlite.reports import Alone, Commit, Growth, place
from sse_app.eventlog.sqlite.schema import MIGRATIONS
from sse_app.eventlog.sqlite.writer import Append, SqliteWriter
from sse_app.eventlog.tail import Tails
from sse_app.storage.sqlite import is_damaged, schema_version, unusable, without_checkpoint

WATCH_INTERVAL = 0.25
"""How often it is looked whether appends wait too long, in seconds."""

LOOK_INTERVAL = 0.5
"""How often it is looked whether another process has written to the file and told nothing, in seconds."""

BELLS_PER_TURN = 64
"""How many bells are heard before the event loop runs other callbacks."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class SqliteEventLog(EventLog):
    """Keeps events in a SQLite file; an append is durable (``synchronous=FULL``) before its ids are returned.

    What the event loop knows of the log (`head`, what a tail yields) is what was committed: the writer thread has
    reported it, or another process has told it (see `bells`), so no client is sent an event that a crash could undo.

    Where no other process has the file open, each channel's state is known here too. Where one has, the file is
    asked for it: another process may have changed it a moment ago.

    Args:
        path: the database file; it may be opened several times in a process only by objects of this class.
        retention: how much of each channel is kept.
    """

    def __init__(self, path: Path, retention: Retention | RetentionRules | None = None) -> None:
        self._path = path
        self._retention = retention_rules(retention)
        self._tails = Tails(self._following)
        self._kept_reads: SharedReads[Selection, Kept] = SharedReads()
        self._begin_reads: SharedReads[tuple[Selection, Beginning], tuple[float, Floors]] = SharedReads()
        self._epoch = ""
        self._seq = 0
        self._alone: Alone | None = None
        """The state of the channels, where no other process has been seen to have the log open."""
        self._told_at = 0.0
        """By the wall clock, when this process was last told how far the log goes."""
        self._looking = PeriodicCallback(self._look_if_untold, LOOK_INTERVAL)
        """Runs where another process has the log open."""
        self._available = False
        self._damage = ""
        """What is wrong with the file's content, once that has been found: only a restart looks at it anew."""
        self._prepared: SqliteWriter | None = None
        """A writer that has not been started yet."""
        self._writer: SqliteWriter | None = None
        self._closing = False
        self._bell: Bell | None = None
        """What has been heard, and comes after what the writer thread is about to report."""
        self._heard_bells = self._heard_bytes = 0
        """How much this process's bell has held since it was last empty."""
        self._appends: list[Append] = []
        """What the writer is given once the event loop has run what it runs just now."""
        self._unanswered = 0
        self._watching: asyncio.TimerHandle | None = None

    @property
    def head(self) -> EventId:
        return EventId(self._epoch, self._seq)

    @property
    def available(self) -> bool:
        return self._available and not self._damage

    async def prepare(self) -> None:
        newest = len(MIGRATIONS)
        # One of an older schema is left to the process that serves, which has to use it as it is.
        if schema_version(self._path, newest) == newest:
            self._prepare()

    def _prepare(self) -> None:
        try:
            writer = SqliteWriter(self._path, self._retention)
        except OSError as error:
            raise unusable(self._path, error) from error
        writer.prepare()
        try:
            self._reader = SqliteReader(self._path)
        except sqlite3.Error as error:
            writer.discard()
            raise unusable(self._path, error) from error
        self._prepared = writer

    async def open(self) -> None:
        if self._prepared is None:
            self._prepare()
        writer, self._prepared = self._prepared, None
        assert writer is not None
        self._loop = asyncio.get_running_loop()
        try:
            self._epoch, stored = writer.start()
        except BaseException:
            with without_checkpoint(self._path):  # of a file that may be damaged
                await self._reader.close()
            raise
        self._seq = stored.head
        self._told_at = time.time()
        self._tails.grown_to(self._seq)
        self._writer, self._closing = writer, False
        self._loop.add_reader(writer.reported, self._reported, writer)
        self._listen(writer)
        self._set_alone(stored if isinstance(stored, Alone) else None)
        self._available = True

    # -- what happens to the log ----------------------------------------------------------------------------

    def _listen(self, writer: SqliteWriter) -> None:
        if (descriptor := writer.bells.fileno()) >= 0:
            self._loop.add_reader(descriptor, self._take_reports, True)

    def _reported(self, writer: SqliteWriter) -> None:
        writer.reported.clear()
        self._take_reports()

    def _take_reports(self, rung: bool = False) -> None:
        """Take what the writer thread has reported and what other processes have rung, in log order.

        What one of the two says comes after all that the other has said by then of earlier events: both are told of
        a commit before the lock is released.

        Args:
            rung: whether this process's bell has been heard; else it is listened to where events are missing.
        """
        writer = self._writer
        if writer is None:
            return
        reports = writer.reports
        for _ in range(BELLS_PER_TURN):
            report = reports[0] if reports else None
            if self._bell is None and (rung or (report is not None and place(report) > self._seq + 1)):
                self._bell = self._receive(writer)
                rung = rung and self._bell is not None
            if report is None:
                if self._bell is None:
                    return
                if writer.reports:  # of a commit in between: the bell may have been rung before it or after
                    continue
            if report is not None and (self._bell is None or place(report) <= self._bell.previous + 1):
                reports.popleft()
                if isinstance(report, Commit):
                    self._committed(report)
                elif isinstance(report, Growth):
                    self._grown(report.head, report.seen_at)
                elif isinstance(report, Alone):
                    self._set_alone(report)
                else:
                    self._replace_bell(writer)
            elif self._bell is not None:
                bell, self._bell = self._bell, None
                self._heard(bell)
        self._loop.call_soon(self._take_reports, rung)

    def _receive(self, writer: SqliteWriter) -> Bell | None:
        bell = writer.bells.receive()
        if bell is not None:
            self._heard_bells += 1
            self._heard_bytes += sum(map(held_bytes, bell.events))
        elif self._heard_bells:
            if self._heard_bells >= MAX_QUEUED or self._heard_bytes >= MAX_BELL_BYTES:
                writer.look()  # it may have been full, and the last ones are missed
            self._heard_bells = self._heard_bytes = 0
        return bell

    def _heard(self, bell: Bell) -> None:
        """Take over what another process has committed."""
        if bell.events and bell.previous <= self._seq < bell.head:
            self._set_alone(None)
            self._publish(bell.events[self._seq - bell.previous :], time.time())
        else:
            self._grown(bell.head, time.time())
            if bell.previous == bell.head and self._writer is not None:
                self._writer.look()  # another process has opened the log, or it was not understood

    def _grown(self, head: int, seen_at: float = 0.0) -> None:
        """Take over that other processes have committed, up to an event.

        Args:
            head: the event's number.
            seen_at: a time by the wall clock up to which all that is in the file was seen: it may have been written to
                since, while this was on its way.
        """
        self._set_alone(None)
        self._told_at = max(self._told_at, seen_at)
        if head > self._seq:
            self._seq = head
            self._tails.grown_to(head)

    def _set_alone(self, alone: Alone | None) -> None:
        """Take over the state of the channels, or None where another process has the log open."""
        self._alone = alone
        if alone is None:
            self._looking.start()
        else:
            self._looking.stop()

    def use(self, retention: Retention | RetentionRules) -> None:
        self._retention = retention_rules(retention)
        if (writer := self._writer or self._prepared) is not None:
            writer.use(self._retention)

    def look(self) -> None:
        if self._writer is not None:
            self._writer.look()

    def _look_if_untold(self) -> None:
        """Have the file looked at, if it was written to after this process was last told of it.

        Who tells of a commit has seen all before it, so it is known then that nothing is missing.
        """
        if self._writer is not None and self._writer.may_be_written(self._told_at):
            self._writer.look()

    def _publish(self, events: list[Event], seen_at: float) -> None:
        self._told_at = max(self._told_at, seen_at)
        self._seq = max(self._seq, events[-1].seq)
        self._tails.publish(events)

    def _replace_bell(self, writer: SqliteWriter) -> None:
        """Make a bell anew, where others do not find the one that was made."""
        if (descriptor := writer.bells.fileno()) >= 0:
            self._loop.remove_reader(descriptor)
        with suppress(StateError):  # it is tried again, and the file is looked at all the same
            writer.bells.open()
        self._listen(writer)

    def _committed(self, commit: Commit) -> None:
        """Take over what the writer thread has done."""
        if commit.failure is not None or not self._available:
            self._set_available(commit.failure)
        if (alone := self._alone) is not None:
            alone.channels.update(commit.channels)
            if commit.forgotten is not None:
                self._alone = alone._replace(forgotten=commit.forgotten.until)
                for name in commit.forgotten.names:
                    alone.channels.pop(name, None)
        if commit.events:
            self._publish(commit.events, commit.seen_at)
        self._unanswered -= len(commit.outcomes)
        for future, outcome in commit.outcomes:
            if future.done():  # the publisher gave up waiting; its events are in the log all the same
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result([EventId(self._epoch, seq) for seq in outcome])

    def _watch(self) -> None:
        """Refuse the appends that wait too long for a process that does not release the lock."""
        self._watching = None
        if self._writer is not None:
            self._refuse(self._writer.overdue())
        if self._unanswered:
            self._watching = self._loop.call_later(WATCH_INTERVAL, self._watch)

    def _refuse(self, futures: list[asyncio.Future[list[EventId]]]) -> None:
        if futures:
            failure = EventLogUnavailable(
                "the event log cannot be written: another process does not release its lock"
            )
            self._committed(Commit(outcomes=[(future, failure) for future in futures], failure=failure))

    def _set_available(self, failure: Exception | None) -> None:
        """Note whether the last attempt to use the file succeeded, and log it where that has changed."""
        before = self.available
        self._available = failure is None
        if isinstance(failure, EventLogUnavailable) and is_damaged(failure.__cause__):
            self._damage = self._damage or str(failure)
        if before and failure is not None:
            log.error("event_log_unavailable", extra={"detail": str(failure)})
        elif self.available and not before:
            log.info("event_log_available")

    def _opened(self) -> SqliteWriter:
        if self._damage:
            raise EventLogUnavailable(self._damage)
        if self._writer is None or self._closing:
            raise EventLogUnavailable("the event log is closed")
        return self._writer

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        if self._tails.is_full:
            await self._tails.room()
        writer = self._opened()
        future: asyncio.Future[list[EventId]] = self._loop.create_future()
        # Were the thread woken for the first of many, the two would hand the interpreter's lock to and fro.
        if not self._appends:
            self._loop.call_soon(self._pass_on, writer)
        self._appends.append((events, key, future))
        self._unanswered += 1
        if self._watching is None:
            # While the log is available none can have waited too long before that: most are stored by then.
            delay = LOCK_TIMEOUT if self._available else WATCH_INTERVAL
            self._watching = self._loop.call_later(delay, self._watch)
        return await future

    def _pass_on(self, writer: SqliteWriter) -> None:
        """Give the writer all appends that wait."""
        writer.append(self._appends)
        self._appends.clear()

    async def lost(self, channels: Collection[str], position: EventId) -> dict[str, str]:
        if position.epoch != self._epoch:
            return dict.fromkeys(channels, "log_replaced")
        selection = selection_of(frozenset(channels))
        alone = self._alone
        if alone is not None and position.seq <= self._seq and not selection.patterns:
            known = ((name, alone.channels.get(name)) for name in selection.names)
            return {
                name: "history_trimmed"
                for name, state in known
                if position.seq < (state.trimmed if state else alone.forgotten)
            }
        kept = await self._kept_reads.get(selection, lambda: self._kept(selection))
        if position.seq > kept.head:  # that read may have begun before this event was stored
            kept = await self._kept(selection)
        if self._alone is None or position.seq > self._seq:
            self._catch_up(kept.head)
        if position.seq > self._seq:
            return dict.fromkeys(channels, "position_ahead")
        lost = takewhile(lambda channel: position.seq < channel[1], kept.channels)
        if not selection.patterns or position.seq >= kept.forgotten:
            return {name: "history_trimmed" for name, _ in lost}
        names = [name for name, _ in lost if name in selection.names]
        return dict.fromkeys([*(pattern.text for pattern in selection.patterns), *names], "history_trimmed")

    async def _kept(self, selection: Selection) -> Kept:
        return await self._read(lambda reader: reader.kept(selection))

    async def begin(self, channels: Collection[str], beginning: Beginning) -> Floors:
        asked = (selection_of(frozenset(channels)), beginning)
        asked_at = time.monotonic()
        read_at, floors = await self._begin_reads.get(asked, lambda: self._begin(*asked))
        if read_at < asked_at:  # it may know nothing of what has been stored since
            _, floors = await self._begin_reads.get(asked, lambda: self._begin(*asked))
        if self._alone is None:
            self._catch_up(floors.head.seq)
        return floors

    async def _begin(self, selection: Selection, beginning: Beginning) -> tuple[float, Floors]:
        """Return when the log was read, and the floors."""
        read_at = time.monotonic()
        now, kept = self._opened().now(), self._retention
        begun = await self._read(lambda reader: reader.begin(selection, beginning, now, kept))
        found, left = begun.channels, begun
        if (last := beginning.last) is not None and (types := beginning.types) is not None:
            # That may take long: between the channels others read theirs. What is trimmed meanwhile is told as a gap.
            found = []
            while left.channels:
                some = await self._read(
                    partial(SqliteReader.begin_with_types, begun=left, last=last, types=types)
                )
                found += some
                left = left._replace(channels=left.channels[len(some) :])
        head = EventId(self._epoch, begun.head)
        channels = ((name, floor, first) for name, _, floor, first in found)
        return read_at, floors_of(selection, head, begun.forgotten, channels)

    def _catch_up(self, head: int) -> None:
        """Take over how far the log goes, where it has been read from the file, after what has been told of it."""
        if head > self._seq:
            self._take_reports()
            if head > self._seq:
                self._grown(head)

    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        wanted = list(channels)
        if self._alone is not None and until <= self._seq:  # what is known here is complete so far
            known, forgotten = self._alone.channels, self._alone.forgotten
            wanted = [
                name
                for name in wanted
                if "*" in name
                or after < (state.last_seq if (state := known.get(ChannelName(name))) else forgotten)
            ]
        if not wanted:
            return Page([], False, False)
        selection = selection_of(frozenset(wanted))
        return await self._read(lambda reader: reader.page(selection, after, until, limit, floors))

    async def latest(self, channels: Collection[str], limit: int) -> list[Event]:
        selection = selection_of(frozenset(channels))
        return await self._read(lambda reader: reader.latest(selection, limit))

    async def ended(self) -> dict[ChannelName, int]:
        return await self._read(lambda reader: reader.ended())

    async def _read(self, work: Callable[[SqliteReader], T]) -> T:
        """Run ``work`` in the reader's thread, on one snapshot of the database.

        Raises:
            EventLogUnavailable: the log is closed, or cannot be read.
        """
        self._opened()
        try:
            return await self._reader.read(work)
        except sqlite3.Error as error:
            text = str(unusable(self._path, error)) if is_damaged(error) else str(error)
            failure = EventLogUnavailable(f"the event log cannot be read: {text}")
            failure.__cause__ = error
            if is_damaged(error):
                self._set_available(failure)
            raise failure from error

    async def names(self, pattern: str) -> list[ChannelName]:
        return await self._read(lambda reader: reader.names(ChannelPattern(pattern)))

    async def published(self, channel: ChannelName) -> tuple[int, int]:
        if self._alone is not None:
            state = self._alone.channels.get(channel)
            return (state.published, state.last_seq) if state else (0, 0)
        return await self._read(lambda reader: reader.published(channel))

    def tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        return self._tails.follow(after)

    async def _following(self, after: int) -> Page:
        return await self._read(lambda reader: reader.following(after))

    async def close(self) -> None:
        if (prepared := self._prepared) is not None:
            self._prepared = None
            prepared.discard()
            await self._reader.close()
        if (writer := self._writer) is not None and not self._closing:
            self._closing = True
            self._pass_on(writer)
            with without_checkpoint(self._path) if self._damage else nullcontext():
                self._refuse(await self._loop.run_in_executor(None, writer.stop))
                self._take_reports()
                self._writer = None
                await self._reader.close()
            self._looking.stop()
            if self._watching is not None:
                self._watching.cancel()
                self._watching = None
            if (descriptor := writer.bells.fileno()) >= 0:
                self._loop.remove_reader(descriptor)
            self._loop.remove_reader(writer.reported)
            writer.close()
        self._available = False
