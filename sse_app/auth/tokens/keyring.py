"""The keys that sign and verify tokens, kept in the state directory."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sse_app.core.errors import InvalidInput, StateError
from sse_app.storage.ownership import ROOT, read_trusted, require_closed, require_own, require_unreadable

SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key has at least the 256 bits of the hash."""

LISTINGS = 5
"""How often a directory is listed, where each time a file is gone when it is to be read."""

T = TypeVar("T")


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


class KeyRing:
    """The keys by their ids, and the one that signs.

    Args:
        keys: the newest first.
        signing: one of them; the newest that can sign, where it is None.
    """

    def __init__(self, keys: list[Key], signing: Key | None = None) -> None:
        self.signing = signing or next(key for key in keys if key.signing is not None)
        self._by_id = {key.id: key for key in keys}

    def __iter__(self) -> Iterator[Key]:
        """Walk the keys, the newest first."""
        return iter(self._by_id.values())

    def find(self, id: object) -> Key | None:
        """Return the key with that ``kid``, or None."""
        return self._by_id.get(id) if isinstance(id, str) else None

    @classmethod
    def of_none(cls) -> KeyRing:
        """Return keys that no token was signed with, for the time until those are there that are used."""
        secret = secrets.token_bytes(SECRET_BYTES)
        return cls([Key(new_id(), "HS256", secret, secret)])

    @classmethod
    def load(cls, directory: Path, *, create: bool = True) -> KeyRing:
        """Return the keys of a directory; an empty one gets a new HS256 secret first, unless told not to.

        A file is named by its ``kid``: ``{kid}.hs256`` holds the bytes of a secret, ``{kid}.pem`` and
        ``{kid}.jwk`` a private or public key. The newest one that can sign signs.

        Raises:
            StateError: a key cannot be read, or is too weak, or none can sign.
        """
        keys = _all_in(directory, create)
        if not any(key.signing is not None for key in keys):
            raise StateError(f"none of the keys in {directory} can sign: all are public")
        return cls(keys)


def _all_in(directory: Path, create: bool) -> list[Key]:
    """Return the keys of a directory, the newest first, also where none of them can sign; see `KeyRing.load`."""

    def read() -> list[Key]:
        files = _files_in(directory)
        if not files and not create:
            raise StateError(f"there are no keys in {directory}")
        files = files or [_create(directory, "first.hs256", secrets.token_bytes(SECRET_BYTES))]
        owners = (ROOT, os.geteuid(), directory.stat().st_uid)
        return [_read(file, directory, owners) for file in reversed(files)]

    try:
        if create:
            directory.mkdir(mode=0o700, exist_ok=True)
        require_closed(directory, "the directory of the keys")
        keys = _while_files_go(read)
    except OSError as error:
        raise StateError(f"cannot use the keys in {directory}: {error.strerror}") from error
    twice = {key.id for key in keys if sum(other.id == key.id for other in keys) > 1}
    if twice:
        raise StateError(f"two keys in {directory} have the id {min(twice)!a}")
    return keys


def _files_in(directory: Path) -> list[Path]:
    """Return the files of the keys of a directory, the oldest first."""
    files = [file for file in directory.iterdir() if not file.name.startswith(".")]
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))


def _while_files_go(act: Callable[[], T]) -> T:
    """Do what lists files and uses them, anew where one is removed in between, as a command does beside a server."""
    for _ in range(LISTINGS - 1):
        with suppress(FileNotFoundError):
            return act()
    return act()


def load_keys(directory: Path, *, create: bool = True) -> KeyRing:
    """Return the keys of a directory, as `KeyRing.load` does, if it is root's or of the user that this process runs as.

    Raises:
        StateError: it does not, or the keys cannot be used.
    """
    _require_trusted(directory)
    return KeyRing.load(directory, create=create)


def _require_trusted(directory: Path) -> None:
    try:
        if directory.exists() and directory.stat().st_uid != ROOT:
            require_own(directory, "the directory of the keys")
    except OSError as error:
        raise StateError(f"cannot use the keys in {directory}: {error.strerror}") from error


def read_files(directory: Path) -> list[tuple[str, str, bytes]]:
    """Return id, kind (as the name ends) and content of each key of a directory, the oldest first; all may be public.

    Raises:
        StateError: the keys cannot be used.
    """
    _require_trusted(directory)
    _all_in(directory, create=False)
    owners = (ROOT, os.geteuid(), directory.stat().st_uid)
    try:
        contents = _while_files_go(
            lambda: [(file, read_trusted(file, directory, owners)[0]) for file in _files_in(directory)]
        )
    except OSError as error:
        raise StateError(f"cannot use the keys in {directory}: {error.strerror}") from error
    return [(parse_key(file, content).id, file.suffix[1:], content) for file, content in contents]


def remove(directory: Path, id: str) -> None:
    """Delete a key, which then verifies no more.

    Raises:
        InvalidInput: there is no key of that id, or it is the one that signs.
        StateError: the keys cannot be used.
    """
    require_removable(load_keys(directory, create=False), id)
    owners = (ROOT, os.geteuid(), directory.stat().st_uid)

    def delete() -> None:
        for file in _files_in(directory):
            if _read(file, directory, owners).id == id:
                file.unlink()

    try:
        _while_files_go(delete)
    except OSError as error:
        raise StateError(f"cannot delete the key {id!a} in {directory}: {error.strerror}") from error


def require_removable(keys: KeyRing, id: str) -> None:
    """Refuse to delete a key that is not there, or the one that signs.

    Raises:
        InvalidInput: it is one of these.
    """
    if keys.find(id) is None:
        raise InvalidInput(f"there is no key {id!a}; see: sse-app keys list")
    if keys.signing.id == id:
        raise InvalidInput(f"the key {id!a} signs; make another one first: sse-app keys rotate")


def rotate(directory: Path, algorithm: str, spent_before: float) -> tuple[str, list[str]]:
    """Make a new key, which signs from now on, and delete those whose last token has expired.

    Public halves stay: it is not known until when their owners sign.

    Args:
        directory: of the keys.
        algorithm: of the new key.
        spent_before: a key that was followed by another one before this time is spent (seconds since the epoch).

    Returns:
        The id of the new key, and of those that are deleted.

    Raises:
        StateError: the keys cannot be used.
    """
    load_keys(directory)  # what cannot be read is not to be added to
    try:
        return _rotate(directory, algorithm, spent_before)
    except OSError as error:
        raise StateError(f"cannot make a new key in {directory}: {error.strerror}") from error


def _rotate(directory: Path, algorithm: str, spent_before: float) -> tuple[str, list[str]]:
    kid = new_id()
    suffix = "hs256" if algorithm == "HS256" else "pem"
    owners = (ROOT, os.geteuid(), directory.stat().st_uid)

    def read() -> tuple[int, list[tuple[Path, float]]]:
        """Return when the newest was made, and those that sign, each with when it was made."""
        files = [(file, file.stat()) for file in _files_in(directory)]
        signing = [
            (file, its.st_mtime) for file, its in files if _read(file, directory, owners).signing is not None
        ]
        return files[-1][1].st_mtime_ns, signing

    newest, signing = _while_files_go(read)
    _create(directory, f"{kid}.{suffix}", new_key(algorithm), newer_than=newest)
    # A key signed its last token when its successor came. A public half is another's, who still signs with it.
    spent = [old for (old, _), (_, made_at) in pairwise(signing) if made_at < spent_before]
    for file in spent:
        file.unlink(missing_ok=True)
    return kid, [file.stem for file in spent]


def public_jwk(key: Key) -> dict[str, Any] | None:
    """Return the public half of a key as a JWK (RFC 7517), or None for a secret."""
    if key.algorithm == "HS256":
        return None
    from sse_app.auth.tokens.asymmetric import to_jwk

    public = to_jwk(key.algorithm, key.verifying)
    return {**public, "kid": key.id, "alg": key.algorithm, "use": "sig", "key_ops": ["verify"]}


def new_id() -> str:
    """Return the id of a new key: when it was made, and something that no other key has."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}"


def new_key(algorithm: str) -> bytes:
    """Return the content of the file of a new key."""
    if algorithm == "HS256":
        return secrets.token_bytes(SECRET_BYTES)
    from sse_app.auth.tokens.asymmetric import new_pem

    return new_pem(algorithm)


def _read(file: Path, directory: Path, owners: Collection[int]) -> Key:
    content, found = read_trusted(file, directory, owners)
    key = parse_key(file, content)
    if key.signing is not None:  # a public half may be read by all
        require_unreadable(file, found)
    return key


def parse_key(name: Path | str, content: bytes) -> Key:
    """Return the key in a file.

    Args:
        name: of the file.
        content: of the file.

    Raises:
        StateError: it is none that can be used.
    """
    file = Path(name)
    try:
        if file.suffix == ".hs256":
            return _checked(Key(file.stem, "HS256", content, content))
        from sse_app.auth.tokens.asymmetric import key_of_jwk, key_of_pem

        match file.suffix:
            case ".pem":
                return Key(file.stem, *key_of_pem(content))
            case ".jwk":
                kid, material = key_of_jwk(content)
                return _checked(Key(kid or file.stem, *material))
        raise ValueError("a key file ends in .hs256, .pem or .jwk")
    except ValueError as error:
        reason = str(error) or type(error).__name__
        raise StateError(f"{file} is no key that can be used: {reason}") from None


def _checked(key: Key) -> Key:
    """Return the key if it is no secret, or a good one."""
    if key.algorithm == "HS256":
        if len(key.signing) < SECRET_BYTES:
            raise ValueError(f"it is too weak, with fewer than {SECRET_BYTES} bytes")
        if len(key.signing) > SECRET_BYTES or key.signing.isascii():  # else it is random, as ours are
            from sse_app.auth.tokens.asymmetric import refuse_public_key

            refuse_public_key(key.signing)
    return key


def _create(directory: Path, name: str, content: bytes, newer_than: int = 0) -> Path:
    """Write a new key so that no other process sees half of it, and two that try agree on one.

    It signs where its time is the latest, so that is made later than ``newer_than`` (nanoseconds since the epoch):
    the clock may have been set back since the key before was made.
    """
    draft = directory / f".{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    target = directory / name
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if os.fstat(descriptor).st_mtime_ns <= newer_than:
                os.utime(descriptor, ns=(newer_than + 1_000_000, newer_than + 1_000_000))
            os.fsync(descriptor)
        os.link(draft, target)
    except FileExistsError:
        pass  # another process was first; its key is the one
    finally:
        draft.unlink()
    return target
