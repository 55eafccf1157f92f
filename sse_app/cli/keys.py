"""``keys …``: the keys in the state directory, or sealed in the database; a running server notices new ones."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

from sse_app.auth.factory import keys_directory, sealed_keys_of
from sse_app.auth.tokens.keyring import KeyRing, load_keys, read_files
from sse_app.auth.tokens.keyring import remove as remove_key
from sse_app.auth.tokens.keyring import rotate as rotate_keys
from sse_app.cli.auth_store import auth_store, keys_in_use, note
from sse_app.cli.options import settings_of
from sse_app.core.errors import InvalidInput
from sse_app.storage.state_dir import StateDirectory


def show(options: argparse.Namespace) -> None:
    """Print the keys, the newest first; what they consist of is not shown."""
    keys = asyncio.run(_keys(options))
    for key in keys:
        use = "signs" if key is keys.signing else "verifies"
        print(f"{key.id} {key.algorithm} {use}")


async def _keys(options: argparse.Namespace) -> KeyRing:
    settings = settings_of(options)
    if not settings.auth.keys_seal:
        state = StateDirectory(settings.state_dir, create=False)
        return load_keys(keys_directory(settings.auth, state), create=False)
    async with auth_store(options) as (store, _):
        return await keys_in_use(settings, store)


def rotate(options: argparse.Namespace) -> None:
    """Make a new key, and print its id."""
    print(asyncio.run(_rotate(options)))


async def _rotate(options: argparse.Namespace) -> str:
    async with auth_store(options) as (store, settings):
        longest = settings.auth.longest_lifetime
        if (sealed := sealed_keys_of(settings.auth, store)) is not None:
            kid, spent = await sealed.rotate(options.algorithm or "", longest)
            algorithm = next(key.algorithm for key in await sealed.load() if key.id == kid)
        else:
            directory = keys_directory(settings.auth, StateDirectory(settings.state_dir))
            algorithm = options.algorithm or load_keys(directory, create=False).signing.algorithm
            kid, spent = rotate_keys(directory, algorithm, time.time() - longest)
        await note(store, "key_rotation", kid, f"{algorithm}; deleted: {', '.join(spent) or 'none'}")
        return kid


def remove(options: argparse.Namespace) -> None:
    """Delete a key that has leaked, or is needed no more."""
    asyncio.run(_remove(options))


async def _remove(options: argparse.Namespace) -> None:
    async with auth_store(options) as (store, settings):
        if (sealed := sealed_keys_of(settings.auth, store)) is not None:
            await sealed.remove(options.id)
        else:
            remove_key(keys_directory(settings.auth, StateDirectory(settings.state_dir)), options.id)
        await note(store, "key_removed", options.id)


def take_in(options: argparse.Namespace) -> None:
    """Seal keys that were kept in files, put them into the database, and print the ids of those that were not there."""
    for kid in asyncio.run(_take_in(options)):
        print(kid)


async def _take_in(options: argparse.Namespace) -> list[str]:
    async with auth_store(options) as (store, settings):
        if (sealed := sealed_keys_of(settings.auth, store)) is None:
            raise InvalidInput("the settings keep the keys in files: name the seal in auth.keys_seal")
        directory: Path = options.directory or settings.state_dir / "keys"
        taken = await sealed.take_in(read_files(directory))
        for kid in taken:
            await note(store, "key_import", kid)
        return taken
