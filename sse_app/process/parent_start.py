"""What the parent of workers finds of servers before it on the same state directory, and waits for or clears away."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress

from sse_app.core.errors import StateError
from sse_app.handover.fd_store import RECEIVING, SENDING
from sse_app.process.listeners import Listeners
from sse_app.process.notifications import Notifications
from sse_app.process.systemd import Systemd
from sse_app.process.worker_process import ENDING_GRACE
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import STANDBY_SOCKET, StateDirectory

LOOK_INTERVAL = 0.05
"""Seconds between two looks whether a process has ended."""

log = logging.getLogger(__name__)


def end_standby(state: StateDirectory, timeout: float) -> None:
    """Have the standby end that has taken the place of a process that served alone until this restart of the unit.

    Only another process that serves alone can take over from it.

    Args:
        state: the state directory.
        timeout: for how many seconds to wait for its end at most.
    """
    if not (state.path / STANDBY_SOCKET).is_socket():
        return
    standby = state.holder()
    if standby is None or state.parent() is not None:
        return
    log.info("stand_in_ended", extra={"pid": standby})
    with suppress(OSError):
        os.kill(standby, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while state.holder() == standby and time.monotonic() < deadline:
        time.sleep(LOOK_INTERVAL)


def wait_for_workers(state: StateDirectory, timeout: float) -> None:
    """Wait for workers whose parent has died, which are about to end.

    Args:
        state: the state directory.
        timeout: for how many seconds to wait at most.

    Raises:
        StateError: they do not end; they may have been started by others.
    """
    deadline = time.monotonic() + timeout
    told = False
    while running := state.running_workers():
        named = ", ".join(f"{number} (process {pid})" for number, pid in running.items())
        if time.monotonic() > deadline:
            raise StateError(f"workers of the state directory {state.path} run without this parent: {named}")
        if not told:
            log.info("waiting_for_workers", extra={"workers": named})
            told = True
        time.sleep(LOOK_INTERVAL)


def without_stored(passed: list[tuple[str, int]], systemd: Systemd) -> list[tuple[str, int]]:
    """Return descriptors without those that a process that served alone has left in systemd's store, which it drops."""
    for name, descriptor in passed:
        if name in (SENDING, RECEIVING):
            os.close(descriptor)
            systemd.notify("FDSTOREREMOVE=1", f"FDNAME={name}")
    return [(name, descriptor) for name, descriptor in passed if name not in (SENDING, RECEIVING)]


def bound_listeners(settings: Settings, state: StateDirectory, workers: int) -> Listeners:
    """Open the listening sockets.

    A worker that was just being started when its parent was killed has the port for a moment yet, and no lock by
    which it could be known. That the parent was killed shows in the socket for reports that it has left.

    Args:
        settings: name the address.
        state: the state directory.
        workers: how many sockets there are to be for each address.

    Raises:
        StateError: an address cannot be used.
    """
    killed = Notifications.is_left(state.workers)
    deadline = time.monotonic() + ENDING_GRACE
    while True:
        try:
            return Listeners.bound(settings, workers)
        except StateError:
            if not killed or time.monotonic() > deadline:
                raise
        time.sleep(LOOK_INTERVAL)
