"""What auth keeps, as plain values: accounts, sessions, revocations, entries of the audit trail, sealed keys."""

from __future__ import annotations

import math
import time
from enum import Enum
from typing import NamedTuple

from sse_app.auth.tokens.claims import Claims, Lease, issued_after
from sse_app.auth.tokens.grants import Grants
from sse_app.core.errors import InvalidInput
from sse_app.settings.model import LONGEST_LIFETIME, Auth

NEVER = 2.0**50
"""An issuing time that no token has: what is revoked until then is revoked whenever it was issued."""

NOTICED = 60.0
"""Within how many seconds every process has learned of a kick, also of one that bars for no time."""


class Account(NamedTuple):
    """An account, without its password."""

    name: str
    grants: Grants
    disabled: bool


class Credentials(NamedTuple):
    """An account, and the argon2id hash that its password must fit."""

    account: Account
    password_hash: str


class SessionLimits(NamedTuple):
    """How long a session lasts, in seconds.

    Args:
        idle: without a refresh.
        absolute: at all.
    """

    idle: float
    absolute: float

    @classmethod
    def of(cls, auth: Auth) -> SessionLimits:
        """Return the limits that settings name."""
        return cls(idle=auth.session_idle, absolute=auth.session_lifetime)


class Continued(NamedTuple):
    """A session that a refresh token has continued.

    Args:
        session: its id.
        account: whose it is, with the grants of today.
        expires_at: when it ends however often it is refreshed, in seconds since the epoch.
        seed: what the next refresh token is made from.
    """

    session: str
    account: Account
    expires_at: float
    seed: bytes


class Scope(Enum):
    """Which tokens a revocation is about; a kick is about none, but bars a session from streams for a time."""

    TOKEN = "token"
    SESSION = "session"
    SUBJECT = "subject"
    ALL = "all"
    KICK = "kick"


class Revocation(NamedTuple):
    """Tokens that are no longer accepted, or a session that is barred from streams.

    It is kept for the longest lifetime that any setting can allow a token (`LONGEST_LIFETIME`), not for the one
    that the settings allow when it is made: they may have allowed more when a token was minted, and may again.

    Args:
        scope: the claim that they have in common.
        value: the ``jti``, ``sid`` or ``sub``; empty for all tokens.
        issued_until: only those issued up to then are revoked, in seconds since the epoch; of a kick: until
            when the session is barred. A token that says after which revocation it was issued goes by that.
        forget_at: when the last of them has expired.
        made_at: when it was made.
    """

    scope: Scope
    value: str
    issued_until: float
    forget_at: float
    made_at: float

    def concerns(self, claims: Claims | Lease) -> bool:
        """Return whether a token with these claims, issued before it, is revoked by it."""
        value = {
            Scope.TOKEN: claims.token_id,
            Scope.SESSION: claims.session,
            Scope.SUBJECT: claims.subject,
            Scope.ALL: "",
            Scope.KICK: None,
        }[self.scope]
        ordered = self.scope in (Scope.SUBJECT, Scope.ALL) and issued_after(claims.token_id) is not None
        return value == self.value and (ordered or claims.issued_at <= self.issued_until)

    def as_of(self, now: float) -> Revocation:
        """Return the revocation as it is written at a time: tokens issued while the writer waited are revoked too."""
        delay = max(0.0, now - self.made_at)
        by_time = self.scope in (Scope.SUBJECT, Scope.ALL, Scope.KICK)
        return self._replace(
            issued_until=self.issued_until + delay * by_time,
            forget_at=self.forget_at + delay * (self.scope is not Scope.TOKEN),
            made_at=self.made_at + delay,
        )

    @classmethod
    def of_token(cls, token_id: str, expires_at: float = math.inf) -> Revocation:
        """Revoke one token; ``expires_at`` says when it expires, where that is known."""
        now = time.time()
        return cls(Scope.TOKEN, token_id, NEVER, min(expires_at, now + LONGEST_LIFETIME), now)

    @classmethod
    def of_session(cls, session: str) -> Revocation:
        """Revoke every token of a session."""
        now = time.time()
        return cls(Scope.SESSION, session, NEVER, now + LONGEST_LIFETIME, now)

    @classmethod
    def of_subject(cls, subject: str) -> Revocation:
        """Revoke what a subject has been issued until now; a later login is another matter."""
        now = time.time()
        return cls(Scope.SUBJECT, subject, now, now + LONGEST_LIFETIME, now)

    @classmethod
    def of_everything(cls) -> Revocation:
        """Revoke every token issued until now."""
        now = time.time()
        return cls(Scope.ALL, "", now, now + LONGEST_LIFETIME, now)

    @classmethod
    def of_kick(cls, session: str, seconds: float) -> Revocation:
        """Bar a session from streams and stream tokens for so long; the last kick counts, also one of 0 s."""
        now = time.time()
        return cls(Scope.KICK, session, now + seconds, now + max(seconds, NOTICED), now)


def require_no_token(value: str, field: str) -> None:
    """Refuse a token where its id is asked for: it would revoke nothing, and be kept in the clear.

    Raises:
        InvalidInput: it has the form of a token.
    """
    if value.count(".") == 2 and value.startswith("eyJ"):
        raise InvalidInput(f"{field} is a whole token; give one of its claims: jti, sid or sub", field)


class AuditEntry(NamedTuple):
    """An entry of the audit trail; there is no secret in it.

    Args:
        at: the time, in seconds since the epoch.
        action: what was done, e.g. ``login``.
        subject: the user who did it; empty where that is not known.
        address: of the client.
        target: the user, session, token or key concerned.
        detail: further words.
    """

    at: float
    action: str
    subject: str
    address: str
    target: str
    detail: str


class SealedKey(NamedTuple):
    """A key as it lies in the database.

    Args:
        id: its ``kid``.
        kind: of its content: ``hs256``, ``pem`` or ``jwk``, as the names of key files end.
        sealed: its content.
        age: how many seconds ago it was added.
    """

    id: str
    kind: str
    sealed: bytes
    age: float
