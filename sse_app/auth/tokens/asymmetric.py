"""Keys that are more than a secret, read and made with cryptography; loaded only where there are any.

Loading cryptography takes a sixth of the time in which a server starts.
"""

from __future__ import annotations

import json
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from sse_app.auth.tokens.key import Key

RSA_BITS = 2048
"""RFC 7518 §3.3."""


_UNUSABLE = (TypeError, RuntimeError, UnsupportedAlgorithm, jwt.PyJWTError)
"""What the libraries raise beside ValueError, whatever a file holds; a RecursionError is a RuntimeError."""


def key_of_pem(id: str, content: bytes) -> Key:
    """Return the private or public key of a PEM file.

    Raises:
        ValueError: it is none that can be used.
    """
    try:
        if b"PRIVATE KEY" in content:
            return _key(id, serialization.load_pem_private_key(content, None))
        return _key(id, serialization.load_pem_public_key(content))
    except _UNUSABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error


def key_of_jwk(id: str, content: bytes) -> Key:
    """Return the key of a JWK (RFC 7517), which may be a secret; its own ``kid`` comes before the one given.

    Raises:
        ValueError: it is none that can be used.
    """
    try:
        jwk = json.loads(content)
        if not isinstance(jwk, dict):
            raise ValueError("it is no JSON object")
        id = jwk.get("kid", id)
        if not isinstance(id, str) or not id:
            raise ValueError("its kid is no text")
        parsed = jwt.PyJWK(jwk).key
    except _UNUSABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
    key = Key(id, "HS256", parsed, parsed) if isinstance(parsed, bytes) else _key(id, parsed)
    if jwk.get("alg", key.algorithm) != key.algorithm:
        raise ValueError(f"its algorithm must be {key.algorithm}")
    return key


def refuse_public_key(secret: bytes) -> None:
    """Refuse a key file's text as a secret: a public one everybody has (RFC 8725 §2.1).

    Raises:
        ValueError: it is one.
    """
    try:
        get_default_algorithms()["HS256"].prepare_key(secret)
    except jwt.PyJWTError as error:
        raise ValueError(str(error)) from error


def new_pem(algorithm: str) -> bytes:
    """Return a new private key for ``EdDSA``, ``ES256`` or ``RS256``."""
    private: Any
    match algorithm:
        case "EdDSA":
            private = ed25519.Ed25519PrivateKey.generate()
        case "ES256":
            private = ec.generate_private_key(ec.SECP256R1())
        case _:
            private = rsa.generate_private_key(65_537, RSA_BITS)
    pem: bytes = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def to_jwk(key: Key) -> dict[str, Any]:
    """Return the public half of a key as a JWK (RFC 7517)."""
    public: dict[str, Any] = get_default_algorithms()[key.algorithm].to_jwk(key.verifying, as_dict=True)
    return {**public, "kid": key.id, "alg": key.algorithm, "use": "sig", "key_ops": ["verify"]}


def _key(id: str, key: Any) -> Key:
    """Return a key with the one algorithm that goes with its type."""
    public = key.public_key() if hasattr(key, "public_key") else key
    private = key if public is not key else None
    match public:
        case ed25519.Ed25519PublicKey():
            return Key(id, "EdDSA", public, private)
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return Key(id, "ES256", public, private)
        case rsa.RSAPublicKey(key_size=bits) if bits < RSA_BITS:
            raise ValueError(f"it is too weak, with fewer than {RSA_BITS} bits")
        case rsa.RSAPublicKey():
            return Key(id, "RS256", public, private)
    raise ValueError("only Ed25519, P-256 and RSA keys are supported")
