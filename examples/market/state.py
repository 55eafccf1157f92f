"""The state directory of the demo: its own, never that of a server in use, and of one demo at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from sse_app.storage.state_dir import StateDirectory, has_state

MARK = "market-demo"
"""A file by which a state directory is known as the demo's; it is locked while the demo runs, and says where."""


class StateInUse(Exception):
    """The directory belongs to others, or a demo runs there; the text says which."""


def check(state: Path) -> None:
    """See that the demo may use a directory; nothing is changed.

    Raises:
        StateInUse: it may not.
    """
    if not (state / MARK).exists():
        if has_state(state) or (state.is_dir() and any(state.iterdir())):
            raise StateInUse(
                f"{state} is not the demo's: let SSE_APP_STATE_DIR name another directory, or none"
            )
        return
    descriptor = os.open(state / MARK, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(descriptor)
    finally:
        os.close(descriptor)
    if has_state(state) and (holder := StateDirectory(state, create=False).holder()):
        raise StateInUse(f"process {holder} uses {state}")


def take(state: Path, url: str) -> int:
    """Make the directory, lock it, write down where the demo runs, and return the descriptor that holds the lock.

    Raises:
        StateInUse: another demo was quicker.
    """
    # The default lies in the directory that a server in this checkout uses, which has to be private.
    state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    state.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(state / MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor)
    except StateInUse:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{url}/ (process {os.getpid()})".encode(), 0)
    return descriptor


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        where = os.pread(descriptor, 1000, 0).decode("utf-8", "replace")
        raise StateInUse(f"it runs already at {where}; Ctrl-C there ends it") from None
