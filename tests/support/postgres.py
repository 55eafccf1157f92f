"""A real PostgreSQL of the tests' own: private clusters, run as another user, with a database for each test."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.ports import reserve_port
from tests.support.programs import require
from tests.support.waiting import until

FAST = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "log_min_messages": "fatal",
    "wal_level": "replica",
}
"""Settings of a server of the tests; it writes to the disk as one in production does."""


def programs() -> Path:
    """Return the directory of the server's programs; a test that has none is skipped, or fails under CI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        require("postgres")
    return found[-1]


def _server_user() -> str | None:
    """Return as whom the server runs: it refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


class Postgres:
    """A cluster in a directory of its own, which may be started, stopped, killed, and followed by another.

    Args:
        directory: belongs to the user that the server runs as.
        settings: besides `FAST`.
    """

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.port = reserve_port(self)
        self.settings = FAST | settings
        self._numbers = itertools.count(1)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs as its user, and return what it prints."""
        done = subprocess.run(
            [programs() / program, *arguments],
            user=_server_user(),
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def make(self) -> None:
        """Make the cluster; whoever reaches its port is trusted, which is a test's."""
        self.run("initdb", f"--pgdata={self.data}", "--auth=trust", "--username=postgres", "--no-sync")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = [f"--port={self.port}", f"--unix_socket_directories={self.directory}"]
        options += [f"--{name}={value}" for name, value in self.settings.items()]
        log = self.directory / "server.log"
        self.run(
            "pg_ctl", "start", "-w", f"--pgdata={self.data}", f"--log={log}", f"--options={' '.join(options)}"
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``smart``, ``fast`` or ``immediate``."""
        self.run("pg_ctl", "stop", "-w", f"--pgdata={self.data}", f"--mode={mode}")

    def kill(self) -> None:
        """Kill the server and all that it has started, as a crash does."""
        pid = self.pid
        children = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], stdout=subprocess.PIPE, text=True)
        for one in (pid, *map(int, children.stdout.split())):
            try:
                os.kill(one, signal.SIGKILL)
            except ProcessLookupError:
                continue
        until(lambda: not Path(f"/proc/{pid}").exists(), "the server has gone")
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        """The server's process."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

    @property
    def runs(self) -> bool:
        """Whether the server has been started, and not been stopped."""
        return (self.data / "postmaster.pid").exists()

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return where a database is."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as superuser, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """Make a database of an owner without further rights, ``app``, and return its URL for that one."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        if not self.execute("SELECT 1 FROM pg_roles WHERE rolname = 'app'"):
            self.execute("CREATE ROLE app LOGIN")
        self.execute(f"CREATE DATABASE {name} OWNER app")
        return self.url(name, "app")


@contextmanager
def cluster(**settings: str) -> Iterator[Postgres]:
    """Make and start a cluster, and remove it."""
    directory = Path(tempfile.mkdtemp(prefix="postgres"))
    postgres = Postgres(directory, **settings)
    try:
        if (user := _server_user()) is not None:
            shutil.chown(directory, user)
        postgres.make()
        postgres.start()
        yield postgres
    finally:
        if postgres.runs:
            postgres.stop("immediate")
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The one PostgreSQL of this run, for tests that only use it; who kills one makes a cluster."""
    with cluster() as postgres:
        yield postgres


@pytest.fixture
def database_url(postgres: Postgres) -> str:
    """A new, empty database."""
    return postgres.new_database()
