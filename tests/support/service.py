"""The server as a unit of a real systemd, with clients and commands for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.fleet import Fleet, SteadyPublisher
from tests.support.minting import EVERYTHING, mint
from tests.support.programs import require
from tests.support.systemd_manager import PROGRAM, Manager
from tests.support.waiting import until

LIMITS = {"LOG__LEVEL": "debug", "LIMITS__STREAMS_PER_USER": 20_000, "LIMITS__STREAMS_PER_ADDRESS": 20_000}


class Service:
    """A manager with the server as its unit, clients, and tokens for them.

    Args:
        manager: started.
        workers: how many; one is the service, several are a target's.
        settings: ``SSE_APP_…`` variables without the prefix.
    """

    def __init__(self, manager: Manager, *, workers: int = 1, **settings: object) -> None:
        self.manager = manager
        self.workers = workers
        self.port = manager.port
        self.url = f"http://127.0.0.1:{self.port}"
        self.expected: set[str] = set()
        """Events of level warning and above in the server's log that a test brings about."""
        manager.install(self.port, workers=workers, **(LIMITS | settings))
        self.fleet = Fleet(self.port)
        self._publishers: list[SteadyPublisher] = []

    def command(self, *arguments: str) -> str:
        """Run an sse-app command on the service's state directory, and return what it prints."""
        done = self.manager.run(
            [*self.manager.program, *arguments, "--state-dir", str(self.manager.state_dir)]
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def stream_path(self, *, subject: str = "cli", ttl: float = 600, client_id: str = "c") -> str:
        """Return the path of a stream with a token of its own."""
        grants = Grants.of(["dashboard"])
        token = mint(self.manager.state_dir, TokenKind.STREAM, grants, subject=subject, ttl=ttl)
        return f"/api/v1/sse/dashboard?token={token}&client_id={client_id}"

    def access_token(self) -> str:
        """Return a token that may do everything."""
        return mint(self.manager.state_dir, TokenKind.ACCESS, EVERYTHING)

    def publisher(self, pause: float = 0.05) -> SteadyPublisher:
        """Publish all the while."""
        self._publishers.append(SteadyPublisher(self.url, self.access_token(), pause=pause))
        return self._publishers[-1]

    def close(self) -> None:
        """End all clients and publishers."""
        self.fleet.close()
        for publisher in self._publishers:
            publisher.stop()

    def publish(self, count: int, size: int = 10) -> list[str]:
        """Publish some events of so many bytes, and return their ids."""
        event = {"channel": "dashboard", "event": "e", "data": {"pad": "x" * size}}
        ids: list[str] = []
        with httpx.Client(headers={"Authorization": f"Bearer {self.access_token()}"}, timeout=60) as http:
            for start in range(0, count, 50):
                batch = {"events": [event] * min(50, count - start)}
                ids += http.post(f"{self.url}/api/v1/sse", json=batch).json()["ids"]
        return ids

    @property
    def pids(self) -> list[int]:
        """The main processes, of the workers by their numbers."""
        if self.workers == 1:
            return [self.manager.main_pid]
        return [self.manager.pid_of(number) for number in range(1, self.workers + 1)]

    def restart(self) -> None:
        """Restart the service as an operator would."""
        before = self.pids
        self.manager.systemctl("restart", "sse-app.target" if self.workers > 1 else "sse-app.service")
        assert not {0, *before} & set(self.pids)
        assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]

    def upgrade(self) -> None:
        """Let warm successors take over, as an operator would."""
        before = self.pids
        self.command("upgrade")
        until(lambda: not {0, *before} & set(self.pids), "other processes serve")
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before), "the processes have gone")

    def change(self, workers: int) -> None:
        """Have another number of workers, or one process, by the commands that the operator is told."""
        self.manager.run_next(self.manager.installed(self.port, workers))
        self.workers = workers

    def signal(self, name: str) -> None:
        """Send a signal to the main process."""
        self.manager.systemctl("kill", f"--signal={name}", "--kill-who=main", "sse-app.service")

    def configure(self, name: str, text: str) -> None:
        """Add to the service's unit."""
        self.manager.add_to_unit(name, f"[Service]\n{text}\n")
        self.manager.systemctl("daemon-reload")

    def inject(self, code: str) -> None:
        """Have each process of the service that starts from now on run some code first.

        What this is for is not to mock anything, but to have a process die or stand still at a given place.
        """
        (self.manager.directory / "sitecustomize.py").write_text(
            f"import os, sys\nif 'serve' in sys.orig_argv:\n{_indented(code)}"
        )
        self.configure(
            "inject",
            f"Environment=PYTHONPATH={self.manager.directory}:{Path(self.manager.program[1]).parent}",
        )

    def logged(self, event: str) -> list[dict[str, object]]:
        """Return the lines of the server's log with that event."""
        return [line for line in self._lines() if line["event"] == event]

    def _lines(self) -> list[dict[str, object]]:
        """Return the lines of the server's log, without the one with which a process refuses to start.

        A line that is just being written is left out.
        """
        *lines, _ = self.manager.server_log.read_text().split("\n")
        return [json.loads(line) for line in lines if not line.startswith("sse-app: ")]

    def wait_for_log(self, event: str, count: int = 1) -> None:
        """Wait until the server has logged an event so many times."""
        until(lambda: len(self.logged(event)) >= count, f"{count} times {event} in the log")

    def settle(self, publisher: SteadyPublisher, events: int = 10) -> None:
        """Wait until so many further events are acknowledged."""
        goal = len(publisher.ids) + events
        until(lambda: len(publisher.ids) >= goal, "more events are acknowledged")

    def check_log(self) -> None:
        """Fail where the log has something of level warning or above that is not expected.

        Workers say so of one that does not answer in time, on a machine that is too busy for it.
        """
        told = [line for line in self._lines() if line["event"] != "worker_silent"]
        surprising = [line for line in told if line["level"] not in ("debug", "info")]
        assert {line["event"] for line in surprising} == self.expected, surprising


def _indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.strip().splitlines())


@pytest.fixture(scope="session")
def session_manager() -> Iterator[Manager]:
    """The one user manager of this run."""
    yield from managed(None)


@pytest.fixture
def manager(session_manager: Manager) -> Iterator[Manager]:
    """A user manager that knows of no service yet."""
    yield session_manager
    session_manager.reset()


def managed(user: str | None, program: Sequence[str] = PROGRAM) -> Iterator[Manager]:
    """Start a manager, and stop it."""
    require("systemctl")
    manager = Manager(user, program)
    try:
        manager.start()
        yield manager
    finally:
        manager.stop()


@pytest.fixture
def start_service(manager: Manager) -> Iterator[Callable[..., Service]]:
    """A function that installs and starts the service; its arguments are settings, and how many workers."""
    services: list[Service] = []

    def start(*, workers: int = 1, **settings: object) -> Service:
        services.append(Service(manager, workers=workers, **settings))
        return services[0]

    yield start
    for service in services:
        service.close()
    for service in services:
        service.check_log()


@pytest.fixture
def service(start_service: Callable[..., Service]) -> Service:
    """The server as a unit, with its default settings."""
    return start_service()


@pytest.fixture
def cold(start_service: Callable[..., Service]) -> Service:
    """The server as a unit that lets no standby live."""
    service = start_service()
    service.configure("cold", "KillMode=mixed")
    return service
