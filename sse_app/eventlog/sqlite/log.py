"""The event log on SQLite: one writer thread whose commits are shared, and a reader thread for replay."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from heapq import merge
from pathlib import Path
from typing import Literal, TypeVar

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import EventLog, IdempotencyKey, Page, Retention, first_page, without_holes
from sse_app.eventlog.sqlite.schema import ChannelState, forgotten_until, head_of
from sse_app.eventlog.sqlite.writer import Commit, Forgotten, Growth, Report, SqliteWriter
from sse_app.eventlog.tail import TAIL_EVENTS, Tails
from sse_app.storage.sqlite import connect, content_of_ours, is_damaged, unusable, without_checkpoint

MAX_SEQ = 2**63 - 1

T = TypeVar("T")

log = logging.getLogger(__name__)


class SqliteEventLog(EventLog):
    """Keeps events in a SQLite file; an append is durable (``synchronous=FULL``) before its ids are returned.

    What the event loop knows of the log (`head`, each channel's state) is what the writer thread has reported
    after it was committed, so no client is sent an event that a crash could still undo.

    Other processes may append to the same file. What they commit is noticed at once where this process appends
    too, and else within a fraction of a second; the tail then reads it from the file.

    Args:
        path: the database file; it may be opened several times in a process only by objects of this class.
        retention: how much of each channel is kept.
    """

    def __init__(self, path: Path, retention: Retention | None = None) -> None:
        self._path = path
        self._retention = retention or Retention()
        self._tails = Tails(self._following)
        self._epoch = ""
        self._seq = 0
        self._channels: dict[ChannelName, ChannelState] = {}
        self._shared = False
        """Whether another process has been seen to append."""
        self._available = False
        self._damage = ""
        """What is wrong with the file's content, once that has been found: only a restart looks at it anew."""
        self._writer: SqliteWriter | None = None

    @property
    def head(self) -> EventId:
        return EventId(self._epoch, self._seq)

    @property
    def available(self) -> bool:
        return self._available and not self._damage

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        writer = SqliteWriter(self._path, self._retention, lambda report: self._report(loop, report))
        self._epoch, stored = writer.start()
        self._seq, self._channels, self._forgotten = stored.head, stored.channels, stored.forgotten.until
        self._tails.grown_to(self._seq)
        try:
            self._reader = connect(self._path)
        except sqlite3.Error as error:
            writer.stop()
            raise unusable(self._path, error) from error
        self._writer = writer
        self._cursors: list[sqlite3.Cursor] = []
        self._reading = ThreadPoolExecutor(1, "eventlog-reader")
        self._available = True

    def _report(self, loop: asyncio.AbstractEventLoop, report: Report) -> None:
        """Hand on what the writer thread reports; it comes to the event loop in the same order."""
        try:
            if isinstance(report, Commit):
                loop.call_soon_threadsafe(self._committed, report)
            elif isinstance(report, Growth):
                loop.call_soon_threadsafe(self._grown, report)
            else:
                loop.call_soon_threadsafe(_resolve, report.future, report.failure)
        except RuntimeError:
            if not loop.is_closed():  # else the tasks that waited for the report are gone too
                raise

    def _grown(self, growth: Growth) -> None:
        """Take over what other processes have done."""
        self._shared = True
        self._forget(growth.forgotten)
        self._channels.update(growth.channels)
        self._seq = growth.head
        self._tails.grown_to(growth.head)

    def _forget(self, forgotten: Forgotten) -> None:
        self._forgotten = forgotten.until
        for name in forgotten.names:
            self._channels.pop(name, None)

    async def _look(self) -> None:
        """Have what other processes have committed reported."""
        writer = self._opened()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        writer.look(future)
        await future

    def _committed(self, commit: Commit) -> None:
        """Take over what the writer thread has done, on the event loop."""
        self._set_available(commit.failure)
        if commit.forgotten is not None:
            self._forget(commit.forgotten)
        self._channels.update(commit.channels)
        if commit.events:
            self._seq = commit.events[-1].seq
            self._tails.publish(commit.events)
        for future, outcome in commit.outcomes:
            if future.done():  # the publisher gave up waiting; its events are in the log all the same
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result([EventId(self._epoch, seq) for seq in outcome])

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
        if self._writer is None:
            raise EventLogUnavailable("the event log is closed")
        return self._writer

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        await self._tails.room()
        writer = self._opened()
        future: asyncio.Future[list[EventId]] = asyncio.get_running_loop().create_future()
        writer.append(events, key, future)
        return await future

    async def lost(self, channels: Collection[ChannelName], position: EventId) -> dict[ChannelName, str]:
        if position.epoch != self._epoch:
            return dict.fromkeys(channels, "log_replaced")
        if self._shared or position.seq > self._seq:
            await self._look()
        if position.seq > self._seq:
            return dict.fromkeys(channels, "position_ahead")
        known = ((name, self._channels.get(name)) for name in channels)
        return {
            name: "history_trimmed"
            for name, state in known
            if position.seq < (state.trimmed if state else self._forgotten)
        }

    async def replay(self, channels: Collection[ChannelName], after: int, until: int, limit: int) -> Page:
        wanted = list(channels)
        if until <= self._seq:  # what this process remembers is complete so far
            wanted = [
                name
                for name in wanted
                if after < (state.last_seq if (state := self._channels.get(name)) else self._forgotten)
            ]
        if not wanted:
            return Page([], False, False)
        return await self._read(lambda: self._page(wanted, after, until, limit))

    async def latest(self, channel: ChannelName, limit: int) -> list[Event]:
        page = await self._read(lambda: self._page([channel], 0, MAX_SEQ, limit, "DESC"))
        return page.events[::-1]

    async def _read(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the reader's thread, on one snapshot of the database."""
        self._opened()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, self._on_snapshot, work)
        except sqlite3.Error as error:
            text = str(unusable(self._path, error)) if is_damaged(error) else str(error)
            failure = EventLogUnavailable(f"the event log cannot be read: {text}")
            failure.__cause__ = error
            if is_damaged(error):
                self._set_available(failure)
            raise failure from error

    def _on_snapshot(self, work: Callable[[], T]) -> T:
        self._reader.execute("BEGIN")
        try:
            with content_of_ours():
                return work()
        finally:
            for cursor in self._cursors:
                cursor.close()
            self._cursors.clear()
            self._reader.execute("COMMIT")

    def _page(
        self,
        channels: list[ChannelName],
        after: int,
        until: int,
        limit: int,
        order: Literal["ASC", "DESC"] = "ASC",
    ) -> Page:
        """Merge the channels' events, each read in order by the index, so that no query sorts or scans."""
        gap = False
        pasts = []
        for name in channels:
            row = self._reader.execute("SELECT id, trimmed FROM channels WHERE name = ?", (name,)).fetchone()
            if row is None:
                gap = gap or after < forgotten_until(self._reader)
            else:
                id, trimmed = row
                gap = gap or after < trimmed
                pasts.append(self._select(name, id, max(after, trimmed), until, order, limit + 1))
        return first_page(merge(*pasts), limit, gap=gap)

    def _select(
        self, name: ChannelName, id: int, after: int, until: int, order: Literal["ASC", "DESC"], limit: int
    ) -> Iterator[Event]:
        rows = self._reader.execute(
            "SELECT seq, type, data, retry FROM events WHERE channel = ? AND seq > ? AND seq <= ? "
            f"ORDER BY seq {order} LIMIT ?",
            (id, after, until, limit),
        )
        self._cursors.append(rows)
        return (Event(seq, name, type, data, retry) for seq, type, data, retry in rows)

    async def published(self, channel: ChannelName) -> tuple[int, int]:
        if self._shared:
            await self._look()
        state = self._channels.get(channel)
        return (state.published, state.last_seq) if state else (0, 0)

    def tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        return self._tails.follow(after)

    async def _following(self, after: int) -> Page:
        return await self._read(lambda: self._page_of_all(after))

    def _page_of_all(self, after: int) -> Page:
        """Return the first events after a position, of all channels."""
        rows = self._reader.execute(
            "SELECT seq, name, type, data, retry FROM events CROSS JOIN channels ON channels.id = channel "
            "WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, TAIL_EVENTS + 1),
        )
        self._cursors.append(rows)
        return without_holes(
            first_page((Event(*row) for row in rows), TAIL_EVENTS), after, self._head_in_file
        )

    def _head_in_file(self) -> int:
        return head_of(self._reader)

    async def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            loop = asyncio.get_running_loop()
            with without_checkpoint(self._path) if self._damage else nullcontext():
                await loop.run_in_executor(None, writer.stop)
                await loop.run_in_executor(self._reading, self._reader.close)
            self._reading.shutdown()
        self._available = False


def _resolve(future: asyncio.Future[None], failure: Exception | None) -> None:
    if future.done():  # its task was cancelled
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
