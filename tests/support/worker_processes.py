"""Workers as their parent starts them, but each on a port of its own, so that a test can choose to which it speaks."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.preloaded import start
from tests.support.upgradable import Upgradable
from tests.support.waiting import until


class WorkerProcess(Upgradable):
    """One of several workers on a state directory.

    Args:
        number: of the worker, from 1.
        settings: as those of `ServerProcess`.
    """

    def __init__(self, number: int, **settings: Any) -> None:
        super().__init__(**settings)
        self.number = number
        self.environment["SSE_APP_WORKER"] = str(number)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((self.environment.get("SSE_APP_HOST", "127.0.0.1"), self.port))
        self._socket.listen(1000)

    def launch(self) -> None:
        """Start the process, and do not wait until it is ready."""
        with self.log_path.open("ab") as log:
            self.process = start(
                ["serve"],
                environment=self.environment,
                listening=self._socket,
                open_files=self.open_files,
                stderr=log,
            )

    def start(self, stderr: int | None = None) -> None:
        """Start the process, and wait until it is ready."""
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it serves."""
        until(self._ready, f"the worker is ready; its log is {self.log_path}")

    @property
    def lock(self) -> Path:
        """The file that says which process serves."""
        return self.state_dir / f"workers/{self.number}/lock"

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@contextmanager
def worker_processes(
    count: int,
    state_dir: Path,
    *,
    environment: Mapping[str, str] | None = None,
    expected: tuple[str, ...] = (),
    **settings: Any,
) -> Iterator[list[WorkerProcess]]:
    """Run so many workers, which know each other; they have to end with status 0, and nothing unexpected in their logs.

    On a machine that is too busy for a worker to answer in time the others say so.

    Args:
        count: how many.
        state_dir: that of all.
        environment: further variables.
        expected, settings: as those of `ServerProcess`.
    """
    settings |= {"WORKERS": count, "expected": (*expected, "worker_silent")}
    workers = [WorkerProcess(number, state_dir=state_dir, **settings) for number in range(1, count + 1)]
    try:
        for worker in workers:
            worker.environment |= environment or {}
            worker.launch()
        for worker in workers:
            worker.wait_until_ready()
        until(lambda: all(_knows(worker, count) for worker in workers), "all workers know each other")
        yield workers
        assert [worker.stop() for worker in workers] == [0] * count
    finally:
        for worker in workers:
            worker.kill()
            worker.close()
    for worker in workers:
        worker.check_log()


def _knows(worker: WorkerProcess, count: int) -> bool:
    """Return whether a worker is answered by all others."""
    metrics = httpx.get(f"{worker.url}/metrics", timeout=30).text
    return all(f'sse_app_worker_up{{worker="{number}"}} 1.0' in metrics for number in range(1, count + 1))
