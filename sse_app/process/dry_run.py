"""A dry run of the start, for ``check-config``: tries what it needs of this machine, and changes nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from sse_app.auth import sqlite_store
from sse_app.auth.factory import SEAL_WITHOUT_DATABASE, refuse_lost_accounts
from sse_app.auth.tokens.keyring import load_keys
from sse_app.core.errors import SettingsError, StateError
from sse_app.eventlog.factory import stored_event_log
from sse_app.eventlog.sqlite import schema
from sse_app.process.sockets import check_address, processes_listening
from sse_app.settings.database import make_database
from sse_app.settings.model import Settings
from sse_app.settings.workers import require_shareable, worker_count
from sse_app.storage.sqlite import has_database, schema_version
from sse_app.storage.state_dir import StateDirectory


def try_start(settings: Settings) -> tuple[list[str], list[str]]:
    """Return a line for each thing that is as the start needs it, and a line for each that would stop it."""
    good, bad = [], []
    steps: tuple[Callable[[Settings], str], ...] = (_state, _workers, _keys, _accounts, _event_log, _address)
    for step in steps:
        try:
            good += step(settings).splitlines()
        except (StateError, SettingsError) as error:
            if str(error) not in bad:  # one cause may stop several steps
                bad.append(str(error))
        except OSError as error:
            bad.append(f"cannot use {error.filename}: {error.strerror}")
    return good, bad


def _state(settings: Settings) -> str:
    path = settings.state_dir.absolute()
    if not path.exists():
        _require_room_for(path)
        return f"state directory: {path} is not there yet; the start makes it"
    state = StateDirectory(settings.state_dir, change=False)
    holder, workers = state.holder(), state.running_workers()
    users = [f"process {holder}" + (", the parent of workers" if workers else "")] if holder else []
    users += [f"worker {number} (process {pid})" for number, pid in workers.items()]
    return f"state directory: {path}" + (f" is in use by {', '.join(users)}" if users else "")


def _workers(settings: Settings) -> str:
    require_shareable(settings)
    count = worker_count(settings)
    if count == 1:
        return "workers: one process serves alone"
    cores = ", one for each core" if settings.workers == "auto" else ""
    return f"workers: {count}{cores}, and their parent"


def _keys(settings: Settings) -> str:
    if settings.auth.keys_seal:
        if make_database(settings) is None:
            raise StateError(SEAL_WITHOUT_DATABASE)
        from sse_app.auth.tokens.sealing import Seal  # only here: it loads cryptography

        return f"keys: in the database, sealed with {Seal(Path(settings.auth.keys_seal)).file}"
    if not settings.auth.keys_dir and not _has_files(settings.state_dir / "keys"):
        return "keys: none yet; the start makes the first"
    directory = Path(settings.auth.keys_dir or settings.state_dir / "keys")
    keys = load_keys(directory, create=False)
    return f"keys: {len(list(keys))} in {directory.absolute()}; {keys.signing.id} signs"


def _accounts(settings: Settings) -> str:
    if make_database(settings) is not None:
        return "accounts: with the event log"
    path = settings.state_dir / "accounts.db"
    if settings.state_dir.exists():
        state = StateDirectory(settings.state_dir, change=False)
        refuse_lost_accounts(state, stored_event_log(settings.event_log, state))
    return "accounts: " + _database(settings, path, sqlite_store.APPLICATION_ID, len(sqlite_store.MIGRATIONS))


def _event_log(settings: Settings) -> str:
    if settings.event_log == "memory:":
        return "event log: in memory"
    if make_database(settings) is not None:
        from sse_app.process.database_check import database_lines  # only here: it needs psycopg

        return "\n".join(asyncio.run(database_lines(settings)))
    path = Path(settings.event_log.removeprefix("sqlite:") or settings.state_dir / "events.db")
    return "event log: " + _database(settings, path, schema.APPLICATION_ID, len(schema.MIGRATIONS))


def _database(settings: Settings, path: Path, application_id: int, newest: int) -> str:
    """Return what there is to say of a database that can be used."""
    if not path.exists():
        if path.parent.absolute() != settings.state_dir.absolute() and not path.parent.is_dir():
            raise StateError(f"cannot open {path}: there is no directory {path.parent}")
        _require_room_for(path)
        return f"{path.absolute()} is not there yet; the start makes it"
    if not has_database(path, application_id):
        return f"{path.absolute()} is empty; the start makes it"
    version = schema_version(path, newest)
    later = f", which the start brings to {newest}" if version < newest else ""
    return f"{path.absolute()} has schema version {version}{later}"


def _address(settings: Settings) -> str:
    address = f"{settings.host}:{settings.port}"
    try:
        check_address(settings)
    except StateError:
        processes = processes_listening(settings.port)
        own = (
            StateDirectory(settings.state_dir, change=False).holder() if settings.state_dir.exists() else None
        )
        if own is None and settings.state_dir.exists():
            workers = StateDirectory(settings.state_dir, change=False).running_workers()
            own = next((pid for pid in workers.values() if pid in processes), None)
        if own is not None and (own in processes or not processes):
            return f"address: {address} is in use by process {own}, the server of this state directory"
        if any(name == "systemd" for name in processes.values()):
            return f"address: {address} is held by systemd, which passes it on to the service"
        raise
    return f"address: {address} can be listened on"


def _has_files(directory: Path) -> bool:
    return directory.is_dir() and any(not path.name.startswith(".") for path in directory.iterdir())


def _require_room_for(path: Path) -> None:
    """Raise where neither a file nor a directory can be made at a path, with those above it."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise StateError(f"cannot make {path.absolute()}: {above} is not writable")
