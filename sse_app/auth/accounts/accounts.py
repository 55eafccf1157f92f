"""The accounts that can log in."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from typing import NamedTuple

from sse_app.auth.accounts.passwords import MAX_PASSWORD_LENGTH, hash_password, needs_rehash, verify_password
from sse_app.auth.accounts.sessions import end_sessions_of
from sse_app.auth.revocations import Revocation, revoke
from sse_app.auth.sqlite_store import AuthDatabase
from sse_app.auth.tokens.grants import Grants
from sse_app.core.errors import InvalidInput
from sse_app.settings.model import Auth

MIN_PASSWORD_LENGTH = 8

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


class Account(NamedTuple):
    """An account, without its password."""

    name: str
    grants: Grants
    disabled: bool


class Accounts:
    """Reads and changes accounts. Its calls block; they may come from any thread.

    Whatever makes an account less than it was is in force at once, also on open streams: its sessions end
    and its tokens are revoked in the same transaction.

    Args:
        database: where they are kept.
        longest: the longest lifetime that a token can have, in seconds.
    """

    def __init__(self, database: AuthDatabase, longest: float) -> None:
        self._database = database
        self.longest = longest

    def use(self, auth: Auth) -> None:
        """Take other settings."""
        self.longest = auth.longest_lifetime

    def add(self, name: str, password: str, grants: Grants) -> None:
        """Make an account.

        Raises:
            InvalidInput: the name or the password will not do, or the name is taken.
        """
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                "a user name is letters, digits and _ . @ -, at most 64, and begins with a letter or digit"
            )
        row = (name, _checked_hash(password), json.dumps(grants.to_claim()), time.time())
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO accounts (name, password, grants, created_at) VALUES (?, ?, ?, ?)", row
                )
        except sqlite3.IntegrityError:
            raise InvalidInput(f"user {name} exists already") from None

    def set_password(self, name: str, password: str) -> None:
        """Change a password, and end what the old one began.

        Raises:
            InvalidInput: there is no such user, or the password will not do.
        """
        hashed = _checked_hash(password)
        with self._database.transaction() as connection:
            _change(connection, name, "UPDATE accounts SET password = ? WHERE name = ?", (hashed, name))
            end_sessions_of(connection, name, self.longest)

    def set_grants(self, name: str, grants: Grants) -> None:
        """Change what an account may do; its sessions go on, with fresh tokens that say so.

        Raises:
            InvalidInput: there is no such user.
        """
        claim = json.dumps(grants.to_claim())
        with self._database.transaction() as connection:
            _change(connection, name, "UPDATE accounts SET grants = ? WHERE name = ?", (claim, name))
            revoke(connection, Revocation.of_subject(name, self.longest))

    def set_disabled(self, name: str, disabled: bool) -> None:
        """Refuse an account its login and end its sessions, or allow it to log in again.

        Raises:
            InvalidInput: there is no such user.
        """
        with self._database.transaction() as connection:
            _change(
                connection, name, "UPDATE accounts SET disabled = ? WHERE name = ?", (int(disabled), name)
            )
            if disabled:
                end_sessions_of(connection, name, self.longest)

    def remove(self, name: str) -> None:
        """Delete an account and end its sessions.

        Raises:
            InvalidInput: there is no such user.
        """
        with self._database.transaction() as connection:
            _change(connection, name, "DELETE FROM accounts WHERE name = ?", (name,))
            end_sessions_of(connection, name, self.longest)

    def list(self) -> list[Account]:
        """Return all accounts by name."""
        with self._database.transaction() as connection:
            rows = connection.execute("SELECT name, grants, disabled FROM accounts ORDER BY name").fetchall()
        return [_account(*row) for row in rows]

    def find(self, name: str) -> Account | None:
        """Return an account, or None."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT name, grants, disabled FROM accounts WHERE name = ?", (name,)
            ).fetchone()
        return _account(*row) if row else None

    def authenticate(self, name: str, password: str) -> Account | None:
        """Return the account if the password is right and it is not disabled.

        An unknown name, a wrong password and a disabled account take the same time. A hash of older
        parameters is replaced.
        """
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT name, grants, disabled, password FROM accounts WHERE name = ?", (name,)
            ).fetchone()
        right = verify_password(password, row[3] if row else None)
        if not row or not right or row[2]:
            return None
        if needs_rehash(row[3]):
            rehashed = hash_password(password)
            with self._database.transaction() as connection:  # unless it was changed in between
                connection.execute(
                    "UPDATE accounts SET password = ? WHERE name = ? AND password = ?",
                    (rehashed, name, row[3]),
                )
        return _account(*row[:3])


def _change(connection: sqlite3.Connection, name: str, statement: str, values: tuple[object, ...]) -> None:
    if not connection.execute(statement, values).rowcount:
        raise InvalidInput(f"there is no user {name!a}")


def _account(name: str, grants: str, disabled: int) -> Account:
    return Account(name, Grants.from_claim(json.loads(grants)), bool(disabled))


def _checked_hash(password: str) -> str:
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise InvalidInput(f"a password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters")
    return hash_password(password)
