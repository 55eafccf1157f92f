"""The event log on SQLite: one writer thread whose commits are shared, and a reader thread for replay."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import merge
from pathlib import Path
from typing import Literal, TypeVar

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import EventLog, IdempotencyKey, Page, Retention, first_page
from sse_app.eventlog.sqlite.schema import ChannelState
from sse_app.eventlog.sqlite.writer import Commit, SqliteWriter
from sse_app.eventlog.tail import Tails
from sse_app.storage.sqlite import connect

MAX_SEQ = 2**63 - 1

T = TypeVar("T")


class SqliteEventLog(EventLog):
    """Keeps events in a SQLite file; an append is durable (``synchronous=FULL``) before its ids are returned.

    The writer thread owns the truth; what the event loop knows of it (`head`, each channel's state) is what
    has been committed and reported, so nobody is told of an event that a crash could still take back.

    Args:
        path: the database file.
        retention: how much of each channel is kept.
    """

    def __init__(self, path: Path, retention: Retention | None = None) -> None:
        self._path = path
        self._retention = retention or Retention()
        self._tails = Tails()
        self._epoch = ""
        self._seq = 0
        self._channels: dict[ChannelName, ChannelState] = {}
        self._available = False
        self._writer: SqliteWriter | None = None

    @property
    def head(self) -> EventId:
        return EventId(self._epoch, self._seq)

    @property
    def available(self) -> bool:
        return self._available

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        writer = SqliteWriter(self._path, self._retention, lambda commit: self._report(loop, commit))
        self._epoch, self._seq, self._channels = writer.start()
        self._writer = writer
        self._reader = connect(self._path)
        self._cursors: list[sqlite3.Cursor] = []
        self._reading = ThreadPoolExecutor(1, "eventlog-reader")
        self._available = True

    def _report(self, loop: asyncio.AbstractEventLoop, commit: Commit) -> None:
        try:
            loop.call_soon_threadsafe(self._committed, commit)
        except RuntimeError:
            if not loop.is_closed():  # the loop is gone, and whoever waited for the commit with it
                raise

    def _committed(self, commit: Commit) -> None:
        """Take over what the writer thread has done, on the event loop."""
        self._available = commit.failure is None
        self._channels.update(commit.channels)
        if commit.events:
            self._seq = commit.events[-1].seq
            self._tails.publish(commit.events)
        for future, outcome in commit.outcomes:
            if future.done():  # the publisher gave up waiting; its events stand all the same
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result([EventId(self._epoch, seq) for seq in outcome])

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        await self._tails.room()
        if self._writer is None:
            raise EventLogUnavailable("the event log is closed")
        future: asyncio.Future[list[EventId]] = asyncio.get_running_loop().create_future()
        self._writer.append(events, key, future)
        return await future

    async def lost(self, channels: Collection[ChannelName], position: EventId) -> dict[ChannelName, str]:
        if position.epoch != self._epoch:
            return dict.fromkeys(channels, "log_replaced")
        if position.seq > self._seq:
            return dict.fromkeys(channels, "position_ahead")
        known = ((name, self._channels.get(name)) for name in channels)
        return {name: "history_trimmed" for name, state in known if state and position.seq < state.trimmed}

    async def replay(self, channels: Collection[ChannelName], after: int, until: int, limit: int) -> Page:
        wanted = [
            (name, state.id)
            for name in channels
            if (state := self._channels.get(name)) is not None and state.last_seq > after
        ]
        return (
            await self._read(lambda: self._page(wanted, after, until, limit))
            if wanted
            else Page([], False, False)
        )

    async def latest(self, channel: ChannelName, limit: int) -> list[Event]:
        state = self._channels.get(channel)
        if state is None:
            return []
        page = await self._read(
            lambda: first_page(self._select(channel, state.id, 0, MAX_SEQ, "DESC", limit), limit)
        )
        return page.events[::-1]

    async def _read(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the reader's thread, on one snapshot of the database."""
        if self._writer is None:
            raise EventLogUnavailable("the event log is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, self._on_snapshot, work)
        except sqlite3.Error as error:
            raise EventLogUnavailable(f"the event log cannot be read: {error}") from error

    def _on_snapshot(self, work: Callable[[], T]) -> T:
        self._reader.execute("BEGIN")
        try:
            return work()
        finally:
            for cursor in self._cursors:
                cursor.close()
            self._cursors.clear()
            self._reader.execute("COMMIT")

    def _page(self, channels: list[tuple[ChannelName, int]], after: int, until: int, limit: int) -> Page:
        """Merge the channels' events, each read in order by the index, so that no query sorts or scans."""
        gap = any(after < self._trimmed(id) for _, id in channels)
        pasts = [self._select(name, id, after, until, "ASC", limit + 1) for name, id in channels]
        return first_page(merge(*pasts), limit, gap=gap)

    def _trimmed(self, id: int) -> int:
        """Return the ``seq`` of a channel's last event that is no longer kept, as of the snapshot."""
        return int(self._reader.execute("SELECT trimmed FROM channels WHERE id = ?", (id,)).fetchone()[0])

    def _select(
        self, name: ChannelName, id: int, after: int, until: int, order: Literal["ASC", "DESC"], limit: int
    ) -> Iterator[Event]:
        rows = self._reader.execute(
            "SELECT seq, type, data, retry FROM events WHERE channel = ? AND seq > ? AND seq <= ? "
            f"ORDER BY seq {order} LIMIT ?",
            (id, max(after, self._trimmed(id)), until, limit),
        )
        self._cursors.append(rows)
        return (Event(seq, name, type, data, retry) for seq, type, data, retry in rows)

    async def published(self, channel: ChannelName) -> tuple[int, int]:
        state = self._channels.get(channel)
        return (state.published, state.last_seq) if state else (0, 0)

    def tail(self) -> AsyncIterator[list[Event]]:
        return self._tails.follow()

    async def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, writer.stop)
            await loop.run_in_executor(self._reading, self._reader.close)
            self._reading.shutdown()
        self._available = False
