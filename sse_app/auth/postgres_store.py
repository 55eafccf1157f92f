"""The store of auth in PostgreSQL, beside the event log: for nodes on several machines, and commands on any."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg

from sse_app.auth.records import (
    NEVER,
    Account,
    AuditEntry,
    Continued,
    Credentials,
    Revocation,
    Scope,
    SealedKey,
    SessionLimits,
)
from sse_app.auth.store import (
    AUDIT_KEPT,
    LONGEST_REFRESH,
    REPEATABLE,
    SESSIONS_KEPT,
    SPENT_KEPT,
    AuthStore,
    RefreshRefused,
)
from sse_app.auth.tokens.grants import Grants
from sse_app.core.errors import AuthStoreUnavailable, SSEAppError, StateError
from sse_app.settings.model import LONGEST_LIFETIME
from sse_app.storage.postgres.database import Database, DatabaseUnavailable, text_of

CHANNEL = "sse_app_auth"
"""On which PostgreSQL tells each node that something was revoked, or that the keys have changed."""

PROBE_INTERVAL = 1.0
"""How often a database that failed is tried again, in seconds."""

Row = tuple[Any, ...]


class PostgresAuthStore(AuthStore):
    """Accounts, sessions, revocations and the audit trail in PostgreSQL.

    Each change is one statement that calls a function of the schema: it is done as a whole, and holds no lock while a
    message is under way. Where the connection is lost before the answer has come, the change may have been made: done
    once more it comes to the same, but for a name that is taken then, and an entry of the audit trail that is there
    twice.

    Args:
        database: the connections of this process.
    """

    poll_interval = 1.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._opened = False
        self._id = ""
        self.anew = False
        """Whether it was made in the place of one that was lost, and revokes all that was issued before."""
        self._failed = False
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._probing: asyncio.Task[None] | None = None
        self._probed_at = 0.0

    @property
    def available(self) -> bool:
        """Whether the database could be read and written the last time."""
        return self._opened and not self._failed

    @property
    def id(self) -> str:
        """What was drawn when the tables were made."""
        return self._id

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call when the database tells of a change, or could not while the connection was lost."""
        self._database.listener.listen(CHANNEL, lambda payload: callback(), callback)

    async def open(self) -> None:
        """Connect, and make or migrate the tables."""
        await self._database.open()
        try:
            async with self._database.connection() as connection:
                row = await (await connection.execute("SELECT id, anew FROM sse_app.auth")).fetchone()
            if row is None:
                raise StateError(
                    f"the table sse_app.auth in the database {self._database.address} is empty: restore a backup, "
                    "or make the accounts anew with: sse-app user add NAME --init"
                )
        except (DatabaseUnavailable, psycopg.Error) as error:
            await self._database.close()
            raise StateError(f"cannot use the database {self._database.address}: {text_of(error)}") from None
        except BaseException:
            await self._database.close()
            raise
        self._id, self.anew = row
        self._opened = True

    async def begin_anew(self) -> None:
        """Revoke all that was issued, and let nodes in that have known another store, in whose place this one is.

        Raises:
            AuthStoreUnavailable: that cannot be written.
        """
        await self.revoke([Revocation.of_everything()])
        await self._write("UPDATE sse_app.auth SET anew = true RETURNING id")
        self.anew = True

    async def close(self) -> None:
        """Finish what was begun, and give the connections back."""
        if not self._opened:
            return
        self._opened = False
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        await self._idle.wait()
        await self._database.close()

    # -- accounts -------------------------------------------------------------------------------------------

    async def add_account(self, account: Account, password_hash: str) -> bool:
        """Insert an account, unless there is a row of its name."""
        rows = await self._write(
            "INSERT INTO sse_app.accounts (name, password, grants, disabled) VALUES (%s, %s, %s, %s) "
            "ON CONFLICT (name) DO NOTHING RETURNING name",
            (written(account.name), password_hash, json.dumps(account.grants.to_claim()), account.disabled),
        )
        return bool(rows)

    async def accounts(self) -> list[Account]:
        """Read all accounts."""
        rows = await self._read("SELECT name, grants, disabled FROM sse_app.accounts ORDER BY name")
        return [_account(*row) for row in rows]

    async def accounts_page(self, search: str, offset: int, limit: int) -> tuple[int, list[Account]]:
        """Count the accounts that fit, and read some."""
        fitting = 'FROM sse_app.accounts WHERE strpos(lower(name), lower(%s COLLATE "C")) > 0'
        text = written(search)
        ((total,),) = await self._read(f"SELECT count(*) {fitting}", (text,))
        rows = await self._read(
            f"SELECT name, grants, disabled {fitting} ORDER BY name LIMIT %s OFFSET %s", (text, limit, offset)
        )
        return int(total), [_account(*row) for row in rows]

    async def credentials(self, name: str) -> Credentials | None:
        """Read one account."""
        rows = await self._read(
            "SELECT name, grants, disabled, password FROM sse_app.accounts WHERE name = %s", (written(name),)
        )
        return Credentials(_account(*rows[0][:3]), rows[0][3]) if rows else None

    async def set_password(self, name: str, password_hash: str) -> bool:
        """Change a password."""
        return await self._change(name, "password", password_hash)

    async def replace_password_hash(self, name: str, old: str, new: str) -> None:
        """Change a hash that is still the old one."""
        await self._write(
            "UPDATE sse_app.accounts SET password = %s WHERE name = %s AND password = %s RETURNING name",
            (new, written(name), old),
        )

    async def set_grants(self, name: str, grants: Grants) -> bool:
        """Change the grants; the sessions stay."""
        return await self._change(name, "grants", json.dumps(grants.to_claim()))

    async def disable_account(self, name: str) -> bool:
        """Mark an account as disabled."""
        return await self._change(name, "disable")

    async def enable_account(self, name: str) -> bool:
        """Take the mark away."""
        rows = await self._write(
            "UPDATE sse_app.accounts SET disabled = false WHERE name = %s RETURNING name", (written(name),)
        )
        return bool(rows)

    async def remove_account(self, name: str) -> bool:
        """Delete an account."""
        return await self._change(name, "remove")

    async def _change(self, name: str, change: str, text: str = "") -> bool:
        """Change an account and revoke what it was issued; return whether there is one."""
        _, _, *times = Revocation.of_subject(name)
        rows = await self._write(
            "SELECT sse_app.change_account(%s, %s, %s, %s, %s, %s)", (written(name), change, text, *times)
        )
        return bool(rows[0][0])

    # -- sessions -------------------------------------------------------------------------------------------

    async def begin_session(
        self, session: str, subject: str, digest: bytes, *, since: int, now: float, limits: SessionLimits
    ) -> bool:
        """Insert a session and its first refresh token; delete those that have run out or are too many."""
        rows = await self._write(
            "SELECT sse_app.begin_session(%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                written(session),
                written(subject),
                digest,
                since,
                now,
                float(limits.idle),
                float(limits.absolute),
                SESSIONS_KEPT,
            ),
        )
        return bool(rows[0][0])

    async def spend_refresh_token(
        self, digest: bytes, next_digest: bytes, seed: bytes, *, now: float, limits: SessionLimits
    ) -> Continued:
        """Mark a refresh token as spent and insert the next, or delete the session."""
        made_at = time.time()
        rows = await self._write(
            "SELECT refused, session, subject, expires_at, seed, grants FROM "
            "sse_app.spend_refresh_token(%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                digest,
                next_digest,
                seed,
                now,
                float(limits.idle),
                float(limits.absolute),
                REPEATABLE,
                SPENT_KEPT,
                made_at,
                made_at + LONGEST_LIFETIME,
                NEVER,
            ),
            within=min(self._database.timeout, LONGEST_REFRESH),
        )
        refused, session, subject, expires_at, kept_seed, grants = rows[0]
        if refused is not None:
            raise RefreshRefused(refused, _read_text(session or ""), _read_text(subject or ""))
        return Continued(_read_text(session), _account(subject, grants, False), expires_at, kept_seed)

    async def session_of(self, digest: bytes) -> tuple[str, str] | None:
        """Read whose a refresh token is."""
        rows = await self._read(
            "SELECT s.id, s.subject FROM sse_app.refresh_tokens t JOIN sse_app.sessions s ON s.id = t.session "
            "WHERE t.digest = %s",
            (digest,),
        )
        return (_read_text(rows[0][0]), _read_text(rows[0][1])) if rows else None

    async def end_session(self, session: str) -> None:
        """Delete a session, and insert its revocation."""
        await self.revoke([Revocation.of_session(session)])

    # -- revocations ----------------------------------------------------------------------------------------

    async def revoke(self, revocations: Iterable[Revocation]) -> None:
        """Insert revocations, and delete the sessions concerned."""
        rows = list(revocations)
        columns = (  # a list has one type, and some of the times are whole numbers
            [each.scope.value for each in rows],
            [written(each.value) for each in rows],
            [float(each.issued_until) for each in rows],
            [float(each.forget_at) for each in rows],
            [float(each.made_at) for each in rows],
        )
        await self._write(
            "SELECT sse_app.revoke(%s::text[], %s::text[], %s::float8[], %s::float8[], %s::float8[])", columns
        )

    async def last_revocation(self) -> int:
        """Read the greatest number ever given."""
        rows = await self._read("SELECT revoked FROM sse_app.auth")
        if not rows:
            raise self._noticed("the table sse_app.auth is empty")
        return int(rows[0][0])

    async def revocations_since(self, number: int, made_after: float = 0.0) -> list[tuple[int, Revocation]]:
        """Read what has been inserted since; numbers are given in the order of the commits.

        As this is asked again and again, it also tries the database again where that failed.
        """
        if self._failed:
            self._try_again()
        rows = await self._read(
            "SELECT number, kind, value, issued_until, forget_at, made_at FROM sse_app.revocations "
            "WHERE number > %s AND (made_at >= %s OR kind = 'kick') ORDER BY number",
            (number, float(made_after)),
        )
        return [(row[0], Revocation(Scope(row[1]), _read_text(row[2]), *row[3:])) for row in rows]

    # -- the audit trail ------------------------------------------------------------------------------------

    async def append_audit(self, entries: Iterable[AuditEntry]) -> None:
        """Insert entries, and delete the oldest."""
        rows = list(entries)
        texts = [
            [written(text) for text in column] for column in zip(*(row[1:] for row in rows), strict=True)
        ]
        if rows:
            await self._write(
                "SELECT sse_app.append_audit(%s::float8[], %s::text[], %s::text[], %s::text[], %s::text[], "
                "%s::text[], %s)",
                ([row.at for row in rows], *texts, AUDIT_KEPT),
            )

    async def audit_entries(self, limit: int, before: int | None = None) -> list[tuple[int, AuditEntry]]:
        """Read the newest entries."""
        rows = await self._read(
            "SELECT number, at, action, subject, address, target, detail FROM sse_app.audit "
            "WHERE number < %s ORDER BY number DESC LIMIT %s",
            (2**62 if before is None else before, limit),
        )
        return [(row[0], AuditEntry(row[1], *map(_read_text, row[2:]))) for row in rows]

    # -- keys -----------------------------------------------------------------------------------------------

    async def keys_changed(self) -> int:
        """Return how often the keys in the database have changed.

        Raises:
            AuthStoreUnavailable: that cannot be read.
        """
        rows = await self._read("SELECT keys_changed FROM sse_app.auth")
        return int(rows[0][0]) if rows else 0

    async def sealed_keys(self) -> tuple[int, list[SealedKey]]:
        """Return how often the keys have changed, and those that are there, the newest first.

        Raises:
            AuthStoreUnavailable: they cannot be read.
        """
        rows = await self._read(
            "SELECT a.keys_changed, k.id, k.kind, k.sealed, extract(epoch FROM clock_timestamp()) - k.made_at "
            "FROM sse_app.auth a LEFT JOIN sse_app.keys k ON true ORDER BY k.number DESC"
        )
        changed = int(rows[0][0]) if rows else 0
        return changed, [
            SealedKey(_read_text(row[1]), row[2], row[3], float(row[4])) for row in rows if row[1] is not None
        ]

    async def change_keys(self, changed: int, new: list[tuple[str, str, bytes]], deleted: list[str]) -> bool:
        """Add keys and delete some, unless they have changed meanwhile; tell all nodes.

        Args:
            changed: how often they had changed.
            new: id, kind and sealed content of each, the newest last.
            deleted: the ids of those that go.

        Returns:
            Whether that was done.

        Raises:
            AuthStoreUnavailable: it cannot be written.
        """
        rows = await self._write(
            "SELECT sse_app.change_keys(%s, %s::text[], %s::text[], %s::bytea[], %s::text[])",
            (
                changed,
                [written(id) for id, _, _ in new],
                [kind for _, kind, _ in new],
                [sealed for _, _, sealed in new],
                [written(id) for id in deleted],
            ),
        )
        return bool(rows[0][0])

    # -- the database ---------------------------------------------------------------------------------------

    async def _write(
        self, statement: str, values: Sequence[object] = (), within: float | None = None
    ) -> list[Row]:
        """Do one statement that changes something, all or nothing; when it returns it is on the disk.

        Args:
            statement: with placeholders.
            values: for these.
            within: as of `Database.connection`.
        """
        async with self._noticed_errors():
            rows = await self._do(statement, values, within)
        self._failed = False
        return rows

    async def _read(self, statement: str, values: Sequence[object] = ()) -> list[Row]:
        """Read what is committed."""
        async with self._noticed_errors():
            return await self._do(statement, values)

    async def _do(self, statement: str, values: Sequence[object], within: float | None = None) -> list[Row]:
        async with self._database.connection(within) as connection:
            return await (await connection.execute(statement.encode(), values)).fetchall()

    @asynccontextmanager
    async def _noticed_errors(self) -> AsyncIterator[None]:
        """Turn an error of the database into `AuthStoreUnavailable`, and note it."""
        if not self._opened:
            raise AuthStoreUnavailable("it is not open")
        self._running += 1
        self._idle.clear()
        try:
            yield
        except (DatabaseUnavailable, psycopg.Error) as error:
            raise self._noticed(text_of(error)) from error
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()

    def _noticed(self, text: str) -> AuthStoreUnavailable:
        """Note that the database has failed, and return what that means to the caller."""
        self._failed = True
        return AuthStoreUnavailable(text)

    def _try_again(self) -> None:
        """Have a write tried, now and then: a standby, or a full disk, lets all be read."""
        now = time.monotonic()
        if self._probing is None and now >= self._probed_at + PROBE_INTERVAL:
            self._probed_at = now
            self._probing = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        try:
            with suppress(AuthStoreUnavailable):
                await self._write("UPDATE sse_app.auth SET revoked = revoked RETURNING id")
        finally:
            self._probing = None


async def make_row(database: Database) -> bool:
    """Make the row of a store whose tables are there, if it is not, and return whether that was done.

    Raises:
        StateError: that cannot be done.
    """
    await database.open()
    try:
        async with database.connection() as connection:
            made = await connection.execute(
                "INSERT INTO sse_app.auth DEFAULT VALUES ON CONFLICT DO NOTHING RETURNING id"
            )
            return await made.fetchone() is not None
    except DatabaseUnavailable as error:
        raise StateError(f"cannot use the database {database.address}: {error}") from None
    finally:
        await database.close()


def written(text: str) -> str:
    """Return a text as PostgreSQL can keep it, which has no NUL in texts; `_read_text` returns it as it was."""
    if "\0" in text or "\x1b" in text:
        return text.replace("\x1b", "\x1b1").replace("\0", "\x1b0")
    return text


def _read_text(text: str) -> str:
    return text.replace("\x1b0", "\0").replace("\x1b1", "\x1b") if "\x1b" in text else text


def _account(name: str, grants: str, disabled: bool) -> Account:
    name = _read_text(name)
    try:
        return Account(name, Grants.from_claim(json.loads(grants)), disabled)
    except (TypeError, ValueError, SSEAppError) as error:
        raise AuthStoreUnavailable(f"the account {name!r} cannot be read: {error}") from error
