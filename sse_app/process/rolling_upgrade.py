"""An upgrade of several workers: each hands over to a successor, one after the other, until one of them cannot."""

from __future__ import annotations

import logging
import signal
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path

from sse_app.process.upgrade_outcome import UPGRADE_TIMEOUT, forget_failure, tell_failure
from sse_app.process.worker_process import WorkerProcess

log = logging.getLogger(__name__)


class RollingUpgrade:
    """The upgrade that is under way, if one is.

    Args:
        directory: of all workers, in which the command that has asked for an upgrade finds why it has failed.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._workers: deque[WorkerProcess] = deque()
        """Those that are yet to be upgraded, the one that is being upgraded first."""
        self._due_at = 0.0

    @property
    def due_at(self) -> float | None:
        """When the worker that is being upgraded must be done (`time.monotonic`); None where none is."""
        return self._due_at if self._workers else None

    def is_at(self, worker: WorkerProcess) -> bool:
        """Return whether it is this one that is being upgraded."""
        return bool(self._workers) and self._workers[0] is worker

    def begin(self, workers: Iterable[WorkerProcess]) -> bool:
        """Upgrade workers in their order; return whether that is done already, for there is none to upgrade."""
        forget_failure(self._directory)
        self._workers.extend(workers)
        log.info("upgrading", extra={"workers": len(self._workers)})
        return self._next()

    def succeeded(self) -> bool:
        """Upgrade the next worker, as the one before serves now; return whether there is none."""
        self._workers.popleft()
        return self._next()

    def fail(self, detail: str) -> None:
        """Upgrade no other worker.

        Args:
            detail: why the one that was being upgraded could not be.
        """
        text = f"worker {self._workers[0].number} could not be upgraded, {detail}; the rest were not tried"
        log.error("upgrade_failed", extra={"detail": text})
        tell_failure(self._directory, text)
        self._workers.clear()

    def cancel(self) -> None:
        """Forget what was to be upgraded: all workers are to end."""
        self._workers.clear()

    def _next(self) -> bool:
        while self._workers and (self._workers[0].stopping or not self._workers[0].ready):
            self._workers.popleft()  # it starts with the new program anyway, or ends
        if not self._workers:
            return True
        self._due_at = time.monotonic() + UPGRADE_TIMEOUT
        self._workers[0].signal(signal.SIGUSR2)
        return False
