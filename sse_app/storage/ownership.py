"""Whose a file or directory is, and who may read and write it: looked at before it is used.

What belongs to another user, or can be written by one, may hold what that user has put there: a key to forge tokens
with, or a database that is a link to another one. Each refusal names the file, and the command that mends it.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
from collections.abc import Collection
from pathlib import Path

from sse_app.core.errors import StateError

ROOT = 0


def require_own(path: Path, what: str) -> None:
    """Refuse a directory of another user, and a link to one that another user has made.

    Args:
        path: what is looked at; where it is a link, what that leads to.
        what: it is called in the error.

    Raises:
        StateError: it belongs to another user.
        OSError: it cannot be looked at.
    """
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and link.st_uid not in (ROOT, os.geteuid()):
        raise StateError(
            f"{what} {path} is a link of {_user(link.st_uid)}: remove it, and name the directory itself"
        )
    _require_owner(path, path.stat(), what)


def _require_owner(path: Path, found: os.stat_result, what: str) -> None:
    me = os.geteuid()
    if found.st_uid == me:
        return
    ways_out = [f"chown -R {_user(me)} {shlex.quote(str(path))}"]
    if found.st_uid != ROOT:
        ways_out.insert(0, f"run this as that user (runuser -u {_user(found.st_uid)} -- …)")
    if stat.S_ISDIR(found.st_mode) and me != ROOT and os.access(path, os.W_OK | os.X_OK):
        ways_out.append(f"name a directory in it, which is then made: {path / 'state'}")
    raise StateError(
        f"{what} {path} belongs to {_user(found.st_uid)}, and this runs as {_user(me)}: {', or: '.join(ways_out)}"
    )


def require_closed(path: Path, what: str) -> None:
    """Refuse a directory that others than its owner can write to, unless it is on a volume that is read-only.

    Raises:
        StateError: they can.
        OSError: it cannot be looked at.
    """
    mode = path.stat().st_mode
    if mode & 0o022 and not os.statvfs(path).f_flag & os.ST_RDONLY:  # as the volumes of secrets are
        raise StateError(
            f"{what} {path} can be written by other users (mode {_octal(mode)}): chmod 700 {shlex.quote(str(path))}"
        )


def require_private(path: Path, what: str) -> None:
    """Refuse a file that is a link, that is another user's, or that others can read or write; one may be missing.

    Raises:
        StateError: it is one of these.
        OSError: it cannot be looked at.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    quoted = shlex.quote(str(path))
    if stat.S_ISLNK(found.st_mode):
        raise StateError(
            f"{what} {path} is a link, which is not followed: put the file itself there, or remove the link"
        )
    if not stat.S_ISREG(found.st_mode):
        raise StateError(f"{what} {path} is not a file")
    _require_owner(path, found, what)
    if found.st_mode & 0o077:
        raise StateError(
            f"{what} {path} can be used by other users (mode {_octal(found.st_mode)}): chmod 600 {quoted}"
        )


def require_private_database(path: Path) -> None:
    """Look at a SQLite database and the files that SQLite keeps beside it, as `require_private` does.

    Raises:
        StateError: one is a link, or is another user's or open to others; or others can put another one in its place.
    """
    require_private_files(path)
    try:
        mode = path.parent.stat().st_mode
    except OSError as error:
        raise StateError(f"cannot use {path}: {error.strerror}") from None
    if mode & 0o002 and not mode & stat.S_ISVTX:
        raise StateError(
            f"the directory {path.parent} can be written by all users (mode {_octal(mode)}): "
            f"chmod o-w {shlex.quote(str(path.parent))}"
        )


def require_private_files(database: Path) -> None:
    """Look at a SQLite database and the files that SQLite keeps beside it, and not at their directory.

    Raises:
        StateError: one is a link, or is another user's or open to others.
    """
    try:
        for suffix in ("", "-wal", "-shm"):
            require_private(database.with_name(database.name + suffix), "the database")
    except OSError as error:
        raise StateError(f"cannot use {database}: {error.strerror}") from None


def read_trusted(path: Path, within: Path, owners: Collection[int]) -> tuple[bytes, os.stat_result]:
    """Return the content of a file that only its owner can write, and what it is.

    A link is followed only to a file in the same directory, as in the volumes of secrets that Kubernetes mounts.

    Args:
        path: of the file.
        within: the directory.
        owners: who may own it.

    Raises:
        StateError: it is a link elsewhere, no file, another user's, or writable by others.
        OSError: it cannot be read.
    """
    target = path
    if path.is_symlink():
        target = path.resolve()
        if not target.is_relative_to(within.resolve()):
            raise StateError(
                f"{path} is a link to another directory, which is not followed: put the file itself there"
            )
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StateError(f"{path} is not a file")
        quoted = shlex.quote(str(target))
        if found.st_uid not in owners:
            raise StateError(
                f"{path} belongs to {_user(found.st_uid)}, who could change it: "
                f"chown {_user(os.geteuid())} {quoted}"
            )
        if found.st_mode & 0o022:
            raise StateError(
                f"{path} can be written by other users (mode {_octal(found.st_mode)}): chmod 600 {quoted}"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(), found
    finally:
        os.close(descriptor)


def require_unreadable(path: Path, found: os.stat_result) -> None:
    """Refuse a secret that others than its owner can read.

    A group may read a file of root that no user may write (0440): a credential of systemd, or a secret of Kubernetes.

    Raises:
        StateError: they can.
    """
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077 and not (mode == 0o440 and found.st_uid == ROOT):
        raise StateError(
            f"{path} is secret and can be read by other users (mode {_octal(mode)}): chmod 600 {shlex.quote(str(path))}"
        )


def _octal(mode: int) -> str:
    return f"{stat.S_IMODE(mode):04o}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)  # as in a container
