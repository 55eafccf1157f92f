"""What is asked of every token before anybody believes it, ours or a provider's: on top of PyJWT's own checks.

It is loaded with the first token, for a restart has no time for PyJWT.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.types import Options
from jwt.utils import base64url_decode, base64url_encode

from sse_app.core.errors import TokenRefused

_UNTRUSTED = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
"""Header parameters that would bring a key of their own, or ask for what is not done here (RFC 8725 §3.10)."""


class _CheckedSecret(HMACAlgorithm):
    """HS256 with secrets that `sse_app.auth.tokens.keyring` has looked at once.

    PyJWT by itself looks for a PEM, DER or JWK in the secret with every token, a quarter of its work.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)
        return key


class _StrictJWT(jwt.PyJWT):
    """PyJWT with the algorithms that are used here, each once.

    It refuses a payload in which a claim stands twice: which one counts is anybody's guess.
    """

    def __init__(self) -> None:
        super().__init__()
        self._jws = jwt.PyJWS(algorithms=["EdDSA", "ES256", "RS256", "PS256"])
        self._jws.register_algorithm("HS256", _CheckedSecret(HMACAlgorithm.SHA256))

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        return _object(decoded["payload"])


_JWT = _StrictJWT()


def encode(payload: dict[str, Any], key: Any, algorithm: str, headers: dict[str, str]) -> str:
    """Return a signed token."""
    return _JWT.encode(payload, key, algorithm=algorithm, headers=headers)


def decode(
    token: str,
    key: Any,
    algorithm: str,
    *,
    audience: str,
    issuer: str,
    require: Sequence[str],
    strict_audience: bool = False,
) -> dict[str, Any]:
    """Return the payload of a token that is signed, in force, and meant for us; no leeway in time.

    Raises:
        TokenRefused: it is not, or lacks one of the claims that are required.
    """
    options: Options = {
        "require": list(require),
        "enforce_minimum_key_length": True,
        "strict_aud": strict_audience,
    }
    try:
        return _JWT.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=audience,
            issuer=issuer,
            options=options,
            leeway=0,
        )
    except jwt.ExpiredSignatureError as error:
        raise TokenRefused("the token has expired", "expired") from error
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise TokenRefused("the token is not valid", type(error).__name__) from error


def header_of(segment: str) -> dict[str, Any]:
    """Return the JOSE header that is the first segment of a token.

    Raises:
        TokenRefused: it is none, a parameter stands in it twice, or one that is never honoured.
    """
    try:
        header = _object(base64url_decode(segment))
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise TokenRefused("the token is not valid", "no header") from error
    if not header.keys().isdisjoint(_UNTRUSTED):
        raise TokenRefused("the token is not valid", "a header parameter that is not honoured")
    return header


def has_canonical_signature(token: str) -> bool:
    """Return whether the signature is written in the one way there is: its last character may have spare bits."""
    signature = token.rpartition(".")[2]
    return base64url_encode(base64url_decode(signature)).decode() == signature


def _object(text: bytes) -> dict[str, Any]:
    value = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise jwt.DecodeError("no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise jwt.DecodeError("a name stands twice")
    return members
