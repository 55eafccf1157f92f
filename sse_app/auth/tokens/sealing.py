"""Seals keys for the database, whose readers must not be able to sign; this module is loaded only where that is done.

AES-256-GCM (NIST SP 800-38D) with random nonces; its key is derived from the secret in a file, by HKDF-SHA-256
(RFC 5869).
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sse_app.core.errors import StateError
from sse_app.storage.ownership import ROOT, read_trusted, require_closed, require_unreadable

LEAST_SECRET = 32
"""How many bytes the secret has at least."""

LEAST_DISTINCT = 8
"""How many different bytes there are among them at least: fewer were typed, not drawn."""

VERSION = b"\x01"
NONCE_BYTES = 12


class Seal:
    """Seals and unseals with the secret of a file, which may be read by this user alone.

    Args:
        file: holds at least `LEAST_SECRET` random bytes.

    Raises:
        StateError: it cannot be used.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            require_closed(file.parent, "the directory of the seal")
            secret, found = read_trusted(file, file.parent, (ROOT, os.geteuid()))
        except OSError as error:
            raise StateError(f"cannot use {file} (auth.keys_seal): {error.strerror}") from None
        require_unreadable(file, found)
        if len(secret) < LEAST_SECRET or len(set(secret)) < LEAST_DISTINCT:
            raise StateError(
                f"{file} (auth.keys_seal) is too weak: it needs at least {LEAST_SECRET} random bytes, as from "
                f"head -c {LEAST_SECRET} /dev/urandom"
            )
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"sse_app keys").derive(secret)
        self._cipher = AESGCM(derived)

    def seal(self, content: bytes, context: str) -> bytes:
        """Return the content sealed; it is unsealed only with the same context."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return VERSION + nonce + self._cipher.encrypt(nonce, content, context.encode())

    def unseal(self, sealed: bytes, context: str) -> bytes:
        """Return what was sealed.

        Raises:
            ValueError: it was sealed with another secret or context, or changed since.
        """
        version, nonce, rest = sealed[:1], sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        if version != VERSION:
            raise ValueError("it was sealed by a newer version of this program")
        try:
            return self._cipher.decrypt(nonce, rest, context.encode())
        except InvalidTag:
            raise ValueError("it was sealed with another secret, or changed since") from None
