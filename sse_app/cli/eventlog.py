"""``eventlog …``: shows the event log, and gives it a new epoch while no server uses it."""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sse_app.cli.options import settings_of
from sse_app.core.errors import InvalidInput
from sse_app.eventlog.factory import event_log_path
from sse_app.eventlog.sqlite import schema as sqlite_schema
from sse_app.storage.sqlite import is_missing_or_empty, open_database, unusable, without_checkpoint
from sse_app.storage.state_dir import StateDirectory


@contextmanager
def _database(options: argparse.Namespace) -> Iterator[sqlite3.Connection]:
    settings = settings_of(options)
    state = StateDirectory(settings.state_dir, create=False)
    path = event_log_path(settings.event_log, state)
    if path is None:
        raise InvalidInput("the event log is in memory: there is nothing to look after")
    if is_missing_or_empty(path):
        raise InvalidInput(f"there is no event log at {path}")
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
    with _database(options) as database:
        row = database.execute("SELECT epoch FROM log").fetchone()
        print(f"epoch {row[0] if row else 'none'}\nhead {sqlite_schema.head_of(database)}")
        for name, published, last in database.execute(
            "SELECT name, published, last_seq FROM channels ORDER BY name"
        ):
            print(f"channel {name} published={published} last={last}")


def new_epoch(options: argparse.Namespace) -> None:
    """Give the log another epoch and print it: clients with older ids get a reset instead of wrong events.

    Raises:
        StateError: a server uses the state directory.
    """
    settings = settings_of(options)
    state = StateDirectory(settings.state_dir, create=False)
    state.lock()
    try:
        with _database(options) as database:
            print(sqlite_schema.new_epoch(database))
    finally:
        state.unlock()
