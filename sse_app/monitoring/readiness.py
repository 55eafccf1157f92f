"""Whether a node is ready for new work: one answer for ``/readyz`` and for the metric."""

from __future__ import annotations

from typing import NamedTuple

from sse_app.auth.store import AuthStore
from sse_app.core.lifecycle import Lifecycle
from sse_app.eventlog.base import EventLog


class Obstacle(NamedTuple):
    """Why a node is not ready: a code for programs, and a sentence."""

    code: str
    message: str


class Readiness:
    """Looks whether a node has started, does not stop, and can use what it stores.

    Args:
        lifecycle: whether it starts or drains.
        eventlog: what it publishes to.
        auth_store: without it no user can log in, and revocations are not learned of.
    """

    def __init__(self, lifecycle: Lifecycle, eventlog: EventLog, auth_store: AuthStore) -> None:
        self._lifecycle = lifecycle
        self._eventlog = eventlog
        self._auth_store = auth_store

    def obstacle(self) -> Obstacle | None:
        """Return why the node is not ready, or None."""
        if self._lifecycle.draining:
            return Obstacle("draining", "the server is shutting down")
        if not self._lifecycle.ready:
            return Obstacle("starting", "the server is starting")
        if not self._eventlog.available:
            return Obstacle("log_unavailable", "the event log is not available just now")
        if not self._auth_store.available:
            return Obstacle("accounts_unavailable", "accounts and sessions are not available just now")
        return None
