"""Verifies access tokens of an OpenID provider, for which this server issues stream tokens."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import jwt
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from sse_app.auth.tokens.claims import Claims, is_text, is_time
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import is_compact
from sse_app.auth.tokens.jose import decode, header_of
from sse_app.core.errors import ProviderUnavailable, TokenRefused
from sse_app.settings.model import OIDC

ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
"""Asymmetric only: a public key must never be taken for an HMAC secret (RFC 8725 §2.1)."""

TYPES = (None, "jwt", "at+jwt", "application/at+jwt")
"""RFC 9068 §2.1, and what older providers write."""

ID_TOKEN_CLAIMS = frozenset({"nonce", "at_hash", "c_hash", "s_hash", "events"})
"""Claims of tokens that are no access tokens: ID tokens (OpenID Connect Core §3.1.3.6, §3.3.2.11; Financial-grade API,
Part 2 §5.1), and logout and other security event tokens (RFC 8417 §2.2)."""

CLIENT_CLAIMS = ("client_id", "cid", "appid")
"""Where providers write which client a token was issued to, beside ``azp``: RFC 9068 §2.2, Okta, Entra."""

LEEWAY = 5.0
"""How many seconds the provider's clock may be ahead of ours, for ``iat`` and ``nbf``."""

FETCH_TIMEOUT = 5.0
"""Seconds that the provider may take to answer."""
MAX_KEY_SET_BYTES = 512 * 1024
FETCH_AGAIN_AFTER = 3600.0
"""Seconds after which the keys are fetched again, also when none is missing."""
FETCH_INTERVAL = 10.0
"""The least time between two fetches, in seconds, also when clients make up key ids."""

log = logging.getLogger(__name__)


class Provider:
    """Verifies tokens of one provider with the keys it publishes.

    Its keys are fetched without blocking, kept when it is away, and fetched again for an unknown ``kid``, at a
    bounded rate. A provider that cannot be reached stops nothing but its own tokens.

    Args:
        settings: its issuer, and what its claims mean here.
        longest: the longest lifetime that is accepted, in seconds.
    """

    def __init__(self, settings: OIDC, longest: float) -> None:
        self._settings = settings
        self._longest = longest
        self._grants = {
            group: Grants.of(granted.subscribe, granted.publish) for group, granted in settings.grants.items()
        }
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    def issued(self, token: str) -> bool:
        """Return whether a token says that it is the provider's; nothing is verified here."""
        if not is_compact(token):
            return False
        try:
            payload = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError):
            return False
        return payload.get("iss") == self._settings.issuer

    async def verify(self, token: str) -> Claims:
        """Return what a token of the provider means here.

        Raises:
            TokenRefused: it is not valid, or is not for us.
            ProviderUnavailable: its keys are not known and cannot be fetched.
        """
        try:
            header = header_of(token.partition(".")[0])
            key = await self._key(header.get("kid"))
            typ = header.get("typ")
            if (typ.lower() if isinstance(typ, str) else typ) not in TYPES:
                raise TokenRefused("this takes an access token of the provider", "wrong typ")
            if key is None or key.algorithm_name not in ALGORITHMS:
                raise TokenRefused("the token is not valid", "unknown kid")
            payload = decode(
                token,
                key.key,
                key.algorithm_name,
                audience=self._settings.audience,
                issuer=self._settings.issuer,
                require=["iss", "aud", "sub", "exp"],
                leeway=LEEWAY,
            )
            self._require_access_token(payload)
            return self._claims(payload)
        except TokenRefused as error:
            raise TokenRefused(str(error), f"{error.detail} at the provider") from error
        except ValueError as error:
            raise TokenRefused("the token is not valid", f"{error} at the provider") from error

    def _require_access_token(self, payload: Mapping[str, Any]) -> None:
        """Refuse an ID token, and a token of a client that is not configured.

        An ID token has our audience where that is a client's id, and many providers write ``typ`` JWT into both.
        ``azp`` must be the audience or one of the clients (OpenID Connect Core §3.1.3.7); the other names for a
        client count only where clients are configured, for an access token always has another client than it has
        an audience (RFC 9068 §2.2).

        Raises:
            TokenRefused: it is one of these.
        """
        kind, use = payload.get("typ"), payload.get("token_use", "access")  # Keycloak's, Cognito's
        # Keycloak before 24 writes the nonce into access tokens too, but says of each which it is.
        foreign = ID_TOKEN_CLAIMS - {"nonce"} if kind == "Bearer" else ID_TOKEN_CLAIMS
        if not foreign.isdisjoint(payload) or kind not in (None, "Bearer", "at+jwt") or use != "access":
            raise TokenRefused("this takes an access token of the provider, and no other", "no access token")
        clients = self._settings.clients
        accepted = (self._settings.audience, *clients)
        named = [payload[name] for name in ("azp", *(CLIENT_CLAIMS if clients else ())) if name in payload]
        if not all(client in accepted for client in named):
            detail = "a client that is not in oidc.clients"
            raise TokenRefused("the token was issued to a client that is not accepted here", detail)

    def _claims(self, payload: Mapping[str, Any]) -> Claims:
        subject = payload.get(self._settings.subject_claim)
        if not isinstance(subject, str) or not is_text(subject) or len(subject) > 255:
            raise ValueError("the subject claim is no text")
        if not all(is_text(payload.get(name, "absent")) for name in ("sid", "jti")):
            raise ValueError("sid and jti must be texts")
        expires_at = payload["exp"]
        if not is_time(expires_at):
            raise ValueError("exp must be a time")
        # One that does not say when it was issued counts as old as it may be, so that revocations cover it.
        issued_at = payload.get("iat", expires_at - self._longest)
        if not is_time(issued_at):
            raise ValueError("iat must be a time")
        if expires_at - min(issued_at, time.time()) > self._longest:
            raise TokenRefused("the token is valid for longer than is allowed here", "lifetime")
        subject = self._settings.subject_prefix + subject
        session, token_id = payload.get("sid"), payload.get("jti")
        issued_at = min(issued_at, time.time())  # ours count as issued when it was, and have no leeway
        return Claims(
            subject,
            f"oidc:{subject if session is None else session}",
            "oidc" if token_id is None else f"oidc:{token_id}",
            issued_at,
            expires_at,
            self._granted(payload.get(self._settings.groups_claim)),
        )

    def _granted(self, groups: object) -> Grants:
        names = groups.split() if isinstance(groups, str) else groups if isinstance(groups, list) else []
        granted = [
            self._grants[name] for name in ("*", *names) if isinstance(name, str) and name in self._grants
        ]
        return Grants.of(
            [text for grants in granted for text in grants.subscribe.texts],
            [text for grants in granted for text in grants.publish.texts],
        )

    # -- keys -----------------------------------------------------------------------------------------------

    async def _key(self, kid: object) -> jwt.PyJWK | None:
        if kid is not None and not isinstance(kid, str):
            return None
        now = time.monotonic()
        missing = kid not in self._keys
        if (missing or now - self._fetched_at > FETCH_AGAIN_AFTER) and now - self._asked_at >= FETCH_INTERVAL:
            self._asked_at = now
            self._fetching = asyncio.create_task(self._fetch(), name="provider-keys")
        if missing and self._fetching is not None:
            await asyncio.shield(self._fetching)
        if not self._keys:
            raise ProviderUnavailable("the OpenID provider cannot be reached just now")
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        """Fetch the keys; when that fails, those that are known stay."""
        client = AsyncHTTPClient(force_instance=True, max_body_size=MAX_KEY_SET_BYTES)
        try:
            # Tornado's timeouts go by the wall clock, which may be set back meanwhile; this one does not.
            async with asyncio.timeout(2 * FETCH_TIMEOUT):
                answer = await client.fetch(
                    HTTPRequest(
                        self._settings.jwks_url,
                        connect_timeout=FETCH_TIMEOUT,
                        request_timeout=FETCH_TIMEOUT,
                        follow_redirects=False,
                        headers={"Accept": "application/json"},
                    )
                )
            keys = _usable_keys(json.loads(answer.body))
        except (OSError, HTTPClientError, ValueError, RecursionError, jwt.PyJWTError) as error:
            log.warning(
                "provider_unavailable", extra={"url": self._settings.jwks_url, "detail": str(error)[:200]}
            )
            return
        finally:
            client.close()
        self._keys = keys
        self._fetched_at = time.monotonic()


def _usable_keys(document: object) -> dict[str | None, jwt.PyJWK]:
    """Return the keys of a JWK set (RFC 7517 §5) that sign and are understood here, by their ids."""
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("no JWK set")
    keys: dict[str | None, jwt.PyJWK] = {}
    for jwk in document["keys"]:
        if isinstance(jwk, dict) and jwk.get("use", "sig") == "sig":
            try:
                key = jwt.PyJWK(jwk)
            except Exception:  # of a kind that is not used here, or no key: the libraries raise anything
                continue
            if key.algorithm_name in ALGORITHMS and isinstance(key.key_id, str | None):
                keys[key.key_id] = key
    return keys
