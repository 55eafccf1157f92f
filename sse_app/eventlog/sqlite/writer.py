"""The thread that writes the SQLite event log: takes what waits, commits it as one, reports it.

Other processes may write to the same file. What this one remembers of the log holds as long as no other process has
committed, which ``PRAGMA data_version`` shows: it is read in every transaction, and every `LOOK_INTERVAL`.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable, IdempotencyKeyReused, StateError
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import EMPTY_CHANNELS, IDEMPOTENCY_AGE, IdempotencyKey, LogClock, Retention
from sse_app.eventlog.sqlite.schema import (
    APPLICATION_ID,
    COLUMNS,
    INSERT_SIZES,
    MIGRATIONS,
    ChannelState,
    clock_of,
    epoch_of,
    forgotten_until,
    insertion,
    keep_clock,
    probe,
)
from sse_app.storage.sqlite import (
    DatabaseFiles,
    content_of_ours,
    is_damaged,
    open_database,
    unusable,
    without_checkpoint,
)

MAX_EVENTS_PER_COMMIT = 2_000
PROBE_INTERVAL = 1.0
"""How often a log that failed is tried again while nothing is published, in seconds."""
LOOK_INTERVAL = 0.2
"""How often the file is looked at for what other processes have committed, in seconds."""
CHANNELS_WITH_NUMBERS = 1000
"""Of how many channels the numbers of the kept events are remembered; of others they are read where they are needed."""
ERASE_STEP = 2_000
"""How many expired events one transaction erases, so that publishers do not wait long behind it."""


class Forgotten(NamedTuple):
    """Channels that are no longer remembered, and the ``seq`` of the last event of any that ever was."""

    until: int
    names: frozenset[ChannelName]


class Commit(msgspec.Struct):
    """What one round of the writer did: the events stored, and what becomes of each append."""

    events: list[Event] = []
    channels: dict[ChannelName, ChannelState] = {}
    forgotten: Forgotten | None = None
    outcomes: list[tuple[asyncio.Future[list[EventId]], range | Exception]] = []
    failure: Exception | None = None


class Growth(NamedTuple):
    """What other processes have done to the log: its head, and the channels as they are now, where they changed."""

    head: int
    channels: dict[ChannelName, ChannelState]
    forgotten: Forgotten


class Looked(NamedTuple):
    """The end of a look at the file that was asked for: all that others had committed has been reported."""

    future: asyncio.Future[None]
    failure: Exception | None


Report = Commit | Growth | Looked


class _Look(NamedTuple):
    future: asyncio.Future[None]


class _Append(NamedTuple):
    events: Sequence[NewEvent]
    key: IdempotencyKey | None
    future: asyncio.Future[list[EventId]]


class SqliteWriter:
    """Owns the one connection of this process that writes, in a thread of its own.

    Args:
        path: the database file.
        retention: how much of each channel is kept.
        report: called in the writer's thread with all that happens to the log, in log order.
    """

    def __init__(self, path: Path, retention: Retention, report: Callable[[Report], None]) -> None:
        self._path = path
        self._retention = retention
        self._report = report
        self._waiting: queue.SimpleQueue[_Append | _Look | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="eventlog-writer", daemon=True)
        self._expiry_interval = min(max(retention.age / 20, 0.1), 30.0)
        self._data_version = -1
        """As of which the following hold: while it stays the same, no other connection has committed; -1 at first."""
        self._head = 0
        self._forgotten = 0
        """The ``seq`` of the last event of any channel that was forgotten."""
        self._channels: dict[ChannelName, ChannelState] = {}
        self._seqs: dict[ChannelName, array[int]] = {}
        """The numbers of the kept events of the channels that this process has appended to last."""
        self._clock = LogClock()
        self._failed = False

    def start(self) -> tuple[str, Growth]:
        """Open the database, start the thread, and return the epoch and the log as it is.

        Raises:
            StateError: the database cannot be used.
        """
        self._db = open_database(self._path, APPLICATION_ID, MIGRATIONS)
        try:
            epoch = epoch_of(self._db)
            self._db.execute("BEGIN IMMEDIATE")
            with content_of_ours():
                begun = clock_of(self._db)
            self._clock = begun or self._clock
            self._catch_up()
            if begun is None:
                keep_clock(self._db, self._clock)
            self._db.execute("COMMIT")
            self._files = DatabaseFiles(self._path)
        except (sqlite3.Error, OSError) as error:
            with without_checkpoint(self._path):
                self._db.close()
            raise unusable(self._path, error) from error
        self._thread.start()
        return epoch, Growth(self._head, dict(self._channels), Forgotten(self._forgotten, frozenset()))

    def append(
        self, events: Sequence[NewEvent], key: IdempotencyKey | None, future: asyncio.Future[list[EventId]]
    ) -> None:
        """Queue events; the outcome for ``future`` is part of a later report."""
        self._waiting.put(_Append(events, key, future))

    def look(self, future: asyncio.Future[None]) -> None:
        """Have the file looked at for what other processes have committed; `Looked` is reported at the end."""
        self._waiting.put(_Look(future))

    def stop(self) -> None:
        """Write what is queued, end the thread, and close the database."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        due_at = time.monotonic()
        while True:
            try:
                first = self._waiting.get(timeout=min(LOOK_INTERVAL, max(0.0, due_at - time.monotonic())))
            except queue.Empty:
                self._look()
            else:
                appends, looks, stopping = self._gather(first)
                if appends:
                    self._report(self._commit(appends))
                if looks:
                    failure = self._look()
                    for future in looks:
                        self._report(Looked(future, failure))
                if stopping:
                    self._db.close()
                    return
            if self._failed:
                due_at = min(due_at, time.monotonic() + PROBE_INTERVAL)
            if time.monotonic() >= due_at:
                due_at = time.monotonic() + self._look_after()

    def _gather(
        self, first: _Append | _Look | None
    ) -> tuple[list[_Append], list[asyncio.Future[None]], bool]:
        """Return what waits, as far as one commit should carry it, and whether the end was asked for."""
        appends: list[_Append] = []
        looks: list[asyncio.Future[None]] = []
        count = 0
        item = first
        while item is not None:
            if isinstance(item, _Look):
                looks.append(item.future)
            else:
                appends.append(item)
                count += len(item.events)
                if count >= MAX_EVENTS_PER_COMMIT:
                    return appends, looks, False
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                return appends, looks, False
        return appends, looks, True

    def _look(self) -> Exception | None:
        """Report what other processes have committed; return the error where the file cannot be read."""
        try:
            if self._files.have_shrunk():
                self._begin_to_write()
            elif self._is_current():  # mostly so, and then no transaction is needed
                return None
            else:
                self._db.execute("BEGIN")
            self._catch_up()
            self._db.execute("COMMIT")
        except (StateError, sqlite3.Error) as error:
            return self._fail("read", error)
        return None

    def _begin_to_write(self) -> None:
        """Begin a transaction that writes to the file which lies at the path, and which is whole."""
        self._db.execute("BEGIN IMMEDIATE")
        self._files.check(self._db)

    def _fail(self, what: str, error: Exception) -> EventLogUnavailable:
        """Roll back what has failed, and have it tried again; report the first failure of several.

        Returns:
            What those get who wait.
        """
        with suppress(sqlite3.Error):
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
        text = str(unusable(self._path, error)) if is_damaged(error) else str(error)
        failure = EventLogUnavailable(f"the event log cannot be {what}: {text}")
        failure.__cause__ = error
        if not self._failed:
            self._failed = True
            self._report(Commit(failure=failure))
        return failure

    def _catch_up(self) -> None:
        """Read anew what is remembered of the log, if another process has committed, and report it.

        Only within a transaction, on whose end the report does not depend: what it says is committed.
        """
        if self._is_current():
            return
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        changed: dict[ChannelName, ChannelState] = {}
        names: set[str] = set()
        with content_of_ours():
            for name, *columns in self._db.execute(
                "SELECT name, id, published, last_seq, trimmed FROM channels"
            ):
                names.add(name)
                state = ChannelState(*map(int, columns))
                if state != self._channels.get(name):
                    changed[ChannelName(name)] = state
            seqs = {name: self._kept(name, state) for name, state in changed.items() if name in self._seqs}
            (last_at,) = self._db.execute(
                "SELECT max(ifnull((SELECT at FROM events ORDER BY seq DESC LIMIT 1), 0), "
                "ifnull((SELECT max(at) FROM answers), 0))"
            ).fetchone()
            last_at = float(last_at)
            forgotten = Forgotten(forgotten_until(self._db), frozenset(self._channels.keys() - names))
        # Nothing has been changed so far that an error could leave half done.
        self._clock.follow(last_at)
        self._seqs.update(seqs)
        self._drop(forgotten)
        self._channels.update(changed)
        self._head = max([forgotten.until, *(state.last_seq for state in self._channels.values())])
        first, self._data_version = self._data_version == -1, version
        if not first:
            self._report(Growth(self._head, changed, forgotten))

    def _drop(self, forgotten: Forgotten) -> None:
        """Remember channels no longer."""
        self._forgotten = forgotten.until
        for name in forgotten.names:
            self._channels.pop(name, None)
            self._seqs.pop(name, None)

    def _is_current(self) -> bool:
        """Return whether no other connection has committed since the log was last read."""
        (version,) = self._db.execute("PRAGMA data_version").fetchone()
        return bool(version == self._data_version)

    def _kept(self, name: ChannelName, state: ChannelState) -> array[int]:
        """Return the numbers of a channel's kept events, of which this process remembers those up to a point."""
        known = self._channels.get(name)
        seqs = self._seqs[name][:]
        rows = self._db.execute(
            "SELECT seq FROM events WHERE channel = ? AND seq > ? ORDER BY seq",
            (state.id, max(known.last_seq if known else 0, state.trimmed)),
        )
        seqs.extend([seq for (seq,) in rows])
        del seqs[: bisect_right(seqs, state.trimmed)]
        return seqs

    def _commit(self, appends: list[_Append]) -> Commit:
        """Store the appends in one transaction: all of them are durable when this returns, or none is."""
        commit = Commit()
        seqs: dict[ChannelName, array[int]] = {}
        try:
            self._begin_to_write()
            self._catch_up()
            now = self._clock.now()
            for events, key, future in appends:
                commit.outcomes.append((future, self._store(events, key, now, commit)))
            self._insert(commit, now)
            for event in commit.events:
                seqs.setdefault(event.channel, array("q")).append(event.seq)
            for channel, new in seqs.items():
                commit.channels[channel] = self._count(channel, commit.channels[channel], new)
            self._db.execute("COMMIT")
        except (
            Exception
        ) as error:  # of any kind: the publishers must get an answer, and the thread must not end
            failure = self._fail("written", error)
            return Commit(outcomes=[(append.future, failure) for append in appends], failure=failure)
        self._failed = False
        self._channels.update(commit.channels)
        if commit.events:
            self._head = commit.events[-1].seq
        for channel, new in seqs.items():
            self._seqs[channel] = kept = self._seqs.pop(channel)  # to the end of the order
            kept.extend(new)
            del kept[: max(0, len(kept) - self._retention.size)]
        while len(self._seqs) > CHANNELS_WITH_NUMBERS:
            del self._seqs[next(iter(self._seqs))]
        return commit

    def _store(
        self, events: Sequence[NewEvent], key: IdempotencyKey | None, now: float, commit: Commit
    ) -> range | Exception:
        """Add one append to the transaction, or find the answer that its key got before."""
        first = (commit.events[-1].seq if commit.events else self._head) + 1
        if key is not None:
            known = self._db.execute(
                "SELECT digest, first_seq, count FROM answers WHERE subject = ? AND key = ? AND at > ?",
                (key.subject, key.key, now - IDEMPOTENCY_AGE),
            ).fetchone()
            if known is not None:
                digest, known_first, count = known
                if digest != key.digest:
                    return IdempotencyKeyReused("this Idempotency-Key was used with another request")
                return range(known_first, known_first + count)
            self._db.execute(
                "INSERT OR REPLACE INTO answers (subject, key, digest, first_seq, count, at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (key.subject, key.key, key.digest, first, len(events), now),
            )
        for seq, event in enumerate(events, first):
            if event.channel not in commit.channels:
                commit.channels[event.channel] = self._channel(event.channel)
            commit.events.append(Event(seq, *event))
        return range(first, first + len(events))

    def _insert(self, commit: Commit, now: float) -> None:
        """Insert the events, many with one statement.

        SQLite releases the interpreter's lock for each statement, and to take it back from a busy event loop
        can take milliseconds. The statements are of a few sizes only, so that they stay prepared.
        """
        parameters: list[object] = []
        for seq, channel, type, data, retry in commit.events:
            parameters += (seq, commit.channels[channel].id, type, data, retry, now)
        start = 0
        for size in INSERT_SIZES:
            step = size * COLUMNS
            while len(parameters) - start >= step:
                self._db.execute(insertion(size), parameters[start : start + step])
                start += step

    def _channel(self, name: ChannelName) -> ChannelState:
        """Return a channel's state, making its row and reading its kept ``seq`` numbers at its first event."""
        state = self._channels.get(name)
        if state is None:
            id = self._db.execute(
                "INSERT INTO channels (name, published, last_seq, trimmed) VALUES (?, 0, 0, ?)",
                (name, self._forgotten),
            ).lastrowid
            assert id is not None
            state = ChannelState(id, 0, 0, self._forgotten)
        if name not in self._seqs:
            with content_of_ours():
                rows = self._db.execute(
                    "SELECT seq FROM events WHERE channel = ? AND seq > ? ORDER BY seq",
                    (state.id, state.trimmed),
                )
                self._seqs[name] = array("q", [seq for (seq,) in rows])
        return state

    def _count(self, channel: ChannelName, state: ChannelState, new: array[int]) -> ChannelState:
        """Return the channel's state with the new events, and erase those that are now over its size.

        What is over is out of reach at once (``trimmed``), but erased some at a time.
        """
        kept = self._seqs[channel]
        excess = len(kept) + len(new) - self._retention.size
        trimmed = state.trimmed
        if excess > 0:
            trimmed = kept[excess - 1] if excess <= len(kept) else new[excess - len(kept) - 1]
            step = max(1, self._retention.size // 20)
            if (state.published + len(new)) // step != state.published // step:
                self._db.execute("DELETE FROM events WHERE channel = ? AND seq <= ?", (state.id, trimmed))
        state = ChannelState(state.id, state.published + len(new), new[-1], trimmed)
        self._db.execute(
            "UPDATE channels SET published = ?, last_seq = ?, trimmed = ? WHERE id = ?",
            (state.published, state.last_seq, state.trimmed, state.id),
        )
        return state

    def _look_after(self) -> float:
        """Do what is due without an append, and return in how many seconds to come back."""
        self._expire()
        if not self._failed:
            return self._expiry_interval
        try:
            self._begin_to_write()
            probe(self._db)
            self._db.execute("COMMIT")
        except (StateError, sqlite3.Error) as error:
            self._fail("written", error)
            return PROBE_INTERVAL
        self._failed = False
        self._report(Commit())
        return self._expiry_interval

    def _expire(self) -> None:
        """Erase what is older than the retention's age: events, and the answers to idempotency keys."""
        now = self._clock.now()
        try:
            self._db.execute("DELETE FROM answers WHERE at <= ?", (now - IDEMPOTENCY_AGE,))
            with content_of_ours():
                while (last := self._last_expired(now)) is not None:
                    self._erase(last)
                self._forget_channels()
        except (StateError, sqlite3.Error) as error:
            self._fail("written", error)

    def _last_expired(self, now: float) -> int | None:
        """Return the ``seq`` of the last expired event, among the oldest that one transaction erases."""
        oldest = self._db.execute("SELECT at FROM events ORDER BY seq LIMIT 1").fetchone()
        if oldest is not None and oldest[0] > now:
            # It was dated by a clock that was ahead, and later ones were not. Its age is not known; it begins now.
            self._db.execute("UPDATE events SET at = ? WHERE at > ?", (now, now))
        (last,) = self._db.execute(
            "SELECT max(seq) FROM (SELECT seq, at FROM events ORDER BY seq LIMIT ?) WHERE at <= ?",
            (ERASE_STEP, now - self._retention.age),
        ).fetchone()
        return None if last is None else int(last)

    def _erase(self, until: int) -> None:
        """Erase the oldest events up to this one; every channel that loses some is told to be trimmed."""
        changed: dict[ChannelName, ChannelState] = {}
        self._begin_to_write()
        self._catch_up()
        last = dict(
            self._db.execute("SELECT channel, max(seq) FROM events WHERE seq <= ? GROUP BY channel", (until,))
        )
        self._db.execute("DELETE FROM events WHERE seq <= ?", (until,))
        for name, state in self._channels.items():  # at most those with kept events, and a thousand
            if last.get(state.id, 0) > state.trimmed:
                changed[name] = state._replace(trimmed=last[state.id])
                self._db.execute("UPDATE channels SET trimmed = ? WHERE id = ?", (last[state.id], state.id))
        self._db.execute("COMMIT")
        self._channels.update(changed)
        for name in changed:
            if (kept := self._seqs.get(name)) is not None:
                self._seqs[name] = array("q", [seq for seq in kept if seq > changed[name].trimmed])
        self._report(Commit(channels=changed))

    def _forget_channels(self) -> None:
        """Forget the channels that were used longest ago, of those of which no event is kept any more."""
        if len(self._empty_channels()) <= EMPTY_CHANNELS:
            return
        self._begin_to_write()
        self._catch_up()
        surplus = self._empty_channels()[:-EMPTY_CHANNELS]
        if surplus:
            until = max(self._forgotten, surplus[-1].last_seq)
            names = {state.id: name for name, state in self._channels.items()}
            self._db.executemany("DELETE FROM channels WHERE id = ?", [(state.id,) for state in surplus])
            self._db.execute("UPDATE log SET forgotten = ?", (until,))
        self._db.execute("COMMIT")
        if surplus:
            forgotten = Forgotten(until, frozenset(names[state.id] for state in surplus))
            self._drop(forgotten)
            self._report(Commit(forgotten=forgotten))

    def _empty_channels(self) -> list[ChannelState]:
        """Return the channels of which no event is kept, the one used longest ago first."""
        empty = [state for state in self._channels.values() if state.trimmed >= state.last_seq]
        return sorted(empty, key=lambda state: state.last_seq)
