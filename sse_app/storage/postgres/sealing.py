"""Seals what nodes say to each other through a database: others who may use it can neither read nor forge it.

Every role that can connect to a PostgreSQL database may listen to each channel of it, and notify on it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections import OrderedDict

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 16, 12, 16

OVERHEAD = _SALT_BYTES + _NONCE_BYTES + _TAG_BYTES
"""By how many bytes a message grows."""

_KEPT = 1024
"""The keys of how many processes are kept."""


class Seal:
    """Encrypts and authenticates messages (AES-256-GCM, RFC 5116).

    Each process has a key of its own, derived from the secret with a salt, and counts its nonces: one that were taken
    at random, under one key for all, would come twice after some years.

    Args:
        secret: what all nodes share.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self._salt = os.urandom(_SALT_BYTES)
        self._own = self._key_of(self._salt)
        self._count = 0
        self._keys: OrderedDict[bytes, AESGCM] = OrderedDict({self._salt: self._own})

    def _key_of(self, salt: bytes) -> AESGCM:
        return AESGCM(hmac.digest(self.secret, salt, hashlib.sha256))

    def close(self, message: bytes) -> bytes:
        """Return a message as it is sent."""
        self._count += 1
        nonce = self._count.to_bytes(_NONCE_BYTES, "big")
        return self._salt + nonce + self._own.encrypt(nonce, message, None)

    def open(self, sealed: bytes) -> bytes | None:
        """Return the message; None where it is not one that a node of this cluster has sealed."""
        salt, nonce = sealed[:_SALT_BYTES], sealed[_SALT_BYTES : _SALT_BYTES + _NONCE_BYTES]
        if len(sealed) < OVERHEAD:
            return None
        key = self._keys.get(salt)
        try:
            message = (key or self._key_of(salt)).decrypt(nonce, sealed[_SALT_BYTES + _NONCE_BYTES :], None)
        except InvalidTag:
            return None
        if key is None:
            self._keys[salt] = self._key_of(salt)
            if len(self._keys) > _KEPT:
                self._keys.popitem(last=False)
        return message
