"""Makes the cluster that a process belongs to."""

from __future__ import annotations

import os
import re
import socket
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sse_app.cluster.base import Alone, Cluster
from sse_app.cluster.workers import Workers
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory

if TYPE_CHECKING:
    from sse_app.storage.postgres.database import Database


def make_cluster(state: StateDirectory, settings: Settings, database: Database | None = None) -> Cluster:
    """Return the cluster of the nodes that share a database, of the workers that share a state directory, or of none.

    Args:
        state: says which worker this process is.
        settings: name this machine.
        database: in which nodes on several machines find each other.
    """
    if database is not None:
        from sse_app.cluster.machines import Machines  # only here: what it needs takes a while to load

        # A plain text, not of the settings' own class: messages are made of nothing else.
        machine = str(settings.node) or _name_of_host()
        name = f"{machine}.{state.worker}" if state.worker else machine
        return Machines(database, name, _place(state))
    return Workers(state.worker, state.workers) if state.worker else Alone()


def _name_of_host() -> str:
    """Return the first part of the host's name, of such characters as the name of a node may have."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().partition(".")[0])
    return re.sub(r"^[^A-Za-z0-9]+", "", name)[:63] or "node"


def _place(state: StateDirectory) -> str:
    """Return what tells the state directory from all others, also from copies of it on other machines.

    One server at a time uses it, and each worker of that has a number. After a restart of the machine it is another.
    """
    machine = f"{uuid.getnode():x}"  # where the kernel does not say when it has started
    with suppress(OSError):
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    directory = os.stat(state.path)
    return f"{machine}:{directory.st_dev}:{directory.st_ino}:{state.worker}"
