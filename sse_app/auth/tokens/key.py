"""A key that signs and verifies tokens, whatever it is made of."""

from __future__ import annotations

from typing import Any, NamedTuple


class Key(NamedTuple):
    """A key with its id and the one algorithm it is used with (RFC 8725 §3.1).

    Args:
        id: its ``kid``.
        algorithm: ``HS256``, ``EdDSA``, ``ES256`` or ``RS256``.
        verifying: what verifies; for HS256 the secret.
        signing: what signs; None where only the public half is here.
    """

    id: str
    algorithm: str
    verifying: Any
    signing: Any

    def __repr__(self) -> str:
        """Return what may be shown of it: never what signs."""
        return f"Key(id={self.id!r}, algorithm={self.algorithm!r})"
