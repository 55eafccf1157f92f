"""Whether a node is starting, ready or draining: the node writes it, its parts and handlers read it."""

from __future__ import annotations

import time


class Lifecycle:
    """When a node began, and whether it takes new work."""

    def __init__(self) -> None:
        self.started_at = time.monotonic()
        self.ready = False
        """Whether it has started, and is not stopping."""
        self.draining = False
        """Whether it is ending its streams in order to stop."""

    @property
    def uptime(self) -> float:
        """Seconds since the node was made."""
        return time.monotonic() - self.started_at
