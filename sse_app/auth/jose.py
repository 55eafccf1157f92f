"""What is asked of every token before anybody believes it, ours or a provider's: on top of PyJWT's own checks."""

from __future__ import annotations

import json
import re
from typing import Any

import jwt
from jwt.algorithms import HMACAlgorithm
from jwt.utils import base64url_decode, base64url_encode

MAX_TOKEN_LENGTH = 8192

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")  # RFC 7515 §7.1, without padding
_UNTRUSTED = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
"""Header parameters that would bring a key of their own, or ask for what is not done here (RFC 8725 §3.10)."""


class _CheckedSecret(HMACAlgorithm):
    """HS256 with secrets that `sse_app.auth.keys` has looked at once.

    PyJWT by itself looks for a PEM, DER or JWK in the secret with every token, a quarter of its work.
    """

    def prepare_key(self, key: str | bytes) -> bytes:
        assert isinstance(key, bytes)
        return key


class StrictJWT(jwt.PyJWT):
    """PyJWT with the algorithms that are used here, each once.

    It refuses a payload in which a claim stands twice: which one counts is anybody's guess.
    """

    def __init__(self) -> None:
        super().__init__()
        self._jws = jwt.PyJWS(algorithms=["EdDSA", "ES256", "RS256", "PS256"])
        self._jws.register_algorithm("HS256", _CheckedSecret(HMACAlgorithm.SHA256))

    def _decode_payload(self, decoded: dict[str, Any]) -> dict[str, Any]:
        return _object(decoded["payload"])


def is_compact(token: str) -> bool:
    """Return whether a text has the form of a token, whatever it says."""
    return len(token) <= MAX_TOKEN_LENGTH and _COMPACT.fullmatch(token) is not None


def header_of(segment: str) -> dict[str, Any]:
    """Return the JOSE header that is the first segment of a token.

    Raises:
        jwt.DecodeError: it is none, a parameter stands in it twice, or one that is never honoured.
    """
    try:
        header = _object(base64url_decode(segment))
    except (ValueError, RecursionError) as error:
        raise jwt.DecodeError("no header") from error
    if not header.keys().isdisjoint(_UNTRUSTED):
        raise jwt.DecodeError("a header parameter that is not honoured")
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
