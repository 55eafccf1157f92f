"""A server with several workers: which process serves whom, and how the workers and their parent fare."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sse_app.storage.state_dir import StateDirectory
from tests.support.fleet import Client, Fleet, SteadyPublisher
from tests.support.server_process import ROOT, ServerProcess
from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import until

MANY = {"LIMITS__STREAMS_PER_USER": 20_000, "LIMITS__STREAMS_PER_ADDRESS": 20_000}


class ServerWithWorkers(ServerProcess):
    """Starts a parent with its workers.

    Args:
        workers: how many.
        constants: values of constants of modules, by their dotted names, in every process of it.
        code: is run first in every process of it.
        variables: further variables of the environment.
        settings: those of `ServerProcess`.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        constants: dict[str, float] | None = None,
        code: str = "",
        variables: dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**{**MANY, "STREAM__DRAIN_TIME": 0, **settings})
        self.config = self.state_dir.with_suffix(".toml")
        self.environment |= {"SSE_APP_CONFIG": str(self.config), **(variables or {})}
        self.configure(workers)
        self.inject(
            "".join(
                f"import {name.rpartition('.')[0]} as module\nmodule.{name.rpartition('.')[2]} = {value}\n"
                for name, value in (constants or {}).items()
            )
            + code
        )

    def configure(self, workers: int, more: str = "") -> None:
        """Write the settings file: so many workers, and what else it is to hold."""
        self.config.write_text(f"workers = {workers}\n{more}")

    def signal(self, number: int) -> None:
        """Send the parent a signal."""
        os.kill(self.parent, number)

    def inject(self, code: str) -> None:
        """Have each process that starts from now on run some code first."""
        directory = self.state_dir.with_suffix(".injected")
        directory.mkdir(exist_ok=True)
        indented = "".join(f"    {line}\n" for line in code.splitlines())
        (directory / "sitecustomize.py").write_text(
            f"import os, sys\nif 'serve' in sys.orig_argv:\n    pass\n{indented}"
        )
        # Where there is nothing to run the parent can be one that need not load the program.
        self.environment.pop("PYTHONPATH", None)
        (self.environment if code else self.for_children)["PYTHONPATH"] = f"{directory}:{ROOT}"

    def start(self, stderr: int | None = None) -> None:
        """Start the server and wait until all workers serve."""
        before = len(self.logged("listening"))
        super().start(stderr)
        if stderr is None:
            until(lambda: len(self.logged("listening")) > before, "all workers serve")

    @property
    def parent(self) -> int:
        """The parent's process id."""
        assert self.process is not None
        return self.process.pid

    def _log(self) -> str:
        """Return the text of the log, without the lines with which processes have refused to start."""
        if not self.log_path.exists():
            return ""
        lines = super()._log().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("sse-app: "))

    def refusals(self) -> list[str]:
        """Return the lines with which processes have refused to start."""
        return [line for line in self.log_path.read_text().splitlines() if line.startswith("sse-app: ")]

    def logged(self, event: str, **fields: object) -> list[dict[str, object]]:
        """Return the lines of the log with that event and these fields."""
        return [
            line
            for line in self.log_lines()
            if line["event"] == event and all(line.get(name) == value for name, value in fields.items())
        ]

    def wait_for_log(self, event: str, count: int = 1, **fields: object) -> None:
        """Wait until there are so many such lines."""
        until(lambda: len(self.logged(event, **fields)) >= count, f"{count} lines {event} {fields}")

    def workers(self) -> dict[int, int]:
        """Return the process ids of the workers that run, by their numbers."""
        return StateDirectory(self.state_dir, create=False).running_workers()

    def until_workers(self, *numbers: int) -> None:
        """Wait until these workers run and no others."""
        until(lambda: set(self.workers()) == set(numbers), f"the workers are {numbers}")

    def kill_worker(self, number: int) -> int:
        """End one as the kernel does that is out of memory, and return its process id."""
        pid = self.workers()[number]
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_all(self) -> None:
        """End parent and workers at once."""
        pids = [*self.workers().values()] if self.state_dir.exists() else []
        assert self.process is not None
        self.process.kill()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            until(lambda pid=pid: not is_running(pid), f"process {pid} has gone")  # type: ignore[misc]
        self.process.wait()

    def by_worker(self, clients: list[Client]) -> dict[int, list[Client]]:
        """Return the clients by the number of the worker that serves them."""
        of_peer = {
            int(row[2].rpartition(":")[2], 16): f"socket:[{row[9]}]"
            for row in _tcp_rows()
            if int(row[1].rpartition(":")[2], 16) == self.port
        }
        found = {}
        for number, pid in self.workers().items():
            files = set(_open_files(pid))
            found[number] = [one for one in clients if of_peer[one.socket.getsockname()[1]] in files]
        assert sum(map(len, found.values())) == len(clients)
        return found

    def listening_sockets(self, pid: int) -> int:
        """Return on how many sockets of the server's port a process listens."""
        listening = {
            f"socket:[{row[9]}]"
            for row in _tcp_rows()
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == self.port
        }
        return len(listening & set(_open_files(pid)))

    def path(self, **query: str) -> str:
        """Return the path of a stream of ``dashboard``."""
        return self.stream_url("dashboard", self.stream_token("dashboard", ttl=6000), **query).removeprefix(
            self.url
        )

    def steady(self, pause: float = 0.025) -> SteadyPublisher:
        """Publish all the while."""
        return SteadyPublisher(self.url, self.access_token(), pause=pause)


def _tcp_rows() -> list[list[str]]:
    return [line.split() for line in Path("/proc/net/tcp").read_text().split("\n")[1:] if line]


def _open_files(pid: int) -> list[str]:
    found = []
    with suppress(FileNotFoundError):  # the process has gone
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.append(os.readlink(link))
    return found


def is_running(pid: int) -> bool:
    """Return whether a process runs; one that has ended and is not waited for does not.

    Of one that was killed its first thread may have ended before the others, which still have its files and locks.
    """
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def starting_workers(state_dir: Path) -> Iterator[Callable[..., ServerWithWorkers]]:
    """Yield a function that starts a server with workers; at the end it is stopped, and its log is checked.

    On a machine that is too busy for a worker to answer in time the others say so.
    """
    servers: list[ServerWithWorkers] = []

    def start(expected: tuple[str, ...] = (), **settings: Any) -> ServerWithWorkers:
        expected = (*expected, "worker_silent")
        server = ServerWithWorkers(**{"state_dir": state_dir, **settings}, expected=expected)
        servers.append(server)
        server.start()
        return server

    try:
        yield start
        for server in servers:
            assert server.stop() == 0
            server.check_log()
    finally:
        for server in servers:
            if server.process is not None:
                server.kill_all()


def come_back(fleet: Fleet, server: ServerWithWorkers, client: Client) -> Client:
    """Open a stream that goes on where a client's has ended."""
    ids = [event.id for event in EventStreamReader().feed(client.body()) if event.id is not None]
    return fleet.open(1, server.path(last_event_id=ids[-1]))[0]
