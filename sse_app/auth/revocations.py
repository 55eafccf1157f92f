"""Which tokens are refused although they would still be in force, answered from memory."""

from __future__ import annotations

import math
import time

from sse_app.auth.records import Scope
from sse_app.auth.store import AuthStore
from sse_app.auth.tokens.claims import Claims, Lease


class Revocations:
    """Knows what has been revoked, by this process or another, as far as it has learned it from the store.

    `covers` is asked with every request and costs a few lookups in memory.

    Args:
        store: where revocations are written.
    """

    def __init__(self, store: AuthStore) -> None:
        self._store = store
        self._seen = 0
        """The number of the last revocation that was learned."""
        self._in_force: dict[Scope, dict[str, tuple[float, float]]] = {scope: {} for scope in Scope}
        """By scope and value: the issuing time until which tokens are meant, and when to forget that."""
        self._tokens = self._in_force[Scope.TOKEN]
        self._sessions = self._in_force[Scope.SESSION]
        self._subjects = self._in_force[Scope.SUBJECT]
        self._all = -math.inf

    def covers(self, claims: Claims | Lease) -> bool:
        """Return whether a token with these claims has been revoked."""
        issued_at = claims.issued_at
        return (
            claims.token_id in self._tokens
            or claims.session in self._sessions
            or issued_at <= self._all
            or (claims.subject in self._subjects and issued_at <= self._subjects[claims.subject][0])
        )

    async def learn(self) -> bool:
        """Put what is new in the store in force, forget what is spent, and return whether there was anything new.

        Raises:
            AuthStoreUnavailable: the store cannot be read just now; what is known stays in force.
        """
        new = await self._store.revocations_since(self._seen)
        if not new:
            return False
        for number, (scope, value, issued_until, forget_at) in new:
            self._seen = max(self._seen, number)
            known = self._in_force[scope]
            before = known.get(value, (-math.inf, -math.inf))
            known[value] = (max(before[0], issued_until), max(before[1], forget_at))
        now = time.time()
        for known in self._in_force.values():
            for value in [value for value, (_, forget_at) in known.items() if forget_at <= now]:
                del known[value]
        self._all = self._in_force[Scope.ALL].get("", (-math.inf, 0.0))[0]
        return True

    def __len__(self) -> int:
        """The number of revocations in force."""
        return sum(map(len, self._in_force.values()))
