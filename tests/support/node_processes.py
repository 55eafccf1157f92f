"""Servers on several machines, as far as one machine can have them: each with a state directory of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from tests.support.people import Ear
from tests.support.preloaded import limited
from tests.support.server_process import PROGRAM, ROOT, ServerProcess
from tests.support.upgradable import Upgradable
from tests.support.waiting import until
from tests.support.worker_processes import WorkerProcess

ALONE, WITH_WORKERS = "web10", "web2"
AHEAD = ("unshare", "--time", "--monotonic", "86400", "--boottime", "86400")
NAMES = ["web2.1", "web2.2", "web10"]
"""The nodes of `node_processes`, in their order."""


class MachineProcess(Upgradable):
    """A server whose monotonic clock is a day ahead, as another machine's may be, where the system allows that."""

    def start(self, stderr: int | None = None) -> None:
        """Start the server and wait until it is ready."""
        if subprocess.run([*AHEAD, "true"], capture_output=True, check=False).returncode:
            super().start(stderr)
            return
        command = [*AHEAD, *PROGRAM, "serve"]
        if self.open_files:
            command = limited(command, self.open_files)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stderr=log,
            )
        until(self._ready, f"the server is ready; its log is {self.log_path}")


@contextmanager
def node_processes(
    directory: Path,
    url: str,
    *,
    url_of_workers: str = "",
    expected: tuple[str, ...] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
    **settings: Any,
) -> Iterator[list[Upgradable]]:
    """Run the nodes `NAMES` on a database: two workers of one machine, each on a port of its own, and another machine.

    They have the same keys. All have to end with status 0, and with nothing unexpected in their logs. On a machine that
    is too busy for a node to answer in time the others say so.

    Args:
        directory: of their state directories.
        url: of the database.
        url_of_workers: where the workers find it, if not there.
        environment: further variables of all of them.
        expected, settings: as those of `ServerProcess`.
    """
    expected = (*expected, "node_silent")
    alone = MachineProcess(
        state_dir=directory / ALONE, expected=expected, NODE=ALONE, EVENT_LOG=url, **settings
    )
    state_dir = directory / WITH_WORKERS
    nodes: list[Upgradable] = [
        *(
            WorkerProcess(
                number,
                state_dir=state_dir,
                expected=expected,
                NODE=WITH_WORKERS,
                WORKERS=2,
                EVENT_LOG=url_of_workers or url,
                **settings,
            )
            for number in (1, 2)
        ),
        alone,
    ]
    for node in nodes:
        node.environment |= environment
    try:
        alone.start()
        state_dir.mkdir(mode=0o700)
        shutil.copytree(alone.state_dir / "keys", state_dir / "keys")
        for worker in nodes[:2]:
            worker.start()
        ears = [Ear(node, "dashboard", node.stream_token("dashboard")) for node in nodes]
        until(lambda: _all_are_counted(nodes), "all nodes know each other")
        for ear in ears:
            ear.leave()
        yield nodes
        assert [node.stop() for node in nodes] == [0] * len(nodes)
    finally:
        for node in nodes:
            if node.process is not None:
                node.kill()
            if isinstance(node, WorkerProcess):
                node.close()
    for node in nodes:
        node.check_log()


def _all_are_counted(nodes: Sequence[ServerProcess]) -> bool:
    """Return whether each node counts a stream of each."""
    for node in nodes:
        status = httpx.get(f"{node.url}/api/v1/sse/status", timeout=30).raise_for_status().json()
        if (status["total_connections"], status["nodes_missing"]) != (len(nodes), []):
            return False
    return True
