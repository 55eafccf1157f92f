"""Makes the cluster that a process belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sse_app.cluster.base import Alone, Cluster
from sse_app.cluster.workers import Workers
from sse_app.settings.model import Settings
from sse_app.storage.state_dir import StateDirectory

if TYPE_CHECKING:
    from sse_app.storage.postgres.database import Database


def make_cluster(state: StateDirectory, settings: Settings, database: Database | None = None) -> Cluster:
    """Return the cluster of the workers that use a state directory, or that of a process which uses it alone.

    Args:
        state: says which worker this process is.
        settings: name this machine.
        database: in which nodes on several machines find each other.
    """
    return Workers(state.worker, state.workers) if state.worker else Alone()
