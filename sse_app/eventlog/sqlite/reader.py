"""The thread that reads the SQLite event log: pages of the past, and what is known of channels."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from heapq import merge
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from sse_app.core.channels import ChannelName, ChannelPattern, is_internal
from sse_app.core.events import FINAL, Event
from sse_app.core.json_text import to_json
from sse_app.core.selection import Selection
from sse_app.eventlog.base import (
    MAX_SEQ,
    NO_FLOORS,
    Beginning,
    Page,
    RetentionRules,
    first_page,
    without_holes,
)
from sse_app.eventlog.sqlite.schema import forgotten_until, head_of
from sse_app.eventlog.tail import TAIL_EVENTS
from sse_app.storage.sqlite import connect, content_of_ours

MAX_CURSORS = 64
"""So many channels are each read by the index; of more, the log is looked through, of which they are much then."""

SCAN_EVENTS = 5_000
"""How many events are looked at for a page of many channels."""

_OF_PATTERN = "name >= :begin AND name < :end AND name GLOB :glob"
"""Finds in the index of names those that a pattern may cover: those that begin like all that it covers."""

_BEGINNINGS = (
    "WITH kept AS MATERIALIZED "
    "(SELECT name, id, max(trimmed, :before, {too_old}) AS bound FROM channels WHERE {which}), "
    "found AS MATERIALIZED (SELECT name, id, max(bound, {last}) AS floor FROM kept) "
    "SELECT name, id, floor, ifnull("
    "(SELECT seq FROM events WHERE channel = id AND seq > floor ORDER BY seq LIMIT 1), 0) FROM found"
)
"""What a `Begun` has of channels."""

_LAST = "ifnull((SELECT seq FROM events WHERE channel = id AND seq > bound ORDER BY seq DESC LIMIT 1 OFFSET :last), 0)"

_LAST_OF_TYPES = (
    "SELECT min(seq) FROM (SELECT seq FROM events WHERE channel = ? AND seq > ? AND seq <= ? "
    "AND type IN (SELECT value FROM json_each(?)) ORDER BY seq DESC LIMIT ?)"
)

WALK_TIME = 0.02
"""For how many seconds events of some types are looked for before something else is read."""

T = TypeVar("T")


class Kept(NamedTuple):
    """What the log had lost at one moment: each channel's ``seq`` up to which it keeps no event, the last first.

    Of channels that a pattern covers only those are there that have lost any.
    """

    head: int
    forgotten: int
    channels: list[tuple[ChannelName, int]]


class Begun(NamedTuple):
    """From where on the events of channels are that a stream begins with.

    Args:
        head: of the log.
        forgotten: the ``seq`` of the last event of any channel that was forgotten.
        channels: of each that there is its name and id, the ``seq`` that its events follow, and that of the first of
            them (0: there is none).
    """

    head: int
    forgotten: int
    channels: list[tuple[ChannelName, int, int, int]]


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
        self._were_too_old: dict[float, int] = {}
        """By an age, the last event that was older when that was asked last."""
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

    def kept(self, selection: Selection) -> Kept:
        """Return up to where the channels of a selection have lost their events."""
        forgotten = forgotten_until(self._database)
        lost: dict[ChannelName, int] = {}
        for pattern in selection.patterns:
            lost.update(self._channels_of(pattern, "name, trimmed", "trimmed > 0"))
        for name in selection.names:
            row = self._database.execute("SELECT trimmed FROM channels WHERE name = ?", (name,)).fetchone()
            lost[name] = int(row[0]) if row else forgotten
        by_loss = sorted(lost.items(), key=itemgetter(1), reverse=True)
        return Kept(head_of(self._database), forgotten, by_loss)

    def begin(
        self, selection: Selection, beginning: Beginning, now: float, retention: RetentionRules
    ) -> Begun:
        """Return from where on the channels' events follow for a stream that begins in the past, whatever their types.

        Args:
            selection: the channels.
            beginning: of the stream.
            now: the time by which events are dated.
            retention: how much of each channel is kept; what is too old may not have been erased yet.
        """
        since = max(beginning.since or 0.0, 0.0 if beginning.ago is None else now - beginning.ago)
        before = max(self._last_before(since), self._too_old(retention.longest_age, now))
        parameters: dict[str, object] = {"before": before, "last": beginning.last}
        counts = beginning.last is not None and beginning.types is None
        last, too_old = _LAST if counts else "0", "0"
        if len(retention.ages) > 1:
            expired = {age: self._too_old(age, now) for age in retention.ages}
            self._database.create_function("too_old", 1, lambda name: expired[retention.of(name).age])
            too_old = "too_old(name)"
        found: list[tuple[ChannelName, int, int, int]] = []
        for pattern in selection.patterns:
            statement = _BEGINNINGS.format(too_old=too_old, last=last, which=_OF_PATTERN)
            rows = self._database.execute(statement, parameters | _range_of(pattern))
            found += (row for row in self._covered(rows, pattern) if row[0] not in selection.names)
        statement = _BEGINNINGS.format(too_old=too_old, last=last, which="name = :name")
        for name in selection.names:
            found += self._database.execute(statement, parameters | {"name": name})
        return Begun(head_of(self._database), forgotten_until(self._database), found)

    def begin_with_types(
        self, begun: Begun, last: int, types: Collection[str]
    ) -> list[tuple[ChannelName, int, int, int]]:
        """Return from where on the last events of some types are, of the first channels: as many as take a while.

        Args:
            begun: the channels, and from where on all of their events are.
            last: how many events of each.
            types: those that count.
        """
        until = time.monotonic() + WALK_TIME
        found: list[tuple[ChannelName, int, int, int]] = []
        for name, id, floor, _ in begun.channels:
            (seq,) = self._database.execute(
                _LAST_OF_TYPES, (id, floor, begun.head, to_json(list(types)).decode(), last)
            ).fetchone()
            found.append((name, id, begun.head if seq is None else seq - 1, seq or 0))
            if time.monotonic() > until:
                break
        return found

    def _too_old(self, age: float, now: float) -> int:
        """Return the ``seq`` of the last event that is older than an age: not far behind that of the last time."""
        self._were_too_old[age] = seq = self._last_before(now - age, self._were_too_old.get(age, 0), step=1)
        return seq

    def _last_before(self, time: float, known: int = 0, step: int = MAX_SEQ) -> int:
        """Return the ``seq`` of the last event of before a time: they are dated in order, but have no index of that.

        Args:
            time: by which events are dated.
            known: an event of before that time, or 0.
            step: by how much to begin with, where it is expected not to be far from there.
        """
        low, high = known, head_of(self._database) if time > 0 else 0
        while low < high:
            middle = min(low + step, (low + high + 1) // 2)
            row = self._database.execute(
                "SELECT seq, at FROM events WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,)
            ).fetchone()
            if row is not None and row[1] < time:
                low = int(row[0])
                step *= 2
            else:
                high = middle - 1
        return low

    def _channels_of(
        self, pattern: ChannelPattern, columns: str, condition: str, **parameters: object
    ) -> Iterator[tuple[Any, ...]]:
        """Yield columns, ``name`` first, of the channels of a pattern for which a condition holds."""
        rows = self._database.execute(
            f"SELECT {columns} FROM channels WHERE {_OF_PATTERN} AND {condition}",
            parameters | _range_of(pattern),
        )
        return self._covered(rows, pattern)

    def _covered(self, rows: sqlite3.Cursor, pattern: ChannelPattern) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of which the first column is the name of a channel of the pattern."""
        self._cursors.append(rows)
        return (row for row in rows if pattern.matches(row[0]) and not is_internal(row[0]))

    def page(
        self,
        selection: Selection,
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        """Return the first events of channels with ``after < seq <= until``, and whether some are missing."""
        gap = False
        begins: dict[int, tuple[ChannelName, int]] = {}
        for name in selection.names:
            row = self._database.execute(
                "SELECT id, trimmed FROM channels WHERE name = ?", (name,)
            ).fetchone()
            floor = max(after, floors.get(name, 0))
            if row is None:
                gap = gap or floor < forgotten_until(self._database)
            else:
                id, trimmed = row
                gap = gap or floor < trimmed
                begins[id] = (name, max(floor, trimmed))
        if selection.patterns:
            gap = gap or self._have_lost(selection, after, floors)
            for pattern in selection.patterns:
                # Of a channel without an event after the position there is nothing to be read.
                rows = self._channels_of(pattern, "name, id, trimmed", "last_seq > :after", after=after)
                for name, id, trimmed in rows:
                    begins[id] = (name, max(after, trimmed, selection.floor(floors, name)))
                    if len(begins) > MAX_CURSORS:
                        return self._scan(selection, after, until, limit, floors, gap)
        pasts = (
            self._select(name, id, floor, until, "ASC", limit + 1) for id, (name, floor) in begins.items()
        )
        return first_page(merge(*pasts), limit, gap=gap)

    def _have_lost(self, selection: Selection, after: int, floors: Mapping[str, int]) -> bool:
        """Return whether a channel of the patterns has lost events after the position and its floor, or may have."""
        forgotten = forgotten_until(self._database)
        if any(max(after, floors.get(pattern.text, 0)) < forgotten for pattern in selection.patterns):
            return True
        if (
            after < forgotten
            and any(  # a channel that was there when the stream began, and was forgotten since
                floor < forgotten and "*" not in name and not self._knows(name)
                for name, floor in floors.items()
            )
        ):
            return True
        return any(
            max(after, selection.floor(floors, name)) < trimmed
            for pattern in selection.patterns
            for name, trimmed in self._channels_of(pattern, "name, trimmed", "trimmed > :after", after=after)
        )

    def _knows(self, name: str) -> bool:
        row = self._database.execute("SELECT 1 FROM channels WHERE name = ?", (name,)).fetchone()
        return row is not None

    def _scan(
        self,
        selection: Selection,
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int],
        gap: bool,
    ) -> Page:
        """Return the first events of many channels, found among the first of all channels."""
        looked = after
        more = False

        def found() -> Iterator[Event]:
            nonlocal looked, more
            count = 0
            begins: dict[int, tuple[ChannelName, int] | None] = {}
            rows = self._database.execute(
                "SELECT seq, channel FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
                (after, until, SCAN_EVENTS),
            )
            self._cursors.append(rows)
            for seq, id in rows:
                if id not in begins:
                    begins[id] = self._begin_of(id, selection, floors)
                if (begin := begins[id]) is not None and seq > begin[1]:
                    row = self._database.execute(
                        "SELECT type, data, retry, flags FROM events WHERE seq = ?", (seq,)
                    ).fetchone()
                    yield Event(seq, begin[0], *row)
                looked, count = seq, count + 1
            more = count == SCAN_EVENTS

        page = first_page(found(), limit, gap=gap)
        return page if page.more else page._replace(more=more, looked=looked)

    def _begin_of(
        self, id: int, selection: Selection, floors: Mapping[str, int]
    ) -> tuple[ChannelName, int] | None:
        """Return a channel's name, and which ``seq`` its events follow; None where it is not of the selection."""
        name, trimmed = self._database.execute(
            "SELECT name, trimmed FROM channels WHERE id = ?", (id,)
        ).fetchone()
        return (name, max(trimmed, selection.floor(floors, name))) if selection.covers(name) else None

    def latest(self, selection: Selection, limit: int) -> list[Event]:
        """Return the last events of channels, the oldest of them first."""
        channels: dict[ChannelName, tuple[int, int, int]] = {}
        for name in selection.names:
            row = self._database.execute(
                "SELECT last_seq, id, trimmed FROM channels WHERE name = ?", (name,)
            ).fetchone()
            if row is not None:
                channels[name] = row
        for pattern in selection.patterns:
            # No more channels than events can have one of the last events.
            last = self._channels_of(
                pattern, "name, last_seq, id, trimmed", "last_seq > trimmed ORDER BY last_seq DESC"
            )
            channels.update((name, tuple(row)) for name, *row in islice(last, limit))
        by_last = sorted(((*row, name) for name, row in channels.items()), reverse=True)[:limit]
        pasts = (
            self._select(name, id, trimmed, MAX_SEQ, "DESC", limit + 1) for _, id, trimmed, name in by_last
        )
        return first_page(merge(*pasts, reverse=True), limit).events[::-1]

    def _select(
        self, name: ChannelName, id: int, after: int, until: int, order: Literal["ASC", "DESC"], limit: int
    ) -> Iterator[Event]:
        """Yield a channel's events in order by the index, so that no query sorts or scans."""
        rows = self._database.execute(
            "SELECT seq, type, data, retry, flags FROM events WHERE channel = ? AND seq > ? AND seq <= ? "
            f"ORDER BY seq {order} LIMIT ?",
            (id, after, until, limit),
        )
        self._cursors.append(rows)
        return (Event(seq, name, type, data, retry, flags) for seq, type, data, retry, flags in rows)

    def ended(self) -> dict[ChannelName, int]:
        """Return the channels whose last event is `FINAL` and still kept, each with its ``seq``."""
        rows = self._database.execute(  # as the index has it: the flag is no parameter
            "SELECT name, seq FROM events INDEXED BY final_events CROSS JOIN channels ON id = channel "
            f"WHERE flags & {FINAL} AND seq = last_seq AND seq > trimmed"
        )
        return {ChannelName(name): int(seq) for name, seq in rows}

    def following(self, after: int) -> Page:
        """Return the first events after a position, of all channels."""
        rows = self._database.execute(
            "SELECT seq, name, type, data, retry, flags FROM events CROSS JOIN channels ON channels.id = channel "
            "WHERE seq > ? ORDER BY seq LIMIT ?",
            (after, TAIL_EVENTS + 1),
        )
        self._cursors.append(rows)
        page = first_page((Event(*row) for row in rows), TAIL_EVENTS)
        return without_holes(page, after, lambda: head_of(self._database))

    def names(self, pattern: ChannelPattern) -> list[ChannelName]:
        """Return the channels that a pattern covers."""
        return [ChannelName(name) for (name,) in self._channels_of(pattern, "name", "true")]

    def published(self, channel: ChannelName) -> tuple[int, int]:
        """Return how many events a channel has had, and the ``seq`` of the last one; 0 where it is not known."""
        row = self._database.execute(
            "SELECT published, last_seq FROM channels WHERE name = ?", (channel,)
        ).fetchone()
        return (int(row[0]), int(row[1])) if row else (0, 0)


def _range_of(pattern: ChannelPattern) -> dict[str, object]:
    """Return the parameters of `_OF_PATTERN`; no name has a tilde, or a character that comes after it."""
    open_end = pattern.text.endswith(".**")  # which also stands for nothing
    glob = pattern.text.removesuffix(".**") + "*" * open_end
    return {"begin": pattern.prefix, "end": f"{pattern.prefix}~", "glob": glob}
