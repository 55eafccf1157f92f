"""Which tokens are refused although they would still be in force, and which sessions are kicked, from memory."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from sse_app.auth.records import Revocation, Scope
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.claims import Claims, Lease, Mark, issued_after

SLACK = 60.0
"""By how many seconds a token may seem to live longer than is allowed: one that a provider dates a little ahead, or
that is dated as of the refresh that it came from."""

SWEEP_INTERVAL = 60.0
"""The least time between two looks for what can be forgotten, in seconds: each walks over all that is known."""

STEP_BACK = 1.0
"""A clock that has gone back by more seconds than this was wrong when something was forgotten, or is wrong now."""


class _Known(NamedTuple):
    """What is known of a scope and value.

    Args:
        number: of the last revocation.
        issued_until: the issuing time until which tokens are meant.
        forget_at: when to forget that, on the wall clock.
        held_until: and on the monotonic clock, for the wall clock may have been set forward.
    """

    number: int = 0
    issued_until: float = -math.inf
    forget_at: float = -math.inf
    held_until: float = -math.inf

    def revokes(self, claims: Claims | Lease, newest: Mark) -> bool:
        """Return whether a token was issued before: by the numbers of revocations, where it says, else by the clock.

        Args:
            claims: of the token.
            newest: the last revocation that is known. What a token says of another store's means nothing here, and what
                it says of one that is yet to come was made up by who has forged it.
        """
        after = issued_after(claims.token_id)
        if after is None or after.store != newest.store or after.number > newest.number:
            return claims.issued_at <= self.issued_until
        return after.number < self.number


class Revocations:
    """Knows what has been revoked, by this process or another, as far as it has learned it from the store.

    `covers` is asked with every request and costs a few lookups in memory.

    The store keeps a revocation for as long as any setting could allow a token. Here it is known for as long as the
    present setting allows one, which is all that bounds the memory: some 300 bytes for each logout or revocation
    of that time. Where the setting is raised all is read again, and until then no longer token is accepted.

    Args:
        store: where revocations are written.
        longest: the longest lifetime of a token that is accepted, in seconds.
    """

    def __init__(self, store: AuthStore, longest: float) -> None:
        self._store = store
        self.longest = longest
        """The lifetime of the longest tokens that `covers` can answer for, in seconds."""
        self._next_longest = longest
        self._seen = 0
        """The number of the last revocation that was learned."""
        self._newest = 0
        """The greatest number of a revocation that was ever learned."""
        self._in_force: dict[Scope, dict[str, _Known]] = {scope: {} for scope in Scope}
        self._tokens = self._in_force[Scope.TOKEN]
        self._sessions = self._in_force[Scope.SESSION]
        self._subjects = self._in_force[Scope.SUBJECT]
        self._all = _Known()
        self._latest_issue = -math.inf
        """As `latest_issue` says."""
        self._barred: dict[str, float] = {}
        """Until when sessions are barred from streams, on the monotonic clock: a clock that is set back must not
        lengthen that."""
        self._latest = -math.inf
        """The latest time by which something was forgotten or left unread."""
        self._swept_at = -math.inf

    def use(self, longest: float) -> None:
        """Answer for tokens of another lifetime, from the next time that it learns on."""
        self._next_longest = longest

    def covers(self, claims: Claims | Lease) -> bool:
        """Return whether a token with these claims has been revoked."""
        if claims.issued_at > self._latest_issue:
            self._latest_issue = claims.issued_at
        of_subject = self._subjects.get(claims.subject)
        return (
            claims.token_id in self._tokens
            or claims.session in self._sessions
            or (self._all.number > 0 and self._all.revokes(claims, self.newest))
            or (of_subject is not None and of_subject.revokes(claims, self.newest))
        )

    @property
    def latest_issue(self) -> float:
        """The latest issuing time of a token that was ever seen, here or by another node."""
        return self._latest_issue

    def seen_elsewhere(self, issued_at: float) -> None:
        """Note that another node has seen a token of this issuing time."""
        self._latest_issue = max(self._latest_issue, issued_at)

    @property
    def newest(self) -> Mark:
        """The last revocation that was ever learned."""
        return Mark(self._newest, self._store.id)

    def answers_for(self, claims: Claims | Lease) -> bool:
        """Return whether no revocation of a token of this lifetime can have been forgotten here."""
        return claims.expires_at - claims.issued_at <= self.longest + SLACK

    def barred_for(self, session: str) -> float:
        """Return for how many seconds a session is still barred from streams."""
        until = self._barred.get(session)
        return 0.0 if until is None else max(0.0, until - time.monotonic())

    def kicked(self, token: Lease) -> bool:
        """Return whether a token was revoked by a kick that is still in force."""
        return token.token_id in self._tokens and self.barred_for(token.session) > 0

    async def learn(self) -> bool:
        """Put what is new in the store in force, forget what is spent, and return whether there was anything new.

        Raises:
            AuthStoreUnavailable: the store cannot be read just now; what is known stays in force.
        """
        now = time.time()
        longest = self._next_longest
        if longest > self.longest or now < self._latest - STEP_BACK:
            self._seen = 0  # something may have been forgotten, or not been read, that is in force
            self._latest = now
        new = await self._store.revocations_since(self._seen, now - longest - SLACK)
        self.longest = longest
        self._latest = max(self._latest, now)
        for number, revocation in new:
            self._seen = max(self._seen, number)
            self._take(number, revocation, now)
        self._newest = max(self._newest, self._seen)
        if time.monotonic() >= self._swept_at + SWEEP_INTERVAL:
            self._sweep(now)
        return bool(new)

    def reaching_ahead(self, revocation: Revocation, now: float) -> Revocation:
        """Return a revocation of a subject, or of all, that means tokens dated ahead too, as far as they were seen.

        The clock was set back since such a token was issued.
        """
        if revocation.scope in (Scope.SUBJECT, Scope.ALL) and self._latest_issue > now:
            return revocation._replace(issued_until=max(revocation.issued_until, self._latest_issue))
        return revocation

    def _take(self, number: int, revocation: Revocation, now: float) -> None:
        if number > self._newest:
            revocation = self.reaching_ahead(revocation, now)
        scope, value, issued_until, forget_at, made_at = revocation
        if scope is Scope.KICK:
            if number > self._newest:  # one that is read again has its end on the monotonic clock already
                self._barred[value] = time.monotonic() + min(issued_until - now, issued_until - made_at)
            return
        known = self._in_force[scope]
        before = known.get(value, _Known())
        forget_at = min(forget_at, made_at + self.longest + SLACK)
        held_until = time.monotonic() + forget_at - made_at
        known[value] = _Known(
            max(before.number, number),
            max(before.issued_until, issued_until),
            max(before.forget_at, forget_at),
            max(before.held_until, held_until),
        )
        if scope is Scope.ALL:
            self._all = known[""]

    def _sweep(self, now: float) -> None:
        """Forget what is spent."""
        self._swept_at = time.monotonic()
        for known in self._in_force.values():
            spent = [
                value
                for value, each in known.items()
                if each.forget_at <= now and each.held_until <= self._swept_at
            ]
            for value in spent:
                del known[value]
        self._all = self._in_force[Scope.ALL].get("", _Known())
        for session in [session for session, end in self._barred.items() if end <= self._swept_at]:
            del self._barred[session]

    def __len__(self) -> int:
        """The number of revocations in force."""
        return sum(map(len, self._in_force.values()))
