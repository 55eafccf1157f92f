"""The thread that reads the SQLite event log: pages of the past, and what is known of channels."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from heapq import merge
from pathlib import Path
from typing import Literal, TypeVar

from sse_app.core.channels import ChannelName
from sse_app.core.events import Event
from sse_app.eventlog.base import MAX_SEQ, NO_FLOORS, Page, first_page, without_holes
from sse_app.eventlog.sqlite.schema import forgotten_until, head_of
from sse_app.eventlog.tail import TAIL_EVENTS
from sse_app.storage.sqlite import connect, content_of_ours

T = TypeVar("T")


class SqliteReader:
    """Owns a connection that reads. Its methods, but for `read` and `close`, run in its thread, as work of `read`.

    Args:
        path: the database file.

    Raises:
        sqlite3.Error: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._database = connect(path)
        self._cursors: list[sqlite3.Cursor] = []
        self._thread = ThreadPoolExecutor(1, "eventlog-reader")

    async def read(self, work: Callable[[SqliteReader], T]) -> T:
        """Run ``work`` in the thread, on one snapshot of the database, and return what it returns.

        Raises:
            sqlite3.Error: the database cannot be read.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._on_snapshot, work)

    def _on_snapshot(self, work: Callable[[SqliteReader], T]) -> T:
        self._database.execute("BEGIN")
        try:
            with content_of_ours():
                return work(self)
        finally:
            for cursor in self._cursors:
                cursor.close()
            self._cursors.clear()
            self._database.execute("COMMIT")

    async def close(self) -> None:
        """Close the connection, after what is being read, and end the thread."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
        self._thread.shutdown()

    def head_and_trimmed(self, channels: Collection[str]) -> tuple[int, dict[str, int]]:
        """Return the ``seq`` of the last event of all, and that up to which each channel has lost its events."""
        forgotten = forgotten_until(self._database)
        rows = (
            self._database.execute("SELECT trimmed FROM channels WHERE name = ?", (name,)).fetchone()
            for name in channels
        )
        trimmed = {name: int(row[0]) if row else forgotten for name, row in zip(channels, rows, strict=True)}
        return head_of(self._database), trimmed

    def page(
        self,
        channels: list[ChannelName],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        """Return the first events of the channels with ``after < seq <= until``, and whether some are missing."""
        return self._page(channels, after, until, limit, "ASC", floors)

    def latest(self, channels: list[ChannelName], limit: int) -> list[Event]:
        """Return the last events of channels, the oldest of them first."""
        return self._page(channels, 0, MAX_SEQ, limit, "DESC").events[::-1]

    def _page(
        self,
        channels: list[ChannelName],
        after: int,
        until: int,
        limit: int,
        order: Literal["ASC", "DESC"],
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        """Merge the channels' events, each read in order by the index, so that no query sorts or scans."""
        gap = False
        pasts = []
        for name in channels:
            row = self._database.execute(
                "SELECT id, trimmed FROM channels WHERE name = ?", (name,)
            ).fetchone()
            floor = max(after, floors.get(name, 0))
            if row is None:
                gap = gap or floor < forgotten_until(self._database)
            else:
                id, trimmed = row
                gap = gap or floor < trimmed
                pasts.append(self._select(name, id, max(floor, trimmed), until, order, limit + 1))
        return first_page(merge(*pasts, reverse=order == "DESC"), limit, gap=gap)

    def _select(
        self, name: ChannelName, id: int, after: int, until: int, order: Literal["ASC", "DESC"], limit: int
    ) -> Iterator[Event]:
        rows = self._database.execute(
            "SELECT seq, type, data, retry FROM events WHERE channel = ? AND seq > ? AND seq <= ? "
            f"ORDER BY seq {order} LIMIT ?",
            (id, after, until, limit),
        )
        self._cursors.append(rows)
        return (Event(seq, name, type, data, retry) for seq, type, data, retry in rows)

    def following(self, after: int) -> Page:
        """Return the first events after a position, of all channels."""
        rows = self._database.execute(
            "SELECT seq, name, type, data, retry FROM events CROSS JOIN channels ON channels.id = channel "
            "WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, TAIL_EVENTS + 1),
        )
        self._cursors.append(rows)
        page = first_page((Event(*row) for row in rows), TAIL_EVENTS)
        return without_holes(page, after, lambda: head_of(self._database))

    def published(self, channel: ChannelName) -> tuple[int, int]:
        """Return how many events a channel has had, and the ``seq`` of the last one; 0 where it is not known."""
        row = self._database.execute(
            "SELECT published, last_seq FROM channels WHERE name = ?", (channel,)
        ).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)
