"""``eventlog …``: shows the event log, and gives it a new epoch."""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sse_app.cli.options import settings_of
from sse_app.core.errors import InvalidInput, StateError
from sse_app.eventlog.factory import event_log_path
from sse_app.eventlog.sqlite import schema as sqlite_schema
from sse_app.eventlog.sqlite.bells import is_in_use
from sse_app.eventlog.sqlite.lock import log_lock
from sse_app.settings.database import make_database
from sse_app.settings.model import Settings
from sse_app.storage.sqlite import is_missing_or_empty, open_database, unusable, without_checkpoint
from sse_app.storage.state_dir import StateDirectory

if TYPE_CHECKING:
    from psycopg import AsyncConnection

T = TypeVar("T")


def event_log_file(settings: Settings, state: StateDirectory) -> Path:
    """Return the file of the log on SQLite.

    Raises:
        InvalidInput: the settings name another kind of log, or there is none yet.
    """
    path = event_log_path(settings.event_log, state)
    if path is None:
        where = "in memory" if settings.event_log == "memory:" else "in a database"
        raise InvalidInput(
            f"the event log of the settings is {where}, not on SQLite: name one with --event-log sqlite:PATH"
        )
    if is_missing_or_empty(path):
        raise InvalidInput(f"there is no event log at {path}")
    return path


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a log on SQLite, and migrate it.

    Raises:
        StateError: it cannot be used.
    """
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
    settings = settings_of(options)
    epoch: str
    head: int
    channels: list[tuple[str, int, int]]
    if make_database(settings) is not None:
        from sse_app.eventlog.postgres.commands import log_and_channels

        epoch, head, channels = _asked(settings, log_and_channels)
    else:
        with opened(_file_of(settings)) as database:
            row = database.execute("SELECT epoch FROM log").fetchone()
            epoch, head = row[0] if row else "none", sqlite_schema.head_of(database)
            # All at once: while a reader waits for who reads its output, the write-ahead log could not begin anew.
            channels = database.execute(
                "SELECT name, published, last_seq FROM channels ORDER BY name"
            ).fetchall()
    print(f"epoch {epoch}\nhead {head}")
    for name, published, last in channels:
        print(f"channel {name} published={published} last={last}")


def new_epoch(options: argparse.Namespace) -> None:
    """Give the log another epoch and print it: clients with older ids get a reset instead of wrong events.

    Raises:
        StateError: a server uses the state directory, or another process the log on SQLite.
    """
    settings = settings_of(options)
    if make_database(settings) is not None:
        from sse_app.eventlog.postgres.commands import new_epoch

        print(_asked(settings, new_epoch))
        return
    state = StateDirectory(settings.state_dir, create=False)
    state.lock()
    try:
        path = _file_of(settings)
        with opened(path) as database:
            if is_in_use(path):  # with a state directory of its own
                raise StateError(f"{path} is in use by another process")
            print(sqlite_schema.new_epoch(database))
    finally:
        state.unlock()


def _file_of(settings: Settings) -> Path:
    state = StateDirectory(settings.state_dir, create=False)
    path = event_log_path(settings.event_log, state)
    if path is None:
        raise InvalidInput("the event log is in memory: there is nothing to look after")
    return event_log_file(settings, state)


def _asked(settings: Settings, question: Callable[[AsyncConnection[Any]], Awaitable[T]]) -> T:
    """Return what a database answers.

    Raises:
        StateError: it cannot be used.
    """
    from sse_app.storage.postgres.single import connected

    async def ask() -> T:
        async with connected(settings.event_log) as connection:
            return await question(connection)

    return asyncio.run(ask())
