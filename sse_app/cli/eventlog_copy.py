"""``eventlog copy``: brings the event log and the accounts from SQLite into PostgreSQL."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sse_app.auth.factory import keys_directory
from sse_app.cli.eventlog import event_log_file, opened
from sse_app.cli.options import settings_of
from sse_app.cli.progress import Progress
from sse_app.core.errors import InvalidInput, StateError
from sse_app.eventlog.sqlite.bells import is_in_use
from sse_app.eventlog.sqlite.export import Export
from sse_app.process.standard_streams import complain
from sse_app.settings.model import Settings
from sse_app.settings.types import POSTGRES_SCHEMES
from sse_app.storage.state_dir import StateDirectory

INTERRUPTED = 130
"""The status of a command that Ctrl-C has ended."""


def copy(options: argparse.Namespace) -> int | None:
    """Copy the log on SQLite that the settings name, with accounts and sessions, into a database of PostgreSQL.

    Raises:
        InvalidInput: the settings name no log on SQLite, or ``--to`` no database.
        StateError: the one cannot be read or the other not used, holds another log, or is in use.
    """
    settings = settings_of(options)
    if not options.to.startswith(POSTGRES_SCHEMES):
        raise InvalidInput("--to takes the URL of a database: postgresql://user@host/database")
    state = StateDirectory(settings.state_dir, create=False)
    path = event_log_file(settings, state)
    try:
        with _unused(state, path) as last, opened(path):  # it is migrated here
            asyncio.run(_copy(options.to, settings, state, path, last))
    except KeyboardInterrupt:
        complain("interrupted: the same command continues from there")
        return INTERRUPTED
    return None


@contextmanager
def _unused(state: StateDirectory, log: Path) -> Iterator[bool]:
    """Keep servers out of the state directory, and yield whether that is so: else a server serves meanwhile."""
    try:
        state.lock()
    except StateError:
        yield False
        return
    try:
        yield not is_in_use(log)  # with a state directory of its own
    finally:
        state.unlock()


async def _copy(url: str, settings: Settings, state: StateDirectory, path: Path, last: bool) -> None:
    try:
        # Only here: they need the extra.
        from sse_app.auth.copy import copy_auth
        from sse_app.eventlog.postgres.copy import LogCopy
        from sse_app.storage.postgres.database import address_of
        from sse_app.storage.postgres.schema import migrate
        from sse_app.storage.postgres.single import connected
    except ImportError as error:
        raise StateError(f"{error.name} is not installed: sse_app[postgres]") from None
    async with connected(url) as connection:
        await migrate(connection)
        with closing(Export(path)) as export:
            log = LogCopy(connection, export, address_of(url))
            if await log.begin():
                print(f"continues after event {log.position:,}", flush=True)
            progress = Progress("events", export.count(log.position))
            try:
                await log.events(progress.add)
            finally:
                progress.end()
            await log.answers()
            counts = await copy_auth(connection, state.accounts)
            print(f"copied up to event {log.position:,}, and {_listed(counts)}", flush=True)
            if not last:
                print(
                    "a server uses this log: stop it, and give this command once more; "
                    "until then no server can start with the copy"
                )
                return
            totals = await log.finish()
    print(
        f"the same on both sides: {totals.events:,} events, {totals.channels:,} channels, "
        f"{totals.answers:,} idempotency keys"
    )
    if settings.auth.keys_seal:
        await _seal_keys(url, Path(settings.auth.keys_seal), state)
        print(f"keys: sealed in the database; copy {settings.auth.keys_seal} to each machine,", end=" ")
    else:
        print(f"keys: copy {keys_directory(settings.auth, state).absolute()} to each machine,", end=" ")
    print("then start the servers with event_log naming the database")


async def _seal_keys(url: str, seal: Path, state: StateDirectory) -> None:
    from sse_app.auth.postgres_store import PostgresAuthStore
    from sse_app.auth.tokens.keyring import read_files
    from sse_app.auth.tokens.sealed_keys import SealedKeys
    from sse_app.storage.postgres.database import Database

    store = PostgresAuthStore(Database(url))
    await store.open()
    try:
        await SealedKeys(store, seal).take_in(read_files(state.keys))
    finally:
        await store.close()


def _listed(counts: dict[str, int]) -> str:
    names = {"refresh_tokens": "refresh tokens", "audit": "audit entries"}
    return ", ".join(f"{count:,} {names.get(table, table)}" for table, count in counts.items())
