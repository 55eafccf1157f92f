"""Several workers on one state directory, each a real server process that is given its listening sockets."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.server_process import ROOT, ServerProcess
from tests.support.waiting import until

_BEGIN = """
import os, sys
passed = [int(each) for each in sys.argv[1:]]
for number, descriptor in enumerate(passed, 3):
    os.dup2(descriptor, number)
    os.set_inheritable(number, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(passed)))
os.execv(sys.executable, [sys.executable, "main.py", "serve"])
"""
"""Puts descriptors where a service manager would put them, and becomes the server."""


def _listening(port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen(1024)
    return sock


class Worker(ServerProcess):
    """One worker: it listens on a port of its own, for tests that mean this one, and on that of all workers.

    Args:
        number: from 1.
        state_dir: that of all workers.
        shared: its socket on the port of all workers.
        settings: as those of `ServerProcess`.
    """

    def __init__(self, number: int, *, state_dir: Path, shared: socket.socket, **settings: Any) -> None:
        self._own = _listening()
        self._sockets = [shared, self._own]
        super().__init__(state_dir=state_dir, PORT=self._own.getsockname()[1], WORKER=number, **settings)
        self.name = str(number)

    def start(self, stderr: int | None = None) -> None:
        """Start the worker and wait until it is ready."""
        # Numbers that dup2 does not overwrite before their turn: those of this process are above.
        descriptors = [sock.fileno() for sock in self._sockets]
        assert min(descriptors) > 4
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, *map(str, descriptors)],
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=log if stderr is None else stderr,
                pass_fds=descriptors,
            )
        until(self._ready, f"worker {self.name} is ready; its log is {self.log_path}")

    def close(self) -> None:
        """Close its sockets."""
        for sock in self._sockets:
            sock.close()


@contextmanager
def running_workers(
    count: int, *, state_dir: Path, expected: tuple[str, ...] = (), **settings: Any
) -> Iterator[list[Worker]]:
    """Run workers that know each other; each has to end with status 0, and with nothing unexpected in its log."""
    with ExitStack() as stack:
        first = _listening()
        port = first.getsockname()[1]
        shared = [first, *(_listening(port) for _ in range(count - 1))]
        workers = [
            Worker(number, state_dir=state_dir, shared=sock, expected=expected, **settings)
            for number, sock in enumerate(shared, 1)
        ]
        for worker in workers:
            stack.callback(worker.close)
            worker.start()
            stack.callback(worker.kill)
        until(lambda: all(_knows(worker, count) for worker in workers), "all workers know each other")
        yield workers
        for worker in workers:
            assert worker.stop() == 0
        for worker in workers:
            worker.check_log()


def _knows(worker: Worker, count: int) -> bool:
    """Return whether a worker is answered by all others."""
    metrics = httpx.get(f"{worker.url}/metrics", timeout=30).text
    return all(f'sse_app_worker_up{{worker="{number}"}} 1.0' in metrics for number in range(1, count + 1))
