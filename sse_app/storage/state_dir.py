"""The state directory: private, and used by one server at a time, which may be several worker processes."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sse_app.core.errors import StateError
from sse_app.storage.ownership import (
    require_own,
    require_private,
    require_private_database,
    require_private_files,
)

OURS = (
    "accounts.db",
    "events.db",
    "keys/*.hs256",
    "keys/*.pem",
    "keys/*.jwk",
    "accounts.id",
    "lock",
    "workers/*/lock",
)
"""By any of these files a directory is known as one with state; the lock of /var is a directory.

Where a database keeps the accounts and the events, and the keys are elsewhere, there is nothing but the locks.
"""

STANDBY_SOCKET = "stand-in"
"""The name of the socket on which a process that bridges a restart waits for the next one, in `StateDirectory.own`."""

STORE_ID = "accounts.id"
"""The name of the file that says which accounts in a database a server of the directory uses."""

STARTING_TIMEOUT = 30.0
"""How many seconds a process waits for another one that is making or migrating the state."""

LOCK_ATTEMPTS, LOCK_PAUSE = 10, 0.01
"""How often a lock is tried, and the seconds between two attempts."""


def has_state(path: Path) -> bool:
    """Return whether a directory has been used by this program before."""
    return any(found.is_file() for pattern in OURS for found in path.glob(pattern))


def _belongs_to_others(path: Path) -> bool:
    """Return whether others use a directory, such as /var, which must not become private.

    One that is private already is taken for ours, and so is an empty volume.
    """
    if not path.is_dir() or not path.stat().st_mode & 0o077 or has_state(path):
        return False
    return not {"keys", "lost+found"}.issuperset(os.listdir(path))


def own_directory(state_dir: Path, worker: int) -> Path:
    """Return where the lock and the sockets of one process are.

    Args:
        state_dir: the state directory, which it is itself where one process uses it alone.
        worker: the number of the process among several; 0 where it is alone.
    """
    return state_dir / "workers" / str(worker) if worker else state_dir


class StateDirectory:
    """Where accounts, keys and the event log are kept.

    Args:
        path: made with mode 0700 where it is not there.
        create: whether to make it; a command that was called in a wrong directory must not.
        worker: the number of this process among several that use the directory together; 0 where it is alone.
        change: whether to make the directory, and to make it private; a command that only looks must not.

    Raises:
        StateError: it cannot be made or made private, or there is no state in it and none is to be made.
    """

    def __init__(self, path: Path, *, create: bool = True, worker: int = 0, change: bool = True) -> None:
        self.path = path
        self._change = change
        self.worker = worker
        self._locks: list[int] = []
        if os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK):  # what is in it cannot be seen
            require_own(path, "the state directory")
        if not create and not has_state(path):
            raise StateError(
                f"there is no state in {path.absolute()}: name the server's directory with --state-dir or "
                "SSE_APP_STATE_DIR, or begin a new one with 'serve' or 'user add --init'"
            )
        try:
            if change or path.exists():  # where it is there, this tells whether it is a directory
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise StateError(f"cannot use the state directory {path}: it is not a directory") from None
        except OSError as error:
            raise StateError(f"cannot use the state directory {path}: {error.strerror}") from None
        self.check()

    def check(self) -> None:
        """Make the directory private, and look whether it and the files in it are this user's alone.

        Where nothing is to be changed, a directory that can be made private is as good.

        Raises:
            StateError: it cannot be made private, or one of them is not.
        """
        path = self.path
        try:
            require_own(path, "the state directory")
            if _belongs_to_others(path):
                raise StateError(
                    f"cannot use the state directory {path.absolute()}: "
                    "it holds other files and no state; name one of its own"
                )
            if self._change and path.stat().st_mode & 0o077:
                path.chmod(0o700)
            if not os.access(path, os.W_OK | os.X_OK):
                raise StateError(f"cannot use the state directory {path}: it is not writable")
            for database in (self.accounts, self.events):
                (require_private_database if self._change else require_private_files)(database)
            require_private(path / "lock", "the lock")
        except OSError as error:
            raise StateError(f"cannot use the state directory {path}: {error.strerror}") from None

    @property
    def accounts(self) -> Path:
        """The database of accounts."""
        return self.path / "accounts.db"

    @property
    def events(self) -> Path:
        """The database of the event log, unless the settings name another."""
        return self.path / "events.db"

    @property
    def log_position(self) -> Path:
        """Where is noted how far the event log in a database went."""
        return self.own / "log-position"

    @property
    def keys(self) -> Path:
        """The directory of the token keys."""
        return self.path / "keys"

    @property
    def store_id(self) -> str:
        """The id of the accounts in a database that a server of this directory uses; empty where it has used none."""
        try:
            return (self.path / STORE_ID).read_text().strip()
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeError) as error:
            raise StateError(f"cannot read {self.path / STORE_ID}: {error}") from None

    @store_id.setter
    def store_id(self, id: str) -> None:
        draft = self.path / f".{STORE_ID}.{os.getpid()}"
        try:
            draft.write_text(id + "\n")
            draft.replace(self.path / STORE_ID)
        except OSError as error:
            raise StateError(f"cannot write {self.path / STORE_ID}: {error.strerror}") from None

    def has_keys_of_a_server(self) -> bool:
        """Return whether there are keys, and a server has run here: else they are those that it is to begin with."""
        try:
            return self._has_had_a_server() and any(
                not file.name.startswith(".") for file in self.keys.iterdir()
            )
        except OSError:  # there is no such directory; who cannot read it is told so when the keys are read
            return False

    def _has_had_a_server(self) -> bool:
        """Return whether a server has run here, alone or as a worker; the parent of workers, which makes the file of
        the lock too, begins before there is anything else."""
        lock = self.path / "lock"
        return (lock.exists() and lock.stat().st_size > 0) or any(self.workers.glob("[0-9]*/lock"))

    @property
    def workers(self) -> Path:
        """The directory with one of its own for each worker."""
        return self.path / "workers"

    @property
    def own(self) -> Path:
        """The directory of what is this process's own."""
        return own_directory(self.path, self.worker)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Let no other process make or migrate what is in the directory meanwhile; waits for one that does.

        Raises:
            StateError: another one takes too long.
        """
        # The directory itself is locked: a start that is refused leaves no file behind.
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        deadline = time.monotonic() + STARTING_TIMEOUT
        try:
            while not _flocked(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise StateError(f"another process has been starting in {self.path} for too long")
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def lock(self) -> None:
        """Keep other servers out until `unlock` or the end of the process; a worker keeps out those that are none.

        Raises:
            StateError: another server has it; the text names the directory and the process.
        """
        if not self.worker:
            self._lock_alone()
            return
        shared = self._lock_shared()
        try:
            own = self._lock_own(self.own, f"worker {self.worker}")
        except StateError:
            os.close(shared)
            raise
        self.take_locks([shared, own])

    def lock_for_parent(self) -> None:
        """Keep out servers without workers, and other parents of workers, until `unlock` or the end of the process.

        Raises:
            StateError: another server, or another parent, has the directory.
        """
        shared = self._lock_shared()
        try:
            own = self._lock_own(self.workers, "a parent of workers")
        except StateError:
            os.close(shared)
            raise
        self.take_locks([shared, own])

    def _lock_alone(self) -> None:
        descriptor = self._opened(self.path / "lock")
        if not _locked(descriptor, fcntl.LOCK_EX):
            os.close(descriptor)
            self._refuse()
        self.take_locks([descriptor])

    def _lock_shared(self) -> int:
        """Return a descriptor of the lock that workers and their parent share."""
        descriptor = self._opened(self.path / "lock")
        if not _locked(descriptor, fcntl.LOCK_SH):
            os.close(descriptor)
            self._refuse()
        return descriptor

    def _refuse(self) -> None:
        holder = self.holder()
        processes = [holder] if holder is not None else list(self.running_workers().values())
        named = ", ".join(map(str, processes)) or "unknown"
        raise StateError(f"the state directory {self.path} is in use by another server (process {named})")

    def _lock_own(self, directory: Path, who: str) -> int:
        """Return a descriptor of a lock that one process alone has, in a directory that is made for it."""
        try:
            for made in dict.fromkeys((self.workers, directory)):
                made.mkdir(mode=0o700, exist_ok=True)
                require_own(made, "the directory")
        except OSError as error:
            raise StateError(f"cannot make {directory}: {error.strerror}") from None
        descriptor = self._opened(directory / "lock")
        if not _locked(descriptor, fcntl.LOCK_EX):
            holder = _written(descriptor)
            os.close(descriptor)
            raise StateError(
                f"{who} of the state directory {self.path} runs already (process {holder or 'unknown'})"
            )
        return descriptor

    def _opened(self, file: Path) -> int:
        try:
            return os.open(file, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"cannot lock the state directory {self.path}: {error.strerror}") from None

    def take_locks(self, descriptors: list[int]) -> None:
        """Take over locks that another process has passed on, and write down whose the last one is now."""
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        with suppress(OSError):  # on a full disk it may not be written down; what counts is the lock
            os.pwrite(descriptors[-1], b"%-20d\n" % os.getpid(), 0)  # in place, which needs no space there
        self._locks = descriptors

    @property
    def lock_descriptors(self) -> list[int]:
        """The descriptors of the locks; a process that they are passed to has the locks too."""
        assert self._locks
        return self._locks

    def holder(self) -> int | None:
        """Return the process id of the server that uses the directory alone, or of the parent of workers, or None."""
        alone = _holder_of(self.path / "lock")
        return alone if alone is not None else self.parent()

    def parent(self) -> int | None:
        """Return the process id of the parent of workers, or None."""
        return _holder_of(self.workers / "lock")

    def running_workers(self) -> dict[int, int]:
        """Return the process ids of the workers that use the directory, by their numbers."""
        found = {}
        for directory in self.workers.glob("[1-9]*"):
            if directory.name.isdigit():
                process = _holder_of(directory / "lock")
                if process is not None:
                    found[int(directory.name)] = process
        return dict(sorted(found.items()))

    def unlock(self) -> None:
        """Let other servers in."""
        for descriptor in self._locks:
            os.close(descriptor)
        self._locks = []


def _flocked(descriptor: int, kind: int) -> bool:
    """Take a lock, and return whether that was possible at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _locked(descriptor: int, kind: int) -> bool:
    """Take a lock to keep, and return whether that was possible; a process that only looks has it for a moment."""
    for _ in range(LOCK_ATTEMPTS):
        if _flocked(descriptor, kind):
            return True
        time.sleep(LOCK_PAUSE)
    return _flocked(descriptor, kind)


def _written(descriptor: int) -> str:
    """Return the process id that is written in a lock file, as text; nothing where it is none."""
    text = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
    return text if text.isdigit() else ""


def _holder_of(file: Path) -> int | None:
    """Return the process id in a lock file, if a process has the lock for itself alone."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        if _flocked(descriptor, fcntl.LOCK_SH):  # as others may who look at the same time
            return None
        text = _written(descriptor)
        return int(text) if text else None
    finally:
        os.close(descriptor)
