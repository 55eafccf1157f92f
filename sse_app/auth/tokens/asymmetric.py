"""Public and private keys, read and made with cryptography; this module is loaded only where there are any.

Loading cryptography takes a sixth of the time in which a server starts.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

RSA_BITS = 2048
"""RFC 7518 §3.3."""

_UNUSABLE = (TypeError, RuntimeError, UnsupportedAlgorithm, jwt.PyJWTError)
"""What the libraries raise beside ValueError for bad files; a RecursionError is a RuntimeError."""


class Material(NamedTuple):
    """What a key consists of: its one algorithm, what verifies, and what signs (None in a public key)."""

    algorithm: str
    verifying: Any
    signing: Any


def key_of_pem(content: bytes) -> Material:
    """Return the private or public key of a PEM file.

    Raises:
        ValueError: it is none that can be used.
    """
    try:
        if b"PRIVATE KEY" in content:
            return _material(serialization.load_pem_private_key(content, None))
        return _material(serialization.load_pem_public_key(content))
    except _UNUSABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error


def key_of_jwk(content: bytes) -> tuple[str | None, Material]:
    """Return the ``kid`` of a JWK (RFC 7517), where it has one, and the key, which may be a secret.

    Raises:
        ValueError: it is none that can be used.
    """
    try:
        jwk = json.loads(content)
        if not isinstance(jwk, dict):
            raise ValueError("it is no JSON object")
        kid = jwk.get("kid")
        if "kid" in jwk and not (isinstance(kid, str) and kid):
            raise ValueError("its kid is no text")
        parsed = jwt.PyJWK(jwk).key
    except _UNUSABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
    material = Material("HS256", parsed, parsed) if isinstance(parsed, bytes) else _material(parsed)
    if jwk.get("alg", material.algorithm) != material.algorithm:
        raise ValueError(f"its algorithm must be {material.algorithm}")
    return kid, material


def refuse_public_key(secret: bytes) -> None:
    """Refuse a key file's text as a secret: a public key is known to all (RFC 8725 §2.1).

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


def to_jwk(algorithm: str, public: Any) -> dict[str, Any]:
    """Return a public key as a JWK (RFC 7517), without its id."""
    jwk: dict[str, Any] = get_default_algorithms()[algorithm].to_jwk(public, as_dict=True)
    return jwk


def _material(key: Any) -> Material:
    """Return a key with the one algorithm that goes with its type."""
    public = key.public_key() if hasattr(key, "public_key") else key
    private = key if public is not key else None
    match public:
        case ed25519.Ed25519PublicKey():
            return Material("EdDSA", public, private)
        case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            return Material("ES256", public, private)
        case rsa.RSAPublicKey(key_size=bits) if bits < RSA_BITS:
            raise ValueError(f"it is too weak, with fewer than {RSA_BITS} bits")
        case rsa.RSAPublicKey():
            return Material("RS256", public, private)
    raise ValueError("only Ed25519, P-256 and RSA keys are supported")
