"""The event log's file as one process has it open: its transactions, and what the last of them has found there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sse_app.core.channels import ChannelName
from sse_app.core.errors import StateError
from sse_app.eventlog.base import LogClock
from sse_app.eventlog.sqlite.bells import Bells
from sse_app.eventlog.sqlite.lock import LogLock, log_lock
from sse_app.eventlog.sqlite.schema import (
    APPLICATION_ID,
    CHANNEL_STATE,
    MIGRATIONS,
    ChannelState,
    channel_state,
    clock_of,
    epoch_of,
    keep_clock,
    log_state,
    require_head,
)
from sse_app.storage.sqlite import (
    DatabaseFiles,
    connect,
    content_of_ours,
    open_database,
    unusable,
    without_checkpoint,
)

LOCK_TIMEOUT = 5.0
"""How long appends wait for another process to release the lock, in seconds; and for one that has only SQLite's."""

CHECKPOINT_PAGES = 1000
"""After about so many pages that this process has written, the write-ahead log begins anew."""

MAX_WAL_BYTES = 32 * 1024 * 1024
"""A write-ahead log that readers have made larger than this is cut when it begins anew; to write over it is faster."""

CHECKPOINT_PATIENCE = 10
"""How long a checkpoint waits for those who read, in milliseconds, while it holds the lock."""

MAX_CHECKPOINT_PATIENCE = 100
"""How long it waits at last, where again and again some read for longer."""

PAGE_BYTES = 4096
"""How large SQLite makes a page."""

PAGES_PER_COMMIT = 4
"""About how many pages a commit changes beside those of its events."""


class LogFile:
    """Owns the one connection of this process that writes.

    Other processes may write to the same file. What this one remembers of it holds as long as no other process has
    committed, which ``PRAGMA data_version`` shows: it is read in every transaction.

    Args:
        path: the database file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = LogLock(path)
        self.bells = Bells(path)
        self.clock = LogClock()
        self.epoch = ""
        self.head = 0
        self.forgotten = 0
        """The ``seq`` of the last event of any channel that was forgotten."""
        self.channels: dict[ChannelName, ChannelState] = {}
        """Those that this process has appended to since another one committed last."""
        self.others_committed = False
        """Whether another connection has committed, since this was set to False."""
        self._data_version = -1
        self._checkpoints: sqlite3.Connection | None = None
        self._pages = 0
        """About how many pages this process has added to the write-ahead log since it was moved into the database."""
        self._patience = 0

    def open(self) -> None:
        """Create or migrate the database, one process at a time, and read what is remembered of it.

        Raises:
            StateError: it cannot be used.
        """
        with log_lock(self.path):
            self.db = open_database(self.path, APPLICATION_ID, MIGRATIONS)
            try:
                self._read_first()
                self._checkpoints = connect(self.path)
                self.files = DatabaseFiles(self.path)
                self.lock.open()
                self.bells.open()
            except (sqlite3.Error, OSError) as error:
                with without_checkpoint(self.path):
                    self.close()
                raise unusable(self.path, error) from error
            except BaseException:
                self.close()
                raise

    def _read_first(self) -> None:
        self.epoch = self.bells.epoch = epoch_of(self.db)
        self.db.execute("PRAGMA wal_autocheckpoint = 0")
        self.db.execute(f"PRAGMA busy_timeout = {round(LOCK_TIMEOUT * 1000)}")
        self.db.execute("BEGIN IMMEDIATE")
        with content_of_ours():
            begun = clock_of(self.db)
            self.clock = begun or self.clock
            require_head(self.db)
        self.catch_up()
        if begun is None:
            keep_clock(self.db, self.clock)
        self.db.execute("COMMIT")

    def close(self) -> None:
        """Close all but the bell, which belongs to the event loop."""
        if self._checkpoints is not None:
            self._checkpoints.close()
        self.db.close()
        self.lock.close()

    def begin(self) -> None:
        """Begin a transaction that writes to the file which lies at the path and is whole; the lock is held.

        Raises:
            StateError, sqlite3.Error: it does not, or is not, or cannot be written.
        """
        self.db.execute("BEGIN IMMEDIATE")
        self.files.check(self.db)
        self.catch_up()

    def roll_back(self) -> None:
        """Undo what a transaction has changed, if one was begun."""
        with suppress(sqlite3.Error):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit what is changed within, or undo it and raise; the lock is held."""
        try:
            self.begin()
            yield
            self.db.execute("COMMIT")
        except BaseException:
            self.roll_back()
            raise

    def look(self) -> bool:
        """Read anew what is remembered, if another process has committed, and return whether one has.

        Raises:
            StateError, sqlite3.Error: the file cannot be read, or is not the one at the path any more.
        """
        if self.files.have_shrunk():
            with self.transaction():
                return True
        return self.read_on()

    def read_on(self) -> bool:
        """Read anew what is remembered, if another process has committed, and return whether one has.

        Raises:
            StateError, sqlite3.Error: the file cannot be read, or is of another log.
        """
        if self._is_current():  # mostly so, and then no transaction is needed
            return False
        self.db.execute("BEGIN")
        try:
            return self.catch_up()
        finally:
            self.db.execute("ROLLBACK")

    def catch_up(self) -> bool:
        """Read anew what is remembered, in a transaction, if another process has committed; return whether one has."""
        if self._is_current():
            return False
        (version,) = self.db.execute("PRAGMA data_version").fetchone()
        with content_of_ours():
            state = log_state(self.db)
        if state.epoch != self.epoch:
            raise StateError(f"{self.path} has been given another epoch under the running server: restart it")
        self.clock.follow(state.last_at)
        self.channels.clear()
        self.head = max(self.head, state.head)
        self.forgotten = state.forgotten
        self._data_version = version
        self.others_committed = True
        return True

    def _is_current(self) -> bool:
        (version,) = self.db.execute("PRAGMA data_version").fetchone()
        return bool(version == self._data_version)

    def channel(self, name: ChannelName) -> ChannelState | None:
        """Return what is committed of a channel, or None where it has no event, or was forgotten."""
        state = self.channels.get(name)
        if state is None:
            row = self.db.execute(f"SELECT {CHANNEL_STATE} FROM channels WHERE name = ?", (name,)).fetchone()
            if row is not None:
                with content_of_ours():
                    state = self.channels[name] = channel_state(row)
        return state

    def all_channels(self) -> dict[ChannelName, ChannelState]:
        """Return what is committed of all channels."""
        with content_of_ours():
            return {
                ChannelName(name): channel_state(row)
                for name, *row in self.db.execute(f"SELECT name, {CHANNEL_STATE} FROM channels")
            }

    def is_long_after(self, size: int) -> bool:
        """Return whether the write-ahead log is long after a commit of about so many bytes: it is to begin anew."""
        self._pages += PAGES_PER_COMMIT + 2 * size // PAGE_BYTES  # as many are erased sooner or later
        return self._pages >= CHECKPOINT_PAGES

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database; the lock is held.

        It begins anew only where no process reads from it. Readers that follow one another without a pause would else
        let it grow without end: here those that come now find all of it in the database already.
        """
        self._pages -= CHECKPOINT_PAGES // 4  # until it is tried again
        self._patience = min(self._patience + CHECKPOINT_PATIENCE, MAX_CHECKPOINT_PATIENCE)
        with suppress(sqlite3.Error, OSError):  # as where the disk is full: the log itself is whole
            large = os.stat(f"{self.path}-wal").st_size > MAX_WAL_BYTES
            mode = "TRUNCATE" if large else "RESTART"
            assert self._checkpoints is not None
            self._checkpoints.execute(f"PRAGMA busy_timeout = {self._patience}")
            (busy, *_) = self._checkpoints.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            if not busy:
                self._pages = self._patience = 0
