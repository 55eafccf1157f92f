"""A real PostgreSQL of the tests' own: private clusters, run as another user, with a database for each test."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

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
    "dynamic_shared_memory_type": "mmap",
}
"""Settings of a server of the tests, which waits for its files as one in production does; none is left elsewhere."""

_ROOM = 2 << 30
"""Bytes that have to be free in memory for clusters to be made there; each takes some 50 MB."""

_FIRST_MADE = 16_384
"""The least oid of what is not there from the start (``FirstNormalObjectId``)."""


def programs() -> Path:
    """Return the directory of the server's programs; a test that has none is skipped, or fails under CI."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        require("postgres")
    return found[-1]


def server_user() -> str | None:
    """Return as whom the server runs: it refuses to run as root."""
    return "postgres" if os.geteuid() == 0 else None


class Postgres:
    """A cluster in a directory of its own, which may be started, stopped, killed, and followed by another.

    Args:
        directory: belongs to the user that the server runs as.
        settings: besides `FAST`.
        within: a command of the superuser that runs another one in namespaces of its own, such as ``nsenter``.
        root: how their root directory looks from outside.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str] = MappingProxyType({}),
        *,
        within: Sequence[str] = (),
        root: Path | None = None,
    ) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.host = "127.0.0.1"
        self.port = reserve_port(self)
        self.settings = {**FAST, **settings}
        self._within = within
        self._root = root
        self._numbers = itertools.count(1)

    def run(self, program: str, *arguments: str) -> str:
        """Run one of the server's programs as its user, and return what it prints."""
        command = [str(programs() / program), *arguments]
        if self._within:
            user = server_user()
            assert user is not None, "only the superuser may enter namespaces"
            command = [
                *self._within,
                "setpriv",
                f"--reuid={user}",
                f"--regid={user}",
                "--clear-groups",
                *command,
            ]
        done = subprocess.run(
            command,
            user=None if self._within else server_user(),
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def make(self) -> None:
        """Make the cluster, as a copy: each client that reaches its port is trusted, which is a test's."""
        _copy_directory(_original(), self.data)

    def make_anew(self) -> None:
        """Make the cluster, as one that has nothing in common with any other, and where its own server sees it."""
        options = ("--auth=trust", "--username=postgres", "--no-sync", "--wal-segsize=1")
        self.run("initdb", f"--pgdata={self.data}", *options)

    def allow(self, network: str) -> None:
        """Trust clients of another network too."""
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write(f"host all all {network} trust\n")

    def backup(self, directory: Path) -> None:
        """Make a base backup, which is whole by itself."""
        self._copy(directory)

    def _copy(self, directory: Path, *options: str) -> None:
        source = f"postgresql://postgres@{self.host}:{self.port}"
        self.run(
            "pg_basebackup",
            f"--pgdata={directory}",
            f"--dbname={source}",
            "--checkpoint=fast",
            "--no-sync",
            *options,
        )

    def restore(self, backup: Path, *, recover: bool) -> None:
        """Take a backup in place of what there is; the server does not run.

        Args:
            backup: stays as it is.
            recover: whether it goes through recovery, as to a point in time: it begins a new timeline then.
                Else it is a plain copy of an earlier state.
        """
        shutil.rmtree(self.data)
        _copy_directory(backup, self.data)
        if recover:
            (self.data / "recovery.signal").touch()
            with (self.data / "postgresql.auto.conf").open("a") as settings:
                settings.write("restore_command = 'false'\n")

    def follow(self, primary: Postgres, name: str) -> None:
        """Make this one a standby of another, by streaming replication.

        Args:
            primary: runs.
            name: by which it is known to the primary, and which is its ``cluster_name``.
        """
        primary._copy(self.data, "--write-recovery-conf")
        self.settings["cluster_name"] = name

    def promote(self) -> None:
        """Make the standby a primary, and wait until it is one."""
        self.run("pg_ctl", "promote", "-w", f"--pgdata={self.data}")

    def catch_up_with(self, primary: Postgres) -> None:
        """Wait until this standby has all that its primary has committed by now."""
        ((place,),) = primary.execute("SELECT pg_current_wal_flush_lsn()")
        until(lambda: self.execute(f"SELECT 1 WHERE pg_last_wal_replay_lsn() >= '{place}'"), "it has all")

    def stop_replication(self) -> None:
        """Send nothing more to any standby."""
        file = self.data / "pg_hba.conf"
        file.write_text("host replication all all reject\n" + file.read_text())
        self.execute("SELECT pg_reload_conf()")
        self.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_replication")
        until(lambda: not self.execute("SELECT 1 FROM pg_stat_replication"), "no standby is connected")

    def set(self, name: str, value: str) -> None:
        """Set a parameter of the server while it runs, and have it in force."""
        self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

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
        pid, shared_memory = self.pid, self._pid_file.read_text().splitlines()[6].split()[1]
        self._signal(signal.SIGKILL)
        until(lambda: not Path(f"/proc/{pid}").exists(), "the server has gone")
        self._pid_file.unlink(missing_ok=True)
        subprocess.run(["ipcrm", f"--shmem-id={shared_memory}"], check=True)  # else it stays until a reboot

    def pause(self) -> None:
        """Stop all of its processes (SIGSTOP): it accepts connections, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it run again after a pause."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pid = self.pid
        children = subprocess.run(["ps", "--ppid", str(pid), "-o", "pid="], stdout=subprocess.PIPE, text=True)
        for one in (pid, *map(int, children.stdout.split())):
            with suppress(ProcessLookupError):
                os.kill(one, number)

    @property
    def _pid_file(self) -> Path:
        file = self.data / "postmaster.pid"
        return file if self._root is None else self._root / file.relative_to("/")

    @property
    def pid(self) -> int:
        """The server's process."""
        return int(self._pid_file.read_text().split()[0])

    @property
    def runs(self) -> bool:
        """Whether the server has been started, and neither been stopped nor ended by itself."""
        with suppress(FileNotFoundError):
            return Path(f"/proc/{self.pid}").exists()
        return False

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return where a database is."""
        return f"postgresql://{user}@{self.host}:{self.port}/{database}"

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

    def clear(self, url: str) -> bool:
        """Remove all that is in a database of `new_database`, and return whether it is as new."""
        name = url.rpartition("/")[2]
        self.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        self.execute("DROP OWNED BY app CASCADE", name)
        made = " UNION ALL ".join(
            f"SELECT oid FROM {catalog} WHERE oid >= {_FIRST_MADE}"
            for catalog in (
                "pg_namespace",
                "pg_class",
                "pg_proc",
                "pg_type",
                "pg_extension",
                "pg_event_trigger",
            )
        )
        changed = f"SELECT oid FROM pg_database WHERE datname = '{name}' AND datacl IS NOT NULL"
        return not self.execute(
            f"{made} UNION ALL {changed} UNION ALL SELECT setrole FROM pg_db_role_setting", name
        )


def _copy_directory(source: Path, target: Path) -> None:
    """Copy a directory that is not there yet, each file with its owner."""
    subprocess.run(["cp", "--archive", "--no-target-directory", source, target], check=True)


_shared: list[Path] = []
"""Where the processes of this run find what they share (`shared_directory`)."""


@pytest.fixture(scope="session", autouse=True)
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Say where a cluster is kept of which others are copies: to make one takes ten times as long as to copy it."""
    own = tmp_path_factory.getbasetemp()
    _shared.append(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)
    yield
    _shared.clear()


def _original() -> Path:
    """Return the cluster of which others are copies, which the first process of this run that wants it makes."""
    (shared,) = _shared
    original = shared / "postgres-original"
    with (shared / "postgres-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not original.exists():
            with server_directory() as directory:
                postgres = Postgres(directory)
                postgres.make_anew()
                _copy_directory(postgres.data, shared / "postgres-new")
            (shared / "postgres-new").rename(original)
    return original


def _in_memory() -> str | None:
    """Return where there is a file system in memory with room for many clusters; None where there is none.

    A cluster is a thousand files. To make and remove those takes several times as long on a disk, and a server that
    is killed leaves the same there, as what it has written the kernel has.
    """
    place = Path("/dev/shm")
    if os.access(place, os.W_OK) and shutil.disk_usage(place).free > _ROOM:
        return str(place)
    return None


@contextmanager
def server_directory() -> Iterator[Path]:
    """Make a directory that belongs to the user that servers run as, and remove it."""
    directory = Path(tempfile.mkdtemp(prefix="postgres", dir=_in_memory()))
    try:
        if (user := server_user()) is not None:
            shutil.chown(directory, user)
        yield directory
    finally:
        shutil.rmtree(directory)


@contextmanager
def cluster(**settings: str) -> Iterator[Postgres]:
    """Make and start a cluster, and remove it."""
    with server_directory() as directory:
        postgres = Postgres(directory, settings)
        with ending(postgres):
            postgres.make()
            postgres.start()
            yield postgres


@contextmanager
def standby(primary: Postgres, name: str, **settings: str) -> Iterator[Postgres]:
    """Make and start a standby, and remove it.

    Args:
        primary: runs.
        name: as in `Postgres.follow`.
        settings: as of `Postgres`.
    """
    with server_directory() as directory:
        postgres = Postgres(directory, settings)
        with ending(postgres):
            postgres.follow(primary, name)
            postgres.start()
            yield postgres


@contextmanager
def ending(postgres: Postgres) -> Iterator[None]:
    """End a server that still runs after what is done with it, also one that is paused."""
    try:
        yield
    finally:
        if postgres.runs:
            postgres.resume()
            postgres.stop("immediate")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The one PostgreSQL of this run, for tests that only use it; who kills one makes a cluster."""
    with cluster() as postgres:
        yield postgres


_cleared: list[str] = []
"""Databases of `postgres` that tests have used and that are as new: to make one takes as long as ten tests."""


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """An empty database."""
    url = _cleared.pop() if _cleared else postgres.new_database()
    yield url
    if postgres.clear(url):
        _cleared.append(url)
