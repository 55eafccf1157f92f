"""The database of accounts as commands use it, beside a running server or without one."""

from __future__ import annotations

import argparse
import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sse_app.auth.audit import AuditEntry, write_entry
from sse_app.auth.sqlite_store import AuthDatabase
from sse_app.cli.options import settings_of
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory


@contextmanager
def auth_database(options: argparse.Namespace) -> Iterator[tuple[AuthDatabase, Settings]]:
    """Open the database of the state directory, and yield it with the settings.

    Raises:
        SettingsError, StateError: it cannot be used.
    """
    settings = settings_of(options)
    database = AuthDatabase(StateDirectory(settings.state_dir).accounts)
    try:
        yield database, settings
    finally:
        database.close()


def note(database: AuthDatabase, action: str, target: str, detail: str = "") -> None:
    """Write to the audit trail what was done on the command line, and by whom."""
    with database.transaction() as connection:
        write_entry(connection, AuditEntry(time.time(), action, f"cli:{_user()}", "", target, detail))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"  # a container may run under a number without a name
