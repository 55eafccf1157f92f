"""``upgrade``: replace a server, or its workers, without downtime."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from sse_app.cli.options import settings_of
from sse_app.core.errors import StateError
from sse_app.process.upgrade_outcome import UPGRADE_TIMEOUT, failure, forget_failure
from sse_app.storage.state_dir import StateDirectory, own_directory


def upgrade(options: argparse.Namespace) -> None:
    """Have the server that uses the state directory start its successor and hand all connections over to it.

    Workers do so one after the other, so that one pauses at a time: their parent sees to that, if they have one.

    Raises:
        StateError: no server uses it, its container would end with it, or the successor has failed, or did not take
            over within `UPGRADE_TIMEOUT`. The workers after that one are left as they are.
    """
    settings = settings_of(options)
    state = StateDirectory(settings.state_dir, create=False)
    if (parent := state.parent()) is not None:
        _upgrade_workers(state, parent)
        return
    if (holder := state.holder()) is not None:
        _replace(holder, state.path / "lock", state.holder)
        print(f"process {state.holder()} serves in the place of {holder}")
        return
    workers = state.running_workers()
    if not workers:
        raise StateError(f"no server uses the state directory {settings.state_dir}")
    for number, process in workers.items():
        lock = own_directory(state.path, number) / "lock"
        try:
            _replace(process, lock, partial(_process_of, state, number))
        except StateError as error:
            raise StateError(f"worker {number}: {error}{_left(workers, number)}") from None
        print(f"worker {number}: process {_process_of(state, number)} serves in the place of {process}")


def _process_of(state: StateDirectory, worker: int) -> int | None:
    """Return the process that a worker runs as now, or None."""
    return state.running_workers().get(worker)


def _left(workers: dict[int, int], failed: int) -> str:
    """Return the end of a sentence: which workers after the one that failed have not been asked."""
    left = ", ".join(str(number) for number in workers if number > failed)
    return f"; not replaced: {left}" if left else ""


def _replace(process: int, lock: Path, holder: Callable[[], int | None]) -> None:
    """Have a process hand over to a successor, and wait until that serves.

    Args:
        process: the server's.
        lock: a file of whose lock it is the holder.
        holder: returns who that is now.

    Raises:
        StateError: it cannot be replaced, or the successor did not take over in time.
    """
    from sse_app.handover.warm import upgrade_obstacle

    _require_visible(process, lock)
    if obstacle := upgrade_obstacle(process):
        raise StateError(obstacle)
    forget_failure(lock.parent)
    os.kill(process, signal.SIGUSR2)
    deadline = time.monotonic() + UPGRADE_TIMEOUT
    while (now := holder()) == process:
        _require_no_failure(f"process {process} still serves", lock.parent, deadline)
        time.sleep(0.05)
    if now is None:
        raise StateError(f"process {process} has ended, and no other serves in its place")


def _upgrade_workers(state: StateDirectory, parent: int) -> None:
    """Have a parent upgrade its workers, and wait until none of the processes that served before does so.

    Raises:
        StateError: the upgrade of one of them has failed, or it still serves `UPGRADE_TIMEOUT` after the one before
            it had been upgraded.
    """
    _require_visible(parent, state.workers / "lock")
    old = state.running_workers()
    forget_failure(state.workers)
    os.kill(parent, signal.SIGUSR2)
    remaining = len(old)
    deadline = time.monotonic() + UPGRADE_TIMEOUT
    while still := {number: pid for number, pid in state.running_workers().items() if old.get(number) == pid}:
        if len(still) < remaining:
            remaining, deadline = len(still), time.monotonic() + UPGRADE_TIMEOUT
        _require_no_failure(f"{_named(still)} still serve", state.workers, deadline)
        time.sleep(0.05)
    print(f"{_named(state.running_workers())} serve in the place of {', '.join(map(str, old.values()))}")


def _require_no_failure(still: str, directory: Path, deadline: float) -> None:
    """Raise where an upgrade has failed, or has taken too long.

    Args:
        still: the beginning of the text: who still serves.
        directory: where it is found why.
        deadline: until when it may take (`time.monotonic`).

    Raises:
        StateError: it has failed.
    """
    if (detail := failure(directory)) is not None:
        raise StateError(f"{still}: {detail}")
    if time.monotonic() > deadline:
        raise StateError(f"{still}; the log says why")


def _named(workers: dict[int, int]) -> str:
    return ", ".join(f"worker {number} (process {pid})" for number, pid in workers.items())


def _require_visible(process: int, lock: Path) -> None:
    if not _uses(process, lock):
        raise StateError(
            f"the server's process {process} is not visible: run this as its user, and in its container"
        )


def _uses(pid: int, file: Path) -> bool:
    """Return whether that process has a lock's file open: a number from another container is here any process's.

    Of a process in another user namespace (``PrivateUsers=`` in the unit) its user cannot see that (ptrace(2)). It
    must then be of the same user, and handle the signal.
    """
    if not Path("/proc/self").exists():  # a system that cannot tell
        return True
    lock = file.stat()
    hidden = False
    with suppress(OSError):  # no such process, or another user's
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if os.path.samestat(descriptor.stat(), lock):
                    return True
            except PermissionError:
                hidden = True
            except OSError:  # closed meanwhile
                pass
    return hidden and _handles_upgrade(pid)


def _handles_upgrade(pid: int) -> bool:
    """Return whether a process of this user, in the same PID namespace, handles SIGUSR2, which else would end it."""
    fields: dict[str, list[str]] = {}
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().split("\n"):
            name, _, text = line.partition(":")
            fields[name] = text.split()
    try:
        handled = int(fields["SigCgt"][0], 16) >> (signal.SIGUSR2 - 1) & 1
        return bool(handled) and int(fields["Uid"][1]) == os.geteuid() and len(fields["NSpid"]) == 1
    except (KeyError, IndexError, ValueError):
        return False
