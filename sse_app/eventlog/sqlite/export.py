"""Reads a SQLite event log from its beginning to its end, also while servers append to it, for a copy elsewhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sse_app.eventlog.base import LogClock
from sse_app.eventlog.sqlite.schema import LogState, clock_of, log_state
from sse_app.storage.sqlite import connect, content_of_ours, unusable

PAGE_EVENTS = 5_000
"""How many events are read at once: the write-ahead log cannot begin anew while they are."""

PAGE_BYTES = 4 * 1024 * 1024
"""How much data is read at once."""

PAGE_ANSWERS = 5_000
"""How many answers to idempotency keys are read at once."""

Answer = tuple[str, str, bytes, int, int, float]
"""The subject, the key, the digest, the ``seq`` of the first event, the number of events, the time."""


class StoredEvent(NamedTuple):
    """An event as the log keeps it; ``n`` is its ordinal in its channel, from 1."""

    seq: int
    channel: str
    n: int
    type: str
    data: bytes
    retry: int | None
    at: float
    flags: int


class StoredChannel(NamedTuple):
    """What the log keeps of a channel; the first events, ``removed`` in number, up to ``trimmed``, are gone."""

    name: str
    published: int
    last_seq: int
    trimmed: int
    removed: int


class ExportPage(NamedTuple):
    """Events that follow a position, and what is kept of their channels; all of one moment.

    After the last events there are all channels, and the state of the log.
    """

    events: list[StoredEvent]
    channels: list[StoredChannel]
    log: LogState | None


class Export:
    """Reads an event log through a connection of its own, in transactions that are short.

    Args:
        path: the log's file, which a connection has opened and migrated before.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = connect(path)
        self._ordinals: dict[int, tuple[int, int]] = {}
        """By the number of a channel: the ``seq`` and the ordinal of the last event of it that was read."""

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Have all that is read be of one moment.

        Raises:
            StateError: it cannot be read, or is damaged.
        """
        try:
            with content_of_ours():
                self._db.execute("BEGIN")
                try:
                    yield self._db
                finally:
                    self._db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise unusable(self.path, error) from error

    def state(self) -> LogState | None:
        """Return the state of the log, or None where it has not even an epoch."""
        with self._reading() as db:
            there = db.execute("SELECT 1 FROM log").fetchone() is not None
            return log_state(db) if there else None

    def clock(self) -> LogClock:
        """Return the clock by which the log dates its events, which is not behind its last one."""
        with self._reading() as db:
            clock = clock_of(db) or LogClock()
            clock.follow(log_state(db).last_at)
        return clock

    def count(self, after: int) -> int:
        """Return how many events there are after a position."""
        with self._reading() as db:
            (events,) = db.execute("SELECT count(*) FROM events WHERE seq > ?", (after,)).fetchone()
        return int(events)

    def page(self, after: int) -> ExportPage:
        """Return the first events after a position; each further page must follow on the one before."""
        events: list[StoredEvent] = []
        channels: dict[int, StoredChannel] = {}
        size = 0
        with self._reading() as db:
            rows = db.execute(
                "SELECT seq, channel, type, data, retry, at, flags FROM events JOIN channels ON id = channel "
                "WHERE seq > ? AND seq > trimmed ORDER BY seq LIMIT ?",
                (after, PAGE_EVENTS + 1),
            )
            more = False
            for seq, id, type, data, retry, at, flags in rows:
                if len(events) == PAGE_EVENTS or size >= PAGE_BYTES:
                    more = True
                    break
                if id not in channels:
                    channels[id] = _channel(db, id)
                    known, n = self._ordinals.get(id, (0, 0))
                    if known <= channels[id].trimmed:
                        n = channels[id].published - _count(db, id, seq)
                else:
                    n = self._ordinals[id][1]
                self._ordinals[id] = (seq, n + 1)
                name = channels[id].name
                events.append(StoredEvent(seq, name, n + 1, type, bytes(data), retry, float(at), flags))
                size += len(data)
            if more:
                return ExportPage(events, list(channels.values()), None)
            ids = db.execute("SELECT id FROM channels").fetchall()
            return ExportPage(events, [_channel(db, id) for (id,) in ids], log_state(db))

    def answers(self, after: tuple[float, str, str]) -> list[Answer]:
        """Return the first answers to idempotency keys after one, in the order of their time.

        Args:
            after: the time, the subject and the key of that one.
        """
        with self._reading() as db:
            return db.execute(
                "SELECT subject, key, digest, first_seq, count, at FROM answers "
                "WHERE (at, subject, key) > (?, ?, ?) ORDER BY at, subject, key LIMIT ?",
                (*after, PAGE_ANSWERS),
            ).fetchall()

    def totals(self) -> tuple[int, int, int, int, int]:
        """Count the kept events, the bytes of their data, the channels, what was ever published there, the answers."""
        with self._reading() as db:
            events, size = db.execute(
                "SELECT count(*), ifnull(sum(length(data)), 0) FROM events JOIN channels ON id = channel "
                "WHERE seq > trimmed"
            ).fetchone()
            channels, published, answers = db.execute(
                "SELECT count(*), ifnull(sum(published), 0), (SELECT count(*) FROM answers) FROM channels"
            ).fetchone()
        return int(events), int(size), int(channels), int(published), int(answers)


def _count(db: sqlite3.Connection, channel: int, first: int) -> int:
    """Return how many events a channel has from one on."""
    (count,) = db.execute(
        "SELECT count(*) FROM events WHERE channel = ? AND seq >= ?", (channel, first)
    ).fetchone()
    return int(count)


def _channel(db: sqlite3.Connection, id: int) -> StoredChannel:
    name, published, last_seq, trimmed, dropped = db.execute(
        "SELECT name, published, last_seq, trimmed, dropped FROM channels WHERE id = ?", (id,)
    ).fetchone()
    removed = published - _count(db, id, trimmed + 1) if dropped is None else dropped
    return StoredChannel(name, published, last_seq, trimmed, removed)
