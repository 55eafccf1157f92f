"""``keys …``: the keys in the state directory; a running server notices new ones."""

from __future__ import annotations

import argparse
import asyncio
import time

from sse_app.auth.factory import keys_directory
from sse_app.auth.tokens.keyring import load_keys
from sse_app.auth.tokens.keyring import rotate as rotate_keys
from sse_app.cli.auth_store import auth_store, note
from sse_app.cli.options import settings_of
from sse_app.storage.state_dir import StateDirectory


def show(options: argparse.Namespace) -> None:
    """Print the keys, the newest first; what they consist of is not shown."""
    settings = settings_of(options)
    state = StateDirectory(settings.state_dir, create=False)
    keys = load_keys(keys_directory(settings.auth, state), create=False)
    for key in keys:
        use = "signs" if key is keys.signing else "verifies"
        print(f"{key.id} {key.algorithm} {use}")


def rotate(options: argparse.Namespace) -> None:
    """Make a new key, and print its id."""
    print(asyncio.run(_rotate(options)))


async def _rotate(options: argparse.Namespace) -> str:
    async with auth_store(options) as (store, settings):
        directory = keys_directory(settings.auth, StateDirectory(settings.state_dir))
        keys = load_keys(directory, create=False)
        algorithm = options.algorithm or keys.signing.algorithm
        kid, spent = rotate_keys(directory, algorithm, time.time() - settings.auth.longest_lifetime)
        await note(store, "key_rotation", kid, f"{algorithm}; deleted: {', '.join(spent) or 'none'}")
        return kid
