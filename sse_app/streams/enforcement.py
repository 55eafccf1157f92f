"""Applies revocations and new keys to the running server, also those that another process has written."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from sse_app.auth.audit import Audit
from sse_app.auth.records import Revocation, Scope
from sse_app.auth.revocations import Revocations
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.claims import Lease
from sse_app.auth.tokens.issuer import Tokens
from sse_app.auth.tokens.keyring import KeyRing, load_keys
from sse_app.auth.tokens.sealed_keys import SealedKeys
from sse_app.cluster.base import Cluster
from sse_app.core.errors import EXHAUSTED, AuthStoreUnavailable, StateError
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.repeated_event import RepeatedEvent
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Stream

ATTEMPTS, PAUSE = 5, 0.1
"""How often the store is asked when it has told of a change, until it answers, and the seconds in between: then its
connections may just have been lost."""

COUNTED_WITHIN = 0.2
"""For how many seconds at most a revocation is not written yet, for the other nodes to count the streams that it will
end, and to learn whether it is a kick: each ends them as soon as it finds the revocation in the store."""

OTHERS_TIMEOUT = 1.0
"""How long a revocation waits for the other nodes, in seconds; one that does not answer finds it in the store."""

KICKED_TIME = 10.0
"""For how many seconds the other nodes remember that a revocation which is about to come is a kick."""

SETTLED_NS = 1_000_000_000
"""Nanoseconds after which a directory cannot change any more without another time of change: that is the time of the
last tick of a clock, which two changes can have in common."""

log = logging.getLogger(__name__)


class Ended(NamedTuple):
    """How many streams a revocation has ended, and which nodes could not be asked how many of theirs."""

    streams: int
    missing: tuple[str, ...]


class Enforcement:
    """Looks for revocations and new keys, ends the streams concerned, and has the audit trail written.

    Args:
        hub: whose streams end.
        store: where revocations are written.
        revocations: those in force.
        tokens: verifies with the keys.
        keys: the directory of the keys, or the keys in the database.
        audit: flushed to the store.
        cluster: the other nodes, which apply a revocation at once.
    """

    def __init__(
        self,
        hub: Hub,
        store: AuthStore,
        revocations: Revocations,
        tokens: Tokens,
        keys: Path | SealedKeys,
        audit: Audit,
        cluster: Cluster,
    ) -> None:
        self._cluster = cluster
        self._hub = hub
        self._store = store
        self._revocations = revocations
        self._tokens = tokens
        self._sealed_keys = keys if isinstance(keys, SealedKeys) else None
        self._keys = "" if isinstance(keys, SealedKeys) else os.fspath(keys)
        self._keys_changed_at = -1  # so that keys which changed while the server started are read
        self._key_files: list[str] | None = None
        """The names in the directory of the keys when it was read."""
        self._keys_settled = False
        """Whether it was read late enough for its time of change alone to say that it is as it was."""
        self._audit = audit
        self._kicked: set[str] = set()
        self._available = True
        self._keys_refused = ""
        """Why the keys that are there are not in use; such a file can be mended without a change of the directory."""
        self._unread = RepeatedEvent(log, logging.ERROR, "keys_unread")
        self._looking = asyncio.Lock()
        self._callback = PeriodicCallback(self._look, store.poll_interval)
        self._told: asyncio.Task[None] | None = None
        """Looks because the store has told of a change."""
        self._told_again = False
        store.on_change(self._look_at_once)
        if self._sealed_keys is None:
            tokens.look_for_keys = self._look_for_new_keys
        cluster.answer("revocations.expect", self._expect)
        cluster.answer("revocations.apply", lambda node, payload: self.apply())
        cluster.answer("revocations.issued", self._issued_elsewhere)

    def use(self, keys: Path) -> None:
        """Look for new keys in another directory."""
        self._keys = os.fspath(keys)
        self._keys_settled = False

    def start(self) -> None:
        """Begin to look."""
        self._callback.start()

    async def stop(self) -> None:
        """Stop looking, and write the audit entries that wait."""
        self._callback.stop()
        if self._told is not None:
            await asyncio.wait([self._told])
        async with self._looking:
            try:
                await self._audit.flush(last=True)
            except AuthStoreUnavailable as error:
                self._report(error)

    async def revoke(self, *revocations: Revocation) -> Ended:
        """Revoke tokens, end their sessions and streams on all nodes, and return how many streams those were.

        Raises:
            AuthStoreUnavailable: the revocations cannot be written; nothing is revoked.
        """
        return await self._revoke(revocations, ())

    async def kick(self, stream: Stream, seconds: float) -> Ended:
        """Revoke the tokens that a stream can come back with, end all streams with them, and return how many.

        Args:
            stream: which, of this node.
            seconds: for how long its session gets neither a stream nor a stream token.

        Raises:
            AuthStoreUnavailable: the revocations cannot be written; no stream is ended.
        """
        tokens = stream.subscriber.tokens
        ids = {token.token_id for token in tokens}
        self._kicked |= ids
        try:
            barred = Revocation.of_kick(stream.subscriber.lease.session, seconds)
            ended = await self._revoke((*map(_of_lease, tokens), barred), tuple(ids))
        finally:
            self._kicked -= ids
        # It may have been renewed while that was written. It has ended now, and is renewed no more.
        if late := [token for token in stream.subscriber.tokens if token.token_id not in ids]:
            await self.revoke(*map(_of_lease, late))
        return ended

    async def _revoke(self, revocations: tuple[Revocation, ...], kicked: tuple[str, ...]) -> Ended:
        """Revoke, and tell the other nodes before which tokens' streams are kicked."""
        expected = {
            "revocations": [each._asdict() for each in revocations],
            "kicked": kicked,
            "issued": self._revocations.latest_issue,
        }
        others = self._cluster.peers()
        counting = asyncio.create_task(
            self._cluster.ask("revocations.expect", expected, OTHERS_TIMEOUT, others)
        )
        try:
            await asyncio.wait([counting], timeout=COUNTED_WITHIN)
            own = self._concerned(revocations)
            now = time.time()
            await self._store.revoke([self._revocations.reaching_ahead(each, now) for each in revocations])
        except BaseException:
            counting.cancel()
            raise
        await self.apply_everywhere()
        counted = await counting
        return Ended(own + sum(map(int, counted.by_node.values())), counted.missing)

    def _concerned(self, revocations: tuple[Revocation, ...]) -> int:
        return sum(
            any(
                revocation.concerns(token) for revocation in revocations for token in stream.subscriber.tokens
            )
            for stream in self._hub.streams
        )

    def _expect(self, node: str, payload: dict[str, Any]) -> int:
        """Return how many streams of this node another one is about to end."""
        if (latest := payload.get("issued")) is not None:  # the version before does not tell it
            self._issued_elsewhere(node, latest)
        ids = {str(each) for each in payload["kicked"]}
        self._kicked |= ids
        asyncio.get_running_loop().call_later(KICKED_TIME, self._kicked.difference_update, ids)
        return self._concerned(tuple(map(_of_message, payload["revocations"])))

    async def apply_everywhere(self) -> None:
        """Do as `apply` does on all nodes; one that does not answer finds what is revoked a little later.

        Raises:
            AuthStoreUnavailable: this node cannot read the revocations.
        """
        others = self._cluster.peers()
        asking = asyncio.create_task(self._cluster.ask("revocations.apply", None, OTHERS_TIMEOUT, others))
        try:
            await self.apply()
        finally:
            await asking

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

    def _tell_of_issues_ahead(self) -> None:
        """Tell the other nodes of tokens that are dated ahead of the clock, which was set back since then, as long as
        that is so: a revocation means these too, also on a node that has not seen them yet."""
        if (latest := self._revocations.latest_issue) > time.time():
            self._cluster.tell("revocations.issued", latest)

    def _issued_elsewhere(self, node: str, payload: float) -> None:
        self._revocations.seen_elsewhere(float(payload))

    def _look_at_once(self) -> None:
        """Look now: the store tells that there may be something."""
        if self._told is not None and not self._told.done():
            self._told_again = True
        elif self._callback.running:
            self._told = asyncio.create_task(self._look_as_told(), name="look-at-revocations")

    async def _look_as_told(self) -> None:
        failures = 0
        while failures < ATTEMPTS:
            self._told_again = False
            try:
                if self._sealed_keys is not None:
                    await self._look_at_sealed_keys()
                await self.apply()
            except AuthStoreUnavailable:  # the periodic look says so, where it lasts
                failures += 1
                await asyncio.sleep(PAUSE)
            except Exception as error:
                self._report(error)
                return
            else:
                if not self._told_again:
                    return

    async def _look(self) -> None:
        async with self._looking:
            try:
                self._tell_of_issues_ahead()
                if self._sealed_keys is None:
                    self._look_at_keys()
                else:
                    await self._look_at_sealed_keys()
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
        if not self._look_for_new_keys() and self._keys_refused:
            self._reload_keys()

    def _look_for_new_keys(self) -> bool:
        """Use the keys in the directory if they have changed, and return whether they have.

        Another node, or a command, may have made a key, and issued a token with it, since the last look.
        """
        try:
            changed_at = os.stat(self._keys).st_ctime_ns
        except OSError:
            changed_at = 0  # taken away: that is logged once, and the keys from before stay in use
        if changed_at == self._keys_changed_at and self._keys_settled:
            return False
        settled = abs(time.time_ns() - changed_at) >= SETTLED_NS
        names = self._names_of_key_files()
        self._keys_settled = settled and names is not None
        if changed_at == self._keys_changed_at and names in (None, self._key_files):
            return False
        self._keys_changed_at, self._key_files = changed_at, names
        self._reload_keys()
        return True

    def _names_of_key_files(self) -> list[str] | None:
        """Return the names in the directory of the keys; None where it cannot be read, for lack of descriptors say."""
        try:
            return sorted(os.listdir(self._keys))
        except OSError:
            return None

    def _reload_keys(self) -> None:
        """Use the keys that are in the directory now; if one is bad, those from before."""
        try:
            keys = load_keys(Path(self._keys), create=False)
        except StateError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in EXHAUSTED:
                self._keys_changed_at = -1  # that says nothing of the keys, and the next look tries again
                self._unread.add(cause.strerror or "")
            elif str(error) != self._keys_refused:
                self._keys_refused = str(error)
                log.error("keys_refused", extra={"detail": self._keys_refused})
            return
        self._use_keys(keys)

    async def _look_at_sealed_keys(self) -> None:
        """Use the keys in the database if they have changed; if one is bad, those from before.

        Raises:
            AuthStoreUnavailable: they cannot be read.
        """
        assert self._sealed_keys is not None
        try:
            keys = await self._sealed_keys.changed()
        except StateError as error:
            if str(error) != self._keys_refused:
                self._keys_refused = str(error)
                log.error("keys_refused", extra={"detail": self._keys_refused})
            return
        if keys is not None:
            self._use_keys(keys)

    def _use_keys(self, keys: KeyRing) -> None:
        self._keys_refused = ""
        if keys.signing.id != self._tokens.keys.signing.id and self._cluster.is_first:
            self._audit.record("key_rotation", target=keys.signing.id, detail=keys.signing.algorithm)
        self._tokens.use_keys(keys)


def _of_message(revocation: dict[str, Any]) -> Revocation:
    """Return a revocation as another node describes it."""
    members = {name: revocation[name] for name in Revocation._fields}
    return Revocation(**members | {"scope": Scope(revocation["scope"])})


def _of_lease(token: Lease) -> Revocation:
    return Revocation.of_token(token.token_id, token.expires_at)
