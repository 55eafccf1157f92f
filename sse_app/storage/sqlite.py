"""SQLite files in the state directory: looked at before they are touched, migrated forward, watched while in use."""

from __future__ import annotations

import os
import sqlite3
import stat
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from sse_app.core.errors import StateError
from sse_app.storage.ownership import require_private_database

BUSY_TIMEOUT = 10.0
"""How long a connection waits for another one's transaction, in seconds."""

Migration = str | Callable[[sqlite3.Connection], None]
"""SQL statements, each ended by a semicolon and a line's end; or a function, where SQL is not enough."""

SETTLED = 1.0
"""For how many seconds a write-ahead log must not have been written to, for its time of change to say that it is as it
was: a commit writes there, and takes effect once that is on the disk."""

_LOCK_BYTE = 0x40000000
"""The page with this byte is never written (SQLite file format, section 1.4)."""


def open_database(path: Path, application_id: int, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open or create a database and bring it to the newest schema version.

    The schema version is the number of ``migrations`` applied, kept in ``PRAGMA user_version``; what the rows mean
    is part of it. The connection is in autocommit mode and may be used from any thread, by one at a time. A file that
    is not ours, and what lies beside it, is left as it was.

    Args:
        path: the file; it is made with mode 0600.
        application_id: marks the file as ours, and as the kind of ours that it is.
        migrations: the n-th leads from version n to n + 1.

    Raises:
        StateError: the file cannot be opened, is not this user's alone (see `storage.ownership`), is no database of
            this kind, is damaged, or is of a newer version.
    """
    require_private_database(path)
    try:
        # The log is asked for first: another process may be making both.
        wal_is_there = not is_missing_or_empty(Path(f"{path}-wal"))
        if not has_database(path, application_id) and wal_is_there:  # SQLite would delete it
            raise StateError(
                f"{path} is missing or empty, but {path}-wal is there: restore both, or remove {path}-wal"
            )
        # Only a new file is opened here: to close one that this process has open in SQLite would drop the locks
        # that SQLite holds on it, and another process could then take it for its own (fcntl(2)).
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        with content_of_ours():
            connection = connect(path)
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, error) from error
    try:
        _migrate(connection, path, application_id, migrations)
    except (OSError, sqlite3.Error) as error:
        with without_checkpoint(path):
            connection.close()
        raise unusable(path, error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path) -> sqlite3.Connection:
    """Return one more connection to a database that `open_database` has opened before."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        # A commit in WAL mode reaches the disk only with FULL; it is what a 201 promises.
        # Temporary tables stay in memory: for a file of theirs there may be no descriptor left.
        connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA temp_store=MEMORY;"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def is_damaged(error: BaseException | None) -> bool:
    """Return whether an error says that a database's content is not what was written; trying again is of no use."""
    if isinstance(error, DatabaseDamaged):
        return True
    code = getattr(error, "sqlite_errorcode", 0)
    return (code & 0xFF) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or (
        isinstance(error, sqlite3.OperationalError)
        and (code == sqlite3.SQLITE_IOERR_SHORT_READ or str(error).startswith("Could not decode to UTF-8"))
    )


def unusable(path: Path, error: Exception) -> StateError:
    """Return what to tell the operator of a database that cannot be used, in one line with the way out."""
    if is_damaged(error):
        return StateError(f"{path} is damaged ({error}): restore a backup of it, as docs/operations.md says")
    text = error.strerror if isinstance(error, OSError) else str(error)
    return StateError(f"cannot open {path}: {text}")


class DatabaseDamaged(sqlite3.DatabaseError):
    """A database lacks pages, or has content that this program has not written."""


@contextmanager
def without_checkpoint(path: Path) -> Iterator[None]:
    """Have the last connection that is closed within write nothing into a damaged file.

    SQLite would else move the write-ahead log into it, and a file that was cut short would be whole again, with
    zeros. It does so only where no other connection is open, and one that only reads cannot.
    """
    with ExitStack() as stack:
        with suppress(sqlite3.Error), content_of_ours():
            uri = f"{path.absolute().as_uri()}?mode=ro"
            other = stack.enter_context(closing(sqlite3.connect(uri, uri=True, check_same_thread=False)))
            other.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        yield


@contextmanager
def content_of_ours() -> Iterator[None]:
    """Have what was read taken as `DatabaseDamaged` where it is not of the kind that this program writes."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as error:
        raise DatabaseDamaged(f"it has content that this program has not written: {error}") from error


class DatabaseFiles:
    """The files of an open database, by which it is noticed that others lie in their place, or none.

    Nothing here opens the database's file: to close it again would drop SQLite's locks on it (fcntl(2)).

    Args:
        path: of the database, in which a transaction has been begun before, so that all of its files are there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._paths = [str(path), f"{path}-wal", f"{path}-shm"]
        self._known = [_inode(os.stat(path)) if os.path.exists(path) else None for path in self._paths]
        self._sizes = [os.stat(path).st_size for path in self._paths]
        self._shrunk_from = [0] * len(self._paths)
        """The sizes from which the files have shrunk; 0 where one has not."""
        self._unwritten: tuple[int, int, int] | None = None
        """The write-ahead log as it was at the last call of `may_be_written`, where nothing had been written lately."""

    def may_be_written(self, since: float) -> bool:
        """Return whether a process may have committed since the last call; it costs less than to read the database.

        Args:
            since: a time by the wall clock. What was written before it does not count, nor what was within some
                milliseconds after it: files keep their times of change no more exactly than that.
        """
        try:
            found = os.stat(self._paths[1])
        except OSError:
            return True
        before, now = self._unwritten, (found.st_ino, found.st_size, found.st_mtime_ns)
        self._unwritten = now if abs(time.time() - found.st_mtime) >= SETTLED else None
        return now != before and found.st_mtime > since

    def have_shrunk(self) -> bool:
        """Look at the files, and return whether one has become smaller, for `check` to find out why.

        Raises:
            StateError: one of them is no longer there, or is another one: what is written would be lost.
        """
        for number, (path, known) in enumerate(zip(self._paths, self._known, strict=True)):
            try:
                found = os.stat(path)
            except OSError as error:
                raise StateError(
                    f"{path} is not there any more ({error.strerror}): put it back, or restart"
                ) from None
            if known is not None and (found.st_dev, found.st_ino) != known:
                raise StateError(f"{path} has been replaced under the running server: restart it")
            if found.st_size < self._sizes[number]:
                self._shrunk_from[number] = max(self._sizes[number], self._shrunk_from[number])
            self._sizes[number] = found.st_size
        return any(self._shrunk_from)

    def check(self, connection: sqlite3.Connection) -> None:
        """Make sure that a transaction that has just begun to write goes to these files, and that none is cut short.

        Raises:
            StateError: one is no longer there, or is another one.
            DatabaseDamaged: pages are missing, or frames of the write-ahead log.
        """
        if self.have_shrunk():
            _require_whole(connection, self._path, self._shrunk_from[0] or None)
            _require_whole_wal(self._path)
            self._shrunk_from = [0] * len(self._paths)


def is_missing_or_empty(path: Path) -> bool:
    """Return whether there is no file, or an empty one.

    Raises:
        StateError: what is there is no file, or cannot be looked at.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise unusable(path, error) from None
    if not stat.S_ISREG(found.st_mode):
        raise StateError(f"cannot open {path}: it is not a file")
    return found.st_size == 0


def _inode(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def has_database(path: Path, application_id: int) -> bool:
    """Return whether there is a database of ours, without a change to what is there, or to what lies beside it.

    Raises:
        StateError: there is a file that is not ours, or cannot be read.
    """
    try:
        if is_missing_or_empty(path):
            return False
        _refuse_foreign(path, application_id)
    except (OSError, sqlite3.Error) as error:
        raise unusable(path, error) from error
    return True


def schema_version(path: Path, newest: int) -> int:
    """Return the schema version of a database of ours, which is neither changed nor locked.

    Args:
        path: its file.
        newest: the last version that this program knows.

    Raises:
        StateError: it cannot be read, or is of a newer version.
    """
    # Where no other process writes it, SQLite takes no locks and makes no files.
    how = "mode=ro" if Path(f"{path}-wal").exists() else "mode=ro&immutable=1"
    try:
        version = _identity_of_file(path, how).version
    except sqlite3.Error as error:
        raise unusable(path, error) from None
    _require_known(path, version, newest)
    return version


class _Identity(NamedTuple):
    application_id: int
    version: int
    objects: int
    """How many tables and indexes there are."""


def _refuse_foreign(path: Path, application_id: int) -> None:
    if not os.access(path, os.R_OK | os.W_OK):
        raise StateError(f"cannot open {path}: it is not ours to read and write")
    try:
        # As if nothing could change it, SQLite takes no locks and makes no files. It sees what has been checkpointed.
        found = _identity_of_file(path, "mode=ro&immutable=1")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB:
            raise StateError(
                f"cannot open {path}: it is no SQLite database, or is damaged: "
                "restore a backup of it, as docs/operations.md says"
            ) from None
        # Another process may just be writing it, which the locks keep apart.
        found = _identity_of_file(path, "mode=ro")
    if not any(found) and (frame := _wal_frames(path).get(1)):
        with open(f"{path}-wal", "rb") as wal:
            wal.seek(
                frame + 68
            )  # where the first page has the application id (SQLite file format, section 1.3)
            found = _Identity(int.from_bytes(wal.read(4), "big", signed=True), 0, 1)
    _require_kind(path, found, application_id)


def _identity_of_file(path: Path, how: str) -> _Identity:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as connection:
        return _identity(connection)


def _identity(connection: sqlite3.Connection) -> _Identity:
    questions = ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_schema")
    with content_of_ours():  # what SQLite says of a damaged schema has its bytes, which may be no UTF-8
        return _Identity(*(int(connection.execute(question).fetchone()[0]) for question in questions))


def _require_kind(path: Path, found: _Identity, application_id: int) -> None:
    """Refuse a database that is neither of this kind nor empty."""
    if found.application_id != application_id and any(found):
        raise StateError(f"{path} is not a database of this kind")


def _require_known(path: Path, version: int, newest: int) -> None:
    if version > newest:
        raise StateError(
            f"{path} has schema version {version}; this program knows versions up to {newest} "
            "and does not open newer ones"
        )


def _wal_frames(path: Path) -> dict[int, int]:
    """Return where in the write-ahead log each page stands that is committed there (SQLite file format, section 4)."""
    frames: dict[int, int] = {}
    uncommitted: dict[int, int] = {}
    with suppress(FileNotFoundError), open(f"{path}-wal", "rb") as wal:
        header = wal.read(32)
        end = os.fstat(wal.fileno()).st_size
        size, salts, at = int.from_bytes(header[8:12], "big"), header[16:24], 32
        while at + 24 + size <= end:
            wal.seek(at)
            frame = wal.read(16)
            if frame[8:] != salts:  # left from before the log began anew
                break
            page, commits = struct.unpack(">II", frame[:8])
            uncommitted[page] = at + 24
            if commits:
                frames |= uncommitted
                uncommitted.clear()
            at += 24 + size
    return frames


def _require_whole(connection: sqlite3.Connection, path: Path, size_before: int | None = None) -> None:
    """Make sure that each page is in the file or in its write-ahead log, in a transaction that has changed nothing.

    SQLite itself takes the number of pages from the log where there is one, and reads what is missing as zeros.

    Args:
        connection: to the database.
        path: its file.
        size_before: what the file held before it became smaller must be there, unless there are fewer pages now.

    Raises:
        DatabaseDamaged: pages are missing.
    """
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    there = path.stat().st_size // size
    if there < pages:
        missing = set(range(there + 1, pages + 1)) - {_LOCK_BYTE // size + 1}
        if size_before is None or pages * size < size_before:
            missing -= _wal_frames(path).keys()
        if missing:
            raise DatabaseDamaged(f"it is cut short: {len(missing)} of {pages} pages are missing")


def _require_whole_wal(path: Path) -> None:
    """Make sure that the write-ahead log has all its frames, in another connection's transaction that may write.

    SQLite itself would append behind what is missing, and find nothing of that when the database is opened again.

    Raises:
        DatabaseDamaged: frames are missing.
        sqlite3.OperationalError: it cannot be found out, because another process moves the log into the database.
    """
    with closing(connect(path)) as connection:
        # No process adds to the log meanwhile, or begins it anew; this says how many frames there are.
        busy, frames, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy:
            raise sqlite3.OperationalError("its write-ahead log is in use by another process")
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    there = os.stat(f"{path}-wal").st_size
    if frames and there < 32 + frames * (24 + size):  # SQLite file format, section 4.1
        raise DatabaseDamaged(f"its write-ahead log is cut short: {there} bytes are left of {frames} frames")


def _migrate(
    connection: sqlite3.Connection, path: Path, application_id: int, migrations: Sequence[Migration]
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        found = _identity(connection)
        _require_whole(connection, path)
        _require_kind(path, found, application_id)
        _require_known(path, found.version, len(migrations))
        for migration in migrations[found.version :]:
            if isinstance(migration, str):
                for statement in migration.split(";\n"):
                    if statement.strip():
                        connection.execute(statement)
            else:
                migration(connection)
        if found.version < len(migrations) or found.application_id != application_id:
            connection.execute(f"PRAGMA application_id = {application_id}")
            connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
