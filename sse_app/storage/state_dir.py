"""The state directory: private, and used by one server at a time."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from sse_app.core.errors import StateError
from sse_app.storage.ownership import require_own, require_private, require_private_database

OURS = ("accounts.db", "events.db", "keys/*.hs256", "keys/*.pem", "keys/*.jwk")
"""By any of these a directory is known as one with state; /var has a lock too."""


def has_state(path: Path) -> bool:
    """Return whether a directory has been used by this program before."""
    return any(any(path.glob(pattern)) for pattern in OURS)


def _belongs_to_others(path: Path) -> bool:
    """Return whether others use a directory, such as /var, which must not become private.

    One that is private already is taken for ours, and so is an empty volume.
    """
    if not path.is_dir() or not path.stat().st_mode & 0o077 or has_state(path):
        return False
    return not {"keys", "lost+found"}.issuperset(os.listdir(path))


class StateDirectory:
    """Where accounts, keys and the event log are kept.

    Args:
        path: made with mode 0700 where it is not there.
        create: whether to make it; a command that was called in a wrong directory must not.

    Raises:
        StateError: it cannot be made or made private, or there is no state in it and none is to be made.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._lock: int | None = None
        if not create and not has_state(path):
            raise StateError(
                f"there is no state in {path.absolute()}: name the server's directory with --state-dir or "
                "SSE_APP_STATE_DIR, or begin a new one with 'serve' or 'user add --init'"
            )
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except FileExistsError:
            raise StateError(f"cannot use the state directory {path}: it is not a directory") from None
        except OSError as error:
            raise StateError(f"cannot use the state directory {path}: {error.strerror}") from None
        self.check()

    def check(self) -> None:
        """Make the directory private, and look whether it and the files in it are this user's alone.

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
            if path.stat().st_mode & 0o077:
                path.chmod(0o700)
            if not os.access(path, os.W_OK | os.X_OK):
                raise StateError(f"cannot use the state directory {path}: it is not writable")
            for database in (self.accounts, self.events):
                require_private_database(database)
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
    def keys(self) -> Path:
        """The directory of the token keys."""
        return self.path / "keys"

    def has_keys_of_a_server(self) -> bool:
        """Return whether there are keys, and a server has run here: else they are those that it is to begin with."""
        try:
            return (self.path / "lock").exists() and any(
                not file.name.startswith(".") for file in self.keys.iterdir()
            )
        except OSError:  # there is no such directory; who cannot read it is told so when the keys are read
            return False

    def lock(self) -> None:
        """Keep other servers out until `unlock` or the end of the process.

        Raises:
            StateError: another server has it; the text names the directory and the process.
        """
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(self.path / "lock", flags, 0o600)
        except OSError as error:
            raise StateError(f"cannot lock the state directory {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StateError(
                f"the state directory {self.path} is in use by another server (process {holder or 'unknown'})"
            ) from None
        self.take_lock(descriptor)

    def take_lock(self, descriptor: int) -> None:
        """Take over a lock that another process has passed on, and write down whose it is now."""
        os.set_inheritable(descriptor, False)
        with suppress(OSError):  # on a full disk it may not be written down; what counts is the lock
            os.pwrite(descriptor, b"%-20d\n" % os.getpid(), 0)  # in place, which needs no space there
        self._lock = descriptor

    @property
    def lock_descriptor(self) -> int:
        """The descriptor of the lock; a process that it is passed to has the lock too."""
        assert self._lock is not None
        return self._lock

    def holder(self) -> int | None:
        """Return the process id of the server that uses the directory, or None."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            return int(holder) if holder.isdigit() else None
        finally:
            os.close(descriptor)
        return None

    def unlock(self) -> None:
        """Let other servers in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
