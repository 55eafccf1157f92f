"""Makes the cluster that a process belongs to."""

from __future__ import annotations

from sse_app.cluster.base import Alone, Cluster
from sse_app.cluster.workers import Workers
from sse_app.storage.state_dir import StateDirectory


def make_cluster(state: StateDirectory) -> Cluster:
    """Return the cluster of the workers that use a state directory, or that of a process which uses it alone."""
    return Workers(state.worker, state.workers) if state.worker else Alone()
