"""What has been revoked: a deny-list of tokens that would otherwise still be in force."""

from __future__ import annotations

import math
import sqlite3
import time
from enum import Enum
from typing import NamedTuple

from sse_app.auth.sqlite_store import AuthDatabase
from sse_app.auth.tokens.claims import Claims, Lease
from sse_app.core.errors import InvalidInput

NEVER = 2.0**50
"""An issuing time that no token has: what is revoked until then is revoked whenever it was issued."""


class Scope(Enum):
    """What a revocation speaks of."""

    TOKEN = "token"
    SESSION = "session"
    SUBJECT = "subject"
    ALL = "all"


def require_no_token(value: str, field: str) -> None:
    """Refuse a token where its id is asked for: it would revoke nothing, and be kept in the clear.

    Raises:
        InvalidInput: it has the form of a token.
    """
    if value.count(".") == 2 and value.startswith("eyJ"):
        raise InvalidInput(f"{field} is a whole token; give one of its claims: jti, sid or sub", field)


class Revocation(NamedTuple):
    """Tokens that are no longer accepted.

    Args:
        scope: by what they are told apart.
        value: the ``jti``, ``sid`` or ``sub``; empty for all tokens.
        issued_until: those issued up to then are meant, in seconds since the epoch.
        forget_at: when the last of them has expired by itself.
    """

    scope: Scope
    value: str
    issued_until: float
    forget_at: float

    def concerns(self, claims: Claims | Lease) -> bool:
        """Return whether a token with these claims is meant."""
        value = {
            Scope.TOKEN: claims.token_id,
            Scope.SESSION: claims.session,
            Scope.SUBJECT: claims.subject,
            Scope.ALL: "",
        }[self.scope]
        return value == self.value and claims.issued_at <= self.issued_until

    @classmethod
    def of_token(cls, token_id: str, expires_at: float) -> Revocation:
        """Revoke one token."""
        return cls(Scope.TOKEN, token_id, NEVER, expires_at)

    @classmethod
    def of_session(cls, session: str, longest: float) -> Revocation:
        """Revoke every token of a session; ``longest`` is the longest lifetime one of them can have, in seconds."""
        return cls(Scope.SESSION, session, NEVER, time.time() + longest)

    @classmethod
    def of_subject(cls, subject: str, longest: float) -> Revocation:
        """Revoke what a subject has been issued until now; a later login is another matter."""
        now = time.time()
        return cls(Scope.SUBJECT, subject, now, now + longest)

    @classmethod
    def of_everything(cls, longest: float) -> Revocation:
        """Revoke every token issued until now."""
        now = time.time()
        return cls(Scope.ALL, "", now, now + longest)


class Revocations:
    """Knows what has been revoked, by this process or another: the database tells.

    Asking is for every request and costs a few lookups in memory; what has been forgotten is not asked of.

    Args:
        database: where they are kept.
    """

    def __init__(self, database: AuthDatabase) -> None:
        self._database = database
        self._seen = 0
        self._in_force: dict[Scope, dict[str, tuple[float, float]]] = {scope: {} for scope in Scope}
        self._tokens = self._in_force[Scope.TOKEN]
        self._sessions = self._in_force[Scope.SESSION]
        self._subjects = self._in_force[Scope.SUBJECT]
        self._all = -math.inf
        self.learn()

    def covers(self, claims: Claims | Lease) -> bool:
        """Return whether a token with these claims has been revoked."""
        issued_at = claims.issued_at
        return (
            claims.token_id in self._tokens
            or claims.session in self._sessions
            or issued_at <= self._all
            or (claims.subject in self._subjects and issued_at <= self._subjects[claims.subject][0])
        )

    def learn(self) -> bool:
        """Put what is new in the database in force, forget what is spent, and return whether there was anything new."""
        now = time.time()
        new = self._database.rows(
            "SELECT number, kind, value, issued_until, forget_at FROM revocations WHERE number > ? ORDER BY number",
            (self._seen,),
        )
        for number, kind, value, issued_until, forget_at in new:
            self._seen = number
            known = self._in_force[Scope(kind)]
            before = known.get(value, (-math.inf, -math.inf))
            known[value] = (max(before[0], issued_until), max(before[1], forget_at))
        for known in self._in_force.values():
            for value in [value for value, (_, forget_at) in known.items() if forget_at <= now]:
                del known[value]
        self._all = self._in_force[Scope.ALL].get("", (-math.inf, 0.0))[0]
        return bool(new)

    def __len__(self) -> int:
        """The number of revocations in force."""
        return sum(map(len, self._in_force.values()))


def revoke(connection: sqlite3.Connection, revocation: Revocation) -> None:
    """Write a revocation within a transaction; those that are spent leave the database."""
    connection.execute("DELETE FROM revocations WHERE forget_at <= ?", (time.time(),))
    connection.execute(
        "INSERT INTO revocations (kind, value, issued_until, forget_at) VALUES (?, ?, ?, ?)",
        (revocation.scope.value, *revocation[1:]),
    )
