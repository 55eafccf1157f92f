"""``eventlog …``: shows the event log, and gives it a new epoch while no server uses it."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sse_app.cli.options import settings_of
from sse_app.core.errors import InvalidInput, StateError
from sse_app.eventlog.factory import event_log_path
from sse_app.eventlog.sqlite import schema as sqlite_schema
from sse_app.eventlog.sqlite.bells import is_in_use
from sse_app.eventlog.sqlite.lock import log_lock
from sse_app.storage.sqlite import is_missing_or_empty, open_database, unusable, without_checkpoint
from sse_app.storage.state_dir import StateDirectory


def _path(options: argparse.Namespace) -> Path:
    settings = settings_of(options)
    state = StateDirectory(settings.state_dir, create=False)
    path = event_log_path(settings.event_log, state)
    if path is None:
        where = "in memory" if settings.event_log == "memory:" else "in a database"
        raise InvalidInput(f"the event log is {where}: there is nothing to look after")
    if is_missing_or_empty(path):
        raise InvalidInput(f"there is no event log at {path}")
    return path


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    with log_lock(path):
        connection = open_database(path, sqlite_schema.APPLICATION_ID, sqlite_schema.MIGRATIONS)
    try:
        yield connection
    except sqlite3.Error as error:
        with without_checkpoint(path):
            connection.close()
        raise unusable(path, error) from error
    finally:
        connection.close()


def show(options: argparse.Namespace) -> None:
    """Print the epoch, the head, and each channel that is remembered with the number of events published to it."""
    with _database(_path(options)) as database:
        row = database.execute("SELECT epoch FROM log").fetchone()
        head = sqlite_schema.head_of(database)
        # All at once: while a reader waits for who reads its output, the write-ahead log could not begin anew.
        channels = database.execute("SELECT name, published, last_seq FROM channels ORDER BY name").fetchall()
    print(f"epoch {row[0] if row else 'none'}\nhead {head}")
    for name, published, last in channels:
        print(f"channel {name} published={published} last={last}")


def new_epoch(options: argparse.Namespace) -> None:
    """Give the log another epoch and print it: clients with older ids get a reset instead of wrong events.

    Raises:
        StateError: a server uses the state directory, or another process the log.
    """
    settings = settings_of(options)
    state = StateDirectory(settings.state_dir, create=False)
    state.lock()
    try:
        path = _path(options)
        with _database(path) as database:
            if is_in_use(path):  # with a state directory of its own
                raise StateError(f"{path} is in use by another process")
            print(sqlite_schema.new_epoch(database))
    finally:
        state.unlock()
