"""Where a node is in its life, as its parts and operators are told."""

from __future__ import annotations

import time


class Lifecycle:
    """Since when a node exists, and whether it takes new work."""

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
