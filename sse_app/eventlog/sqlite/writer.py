"""The thread that writes the SQLite event log: takes what waits, commits it as one, tells of it.

Other processes may write to the same file, each of them in turn (see `lock`).
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable, IdempotencyKeyReused, StateError
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.core.wakeup import Wakeup
from sse_app.eventlog.base import IDEMPOTENCY_AGE, IdempotencyKey, RetentionRules
from sse_app.eventlog.sqlite.bells import Bells
from sse_app.eventlog.sqlite.expiry import Expiry
from sse_app.eventlog.sqlite.file import LOCK_TIMEOUT, LogFile
from sse_app.eventlog.sqlite.reports import Alone, BellLost, Commit, Growth, Report
from sse_app.eventlog.sqlite.schema import COLUMNS, INSERT_SIZES, ChannelState, insertion, probe
from sse_app.eventlog.sqlite.sizes import beyond
from sse_app.storage.sqlite import is_damaged, unusable, without_checkpoint

MAX_EVENTS_PER_COMMIT = 2_000
"""After how many events no further append joins a commit: other processes wait for the lock meanwhile."""

PROBE_INTERVAL = 1.0
"""How often a log that failed is tried again while nothing is published, in seconds."""

LOOK_INTERVAL = 1.0
"""How often the file is looked at in any case, and what lies beside it, in seconds."""

FAILED_LOOK_INTERVAL = 0.2
"""How often that is done where the log has failed."""

ALONE_INTERVAL = 5.0
"""How often a process that has not been alone finds out whether it is, in seconds."""

ERASED_TOGETHER = 100
"""Of a channel that keeps few events so many may be there: what another process has not been told of it reads there."""

EVENT_BYTES = 128
"""About how many bytes an event takes in the file besides its data, with its place in the index."""


Append = tuple[Sequence[NewEvent], IdempotencyKey | None, "asyncio.Future[list[EventId]]"]
"""Events that are stored together, and the future that gets their ids."""


class _Look(NamedTuple):
    """The event loop wants to know how far the log goes."""


class _Append(NamedTuple):
    """One append that waits; `due` is when it is refused if it has not been begun by then, by the monotonic clock."""

    events: Sequence[NewEvent]
    key: IdempotencyKey | None
    future: asyncio.Future[list[EventId]]
    due: float


class SqliteWriter:
    """Writes to the log in a thread of its own.

    Args:
        path: the database file.
        retention: how much of each channel is kept.

    Raises:
        OSError: there are no descriptors left.
    """

    def __init__(self, path: Path, retention: RetentionRules) -> None:
        self.reports: deque[Report] = deque()
        """What has happened to the log, in log order: what is of before a bell's ringing is here before it is rung."""
        self.reported = Wakeup()
        """Set when something has been added to these."""
        self._path = path
        self._retention = retention
        self._waiting: deque[_Append | _Look | None] = deque()
        """What is to be done; None is the end."""
        self._asked = Wakeup()
        """Set when something has been added to these."""
        self._claiming = threading.Lock()
        """Held to take what waits: by this thread, to write it, or on the event loop, to refuse it."""
        self._lock_awaited_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="eventlog-writer", daemon=True)
        self._file = LogFile(path)
        self._expiry = Expiry(self._file, retention, self._locked, self._tell)
        self._expiry_is_due = False
        """Whether to do what is due without an append now, since other rules are in force."""
        self._shared = False
        """Whether the event loop has to take it that other processes write to the log."""
        self._reported = 0
        """How far the log goes, as the event loop has been told."""
        self._failed = False
        self._given_up = False
        self._look_at = 0.0
        """When the file is to be looked at in any case."""

    @property
    def bells(self) -> Bells:
        """The bells of the processes that have the log open."""
        return self._file.bells

    def prepare(self) -> None:
        """Open the database, whose content is read once more in `start`.

        Raises:
            StateError: it cannot be used.
        """
        try:
            self._file.open()
        except BaseException:
            self.reported.close()
            self._asked.close()
            raise

    def start(self) -> tuple[str, Growth | Alone]:
        """Start the thread, and return the epoch and the log as it is.

        Raises:
            StateError: the database cannot be used; it is closed.
        """
        file = self._file
        seen_at = time.time()
        try:
            file.files.have_shrunk()  # or are others; why they have is found out by the next look
            file.read_on()
            self._reported = file.head
            file.others_committed = False
            self._shared = file.bells.others()
            if self._shared:
                file.bells.ring(file.head, file.head)  # so that they look at the file more often from now on
                state: Growth | Alone = Growth(file.head, seen_at)
            else:
                state = Alone(file.head, file.forgotten, file.all_channels())
            self._thread.start()
        except BaseException as error:
            with without_checkpoint(self._path):  # of a file that may be damaged
                self.discard()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise unusable(self._path, error) from error
            raise
        return file.epoch, state

    def discard(self) -> None:
        """Close what `prepare` has opened, where `start` does not follow."""
        self.close()
        self._file.close()

    def close(self) -> None:
        """Close what the event loop watches or sets, after `stop`; the thread closes the file when it ends."""
        self._file.bells.close()
        self.reported.close()
        self._asked.close()

    # -- called on the event loop ---------------------------------------------------------------------------

    def append(self, appends: Iterable[Append]) -> None:
        """Queue appends; the outcome for the future of each is part of a later report."""
        due = time.monotonic() + LOCK_TIMEOUT
        self._waiting.extend([_Append(*append, due) for append in appends])
        self._asked.set()

    def may_be_written(self, since: float) -> bool:
        """Return whether another process may have committed since a time by the wall clock; see `DatabaseFiles`."""
        return self._file.files.may_be_written(since)

    def use(self, retention: RetentionRules) -> None:
        """Keep so much of each channel from now on."""
        self._retention = self._expiry.retention = retention
        self._expiry_is_due = True
        self.look()

    def now(self) -> float:
        """Return the time by which events are dated."""
        return self._file.clock.now()

    def look(self) -> None:
        """Have it reported what other processes have committed."""
        self._ask(_Look())

    def _ask(self, item: _Look | None) -> None:
        self._waiting.append(item)
        self._asked.set()

    def overdue(self) -> list[asyncio.Future[list[EventId]]]:
        """Return the appends that have waited too long for a process that has the lock: they will not be stored."""
        with self._claiming:
            since = self._lock_awaited_since
            if since is None or time.monotonic() - since < LOCK_TIMEOUT:
                return []
            self._failed = True
            return self._take_back()

    def _take_back(self) -> list[asyncio.Future[list[EventId]]]:
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if None in waiting:
            self._ask(None)
        return [item.future for item in waiting if isinstance(item, _Append)]

    def stop(self) -> list[asyncio.Future[list[EventId]]]:
        """Write what is queued, end the thread, and close the database; give that up where the lock is not free.

        Returns:
            The appends that will not be stored.
        """
        self._ask(None)
        self._thread.join(LOCK_TIMEOUT)
        while self._thread.is_alive():
            with self._claiming:
                if self._lock_awaited_since is not None:
                    self._given_up = True  # it ends when it has the lock, and writes nothing
                    return self._take_back()
            self._thread.join(FAILED_LOOK_INTERVAL)
        return []

    # -- the thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        due_at = time.monotonic()
        while not self._given_up:
            look_interval = FAILED_LOOK_INTERVAL if self._failed else LOOK_INTERVAL
            if not self._waiting:
                self._asked.wait(min(look_interval, max(0.0, due_at - time.monotonic())))
            if self._waiting:
                if self._round():
                    break
            elif self._failed or time.monotonic() >= self._look_at:
                self._look()
            if self._failed:
                due_at = min(due_at, time.monotonic() + PROBE_INTERVAL)
            elif self._shared:
                due_at = min(due_at, time.monotonic() + ALONE_INTERVAL)
            if self._expiry_is_due or time.monotonic() >= due_at:
                self._expiry_is_due = False
                due_at = time.monotonic() + self._look_after()
            if self._file.head > self._reported:  # seen in a transaction that was for something else
                self._report_growth(0.0)
        self._file.close()

    def _round(self) -> bool:
        """Do what waits, as far as one commit should carry it, and return whether the end was asked for."""
        appends: list[_Append] = []
        looked = stopping = False
        if isinstance(self._waiting[0], _Append):
            try:
                self._take_lock()
                try:
                    appends, looked, stopping = self._gather()
                    if appends:
                        self._commit(appends)
                finally:
                    self._file.lock.release()
            except OSError as error:  # of the lock's file
                appends, looked, stopping = self._gather()
                self._refuse(appends, self._fail("written", error))
            self.reported.set()  # last: the event loop may then run for a while in this thread's place
        else:
            appends, looked, stopping = self._gather(1)
        if looked:
            self._look(heard=True)
        return stopping

    def _take_lock(self) -> None:
        """Take the lock of the log's file; what waits for it can be taken out of the queue meanwhile."""
        lock = self._file.lock
        if not lock.try_acquire():
            with self._claiming:
                self._lock_awaited_since = time.monotonic()
            try:
                lock.acquire()
            finally:
                with self._claiming:
                    self._lock_awaited_since = None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._take_lock()
        try:
            yield
        finally:
            self._file.lock.release()

    def _gather(self, limit: int = MAX_EVENTS_PER_COMMIT) -> tuple[list[_Append], bool, bool]:
        """Return the appends that wait, whether a look was asked for, and whether the end was.

        Those that have waited too long are refused: their publishers may have given up by the time they are stored.
        """
        appends: list[_Append] = []
        late: list[_Append] = []
        looked = stopping = False
        count = 0
        now = time.monotonic()
        with self._claiming:
            if self._given_up:
                return [], False, True
            while count < limit and self._waiting:
                item = self._waiting.popleft()
                if item is None:
                    stopping = True
                    break
                if isinstance(item, _Look):
                    looked = True
                    count += 1
                elif item.due < now:
                    late.append(item)
                else:
                    appends.append(item)
                    count += len(item.events)
        if late:
            failure = EventLogUnavailable("the event log takes too long to be written")
            commit = Commit(outcomes=[(append.future, failure) for append in late])
            if self._failed:  # else it is only slow
                commit.failure = failure
            self.reports.append(commit)
        return appends, looked, stopping

    def _look(self, heard: bool = False) -> None:
        """Report what other processes have committed, and see to what lies beside the file.

        Args:
            heard: whether the event loop has heard of another process.
        """
        file = self._file
        self._look_at = time.monotonic() + LOOK_INTERVAL - FAILED_LOOK_INTERVAL / 2
        seen_at = time.time()
        file.bells.look_again()
        try:
            if file.look() or (not self._shared and (heard or file.bells.others())):
                self._shared = True
                self._report_growth(seen_at)
            file.lock.open_again()
        except (StateError, sqlite3.Error) as error:
            self._fail("read", error)
        else:
            if not file.bells.is_in_place():
                self._put(BellLost())

    def _report_growth(self, seen_at: float) -> None:
        self._reported = self._file.head
        self._put(Growth(self._file.head, seen_at))

    def _put(self, report: Report) -> None:
        self.reports.append(report)
        self.reported.set()

    def _tell(self, commit: Commit) -> None:
        """Tell the event loop of a commit, which is woken later, and the other processes; the lock is held."""
        self.reports.append(commit)
        file = self._file
        if commit.events:
            self._reported = file.head
        if file.bells.others():
            previous = commit.events[0].seq - 1 if commit.events else file.head
            file.bells.ring(previous, file.head, commit.events)

    def _fail(self, what: str, error: Exception) -> EventLogUnavailable:
        """Roll back what has failed, and have it tried again; report the first failure of several.

        Returns:
            What those get who wait.
        """
        self._file.roll_back()
        text = str(unusable(self._path, error)) if is_damaged(error) else str(error)
        failure = EventLogUnavailable(f"the event log cannot be {what}: {text}")
        failure.__cause__ = error
        if not self._failed:
            self._failed = True
            self._put(Commit(failure=failure))
        return failure

    def _refuse(self, appends: list[_Append], failure: EventLogUnavailable) -> None:
        self._put(Commit(outcomes=[(append.future, failure) for append in appends], failure=failure))

    # -- a commit -------------------------------------------------------------------------------------------

    def _commit(self, appends: list[_Append]) -> None:
        """Store the appends in one transaction: all of them are durable when this returns, or none is."""
        commit = Commit()
        file = self._file
        try:
            file.begin()
            if file.others_committed and not self._shared:
                self._shared = True
                # No other process commits while this one has the lock.
                self.reports.append(Growth(file.head, time.time()))
            now = file.clock.now()
            for append in appends:
                outcome = self._store(append.events, append.key, now, commit)
                commit.outcomes.append((append.future, outcome))
            size = self._insert(commit, now)
            self._count_all(commit)
            file.db.execute("COMMIT")
        except Exception as error:  # of any kind: publishers must get an answer, the thread must not end
            self._refuse(appends, self._fail("written", error))
            return
        self._failed = False
        file.channels.update(commit.channels)
        if commit.events:
            file.head = commit.events[-1].seq
            commit.seen_at = time.time()  # no other process commits before the lock is released
            self._tell(commit)
        else:
            self.reports.append(commit)
        if file.is_long_after(size):
            self.reported.set()
            file.checkpoint()

    def _store(
        self, events: Sequence[NewEvent], key: IdempotencyKey | None, now: float, commit: Commit
    ) -> range | Exception:
        """Add one append to the transaction, or find the answer that its key got before."""
        first = (commit.events[-1].seq if commit.events else self._file.head) + 1
        if key is not None:
            known = self._file.db.execute(
                "SELECT digest, first_seq, count FROM answers WHERE subject = ? AND key = ? AND at > ?",
                (key.subject, key.key, now - IDEMPOTENCY_AGE),
            ).fetchone()
            if known is not None:
                digest, known_first, count = known
                if digest != key.digest:
                    return IdempotencyKeyReused("this Idempotency-Key was used with another request")
                return range(known_first, known_first + count)
            self._file.db.execute(
                "INSERT OR REPLACE INTO answers (subject, key, digest, first_seq, count, at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (key.subject, key.key, key.digest, first, len(events), now),
            )
        for seq, event in enumerate(events, first):
            if event.channel not in commit.channels:
                commit.channels[event.channel] = self._channel(event.channel)
            commit.events.append(Event(seq, *event))
        return range(first, first + len(events))

    def _insert(self, commit: Commit, now: float) -> int:
        """Insert the events, many with one statement, and return about how many bytes they take.

        SQLite releases the interpreter's lock for each statement, and to take it back from a busy event loop
        can take milliseconds. The statements are of a few sizes only, so that they stay prepared.
        """
        parameters: list[object] = []
        size = 0
        for seq, channel, type, data, retry, flags in commit.events:
            parameters += (seq, commit.channels[channel].id, type, data, retry, flags, now)
            size += len(data) + EVENT_BYTES
        start = 0
        for rows in INSERT_SIZES:
            step = rows * COLUMNS
            while len(parameters) - start >= step:
                self._file.db.execute(insertion(rows), parameters[start : start + step])
                start += step
        return size

    def _channel(self, name: ChannelName) -> ChannelState:
        """Return a channel's state, making its row at its first event."""
        state = self._file.channel(name)
        if state is None:
            forgotten = self._file.forgotten
            id = self._file.db.execute(
                "INSERT INTO channels (name, published, last_seq, trimmed, dropped) VALUES (?, 0, 0, ?, 0)",
                (name, forgotten),
            ).lastrowid
            assert id is not None
            state = ChannelState(id, 0, 0, forgotten, 0)
        return state

    def _count_all(self, commit: Commit) -> None:
        new: dict[ChannelName, int] = {}
        last: dict[ChannelName, int] = {}
        for event in commit.events:
            channel = event.channel
            new[channel] = new.get(channel, 0) + 1
            last[channel] = event.seq
        for channel, count in new.items():
            size = self._retention.of(channel).size
            commit.channels[channel] = self._count(commit.channels[channel], count, last[channel], size)

    def _count(self, state: ChannelState, new: int, last_seq: int, size: int) -> ChannelState:
        """Return the channel's state with the new events, and erase those that are now over its size.

        What is over is out of reach at once (``trimmed``), but erased some at a time.
        """
        db = self._file.db
        published = state.published + new
        trimmed, dropped = beyond(db, size, state.id, published, state.trimmed, state.dropped)
        if trimmed == state.trimmed:
            db.execute(
                "UPDATE channels SET published = ?, last_seq = ?, dropped = ? WHERE id = ?",
                (published, last_seq, dropped, state.id),
            )
        else:
            step = max(1, size // 20, ERASED_TOGETHER - size)
            if published // step != state.published // step:
                db.execute("DELETE FROM events WHERE channel = ? AND seq <= ?", (state.id, trimmed))
            db.execute(
                "UPDATE channels SET published = ?, last_seq = ?, trimmed = ?, dropped = ? WHERE id = ?",
                (published, last_seq, trimmed, dropped, state.id),
            )
        return ChannelState(state.id, published, last_seq, trimmed, dropped)

    # -- what is due without an append ----------------------------------------------------------------------

    def _look_after(self) -> float:
        """Do what is due without an append, and return in how many seconds to come back."""
        try:
            more = self._expiry.step()
            if self._failed:
                self._file.lock.open_again()
                with self._locked(), self._file.transaction():
                    probe(self._file.db)
                self._failed = False
                self._put(Commit())
            elif self._shared:
                self._find_out_whether_alone()
        except (StateError, sqlite3.Error, OSError) as error:
            self._fail("written", error)
            return PROBE_INTERVAL
        self.reported.set()  # for what the expiry has reported
        if more:
            return 0.0
        interval = min(max(self._retention.ages[0] / 20, 0.1), 30.0)
        return min(interval, ALONE_INTERVAL) if self._shared else interval

    def _find_out_whether_alone(self) -> None:
        """Tell the event loop the state of all channels, where it need not ask the file any more."""
        file = self._file
        file.bells.look_again()
        if file.bells.others():
            return
        with self._locked(), file.transaction():
            if not file.others_committed:
                self._shared = False
                self._put(Alone(file.head, file.forgotten, file.all_channels()))
            file.others_committed = False
