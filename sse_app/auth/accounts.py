"""The accounts that can log in, in the state directory's database."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sse_app.auth.grants import Grants
from sse_app.auth.passwords import MAX_PASSWORD_LENGTH, hash_password, verify_password
from sse_app.database import open_database
from sse_app.errors import InvalidInput

APPLICATION_ID = 0x53534541  # "SSEA"
MIGRATIONS = [
    """
    CREATE TABLE accounts (
        name TEXT PRIMARY KEY, password TEXT NOT NULL, grants TEXT NOT NULL,
        disabled INTEGER NOT NULL DEFAULT 0, created_at REAL NOT NULL
    ) WITHOUT ROWID;
    """
]
MIN_PASSWORD_LENGTH = 8

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}")


@dataclass(frozen=True, slots=True)
class Account:
    """An account, without its password."""

    name: str
    grants: Grants
    disabled: bool


class Accounts:
    """Reads and changes accounts. Its calls block; they may come from any thread.

    Args:
        path: the database file.

    Raises:
        StateError: the database cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._db = open_database(path, APPLICATION_ID, MIGRATIONS)
        self._lock = threading.Lock()

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
        with self._lock:
            try:
                self._db.execute(
                    "INSERT INTO accounts (name, password, grants, created_at) VALUES (?, ?, ?, ?)", row
                )
            except sqlite3.IntegrityError:
                raise InvalidInput(f"user {name} exists already") from None

    def set_password(self, name: str, password: str) -> None:
        """Change a password.

        Raises:
            InvalidInput: there is no such user, or the password will not do.
        """
        self._change(name, "UPDATE accounts SET password = ? WHERE name = ?", (_checked_hash(password), name))

    def set_disabled(self, name: str, disabled: bool) -> None:
        """Refuse an account its login, or allow it again.

        Raises:
            InvalidInput: there is no such user.
        """
        self._change(name, "UPDATE accounts SET disabled = ? WHERE name = ?", (int(disabled), name))

    def remove(self, name: str) -> None:
        """Delete an account.

        Raises:
            InvalidInput: there is no such user.
        """
        self._change(name, "DELETE FROM accounts WHERE name = ?", (name,))

    def list(self) -> list[Account]:
        """Return all accounts by name."""
        with self._lock:
            rows = self._db.execute("SELECT name, grants, disabled FROM accounts ORDER BY name").fetchall()
        return [_account(*row) for row in rows]

    def authenticate(self, name: str, password: str) -> Account | None:
        """Return the account if the password is right and it is not disabled.

        An unknown name, a wrong password and a disabled account take the same time.
        """
        with self._lock:
            row = self._db.execute(
                "SELECT name, grants, disabled, password FROM accounts WHERE name = ?", (name,)
            ).fetchone()
        right = verify_password(password, row[3] if row else None)
        return _account(*row[:3]) if row and right and not row[2] else None

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    def _change(self, name: str, statement: str, values: tuple[object, ...]) -> None:
        with self._lock:
            if not self._db.execute(statement, values).rowcount:
                raise InvalidInput(f"there is no user {name!a}")


def _account(name: str, grants: str, disabled: int) -> Account:
    return Account(name, Grants.from_claim(json.loads(grants)), bool(disabled))


def _checked_hash(password: str) -> str:
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise InvalidInput(f"a password has {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} characters")
    return hash_password(password)
