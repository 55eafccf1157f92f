"""Tokens: two kinds of JWT, told apart by their ``typ``, issued and verified here and nowhere else."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

import jwt

from sse_app.auth.grants import Grants
from sse_app.auth.keys import Key, KeyRing
from sse_app.errors import InvalidChannel, TokenRefused

MAX_TOKEN_LENGTH = 8192
MAX_REMEMBERED = 32_768
"""How many verified tokens are remembered, so that coming back costs no second verification."""

MAX_HEADERS = 64
MAX_TIME = 2**40
"""A time that no clock will show: what lies beyond is a mistake."""

REQUIRED = ["iss", "aud", "sub", "iat", "exp", "jti", "sid", "sse"]


_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # RFC 7515 §7.1, without padding


class TokenKind(Enum):
    """What a token is for; the value is its JOSE header ``typ`` (RFC 8725 §3.11)."""

    ACCESS = "at+jwt"
    STREAM = "stream+jwt"


class Claims(NamedTuple):
    """What a verified token says. Times are in seconds since the epoch."""

    subject: str
    session: str
    token_id: str
    issued_at: float
    expires_at: float
    grants: Grants


class Tokens:
    """Issues and verifies the tokens of one issuer for one audience.

    Args:
        keys: the key ring.
        issuer: the ``iss`` claim.
        audience: the ``aud`` claim.
        clock: the time in seconds since the epoch.
    """

    def __init__(
        self, keys: KeyRing, *, issuer: str, audience: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._audience = audience
        self._clock = clock
        self._verified: dict[bytes, tuple[TokenKind, Claims]] = {}
        self._headers: dict[tuple[str, TokenKind], Key] = {}

    def issue(self, kind: TokenKind, subject: str, session: str, grants: Grants, lifetime: float) -> str:
        """Return a new token.

        Args:
            kind: what it is for.
            subject: whom it speaks for (``sub``).
            session: the login it belongs to (``sid``).
            grants: what it allows.
            lifetime: seconds until it expires.
        """
        key = self._keys.signing
        now = int(self._clock())
        claims = Claims(subject, session, secrets.token_urlsafe(12), now, now + int(lifetime), grants)
        payload = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": claims.subject,
            "iat": claims.issued_at,
            "exp": claims.expires_at,
            "jti": claims.token_id,
            "sid": claims.session,
            "sse": grants.to_claim(),
        }
        headers = {"typ": kind.value, "kid": key.id}
        token = jwt.encode(payload, key.secret, algorithm=key.algorithm, headers=headers)
        self._remember(token, _digest(token), kind, claims, key)  # it will come back in a moment
        return token

    def verify(self, token: str, kind: TokenKind) -> Claims:
        """Return what a token says, if it is ours, of that kind, and in force; no leeway in time.

        Raises:
            TokenRefused: it is not.
        """
        if len(token) > MAX_TOKEN_LENGTH or not _COMPACT.fullmatch(token):
            raise TokenRefused("the token is not valid", "no token of ours has this form")
        digest = _digest(token)
        known = self._verified.get(digest)
        if known is not None and known[0] is kind:
            if known[1].expires_at > self._clock():
                return known[1]
            del self._verified[digest]
        key, claims = self._verify(token, kind)
        self._remember(token, digest, kind, claims, key)
        return claims

    def _verify(self, token: str, kind: TokenKind) -> tuple[Key, Claims]:
        try:
            key = self._key_for(token, kind)
            payload: dict[str, Any] = jwt.decode(
                token,
                key.secret,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                options={"require": REQUIRED, "enforce_minimum_key_length": True, "strict_aud": True},
                leeway=0,
            )
            return key, _claims(payload)
        except jwt.ExpiredSignatureError as error:
            raise TokenRefused("the token has expired", "expired") from error
        except (jwt.PyJWTError, InvalidChannel, ValueError, RecursionError) as error:
            raise TokenRefused("the token is not valid", type(error).__name__) from error

    def _key_for(self, token: str, kind: TokenKind) -> Key:
        """Return the key that a token's header names, if the header is of that kind.

        The same header begins every token of a key and a kind, so those of verified tokens are remembered.
        """
        segment = token.partition(".")[0]
        if (known := self._headers.get((segment, kind))) is not None:
            return known
        header = jwt.get_unverified_header(token)
        key = self._keys.find(header.get("kid"))
        if key is None:
            raise TokenRefused("the token is not valid", "unknown kid")
        if header.get("typ") != kind.value:
            raise TokenRefused(f"this takes a token of the kind {kind.value}", "wrong typ")
        return key

    def _remember(self, token: str, digest: bytes, kind: TokenKind, claims: Claims, key: Key) -> None:
        if len(self._verified) >= MAX_REMEMBERED:
            del self._verified[next(iter(self._verified))]  # the one that was verified first
        self._verified[digest] = (kind, claims)
        if len(self._headers) < MAX_HEADERS:
            self._headers[token.partition(".")[0], kind] = key


def _digest(token: str) -> bytes:
    """Return what a token is remembered by: not the token itself, which would open doors to whoever reads memory."""
    return hashlib.sha256(token.encode()).digest()


def _claims(payload: dict[str, Any]) -> Claims:
    """Return the claims in their types, which PyJWT checks of some only."""
    subject, session, token_id = (payload[name] for name in ("sub", "sid", "jti"))
    if not all(isinstance(text, str) and text for text in (subject, session, token_id)):
        raise ValueError("sub, sid and jti must be texts")
    issued_at, expires_at = payload["iat"], payload["exp"]
    if not all(
        type(seconds) in (int, float) and 0 <= seconds < MAX_TIME for seconds in (issued_at, expires_at)
    ):
        raise ValueError("iat and exp must be times")
    return Claims(subject, session, token_id, issued_at, expires_at, Grants.from_claim(payload["sse"]))
