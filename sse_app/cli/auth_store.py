"""The store of accounts as commands use it, beside a running server or without one."""

from __future__ import annotations

import argparse
import getpass
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sse_app.auth.factory import (
    SEAL_WITHOUT_DATABASE,
    is_known_store,
    issuer_of,
    make_auth_store,
    require_auth_store,
    require_known_store,
    sealed_keys_of,
)
from sse_app.auth.records import AuditEntry, Revocation
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.keyring import KeyRing, load_keys
from sse_app.cli.options import settings_of
from sse_app.core.errors import AuthStoreUnavailable, StateError
from sse_app.eventlog.factory import stored_event_log
from sse_app.settings.database import make_database
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory, has_state

if TYPE_CHECKING:
    from sse_app.storage.postgres.database import Database


@asynccontextmanager
async def auth_store(
    options: argparse.Namespace, *, create: bool = False
) -> AsyncIterator[tuple[AuthStore, Settings]]:
    """Open the store that the settings name, and yield it with the settings.

    Args:
        options: of the command.
        create: whether to begin a state directory, with a key, or the tables of a database, where there are none, and
            to make the store where it was lost. What was issued before is then revoked: which of it had been is no
            longer known.

    Raises:
        SettingsError, StateError: it cannot be used.
    """
    settings = settings_of(options)
    database = make_database(settings)
    opened = (
        _in_files(settings, create) if database is None else in_database(database, settings, create=create)
    )
    async with opened as store:
        yield store, settings


@asynccontextmanager
async def _in_files(settings: Settings, create: bool) -> AsyncIterator[AuthStore]:
    if settings.auth.keys_seal:
        raise StateError(SEAL_WITHOUT_DATABASE)
    state = StateDirectory(settings.state_dir, create=create)
    event_log = stored_event_log(settings.event_log, state)
    made = require_auth_store(state, event_log, anew=create)
    store = make_auth_store(state)
    await store.open()
    try:
        if made and state.has_keys_of_a_server():
            await store.revoke([Revocation.of_everything()])
        if create:
            issuer_of(settings.auth, state)
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def in_database(
    database: Database, settings: Settings, *, create: bool = False
) -> AsyncIterator[AuthStore]:
    """Open the store in a database; see `auth_store`."""
    from sse_app.auth.postgres_store import PostgresAuthStore, make_row

    if not create:
        await require_tables(database)
    made = create and await make_row(database)
    store = PostgresAuthStore(database)
    await store.open()
    try:
        if create and has_state(settings.state_dir):
            state = StateDirectory(settings.state_dir)
            if made or not is_known_store(state, store):
                if (
                    await store.accounts() or await store.last_revocation()
                ):  # another server's: not to be touched
                    require_known_store(state, store, database)
                await store.begin_anew()
            require_known_store(state, store, database)
        elif made:
            await store.begin_anew()
        yield store
    finally:
        await store.close()


async def require_tables(database: Database) -> None:
    """Refuse a database in which no server has begun yet: it may be the wrong one.

    Raises:
        StateError: there is nothing of this program in it, or it cannot be used.
    """
    if not await database.has_schema():
        raise StateError(
            f"there is nothing of sse_app in the database {database.address} yet: name the server's with "
            "--event-log or SSE_APP_EVENT_LOG, or begin there with 'serve' or 'user add --init'"
        )


async def keys_in_use(settings: Settings, store: AuthStore) -> KeyRing:
    """Return the keys that the settings name; the store has those in the database.

    Raises:
        StateError, AuthStoreUnavailable: they cannot be read.
    """
    auth = settings.auth
    if (sealed := sealed_keys_of(auth, store)) is not None:
        return await sealed.load(create=False)
    if auth.keys_dir:
        return load_keys(Path(auth.keys_dir), create=False)
    return load_keys(StateDirectory(settings.state_dir, create=False).keys, create=False)


async def note(store: AuthStore, action: str, target: str, detail: str = "") -> None:
    """Write to the audit trail what a user of this machine has done on the command line.

    Raises:
        StateError: that is not possible; what was done stays done, as the text says.
    """
    try:
        await store.append_audit([AuditEntry(time.time(), action, f"cli:{_user()}", "", target, detail)])
    except AuthStoreUnavailable as error:
        raise StateError(f"it is done, but not noted in the audit trail: {error.detail}") from error


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "unknown"  # a container may run under a number without a name
