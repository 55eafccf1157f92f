"""Sessions: a login that lasts, renewed by refresh tokens of which each works once (RFC 9700 §4.14).

A refresh token can be used again for some seconds, and then brings the same next one: the answer that had it may
have been lost. The store has only digests, so the next one is made anew, as HMAC-SHA-512 of the token that is spent,
with a random seed as the key. The store keeps the seed until the next token is used. A thief of the database has seeds
and no token, a thief of an old token has no seed, and of all seeds but the last there is none left: neither can
compute the present token.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from typing import NamedTuple

from sse_app.auth.records import Account, SessionLimits
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.claims import Mark, new_id
from sse_app.settings.model import Auth

REFRESH_TOKEN_BYTES = 33
"""More than the 32 of earlier versions, whose refresh cookies are told by their shorter text from those of today."""

SEED_BYTES = 64


class Session(NamedTuple):
    """A session and the one refresh token that continues it.

    Args:
        id: the ``sid`` of its tokens.
        refresh_token: works once.
        lifetime: of the refresh token, in seconds.
        at: when it was opened or refreshed; tokens are issued as of then, so that a revocation that comes
            between covers them.
        after: the last revocation then, for the same purpose: clocks are set.
    """

    id: str
    refresh_token: str
    lifetime: int
    at: float
    after: Mark


class Sessions:
    """Opens, continues and ends sessions.

    The store is given the digests of refresh tokens, never a token.

    Args:
        store: where they are kept.
        auth: how long they last.
    """

    def __init__(self, store: AuthStore, auth: Auth) -> None:
        self._store = store
        self._limits = SessionLimits.of(auth)

    def use(self, auth: Auth) -> None:
        """Take other settings."""
        self._limits = SessionLimits.of(auth)

    async def last_revocation(self) -> int:
        """Return the number of the last revocation."""
        return await self._store.last_revocation()

    async def open(self, subject: str, since: int) -> Session | None:
        """Begin a session.

        Args:
            subject: whose.
            since: the number of the last revocation when its password began to be checked. If the account has
                been changed since, the check is worth nothing, and there is no session.
        """
        after = await self._mark()
        now = time.time()
        limits = self._limits
        session = Session(new_id(), _new_token(), int(min(limits.idle, limits.absolute)), now, after)
        digest = _digest(session.refresh_token)
        begun = await self._store.begin_session(
            session.id, subject, digest, since=since, now=now, limits=limits
        )
        return session if begun else None

    async def refresh(self, token: str) -> tuple[Session, Account]:
        """Spend a refresh token, and return its session with the next one, and whose it is.

        Raises:
            RefreshRefused: it does not continue a session; one that was spent for good has ended it.
        """
        after = await self._mark()
        now = time.time()
        limits = self._limits
        seed = secrets.token_bytes(SEED_BYTES)
        continued = await self._store.spend_refresh_token(
            _digest(token), _digest(_next_token(token, seed)), seed, now=now, limits=limits
        )
        following = _next_token(token, continued.seed)  # where it was spent before, the same as then
        lifetime = max(1, int(min(limits.idle, continued.expires_at - now)))  # 0 would drop the cookie
        return Session(continued.session, following, lifetime, now, after), continued.account

    async def find(self, token: str) -> tuple[str, str] | None:
        """Return session and subject of a refresh token, also a spent one, or None."""
        return await self._store.session_of(_digest(token))

    async def end(self, session: str) -> None:
        """End a session and revoke every token issued in it, whether it is in the store or not."""
        await self._store.end_session(session)

    async def _mark(self) -> Mark:
        return Mark(await self._store.last_revocation(), self._store.id)


def _new_token() -> str:
    return secrets.token_urlsafe(REFRESH_TOKEN_BYTES)


def _next_token(token: str, seed: bytes) -> str:
    made = hmac.digest(seed, token.encode(), "sha512")[:REFRESH_TOKEN_BYTES]
    return base64.urlsafe_b64encode(made).decode()


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
