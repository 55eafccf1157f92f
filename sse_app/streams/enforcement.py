"""Applies revocations and new keys to the running server, also those that another process has written."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from sse_app.auth.audit import Audit
from sse_app.auth.records import Revocation
from sse_app.auth.revocations import Revocations
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.claims import Lease
from sse_app.auth.tokens.issuer import Tokens
from sse_app.auth.tokens.keyring import load_keys
from sse_app.core.errors import EXHAUSTED, AuthStoreUnavailable, StateError
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.repeated_event import RepeatedEvent
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Stream

INTERVAL = 0.25
"""Seconds between two looks at the store and the keys."""

log = logging.getLogger(__name__)


class Enforcement:
    """Looks for revocations and new keys, ends the streams concerned, and has the audit trail written.

    Args:
        hub: whose streams end.
        store: where revocations are written.
        revocations: those in force.
        tokens: verifies with the keys.
        keys: the directory of the keys.
        audit: flushed to the store.
    """

    def __init__(
        self,
        hub: Hub,
        store: AuthStore,
        revocations: Revocations,
        tokens: Tokens,
        keys: Path,
        audit: Audit,
    ) -> None:
        self._hub = hub
        self._store = store
        self._revocations = revocations
        self._tokens = tokens
        self._keys = keys
        self._keys_changed_at = -1  # so that keys which changed while the server started are read
        self._audit = audit
        self._kicked: set[str] = set()
        self._available = True
        self._keys_refused = ""
        """Why the keys that are there are not in use; such a file can be mended without a change of the directory."""
        self._unread = RepeatedEvent(log, logging.ERROR, "keys_unread")
        self._looking = asyncio.Lock()
        self._callback = PeriodicCallback(self._look, INTERVAL)

    def use(self, keys: Path) -> None:
        """Look for new keys in another directory."""
        self._keys = keys

    def start(self) -> None:
        """Begin to look."""
        self._callback.start()

    async def stop(self) -> None:
        """Stop looking, and write the audit entries that wait."""
        self._callback.stop()
        async with self._looking:
            try:
                await self._audit.flush(last=True)
            except AuthStoreUnavailable as error:
                self._report(error)

    async def revoke(self, *revocations: Revocation) -> int:
        """Revoke tokens, end their sessions and streams, and return how many streams those were.

        Raises:
            AuthStoreUnavailable: the revocations cannot be written; nothing is revoked.
        """
        concerned = sum(
            any(
                revocation.concerns(token) for revocation in revocations for token in stream.subscriber.tokens
            )
            for stream in self._hub.streams
        )
        await self._store.revoke(revocations)
        await self.apply()
        return concerned

    def sharing(self, stream: Stream) -> int:
        """Return how many streams a kick of this one would end: all that have a token in common with it."""
        ids = {token.token_id for token in stream.subscriber.tokens}
        others = self._hub.streams_of_subject.get(stream.subscriber.lease.subject)
        return sum(any(token.token_id in ids for token in other.subscriber.tokens) for other in others)

    async def kick(self, stream: Stream, seconds: float) -> int:
        """Revoke the tokens that a stream can come back with, end all streams with them, and return how many.

        Args:
            stream: which.
            seconds: for how long its session gets neither a stream nor a stream token.

        Raises:
            AuthStoreUnavailable: the revocations cannot be written; no stream is ended.
        """
        tokens = stream.subscriber.tokens
        ids = {token.token_id for token in tokens}
        self._kicked |= ids
        try:
            ended = await self.revoke(
                *map(_of_lease, tokens), Revocation.of_kick(stream.subscriber.lease.session, seconds)
            )
        finally:
            self._kicked -= ids
        # It may have been renewed while that was written. It has ended now, and is renewed no more.
        if late := [token for token in stream.subscriber.tokens if token.token_id not in ids]:
            await self.revoke(*map(_of_lease, late))
        return ended

    async def apply(self) -> None:
        """Learn what has been revoked, and end the streams opened or renewed with such tokens.

        Raises:
            AuthStoreUnavailable: the revocations cannot be read.
        """
        if await self._revocations.learn():
            for stream in list(self._hub.streams):
                tokens = stream.subscriber.tokens
                if any(self._revocations.covers(token) for token in tokens):
                    kicked = any(
                        token.token_id in self._kicked or self._revocations.kicked(token) for token in tokens
                    )
                    stream.end("kicked" if kicked else "revoked", None)

    async def _look(self) -> None:
        async with self._looking:
            try:
                self._look_at_keys()
                await self.apply()
                await self._audit.flush()
            except Exception as error:  # of any kind: it would be logged at each look
                self._report(error)
            else:
                self._available = True

    def _report(self, error: Exception) -> None:
        """Log that the store cannot be reached, once until it can: the next look tries again."""
        if self._available:
            if isinstance(error, AuthStoreUnavailable):
                log.error("accounts_unavailable", extra={"detail": error.detail})
            else:
                log.error("uncaught", exc_info=error)
        self._available = False

    def _look_at_keys(self) -> None:
        try:
            changed_at = self._keys.stat().st_mtime_ns
        except OSError:
            changed_at = 0  # taken away: that is logged once, and the keys from before stay in use
        if changed_at != self._keys_changed_at or self._keys_refused:
            self._keys_changed_at = changed_at
            self._reload_keys()

    def _reload_keys(self) -> None:
        """Use the keys that are in the directory now; if one is bad, those from before."""
        try:
            keys = load_keys(self._keys, create=False)
        except StateError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in EXHAUSTED:
                self._keys_changed_at = -1  # that says nothing of the keys, and the next look tries again
                self._unread.add(cause.strerror or "")
            elif str(error) != self._keys_refused:
                self._keys_refused = str(error)
                log.error("keys_refused", extra={"detail": self._keys_refused})
            return
        self._keys_refused = ""
        if keys.signing.id != self._tokens.keys.signing.id:
            self._audit.record("key_rotation", target=keys.signing.id, detail=keys.signing.algorithm)
        self._tokens.use_keys(keys)


def _of_lease(token: Lease) -> Revocation:
    return Revocation.of_token(token.token_id, token.expires_at)
