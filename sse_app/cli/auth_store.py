"""The store of accounts as commands use it, beside a running server or without one."""

from __future__ import annotations

import argparse
import getpass
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sse_app.auth.factory import issuer_of, make_auth_store, require_auth_store
from sse_app.auth.records import AuditEntry, Revocation
from sse_app.auth.store import AuthStore
from sse_app.cli.options import settings_of
from sse_app.core.errors import AuthStoreUnavailable, StateError
from sse_app.eventlog.factory import stored_event_log
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory


@asynccontextmanager
async def auth_store(
    options: argparse.Namespace, *, create: bool = False
) -> AsyncIterator[tuple[AuthStore, Settings]]:
    """Open the store that the settings name, and yield it with the settings.

    Args:
        options: of the command.
        create: whether to begin a state directory, with a key, where there is none, and to make the store where it
            was lost. What was issued before is then revoked: which of it had been is no longer known.

    Raises:
        SettingsError, StateError: it cannot be used.
    """
    settings = settings_of(options)
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
        yield store, settings
    finally:
        await store.close()


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
