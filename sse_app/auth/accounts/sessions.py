"""Sessions: a login that lasts, renewed by refresh tokens of which each works once (RFC 9700 §4.14)."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from typing import NamedTuple

from sse_app.auth.revocations import Revocation, Scope, revoke
from sse_app.auth.sqlite_store import AuthDatabase
from sse_app.auth.tokens.claims import new_id
from sse_app.core.errors import SSEAppError
from sse_app.settings.model import Auth

REFRESH_TOKEN_BYTES = 32


class RefreshRefused(SSEAppError):
    """A refresh token is unknown, spent or too old; whoever has it must log in again.

    Args:
        reason: ``unknown``, ``reused``, ``expired`` or ``no account``, for the audit trail.
        session, subject: whose it was, where that is known.
    """

    def __init__(self, reason: str, session: str = "", subject: str = "") -> None:
        super().__init__("the refresh token is not valid: log in again")
        self.reason = reason
        self.session = session
        self.subject = subject


class SessionLimits(NamedTuple):
    """How long a session lasts, in seconds.

    Args:
        idle: without a refresh.
        absolute: at all.
        issued: the longest that a token issued in it by login or refresh can be in force.
        minted: the longest that any token can be in force, also one that was minted for a session of its own.
    """

    idle: float
    absolute: float
    issued: float
    minted: float

    @classmethod
    def of(cls, auth: Auth) -> SessionLimits:
        """Return the limits that settings name."""
        return cls(
            idle=auth.session_idle,
            absolute=auth.session_lifetime,
            issued=max(auth.access_lifetime, auth.stream_lifetime),
            minted=auth.longest_lifetime,
        )


class Session(NamedTuple):
    """A session and the one refresh token that continues it.

    Args:
        id: the ``sid`` of its tokens.
        subject: whose it is.
        refresh_token: works once.
        lifetime: of the refresh token, in seconds.
        at: when it was opened or refreshed; tokens are issued as of then, so that a revocation that comes
            between covers them.
    """

    id: str
    subject: str
    refresh_token: str
    lifetime: int
    at: float


class Sessions:
    """Opens, continues and ends sessions. Its calls block.

    What is in the database is the hash of a refresh token, never the token. Spent ones stay as long as their
    session does: one that comes back was stolen, or its thief was quicker, so the session ends for both.

    Args:
        database: where they are kept.
        limits: how long they last.
    """

    def __init__(self, database: AuthDatabase, limits: SessionLimits) -> None:
        self._database = database
        self.limits = limits

    def use(self, auth: Auth) -> None:
        """Take other settings."""
        self.limits = SessionLimits.of(auth)

    def open(self, subject: str, since: float) -> Session | None:
        """Begin a session, and forget those that have run out.

        Args:
            subject: whose.
            since: when its password began to be checked. If the account has been changed since, the check
                is worth nothing, and there is no session.
        """
        now = time.time()
        id = new_id()
        with self._database.transaction() as connection:
            if connection.execute(
                "SELECT 1 FROM revocations WHERE kind = 'subject' AND value = ? AND issued_until >= ?",
                (subject, since),
            ).fetchone():
                return None
            connection.execute(
                "DELETE FROM sessions WHERE expires_at <= ? OR used_at <= ?", (now, now - self.limits.idle)
            )
            connection.execute(
                "INSERT INTO sessions (id, subject, created_at, used_at, expires_at) VALUES (?, ?, ?, ?, ?)",
                (id, subject, now, now, now + self.limits.absolute),
            )
            return self._continue(connection, id, subject, now + self.limits.absolute, now)

    def refresh(self, token: str) -> Session:
        """Spend a refresh token, and return its session with the next one.

        Raises:
            RefreshRefused: it does not continue a session; one that was spent before has ended it.
        """
        now = time.time()
        refused = None
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT session, subject, spent, used_at, expires_at FROM refresh_tokens "
                "JOIN sessions ON sessions.id = session WHERE digest = ?",
                (_digest(token),),
            ).fetchone()
            if row is None:
                raise RefreshRefused("unknown")
            session, subject, spent, used_at, expires_at = row
            if spent:
                refused = "reused"
            elif now >= min(expires_at, used_at + self.limits.idle):
                refused = "expired"
            elif not connection.execute(
                "SELECT 1 FROM accounts WHERE name = ? AND NOT disabled", (subject,)
            ).fetchone():
                refused = "no account"
            if refused is None:
                connection.execute("UPDATE refresh_tokens SET spent = 1 WHERE digest = ?", (_digest(token),))
                connection.execute("UPDATE sessions SET used_at = ? WHERE id = ?", (now, session))
                return self._continue(connection, session, subject, expires_at, now)
            self._end(connection, session)  # committed, which an exception here would undo
        raise RefreshRefused(refused, session, subject)

    def find(self, token: str) -> tuple[str, str] | None:
        """Return session and subject of a refresh token, also a spent one, or None."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "SELECT session, subject FROM refresh_tokens JOIN sessions ON sessions.id = session "
                "WHERE digest = ?",
                (_digest(token),),
            ).fetchone()
        return None if row is None else (row[0], row[1])

    def end(self, session: str) -> None:
        """End a session and revoke every token issued in it, whether it is in the database or not."""
        with self._database.transaction() as connection:
            self._end(connection, session)

    def _end(self, connection: sqlite3.Connection, session: str) -> None:
        known = connection.execute("DELETE FROM sessions WHERE id = ?", (session,)).rowcount
        longest = self.limits.issued if known else self.limits.minted
        revoke(connection, Revocation.of_session(session, longest))

    def _continue(
        self, connection: sqlite3.Connection, id: str, subject: str, expires_at: float, now: float
    ) -> Session:
        token = secrets.token_urlsafe(REFRESH_TOKEN_BYTES)
        connection.execute("INSERT INTO refresh_tokens (digest, session) VALUES (?, ?)", (_digest(token), id))
        return Session(id, subject, token, int(min(self.limits.idle, expires_at - now)), now)


def end_sessions_of(connection: sqlite3.Connection, subject: str, longest: float) -> None:
    """End all sessions of a subject within a transaction, and revoke what it has been issued until now.

    Args:
        longest: the longest lifetime that a token can have, in seconds.
    """
    connection.execute("DELETE FROM sessions WHERE subject = ?", (subject,))
    revoke(connection, Revocation.of_subject(subject, longest))


def revoke_with_sessions(connection: sqlite3.Connection, revocation: Revocation) -> None:
    """Write a revocation within a transaction, and end the sessions it speaks of.

    A refresh token from before would else bring fresh tokens, which no revocation knows.
    """
    match revocation.scope:
        case Scope.SESSION:
            connection.execute("DELETE FROM sessions WHERE id = ?", (revocation.value,))
        case Scope.SUBJECT:
            connection.execute("DELETE FROM sessions WHERE subject = ?", (revocation.value,))
        case Scope.ALL:
            connection.execute("DELETE FROM sessions")
    if revocation.scope in (Scope.SUBJECT, Scope.ALL):  # also what was issued while this waited for its turn
        revocation = revocation._replace(issued_until=max(revocation.issued_until, time.time()))
    revoke(connection, revocation)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
