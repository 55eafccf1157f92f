"""A server that hands over to successors: which process serves is what its lock says."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import httpx

from tests.support.server_process import ServerProcess
from tests.support.waiting import until


class Upgradable(ServerProcess):
    """A server of which another process than the one that was started may serve."""

    @property
    def lock(self) -> Path:
        """The file that says which process serves."""
        return self.state_dir / "lock"

    @property
    def pid(self) -> int:
        """The process that serves."""
        return int(self.lock.read_text())

    def upgrade(self) -> None:
        """Have it hand over to a successor, and wait until that serves."""
        before = self.pid
        os.kill(before, signal.SIGUSR2)
        until(lambda: self.pid != before, "another process has the lock")
        httpx.get(f"{self.url}/readyz", timeout=60)  # which it answers once it serves, and takes signals

    def stop(self) -> int:
        """Ask the process that serves to end, wait until it has, and return the status of the one that was started."""
        assert self.process is not None
        if self.process.poll() is None:
            return super().stop()
        self._end(signal.SIGTERM)
        return self.process.returncode

    def kill(self) -> None:
        """End the process that serves as a power cut would: ``kill -9``."""
        super().kill()
        if self.lock.exists():
            self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        until(lambda: not Path(f"/proc/{self.pid}").exists(), "the process has gone")
