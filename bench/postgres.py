"""A PostgreSQL server of the benchmark's own: made anew, with its defaults, on a disk, and removed afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from bench.processes import Processes, ServerFailed, free_port

_DISK = "/var/tmp"
"""Is on a disk, and can be reached by another user, whom a server that root starts has to run as."""

_USER = "postgres"
_INSTALL = "PostgreSQL's server is not installed (Debian: apt install postgresql)"
_TICKS = os.sysconf("SC_CLK_TCK")


def _programs() -> Path | None:
    """Return the directory of the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if found:
        return found[-1]
    beside = shutil.which("initdb")
    return Path(beside).resolve().parent if beside else None


def missing() -> str:
    """Return how to install it; empty where it is there."""
    return "" if _programs() else _INSTALL


def version() -> str:
    """Return name and version of the server."""
    programs = _programs()
    if programs is None:
        return "none"
    command = [str(programs / "postgres"), "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


class Postgres:
    """A server with all its defaults, but for the place of its files.

    Args:
        directory: belongs to the user that the server runs as.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = ""
        """Where the database is, once it has been started."""
        self.processes = Processes(directory / "server.log")

    def _command(self, program: str, *arguments: str) -> list[str]:
        programs = _programs()
        if programs is None:
            raise ServerFailed(_INSTALL)
        as_user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
        command = [str(programs / program), "-D", str(self.directory / "data"), *arguments]
        return [*as_user, *command] if os.geteuid() == 0 else command

    def start(self) -> None:
        """Make the cluster, and start it.

        Raises:
            ServerFailed: it cannot be made, or does not answer in time.
        """
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        made = subprocess.run(
            self._command("initdb", *options), cwd=self.directory, capture_output=True, text=True
        )
        if made.returncode != 0:
            raise ServerFailed(f"initdb failed: {made.stderr}")
        port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        (self.directory / "data" / "postgresql.auto.conf").write_text(
            f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{self.directory}'\n"
        )
        self.processes.start(self._command("postgres"), cwd=self.directory)
        deadline = time.monotonic() + 20
        while True:
            self.processes.check()
            try:
                psycopg.connect(self.url, connect_timeout=1).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise ServerFailed(f"PostgreSQL does not answer: {error}") from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End it at once, with all its connections."""
        for pid in self.processes.parents:
            os.kill(pid, signal.SIGQUIT)
        self.processes.stop()

    def cpu_seconds(self) -> float:
        """CPU time of all its processes since it began, also of those that have ended."""
        ended = 0
        for pid in self.processes.parents:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ended += int(fields[13]) + int(fields[14])
        return self.processes.cpu_seconds() + ended / _TICKS

    def transactions(self) -> int:
        """Return how many transactions have been committed: a query of a node is one, and what it hears."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Make and start a server, and remove it."""
    directory = Path(tempfile.mkdtemp(prefix="bench-postgres-", dir=_DISK))
    server = Postgres(directory)
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, _USER)
        server.start()
        yield server
        server.processes.check()
    finally:
        server.stop()
        shutil.rmtree(directory)
