"""The store of auth in one SQLite file: for one machine, where commands use it beside the server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from sse_app.auth.records import (
    Account,
    AuditEntry,
    Continued,
    Credentials,
    Revocation,
    Scope,
    SessionLimits,
)
from sse_app.auth.store import (
    AUDIT_KEPT,
    REPEATABLE,
    SESSIONS_KEPT,
    SPENT_KEPT,
    AuthStore,
    RefreshRefused,
)
from sse_app.auth.tokens.grants import Grants
from sse_app.core.errors import AuthStoreUnavailable, SSEAppError, StateError
from sse_app.storage.boot import boot_id
from sse_app.storage.sqlite import (
    DatabaseDamaged,
    DatabaseFiles,
    connect,
    content_of_ours,
    is_damaged,
    open_database,
    unusable,
    without_checkpoint,
)

APPLICATION_ID = 0x53534541  # "SSEA"
MIGRATIONS = [
    """
    CREATE TABLE accounts (
        name TEXT PRIMARY KEY, password TEXT NOT NULL, grants TEXT NOT NULL,
        disabled INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY, subject TEXT NOT NULL,
        created_at REAL NOT NULL, used_at REAL NOT NULL, expires_at REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX sessions_of_subject ON sessions (subject);
    CREATE TABLE refresh_tokens (
        digest BLOB PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        spent INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX refresh_tokens_of_session ON refresh_tokens (session);
    CREATE TABLE revocations (
        number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, value TEXT NOT NULL,
        issued_until REAL NOT NULL, forget_at REAL NOT NULL
    );
    CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, address TEXT NOT NULL, target TEXT NOT NULL, detail TEXT NOT NULL
    );
    """,
    # Revocations of earlier versions do not say when they were made, so they are in force until they are forgotten;
    # that was too soon for tokens that live longer than the settings of then allowed.
    """
    ALTER TABLE revocations ADD COLUMN made_at REAL NOT NULL DEFAULT 1e15;
    UPDATE revocations SET forget_at = forget_at + 366 * 86400 WHERE kind != 'token';
    CREATE INDEX revocations_to_forget ON revocations (forget_at);
    CREATE INDEX revocations_by_value ON revocations (value, kind);
    """,
    """
    ALTER TABLE refresh_tokens ADD COLUMN spent_at REAL NOT NULL DEFAULT 0;
    ALTER TABLE refresh_tokens ADD COLUMN seed BLOB;
    """,
    """
    CREATE INDEX audit_by_action ON audit (action, number);
    CREATE INDEX sessions_by_use ON sessions (used_at);
    CREATE INDEX sessions_by_end ON sessions (expires_at);
    """,
    # When a revocation was made on the monotonic clock, which runs through one start of the machine.
    """
    ALTER TABLE revocations ADD COLUMN boot TEXT NOT NULL DEFAULT '';
    ALTER TABLE revocations ADD COLUMN made_on REAL NOT NULL DEFAULT 0;
    """,
    """
    CREATE TABLE identity (id TEXT NOT NULL);
    INSERT INTO identity (id) VALUES (lower(hex(randomblob(4))));
    """,
]

SMALL_TABLES = ("accounts", "sessions", "refresh_tokens", "revocations")
"""They are looked through for damage when the file is opened; the audit trail is left out, as it is large."""

PROBE_INTERVAL = 1.0
"""How often a file that failed is tried again, in seconds."""

T = TypeVar("T")


class SqliteAuthStore(AuthStore):
    """Accounts, sessions, revocations and the audit trail in a SQLite file.

    One connection writes, in a thread of its own: a write waits for other processes and for the disk. Another
    one reads, on the event loop: in WAL mode a read waits for no writer, and these are short.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, "auth-store")
        self._writing: sqlite3.Connection | None = None
        self._reading: sqlite3.Connection | None = None
        self._id = ""
        self._failed = False
        self._damage = ""
        """What is wrong with the file's content, once that has been found: only a restart looks at it anew."""
        self._probing: asyncio.Task[None] | None = None
        self._probed_at = 0.0

    @property
    def available(self) -> bool:
        """Whether the file could be read and written the last time."""
        return self._writing is not None and not self._failed and not self._damage

    @property
    def id(self) -> str:
        """What was drawn when the file was made."""
        return self._id

    def on_change(self, callback: Callable[[], None]) -> None:
        """Do nothing: a file tells no process of a change."""

    async def open(self) -> None:
        """Open the file, and make or migrate its tables."""
        self._writing, self._reading = await self._in_thread(self._connect)

    async def close(self) -> None:
        """Finish what was begun, and close the file."""
        if self._probing is not None:
            await asyncio.wait([self._probing])
        connections, self._writing, self._reading = (self._reading, self._writing), None, None
        with without_checkpoint(self._path) if self._damage else nullcontext():
            for connection in connections:
                if connection is not None:
                    await self._in_thread(connection.close)
        self._thread.shutdown()

    # -- accounts -------------------------------------------------------------------------------------------

    async def add_account(self, account: Account, password_hash: str) -> bool:
        """Insert an account, unless there is a row of its name."""
        return await self._change(
            "INSERT INTO accounts (name, password, grants, disabled, created_at) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (name) DO NOTHING",
            (
                account.name,
                password_hash,
                json.dumps(account.grants.to_claim()),
                int(account.disabled),
                time.time(),
            ),
        )

    async def accounts(self) -> list[Account]:
        """Read all accounts."""
        return [
            _account(*row) for row in self._rows("SELECT name, grants, disabled FROM accounts ORDER BY name")
        ]

    async def accounts_page(self, search: str, offset: int, limit: int) -> tuple[int, list[Account]]:
        """Count the accounts that fit, and read some: in the thread, as all of their names are looked through."""
        connection = self._opened(self._writing)
        fitting = "FROM accounts WHERE instr(lower(name), lower(?)) > 0"  # names are ASCII

        def read() -> tuple[int, list[Account]]:
            ((total,),) = connection.execute(f"SELECT count(*) {fitting}", (search,))
            page = f"SELECT name, grants, disabled {fitting} ORDER BY name LIMIT ? OFFSET ?"
            return total, [_account(*row) for row in connection.execute(page, (search, limit, offset))]

        with self._noticed_errors():
            return await self._in_thread(read)

    async def credentials(self, name: str) -> Credentials | None:
        """Read one account."""
        rows = self._rows("SELECT name, grants, disabled, password FROM accounts WHERE name = ?", (name,))
        return Credentials(_account(*rows[0][:3]), rows[0][3]) if rows else None

    async def set_password(self, name: str, password_hash: str) -> bool:
        """Change a password."""
        return await self._change(
            "UPDATE accounts SET password = ? WHERE name = ?",
            (password_hash, name),
            lambda connection: _revoke(connection, Revocation.of_subject(name)),
        )

    async def replace_password_hash(self, name: str, old: str, new: str) -> None:
        """Change a hash that is still the old one."""
        await self._change(
            "UPDATE accounts SET password = ? WHERE name = ? AND password = ?", (new, name, old)
        )

    async def set_grants(self, name: str, grants: Grants) -> bool:
        """Change the grants; the sessions stay."""
        return await self._change(
            "UPDATE accounts SET grants = ? WHERE name = ?",
            (json.dumps(grants.to_claim()), name),
            lambda connection: _write_revocation(connection, Revocation.of_subject(name)),
        )

    async def disable_account(self, name: str) -> bool:
        """Mark an account as disabled."""
        return await self._change(
            "UPDATE accounts SET disabled = 1 WHERE name = ?",
            (name,),
            lambda connection: _revoke(connection, Revocation.of_subject(name)),
        )

    async def enable_account(self, name: str) -> bool:
        """Take the mark away."""
        return await self._change("UPDATE accounts SET disabled = 0 WHERE name = ?", (name,))

    async def remove_account(self, name: str) -> bool:
        """Delete an account."""
        return await self._change(
            "DELETE FROM accounts WHERE name = ?",
            (name,),
            lambda connection: _revoke(connection, Revocation.of_subject(name)),
        )

    async def _change(
        self,
        statement: str,
        values: tuple[object, ...],
        and_then: Callable[[sqlite3.Connection], None] = lambda connection: None,
    ) -> bool:
        """Change the row of an account, and do what goes with it; return whether there is such a row."""

        def change(connection: sqlite3.Connection) -> bool:
            if not connection.execute(statement, values).rowcount:
                return False
            and_then(connection)
            return True

        return await self._write(change)

    # -- sessions -------------------------------------------------------------------------------------------

    async def begin_session(
        self, session: str, subject: str, digest: bytes, *, since: int, now: float, limits: SessionLimits
    ) -> bool:
        """Insert a session and its first refresh token; delete those that have run out or are too many."""

        def begin(connection: sqlite3.Connection) -> bool:
            if connection.execute(
                "SELECT 1 FROM revocations WHERE kind = 'subject' AND value = ? AND number > ?",
                (subject, since),
            ).fetchone():
                return False
            connection.execute(
                "DELETE FROM sessions WHERE expires_at <= ? OR used_at <= ?", (now, now - limits.idle)
            )
            # Those begun or used while the clock was ahead would else last for as much longer.
            connection.execute(
                "UPDATE sessions SET used_at = ?, expires_at = min(expires_at, ?) WHERE used_at > ?",
                (now, now + limits.absolute, now),
            )
            connection.execute(
                "INSERT INTO sessions (id, subject, created_at, used_at, expires_at) VALUES (?, ?, ?, ?, ?)",
                (session, subject, now, now, now + limits.absolute),
            )
            connection.execute(
                "DELETE FROM sessions WHERE subject = ?1 AND id NOT IN "
                "(SELECT id FROM sessions WHERE subject = ?1 ORDER BY used_at DESC LIMIT ?2)",
                (subject, SESSIONS_KEPT),
            )
            _add_refresh_token(connection, session, digest)
            return True

        return await self._write(begin)

    async def spend_refresh_token(
        self, digest: bytes, next_digest: bytes, seed: bytes, *, now: float, limits: SessionLimits
    ) -> Continued:
        """Mark a refresh token as spent and insert the next, or delete the session.

        Spent ones stay as long as their session does, up to a number, so that one that comes back is known. The
        last of them alone has its seed, until the next one is used.
        """

        def spend(connection: sqlite3.Connection) -> Continued | RefreshRefused:
            row = connection.execute(
                "SELECT session, subject, spent, spent_at, seed, used_at, expires_at FROM refresh_tokens "
                "JOIN sessions ON sessions.id = session WHERE digest = ?",
                (digest,),
            ).fetchone()
            if row is None:
                return RefreshRefused("unknown")
            session, subject, spent, spent_at, first_seed, used_at, expires_at = row
            repeated = first_seed is not None and abs(now - spent_at) <= REPEATABLE
            if used_at > now and not repeated:  # as in `begin_session`
                expires_at = min(expires_at, now + limits.absolute)
            account = connection.execute(
                "SELECT name, grants, disabled FROM accounts WHERE name = ? AND NOT disabled", (subject,)
            ).fetchone()
            if spent and not repeated:
                refused = "reused"
            elif now >= min(expires_at, used_at + limits.idle):
                refused = "expired"
            elif account is None:
                refused = "no account"
            else:
                if not repeated:
                    connection.execute(
                        "UPDATE refresh_tokens SET seed = NULL WHERE session = ? AND seed IS NOT NULL",
                        (session,),
                    )
                    connection.execute(
                        "UPDATE refresh_tokens SET spent = 1, spent_at = ?, seed = ? WHERE digest = ?",
                        (now, seed, digest),
                    )
                    connection.execute(
                        "UPDATE sessions SET used_at = ?, expires_at = ? WHERE id = ?",
                        (now, expires_at, session),
                    )
                    _add_refresh_token(connection, session, next_digest)
                    connection.execute(
                        "DELETE FROM refresh_tokens WHERE digest IN (SELECT digest FROM refresh_tokens "
                        "WHERE session = ? AND spent ORDER BY seed IS NULL, spent_at DESC LIMIT -1 OFFSET ?)",
                        (session, SPENT_KEPT),
                    )
                else:
                    connection.execute(
                        "UPDATE refresh_tokens SET spent_at = ? WHERE digest = ?", (now, digest)
                    )
                return Continued(session, _account(*account), expires_at, first_seed if repeated else seed)
            _revoke(connection, Revocation.of_session(session))
            return RefreshRefused(refused, session, subject)

        outcome = await self._write(spend)
        if isinstance(outcome, RefreshRefused):  # raised here, for an exception in there would undo it
            raise outcome
        return outcome

    async def session_of(self, digest: bytes) -> tuple[str, str] | None:
        """Read whose a refresh token is."""
        rows = self._rows(
            "SELECT session, subject FROM refresh_tokens JOIN sessions ON sessions.id = session WHERE digest = ?",
            (digest,),
        )
        return (rows[0][0], rows[0][1]) if rows else None

    async def end_session(self, session: str) -> None:
        """Delete a session, and insert its revocation."""
        await self._write(lambda connection: _revoke(connection, Revocation.of_session(session)))

    # -- revocations ----------------------------------------------------------------------------------------

    async def revoke(self, revocations: Iterable[Revocation]) -> None:
        """Insert revocations, and delete the sessions concerned."""

        def revoke(connection: sqlite3.Connection) -> None:
            for revocation in revocations:
                _revoke(connection, revocation)

        await self._write(revoke)

    async def last_revocation(self) -> int:
        """Read the greatest number ever given."""
        rows = self._rows("SELECT seq FROM sqlite_sequence WHERE name = 'revocations'")
        return int(rows[0][0]) if rows else 0

    async def revocations_since(self, number: int, made_after: float = 0.0) -> list[tuple[int, Revocation]]:
        """Read what has been inserted since; numbers are given in the order of the commits.

        As this is asked several times a second, it also finds out whether the file is still in its place, and tries
        it again where it failed.
        """
        self._watch()
        made_on_after = time.monotonic() - (time.time() - made_after)
        rows = self._rows(
            "SELECT number, kind, value, issued_until, forget_at, made_at FROM revocations "
            "WHERE number > ? AND (made_at >= ? OR (boot = ? AND made_on >= ?) OR kind = 'kick') ORDER BY number",
            (number, made_after, boot_id(), made_on_after),
        )
        if not rows:
            return []
        with self._noticed_errors(), content_of_ours():
            return [(row[0], Revocation(Scope(row[1]), *row[2:])) for row in rows]

    # -- the audit trail ------------------------------------------------------------------------------------

    async def append_audit(self, entries: Iterable[AuditEntry]) -> None:
        """Insert entries, and delete the oldest."""

        def append(connection: sqlite3.Connection) -> None:
            rows = list(entries)
            connection.executemany(
                "INSERT INTO audit (at, action, subject, address, target, detail) VALUES (?, ?, ?, ?, ?, ?)",
                rows,
            )
            connection.executemany(
                "DELETE FROM audit WHERE action = ?1 AND number <= "
                "(SELECT number FROM audit WHERE action = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                [(action, AUDIT_KEPT) for action in {row.action for row in rows}],
            )

        await self._write(append)

    async def audit_entries(self, limit: int, before: int | None = None) -> list[tuple[int, AuditEntry]]:
        """Read the newest entries."""
        rows = self._rows(
            "SELECT number, at, action, subject, address, target, detail FROM audit "
            "WHERE number < ? ORDER BY number DESC LIMIT ?",
            (2**62 if before is None else before, limit),
        )
        return [(row[0], AuditEntry(*row[1:])) for row in rows]

    # -- the file -------------------------------------------------------------------------------------------

    def _connect(self) -> tuple[sqlite3.Connection, sqlite3.Connection]:
        writing = open_database(self._path, APPLICATION_ID, MIGRATIONS)
        try:
            for table in SMALL_TABLES:
                _require_sound(writing, table)
            self._id = _identity(writing)
            reading = connect(self._path)
            self._files = DatabaseFiles(self._path)
            return writing, reading
        except (OSError, sqlite3.Error) as error:
            with without_checkpoint(self._path):
                writing.close()
            raise unusable(self._path, error) from error

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do work in a transaction, all or nothing; when it returns it is on the disk."""
        connection = self._opened(self._writing)
        with self._noticed_errors():
            result = await self._in_thread(lambda: _transaction(connection, self._files, work))
        self._failed = False
        return result

    def _rows(self, statement: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Read what is committed."""
        connection = self._opened(self._reading)
        try:
            return connection.execute(statement, values).fetchall()
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            raise self._noticed(error) from error

    def _opened(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if self._damage:
            raise AuthStoreUnavailable(self._damage)
        if connection is None:
            raise AuthStoreUnavailable("it is not open")
        return connection

    @contextmanager
    def _noticed_errors(self) -> Iterator[None]:
        """Turn an error of the file into `AuthStoreUnavailable`, and note it; a mistake in a call stays what it is."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except (StateError, sqlite3.Error) as error:
            raise self._noticed(error) from error

    def _noticed(self, error: StateError | sqlite3.Error) -> AuthStoreUnavailable:
        """Note an error of the file, and return what it means to the caller."""
        self._failed = True
        text = str(error)
        if is_damaged(error):
            text = self._damage = str(unusable(self._path, error))
        return AuthStoreUnavailable(text)

    def _watch(self) -> None:
        """Look whether the file is in its place, and have it tried now and then while it cannot be used.

        Raises:
            AuthStoreUnavailable: it is not in its place.
        """
        self._opened(self._reading)
        try:
            shrunk = self._files.have_shrunk()
        except StateError as error:
            raise self._noticed(error) from error
        if (self._failed or shrunk) and self._probing is None:
            now = time.monotonic()
            if now >= self._probed_at + PROBE_INTERVAL:
                self._probed_at = now
                self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        """Try to write: what has failed is known already, and stays so where this fails too."""
        try:
            with suppress(AuthStoreUnavailable):
                await self._write(_probe)
        finally:
            self._probing = None


def make_tables(path: Path) -> None:
    """Make the file of a store, with its tables.

    Raises:
        StateError: it cannot be made.
    """
    open_database(path, APPLICATION_ID, MIGRATIONS).close()


def id_of_file(path: Path) -> str:
    """Return the id of the store in a file, which is brought to the schema of this program.

    Raises:
        StateError: it cannot be read.
    """
    connection = open_database(path, APPLICATION_ID, MIGRATIONS)
    try:
        return _identity(connection)
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    finally:
        connection.close()


def _probe(connection: sqlite3.Connection) -> None:
    """Write something that changes, as a number is used up: SQLite leaves a cell alone whose content stays the same."""
    connection.execute(
        "INSERT INTO audit (at, action, subject, address, target, detail) VALUES (0, '', '', '', '', '')"
    )
    connection.execute("DELETE FROM audit WHERE number = last_insert_rowid()")


def _identity(connection: sqlite3.Connection) -> str:
    """Return the id of a store.

    Raises:
        sqlite3.DatabaseError: it has none.
    """
    rows = connection.execute("SELECT id FROM identity").fetchall()
    if len(rows) != 1:
        raise DatabaseDamaged(f"identity: {len(rows)} rows")
    return str(rows[0][0])


def _require_sound(connection: sqlite3.Connection, table: str) -> None:
    """Look through a table and its indexes for damage.

    Raises:
        sqlite3.DatabaseError: there is some.
    """
    (found,) = connection.execute(f"PRAGMA quick_check({table})").fetchone()
    if found != "ok":
        raise DatabaseDamaged(f"{table}: {found}".replace("\n", " "))


def _transaction(
    connection: sqlite3.Connection, files: DatabaseFiles, work: Callable[[sqlite3.Connection], T]
) -> T:
    try:
        connection.execute("BEGIN IMMEDIATE")
        files.check(connection)
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite itself ends it after some errors
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise
    return result


def _account(name: str, grants: str, disabled: int) -> Account:
    try:
        return Account(name, Grants.from_claim(json.loads(grants)), bool(disabled))
    except (TypeError, ValueError, SSEAppError) as error:
        raise AuthStoreUnavailable(f"the account {name!r} cannot be read: {error}") from error


def _add_refresh_token(connection: sqlite3.Connection, session: str, digest: bytes) -> None:
    connection.execute("INSERT INTO refresh_tokens (digest, session) VALUES (?, ?)", (digest, session))


def _revoke(connection: sqlite3.Connection, revocation: Revocation) -> None:
    """Write a revocation, and end the sessions that it speaks of."""
    match revocation.scope:
        case Scope.SESSION:
            connection.execute("DELETE FROM sessions WHERE id = ?", (revocation.value,))
        case Scope.SUBJECT:
            connection.execute("DELETE FROM sessions WHERE subject = ?", (revocation.value,))
        case Scope.ALL:
            connection.execute("DELETE FROM sessions")
    _write_revocation(connection, revocation)


def _write_revocation(connection: sqlite3.Connection, revocation: Revocation) -> None:
    now, monotonic = time.time(), time.monotonic()
    # The clock may have been set forward: what was made since the machine started must have lasted as long as well.
    connection.execute(
        "DELETE FROM revocations WHERE forget_at <= ? AND (boot != ? OR made_on + forget_at - made_at <= ?)",
        (now, boot_id(), monotonic),
    )
    if revocation.scope is Scope.KICK:  # the last one counts
        connection.execute("DELETE FROM revocations WHERE kind = 'kick' AND value = ?", (revocation.value,))
    scope, *values = revocation.as_of(now)
    # Numbered on from the time in milliseconds, so that numbers are greater than before also in a restored backup.
    connection.execute(
        "INSERT INTO revocations (number, kind, value, issued_until, forget_at, made_at, boot, made_on) VALUES ("
        "max(?, 1 + ifnull((SELECT seq FROM sqlite_sequence WHERE name = 'revocations'), 0)), "
        "?, ?, ?, ?, ?, ?, ?)",
        (int(now * 1000), scope.value, *values, boot_id(), monotonic),
    )
