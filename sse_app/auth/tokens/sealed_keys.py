"""The keys that sign and verify tokens, kept in the database for all nodes, sealed with a secret that is not in it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sse_app.auth.records import SealedKey
from sse_app.auth.tokens.keyring import Key, KeyRing, new_id, new_key, parse_key, require_removable
from sse_app.core.errors import StateError

if TYPE_CHECKING:
    from sse_app.auth.postgres_store import PostgresAuthStore
    from sse_app.auth.tokens.sealing import Seal

LEARNED = 2.0
"""After how many seconds every node has learned of a new key; it signs from then on."""


class SealedKeys:
    """The keys in a database.

    A new one signs once every node has had the time to learn of it, so that no node is shown a token whose key it does
    not know. The keys' ids and kinds are sealed with them: none can be passed off as another.

    Args:
        store: keeps them.
        seal: the file of the secret.
    """

    def __init__(self, store: PostgresAuthStore, seal: Path) -> None:
        self._store = store
        self._file = seal
        self._seal: Seal | None = None
        self._changed = -1
        self._due = 0.0
        """When one is to sign that does not yet, on the monotonic clock; 0 where there is none."""

    async def load(self, *, create: bool = True) -> KeyRing:
        """Return the keys; where there are none yet, a new HS256 secret is made first, unless told not to.

        Raises:
            StateError: the seal cannot be used, does not fit, or a key cannot be used.
            AuthStoreUnavailable: they cannot be read.
        """
        changed, rows = await self._store.sealed_keys()
        if not rows:
            if not create:
                raise StateError(
                    "there are no keys in the database yet: the first server that starts makes one"
                )
            await self._add(changed, [(new_id(), "hs256", new_key("HS256"))], [])
            changed, rows = await self._store.sealed_keys()
        keys = [self._unsealed(row) for row in rows]
        signing = [(key, row) for key, row in zip(keys, rows, strict=True) if key.signing is not None]
        if not signing:
            raise StateError("none of the keys in the database can sign: all are public")
        # A key whose age is negative is not new: the clock of the database was set back.
        known = [key for key, row in signing if not 0 <= row.age < LEARNED]
        chosen = known[0] if known else signing[-1][0]
        waits = chosen is not signing[0][0]
        self._changed = changed
        self._due = time.monotonic() + LEARNED - min(row.age for _, row in signing) if waits else 0.0
        return KeyRing(keys, chosen)

    async def changed(self) -> KeyRing | None:
        """Return the keys if they have changed since they were loaded, or another is to sign; else None.

        Raises:
            StateError, AuthStoreUnavailable: as `load`.
        """
        due = self._due and time.monotonic() >= self._due
        if not due and await self._store.keys_changed() == self._changed:
            return None
        return await self.load(create=False)

    async def rotate(self, algorithm: str, longest: float) -> tuple[str, list[str]]:
        """Make a new key, and delete those whose last token has expired.

        Args:
            algorithm: of the new key; the one of the key that signs now, where it is empty.
            longest: the longest lifetime of a token, in seconds: so long a key is kept after the next one has come.

        Returns:
            The id of the new key, and of those that are deleted.

        Raises:
            StateError, AuthStoreUnavailable: as `load`.
        """
        while True:
            keys = await self.load(create=False)  # what cannot be read is not to be added to
            changed, rows = await self._store.sealed_keys()
            algorithm = algorithm or keys.signing.algorithm
            kind = "hs256" if algorithm == "HS256" else "pem"
            id = new_id()
            signing = [row for row in rows if self._unsealed(row).signing is not None]  # public halves stay
            spent = [old.id for successor, old in pairwise(signing) if successor.age > longest]
            if await self._add(changed, [(id, kind, new_key(algorithm))], spent):
                return id, spent

    async def remove(self, id: str) -> None:
        """Delete a key, which then verifies no more.

        Raises:
            InvalidInput: there is no key of that id, or it is the one that signs.
            StateError, AuthStoreUnavailable: as `load`.
        """
        while True:
            require_removable(await self.load(create=False), id)
            if await self._add(self._changed, [], [id]):
                return

    async def take_in(self, files: Iterable[tuple[str, str, bytes]]) -> list[str]:
        """Add keys that were kept in files, and return the ids of those that were not there yet.

        Args:
            files: id, kind and content of each, the oldest first.

        Raises:
            StateError: there is another key of the same id, or as `load`.
            AuthStoreUnavailable: as `load`.
        """
        files = list(files)
        while True:
            changed, rows = await self._store.sealed_keys()
            there = {row.id: (row.kind, self._content(row)) for row in rows}
            for id, kind, content in files:
                parse_key(f"{id}.{kind}", content)
                if there.get(id, (kind, content)) != (kind, content):
                    raise StateError(
                        f"there is another key with the id {id!a} in the database: rename the file"
                    )
            new = [file for file in files if file[0] not in there]
            held = [
                *(self._unsealed(row) for row in rows),
                *(parse_key(f"{id}.{kind}", key) for id, kind, key in new),
            ]
            if not any(key.signing is not None for key in held):
                raise StateError("none of the keys can sign: all are public")
            if not new or await self._add(changed, new, []):
                return [id for id, _, _ in new]

    async def _add(self, changed: int, new: list[tuple[str, str, bytes]], deleted: list[str]) -> bool:
        """Add keys, unless others have been added since; return whether that was done."""
        seal = self._opened_seal()
        sealed = [(id, kind, seal.seal(content, _context(id, kind))) for id, kind, content in new]
        return await self._store.change_keys(changed, sealed, deleted)

    def _unsealed(self, row: SealedKey) -> Key:
        key = parse_key(f"{row.id}.{row.kind}", self._content(row))
        return key._replace(id=row.id)

    def _content(self, row: SealedKey) -> bytes:
        try:
            return self._opened_seal().unseal(row.sealed, _context(row.id, row.kind))
        except ValueError as error:
            raise StateError(
                f"the key {row.id!a} in the database cannot be used with {self._file} (auth.keys_seal): {error}"
            ) from None

    def _opened_seal(self) -> Seal:
        if self._seal is None:
            from sse_app.auth.tokens.sealing import Seal  # it loads cryptography, which takes a while

            self._seal = Seal(self._file)
        return self._seal


def _context(id: str, kind: str) -> str:
    return f"{kind}:{id}"
