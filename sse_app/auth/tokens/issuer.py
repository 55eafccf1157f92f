"""Issues and verifies tokens: two kinds of JWT, which differ in their ``typ``. A token is refused here."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import secrets
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from sse_app.auth.revocations import Revocations
from sse_app.auth.tokens import mistakes
from sse_app.auth.tokens.claims import MAX_TIME, Claims, Mark, is_text, new_token_id
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.keyring import Key, KeyRing
from sse_app.core.errors import InvalidChannel, InvalidInput, Kicked, TokenRefused, TokenTooLarge
from sse_app.settings.model import Auth

MAX_REMEMBERED = 16 * 1024 * 1024
"""How many characters the tokens of each kind may have together that are remembered as verified, so that a client that
returns costs no second verification: some 40,000 as most are. What is kept of one takes about three times as much."""

MAX_HEADERS = 64
"""How many headers of verified tokens are remembered: few, as there is one for each key and kind."""

JITTER = 0.1
"""The part of a token's lifetime by which it is shortened at random, so that not all expire together."""

REQUIRED = ["iss", "aud", "sub", "iat", "exp", "jti", "sid", "sse"]

MAX_TOKEN_LENGTH = 8192
"""How many characters of a token are accepted, also of a provider's."""

MAX_ISSUED_LENGTH = 7168
"""How many characters a token may have that is issued here. It must pass through nginx, which takes 8 KiB for a
request line and for a header as it comes (``large_client_header_buffers``): the rest is for what stands around it."""

MAX_URL_LENGTH = 7680
"""How many characters a stream token and the names of its channels may have together: both stand in a request line."""

LEAST_LIFETIME = 1.0
"""Seconds that a token must have before it: one with less is of no use when it arrives, and is not issued."""

_DIGEST_KEY = secrets.token_bytes(32)
"""Made anew by each process, so that a digest says nothing outside of it."""

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # RFC 7515 §7.1, without padding


class TokenKind(StrEnum):
    """What a token is for; the value is its JOSE header ``typ`` (RFC 8725 §3.11)."""

    ACCESS = "at+jwt"
    STREAM = "stream+jwt"


class Tokens:
    """Issues and verifies the tokens of one issuer for one audience.

    Args:
        keys: the key ring.
        issuer: the ``iss`` claim.
        audience: the ``aud`` claim.
        longest: the longest lifetime that is accepted, in seconds.
        revocations: tokens that are refused before they expire; None where tokens are only issued.
        clock: the time in seconds since the epoch.
    """

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuer: str,
        audience: str,
        longest: float,
        revocations: Revocations | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = keys
        self.longest = longest
        self._issuer = issuer
        self._audience = audience
        self._revocations = revocations
        self._clock = clock
        self._verified: dict[TokenKind, dict[bytes, tuple[Claims, int]]] = {kind: {} for kind in TokenKind}
        """The claims of verified tokens by the digests of these, with how many characters each token has."""
        self._remembered = dict.fromkeys(TokenKind, 0)
        """How many characters those of each kind have."""
        self._headers: dict[tuple[str, TokenKind], Key] = {}
        self.look_for_keys: Callable[[], bool] = lambda: False
        """Looks whether there are other keys than those in use, puts them in use, and returns whether there were."""

    def use(self, auth: Auth, keys: KeyRing) -> None:
        """Take other settings and keys; issuer and audience stay as they are."""
        self.longest = auth.longest_lifetime
        self.use_keys(keys)

    def use_keys(self, keys: KeyRing) -> None:
        """Issue and verify with other keys; tokens that the old ones have verified are verified again."""
        self.keys = keys
        for kind, verified in self._verified.items():
            verified.clear()
            self._remembered[kind] = 0
        self._headers.clear()

    def issue(
        self,
        kind: TokenKind,
        subject: str,
        session: str,
        grants: Grants,
        lifetime: float,
        *,
        as_of: float | None = None,
        after: Mark | None = None,
    ) -> str:
        """Return a new token.

        Args:
            kind: what it is for.
            subject: the user that it is issued for (``sub``).
            session: the login it belongs to (``sid``).
            grants: what it allows.
            lifetime: seconds until it expires, but never beyond ``longest`` after the issuing time.
            as_of: the issuing time that it states, where that is not now (seconds since the epoch).
            after: the last revocation of that time; None where it is now, or not known.

        Raises:
            TokenTooLarge: it would have more characters than can be used everywhere.
            InvalidInput: subject or session are no text that a token can hold.
        """
        expires_at = self.expiry(lifetime, as_of)
        return self.issue_until(kind, subject, session, grants, expires_at, as_of=as_of, after=after)

    def expiry(self, lifetime: float, as_of: float | None = None) -> int:
        """Return when a token that is issued now for so many seconds expires (seconds since the epoch).

        It has at least `LEAST_LIFETIME` before it, and is not in force for longer than is accepted.
        """
        now = self._clock()
        latest = math.floor((now if as_of is None else as_of) + self.longest)
        return min(max(math.floor(now + lifetime), math.ceil(now + LEAST_LIFETIME)), latest)

    def remaining(self, expires_at: float, issued_at: float = -math.inf) -> int:
        """Return how many whole seconds a token is still in force, never more than it was issued for."""
        return max(0, math.floor(min(expires_at - self._clock(), expires_at - issued_at)))

    def issue_until(
        self,
        kind: TokenKind,
        subject: str,
        session: str,
        grants: Grants,
        expires_at: int,
        *,
        as_of: float | None = None,
        after: Mark | None = None,
    ) -> str:
        """Return a new token that expires at a time; see `issue`."""
        if not (is_text(subject) and is_text(session)):
            raise InvalidInput("a subject or session of a token is a text, not empty and of whole characters")
        key = self.keys.signing
        # Not rounded, so that a token issued right after a revocation does not seem older.
        issued_at = self._clock() if as_of is None else as_of
        if after is None and as_of is None and self._revocations is not None:
            after = self._revocations.newest
        claims = Claims(subject, session, new_token_id(after), issued_at, expires_at, grants)
        payload = _payload(self._issuer, self._audience, claims)
        headers = {"typ": kind.value, "kid": key.id}
        from sse_app.auth.tokens import jose

        token = jose.encode(payload, key.signing, key.algorithm, headers)
        _require_usable(len(token))
        self._remember(token, _digest(token), kind, claims, key)  # the client is about to use it
        return token

    def verify(self, token: str, kind: TokenKind) -> Claims:
        """Return the claims of a token that this server has issued, of that kind and in force; no leeway in time.

        Raises:
            TokenRefused: it is not.
        """
        if len(token) > MAX_TOKEN_LENGTH:
            raise TokenRefused(f"a token has at most {MAX_TOKEN_LENGTH} characters", "too long")
        digest = _digest(token)
        remembered = self._verified[kind].get(digest)
        if remembered is not None:
            claims = remembered[0]
        else:
            if not is_compact(token):
                raise TokenRefused(mistakes.of_text(token), "no token of ours has this form")
            key, claims = self._verify(token, kind)
            self._remember(token, digest, kind, claims, key)
        self.require_in_force(claims)
        return claims

    def require_in_force(self, claims: Claims) -> None:
        """Refuse what has been revoked, or has expired since it was verified.

        Raises:
            TokenRefused: it was, or has.
        """
        if self._revocations is not None:
            if self._revocations.covers(claims):
                raise TokenRefused("the token has been revoked", "revoked")
            if not self._revocations.answers_for(claims):
                raise TokenRefused("the token is valid for longer than is allowed here", "lifetime")
        if claims.expires_at <= self._clock():
            raise TokenRefused("the token has expired", "expired")

    def require_not_kicked(self, claims: Claims) -> None:
        """Refuse streams and stream tokens to a session that was kicked, for as long as the kick said.

        Raises:
            Kicked: it still lasts.
        """
        if self._revocations is not None and (wait := self._revocations.barred_for(claims.session)):
            raise Kicked(wait)

    def _verify(self, token: str, kind: TokenKind) -> tuple[Key, Claims]:
        from sse_app.auth.tokens import jose

        key = self._key_for(token, kind)
        payload = jose.decode(
            token,
            key.verifying,
            key.algorithm,
            audience=self._audience,
            issuer=self._issuer,
            require=REQUIRED,
            strict_audience=True,
        )
        try:
            claims = Claims.of_payload(payload)
        except (InvalidChannel, ValueError) as error:
            raise TokenRefused("the token is not valid", type(error).__name__) from error
        if claims.expires_at - claims.issued_at > self.longest:
            raise TokenRefused("the token is valid for longer than is allowed here", "lifetime")
        if not jose.has_canonical_signature(token):
            raise TokenRefused("the token is not valid", "signature with spare bits")
        return key, claims

    def _key_for(self, token: str, kind: TokenKind) -> Key:
        """Return the key that a token's header names, if the header is of that kind.

        The same header begins every token of a key and a kind, so those of verified tokens are remembered.
        """
        segment = token.partition(".")[0]
        if (known := self._headers.get((segment, kind))) is not None:
            return known
        from sse_app.auth.tokens import jose

        header = jose.header_of(segment)
        key = self.keys.find(header.get("kid"))
        if key is None and self.look_for_keys():  # another process may have begun to sign with it just now
            key = self.keys.find(header.get("kid"))
        if key is None:
            raise TokenRefused("the token is not valid", "unknown kid")
        if header.get("typ") != kind.value:
            raise TokenRefused(_other_kind(header.get("typ"), kind), "wrong typ")
        return key

    def _remember(self, token: str, digest: bytes, kind: TokenKind, claims: Claims, key: Key) -> None:
        verified = self._verified[kind]
        verified[digest] = claims, len(token)
        self._remembered[kind] += len(token)
        while self._remembered[kind] > MAX_REMEMBERED:
            _, size = verified.pop(next(iter(verified)))  # the one that was verified first
            self._remembered[kind] -= size
        if len(self._headers) < MAX_HEADERS:
            self._headers[token.partition(".")[0], kind] = key


def _other_kind(typ: object, kind: TokenKind) -> str:
    """Return what to tell of a token whose ``typ`` is not that of the kind which is taken."""
    if kind is TokenKind.ACCESS and typ == TokenKind.STREAM.value:
        return (
            "this is a stream token, which only opens streams; all else takes the access_token of the login"
        )
    if kind is TokenKind.STREAM and typ == TokenKind.ACCESS.value:
        return "this is an access token; a stream takes the stream_token of the login"
    return f"this takes a token with {kind.value} as the typ of its header"


def require_room(auth: Auth, subject: str, grants: Grants) -> None:
    """Refuse grants whose access token may be too large, whichever of our kinds of key signs it.

    Raises:
        TokenTooLarge: it may be.
    """
    id = "x" * 64
    payload = _payload(auth.issuer, auth.audience, Claims(subject, id, id, time.time(), MAX_TIME, grants))
    parts = (_json({"alg": "RS256", "typ": TokenKind.ACCESS.value, "kid": id}), _json(payload), b"x" * 256)
    _require_usable(sum(len(part) * 4 // 3 + 2 for part in parts))


def _payload(issuer: str, audience: str, claims: Claims) -> dict[str, Any]:
    return {
        "iss": issuer,
        "aud": audience,
        "sub": claims.subject,
        "iat": claims.issued_at,
        "exp": claims.expires_at,
        "jti": claims.token_id,
        "sid": claims.session,
        "sse": claims.grants.to_claim(),
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _require_usable(length: int) -> None:
    if length > MAX_ISSUED_LENGTH:
        raise TokenTooLarge(
            f"a token that grants all of this has {length} characters, and one can have at most "
            f"{MAX_ISSUED_LENGTH} to be used everywhere: name fewer channels, or patterns that cover more"
        )


def is_compact(token: str) -> bool:
    """Return whether a text has the form of a token; its content is not looked at."""
    return len(token) <= MAX_TOKEN_LENGTH and _COMPACT.fullmatch(token) is not None


def jittered(lifetime: float) -> int:
    """Return a lifetime shortened at random, in whole seconds: the tokens of many logins must not expire together."""
    return int(lifetime) - int(random.uniform(0, JITTER * lifetime))


def _digest(token: str) -> bytes:
    """Return what a token is remembered by: its digest, which is of no use to a thief who reads the memory."""
    return hashlib.blake2b(token.encode(), digest_size=32, key=_DIGEST_KEY).digest()
