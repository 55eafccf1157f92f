"""What has been decided about tokens and keys, here or on the command line, put in force on the running server."""

from __future__ import annotations

import logging
from pathlib import Path

from tornado.ioloop import PeriodicCallback

from sse_app.auth.accounts.sessions import revoke_with_sessions
from sse_app.auth.audit import Audit
from sse_app.auth.revocations import Revocation, Revocations
from sse_app.auth.sqlite_store import AuthDatabase
from sse_app.auth.tokens.issuer import Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.errors import StateError
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Stream

INTERVAL = 0.25
"""Seconds between two looks at the database and the keys."""

log = logging.getLogger(__name__)


class Enforcement:
    """Looks for revocations and new keys, ends the streams concerned, and has the audit trail written.

    Args:
        hub: whose streams end.
        database: where revocations come from.
        revocations: what is in force.
        tokens: verified with the keys.
        keys: the directory of the keys.
        audit: to be written.
    """

    def __init__(
        self,
        hub: Hub,
        database: AuthDatabase,
        revocations: Revocations,
        tokens: Tokens,
        keys: Path,
        audit: Audit,
    ) -> None:
        self._database = database
        self._revocations = revocations
        self._tokens = tokens
        self._keys = keys
        self._keys_changed_at = -1  # they are read once more, for what changed while the server started
        self._audit = audit
        self._hub = hub
        self._kicked: set[str] = set()
        self._callback = PeriodicCallback(self._look, INTERVAL * 1000)

    def use(self, keys: Path) -> None:
        """Look for new keys in another directory."""
        self._keys = keys

    def start(self) -> None:
        """Begin to look."""
        if not self._callback.is_running():
            self._callback.start()

    async def stop(self) -> None:
        """Look no more, and write what waits."""
        self._callback.stop()
        await self._audit.flush()

    async def revoke(self, *revocations: Revocation) -> int:
        """Revoke tokens, end their sessions and streams, and return how many streams those were."""
        concerned = sum(
            any(
                revocation.concerns(token) for revocation in revocations for token in stream.subscriber.tokens
            )
            for stream in self._hub.streams
        )

        def write() -> None:
            with self._database.transaction() as connection:
                for revocation in revocations:
                    revoke_with_sessions(connection, revocation)

        await self._database.run(write)
        self.apply()
        return concerned

    async def kick(self, stream: Stream) -> int:
        """Revoke the tokens that a stream can come back with, end all streams with them, and return how many."""
        tokens = stream.subscriber.tokens
        ids = {token.token_id for token in tokens}
        self._kicked |= ids
        try:
            return await self.revoke(
                *(Revocation.of_token(token.token_id, token.expires_at) for token in tokens)
            )
        finally:
            self._kicked -= ids

    def apply(self) -> None:
        """Learn what has been revoked, and end the streams concerned: also those renewed since, as they were
        opened with it."""
        if self._revocations.learn():
            for stream in list(self._hub.streams):
                tokens = stream.subscriber.tokens
                if any(self._revocations.covers(token) for token in tokens):
                    kicked = any(token.token_id in self._kicked for token in tokens)
                    stream.end("kicked" if kicked else "revoked", None)

    async def _look(self) -> None:
        if self._database.changed():
            self.apply()
        try:
            changed_at = self._keys.stat().st_mtime_ns
        except OSError:
            changed_at = 0  # taken away: that is told once, and the keys from before go on
        if changed_at != self._keys_changed_at:
            self._keys_changed_at = changed_at
            self.reload_keys()
        await self._audit.flush()

    def reload_keys(self) -> None:
        """Go on with the keys that are in the directory now; if one is bad, with those from before."""
        try:
            keys = KeyRing.load(self._keys, create=False)
        except StateError as error:
            log.error("keys_refused", extra={"detail": str(error)})
            return
        if keys.signing.id != self._tokens.keys.signing.id:
            self._audit.record("key_rotation", target=keys.signing.id, detail=keys.signing.algorithm)
        self._tokens.use_keys(keys)
