"""What is asked of every token before it is believed, ours or a provider's; signatures are PyJWT's work.

It is loaded with the first token, because PyJWT would slow every restart down.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.exceptions import InvalidJTIError, InvalidSubjectError
from jwt.types import SigOptions

from sse_app.auth.tokens.claims import is_time
from sse_app.core.errors import TokenRefused

_UNTRUSTED = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
"""Header parameters that would bring a key of their own, or ask for what is not done here (RFC 8725 §3.10)."""


class _CheckedSecret(HMACAlgorithm):
    """HS256 with secrets that `sse_app.auth.tokens.keyring` has looked at once.

    PyJWT's own algorithm looks for a PEM, DER or JWK in the secret with every token, a quarter of its work.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)
        return key


_JWS = jwt.PyJWS(algorithms=["EdDSA", "ES256", "RS256", "PS256"])
_JWS.register_algorithm("HS256", _CheckedSecret(HMACAlgorithm.SHA256))

_VERIFIED: SigOptions = {"verify_signature": True, "enforce_minimum_key_length": True}


def encode(payload: dict[str, Any], key: Any, algorithm: str, headers: dict[str, str]) -> str:
    """Return a signed token."""
    return _JWS.encode(json.dumps(payload, separators=(",", ":")).encode(), key, algorithm, headers)


def decode(
    token: str,
    key: Any,
    algorithm: str,
    *,
    audience: str,
    issuer: str,
    require: Sequence[str],
    strict_audience: bool = False,
    leeway: float = 0.0,
) -> dict[str, Any]:
    """Return the payload of a token that is signed, in force, and meant for us.

    Args:
        token: what to read.
        key: verifies it.
        algorithm: of the key.
        audience, issuer: what ``aud`` and ``iss`` must name.
        require: claims that must be there.
        strict_audience: whether ``aud`` must be a text, not a list.
        leeway: how many seconds ``iat`` and ``nbf`` may lie ahead, where another clock wrote them; ``exp`` has none.

    Raises:
        TokenRefused: it is not, or lacks one of the claims that are required.
    """
    try:
        payload = _object(_JWS.decode_complete(token, key, [algorithm], _VERIFIED)["payload"])
        _check_claims(payload, audience, issuer, require, strict_audience, leeway)
        return payload
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
        header = _object(_decoded(segment))
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise TokenRefused("the token is not valid", "no header") from error
    if not header.keys().isdisjoint(_UNTRUSTED):
        raise TokenRefused("the token is not valid", "a header parameter that is not honoured")
    return header


def object_in(segment: str) -> dict[str, Any] | None:
    """Return the JSON object in a segment of a token, to be shown and not believed; None where there is none."""
    try:
        return _object(_decoded(segment))
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None


def has_canonical_signature(token: str) -> bool:
    """Return whether the signature is written in the one way there is: its last character may have spare bits."""
    signature = token.rpartition(".")[2]
    return base64.urlsafe_b64encode(_decoded(signature)).rstrip(b"=").decode() == signature


def _check_claims(
    payload: dict[str, Any],
    audience: str,
    issuer: str,
    require: Sequence[str],
    strict_audience: bool,
    leeway: float,
) -> None:
    """Check that the required claims are there, and what the registered ones say (RFC 7519 §4.1).

    PyJWT's own checks come only with its own reading of the payload, which lets a name stand twice: which one
    counts would be a guess. Times count in whole seconds, as there.

    Raises:
        jwt.PyJWTError: a claim is missing, or does not say what it must.
    """
    for name in require:
        if payload.get(name) is None:
            raise jwt.MissingRequiredClaimError(name)
    times = {name: payload[name] for name in ("iat", "nbf", "exp") if name in payload}
    if not all(map(is_time, times.values())):
        raise jwt.DecodeError("iat, nbf and exp must be times")
    now = time.time()
    if max(int(times.get("iat", 0)), int(times.get("nbf", 0))) > now + leeway:
        raise jwt.ImmatureSignatureError("iat or nbf is in the future")
    if "exp" in times and int(times["exp"]) <= now:
        raise jwt.ExpiredSignatureError("exp has passed")
    if payload.get("iss") != issuer:
        raise jwt.InvalidIssuerError("another issuer")
    named = payload.get("aud")
    if named != audience and (strict_audience or not _is_list_with(named, audience)):
        raise jwt.InvalidAudienceError("another audience")
    if not isinstance(payload.get("sub", ""), str):
        raise InvalidSubjectError("sub must be a text")
    if not isinstance(payload.get("jti", ""), str):
        raise InvalidJTIError("jti must be a text")


def _is_list_with(value: object, text: str) -> bool:
    return isinstance(value, list) and text in value and all(isinstance(each, str) for each in value)


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


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
