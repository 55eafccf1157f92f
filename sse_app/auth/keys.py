"""The keys that sign and verify tokens, kept in the state directory."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from sse_app.errors import StateError

SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key has at least the 256 bits of the hash."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its id and the one algorithm it is used with."""

    id: str
    algorithm: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Key({self.id!r}, {self.algorithm!r})"


class KeyRing:
    """The keys by their ids; the first one signs."""

    def __init__(self, keys: list[Key]) -> None:
        self.signing = keys[0]
        self._by_id = {key.id: key for key in keys}

    def find(self, id: object) -> Key | None:
        """Return the key with that ``kid``, or None."""
        return self._by_id.get(id) if isinstance(id, str) else None

    @classmethod
    def load(cls, directory: Path) -> KeyRing:
        """Return the keys of a directory; an empty one gets a new HS256 secret first.

        A key file is named ``{kid}.hs256`` and holds the bytes of the secret. The newest one signs.

        Raises:
            StateError: a key cannot be read, or is too weak.
        """
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            files = sorted(directory.glob("*.hs256"), key=lambda file: (file.stat().st_mtime_ns, file.name))
            if not files:
                files = [_create(directory)]
            keys = [Key(file.stem, "HS256", file.read_bytes()) for file in reversed(files)]
        except OSError as error:
            raise StateError(f"cannot use the keys in {directory}: {error}") from error
        for file, key in zip(reversed(files), keys, strict=True):
            if len(key.secret) < SECRET_BYTES:
                raise StateError(f"{file} is too weak a key: it has fewer than {SECRET_BYTES} bytes")
        return cls(keys)


def _create(directory: Path) -> Path:
    """Write a new secret so that no other process sees half of it, and two that try agree on one."""
    secret = secrets.token_bytes(SECRET_BYTES)
    draft = directory / f".{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(descriptor)
    target = directory / "first.hs256"
    try:
        os.link(draft, target)
    except FileExistsError:
        pass  # another process was first; its key is the one
    finally:
        draft.unlink()
    return target
