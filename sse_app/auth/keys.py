"""The keys that sign and verify tokens, kept in the state directory."""

from __future__ import annotations

import json
import os
import secrets
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

from sse_app.errors import StateError

SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key has at least the 256 bits of the hash."""

RSA_BITS = 2048
"""RFC 7518 §3.3."""

ALGORITHMS = ("HS256", "EdDSA", "ES256", "RS256")


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its id and the one algorithm it is used with (RFC 8725 §3.1).

    Args:
        id: its ``kid``.
        algorithm: one of `ALGORITHMS`.
        verifying: what verifies; for HS256 the secret.
        signing: what signs; None where only the public half is here.
    """

    id: str
    algorithm: str
    verifying: Any = field(repr=False)
    signing: Any = field(repr=False)

    def to_jwk(self) -> dict[str, Any] | None:
        """Return the public half as a JWK (RFC 7517), or None for a secret."""
        if self.algorithm == "HS256":
            return None
        public: dict[str, Any] = get_default_algorithms()[self.algorithm].to_jwk(self.verifying, as_dict=True)
        return {**public, "kid": self.id, "alg": self.algorithm, "use": "sig", "key_ops": ["verify"]}


class KeyRing:
    """The keys by their ids, and the one that signs."""

    def __init__(self, keys: list[Key]) -> None:
        self.signing = next(key for key in keys if key.signing is not None)
        self._by_id = {key.id: key for key in keys}

    def __iter__(self) -> Any:
        """Walk the keys, the newest first."""
        return iter(self._by_id.values())

    def find(self, id: object) -> Key | None:
        """Return the key with that ``kid``, or None."""
        return self._by_id.get(id) if isinstance(id, str) else None

    @classmethod
    def load(cls, directory: Path, *, create: bool = True) -> KeyRing:
        """Return the keys of a directory; an empty one gets a new HS256 secret first, unless told not to.

        A file is named by its ``kid``: ``{kid}.hs256`` holds the bytes of a secret, ``{kid}.pem`` and
        ``{kid}.jwk`` a private or public key. The newest one that can sign signs.

        Raises:
            StateError: a key cannot be read, or is too weak, or none can sign.
        """
        try:
            if create:
                directory.mkdir(mode=0o700, exist_ok=True)
            files = [file for file in directory.iterdir() if not file.name.startswith(".")]
            if not files and not create:
                raise StateError(f"there are no keys in {directory}")
            files = files or [_create(directory, "first.hs256", secrets.token_bytes(SECRET_BYTES))]
            files.sort(key=lambda file: (file.stat().st_mtime_ns, file.name), reverse=True)
            keys = [_read(file) for file in files]
        except OSError as error:
            raise StateError(f"cannot use the keys in {directory}: {error}") from error
        twice = {key.id for key in keys if sum(other.id == key.id for other in keys) > 1}
        if twice:
            raise StateError(f"two keys in {directory} have the id {min(twice)!a}")
        if not any(key.signing is not None for key in keys):
            raise StateError(f"none of the keys in {directory} can sign: all are public")
        return cls(keys)


def rotate(directory: Path, algorithm: str, spent_before: float) -> tuple[str, list[str]]:
    """Make a new key, which signs from now on, and delete those whose last token has expired.

    Args:
        directory: of the keys.
        algorithm: of the new key.
        spent_before: a key that was followed by another one before this time is spent (seconds since the epoch).

    Returns:
        The id of the new key, and of those that are deleted.

    Raises:
        StateError: the keys cannot be used.
    """
    KeyRing.load(directory)  # what cannot be read is not to be added to
    kid = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"
    suffix = "hs256" if algorithm == "HS256" else "pem"
    files = sorted(
        (file for file in directory.iterdir() if not file.name.startswith(".")),
        key=lambda file: (file.stat().st_mtime_ns, file.name),
    )
    _create(directory, f"{kid}.{suffix}", _new_key(algorithm))
    # A key signed its last token when its successor came.
    spent = [old for old, successor in pairwise(files) if successor.stat().st_mtime < spent_before]
    for file in spent:
        file.unlink()
    return kid, [file.stem for file in spent]


def _new_key(algorithm: str) -> bytes:
    private: Any
    match algorithm:
        case "HS256":
            return secrets.token_bytes(SECRET_BYTES)
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


def _read(file: Path) -> Key:
    content = file.read_bytes()
    try:
        match file.suffix:
            case ".hs256":
                return _secret(file.stem, content)
            case ".pem":
                return _asymmetric(file.stem, _from_pem(content))
            case ".jwk":
                return _from_jwk(file.stem, content)
        raise ValueError("a key file ends in .hs256, .pem or .jwk")
    except (ValueError, TypeError, RuntimeError, UnsupportedAlgorithm, jwt.PyJWTError) as error:
        reason = str(error) or type(error).__name__
        raise StateError(f"{file} is no key that can be used: {reason}") from None


def _secret(id: str, secret: bytes) -> Key:
    if len(secret) < SECRET_BYTES:
        raise ValueError(f"it is too weak, with fewer than {SECRET_BYTES} bytes")
    get_default_algorithms()["HS256"].prepare_key(
        secret
    )  # a PEM file is no secret: a public one everybody has
    return Key(id, "HS256", secret, secret)


def _from_pem(content: bytes) -> Any:
    if b"PRIVATE KEY" in content:
        return serialization.load_pem_private_key(content, None)
    return serialization.load_pem_public_key(content)


def _from_jwk(id: str, content: bytes) -> Key:
    jwk = json.loads(content)
    if not isinstance(jwk, dict):
        raise ValueError("it is no JSON object")
    id = jwk.get("kid", id)
    if not isinstance(id, str) or not id:
        raise ValueError("its kid is no text")
    parsed = jwt.PyJWK(jwk)
    key = _secret(id, parsed.key) if isinstance(parsed.key, bytes) else _asymmetric(id, parsed.key)
    if jwk.get("alg", key.algorithm) != key.algorithm:
        raise ValueError(f"its algorithm must be {key.algorithm}")
    return key


def _asymmetric(id: str, key: Any) -> Key:
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


def _create(directory: Path, name: str, content: bytes) -> Path:
    """Write a new key so that no other process sees half of it, and two that try agree on one."""
    draft = directory / f".{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    target = directory / name
    try:
        os.link(draft, target)
    except FileExistsError:
        pass  # another process was first; its key is the one
    finally:
        draft.unlink()
    return target
