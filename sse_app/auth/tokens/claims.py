"""What a verified token says: pure, no I/O."""

from __future__ import annotations

import re
import secrets
from typing import Any, NamedTuple

from sse_app.auth.tokens.grants import Grants

MAX_TIME = 2**40
"""A time that no clock will show: what lies beyond is a mistake."""

_MARKED_ID = re.compile(r"(\d{1,18})-([0-9a-f]{8})\.[A-Za-z0-9_]{16}", re.ASCII)


class Mark(NamedTuple):
    """When a token was issued, on the scale of revocations, which no clock moves.

    Args:
        number: of the last revocation of that time.
        store: the id of the store that has numbered it: servers that share keys, and not a store, count each for
            itself.
    """

    number: int
    store: str


class Lease(NamedTuple):
    """The token that an open stream depends on, without its grants, which were checked when the stream was opened.

    Times are in seconds since the epoch. A stream of public channels may depend on none: see `NO_TOKEN`.
    """

    subject: str
    session: str
    token_id: str
    issued_at: float
    expires_at: float

    @property
    def is_anonymous(self) -> bool:
        """Whether there is no token; one has an id."""
        return not self.token_id

    def remaining(self, now: float) -> float:
        """Return for how many seconds the token is still in force at a time.

        Never more than it was issued for: where the clock has been set back, its expiry seems to be further away.
        """
        return max(0.0, min(self.expires_at - now, self.expires_at - self.issued_at))


NO_TOKEN = Lease("", "", "", 0.0, MAX_TIME)
"""That of a stream whose client has no token: of no subject, and without an end."""


class Claims(NamedTuple):
    """What a verified token says. Times are in seconds since the epoch."""

    subject: str
    session: str
    token_id: str
    issued_at: float
    expires_at: float
    grants: Grants

    @property
    def lease(self) -> Lease:
        """What a stream that is opened with the token keeps of it."""
        return Lease(self.subject, self.session, self.token_id, self.issued_at, self.expires_at)

    @classmethod
    def of_payload(cls, payload: dict[str, Any]) -> Claims:
        """Return the claims in their types, which PyJWT checks of some only.

        Raises:
            ValueError: a claim has the wrong type.
            InvalidChannel: the ``sse`` claim has not the form of grants.
        """
        subject, session, token_id = (payload[name] for name in ("sub", "sid", "jti"))
        if not all(is_text(text) for text in (subject, session, token_id)):
            raise ValueError("sub, sid and jti must be texts")
        issued_at, expires_at = payload["iat"], payload["exp"]
        if not all(is_time(seconds) for seconds in (issued_at, expires_at)):
            raise ValueError("iat and exp must be times")
        return cls(subject, session, token_id, issued_at, expires_at, Grants.from_claim(payload["sse"]))


def new_token_id(after: Mark | None) -> str:
    """Return a new ``jti``, which says after which revocation the token was issued: clocks cannot, they are set.

    Args:
        after: the last revocation of that time; None where it is not known.
    """
    return new_id() if after is None else f"{after.number}-{after.store}.{new_id()}"


def issued_after(token_id: str) -> Mark | None:
    """Return after which revocation a token was issued; None where its ``jti`` does not say, as another's may not."""
    match = _MARKED_ID.fullmatch(token_id)
    return None if match is None else Mark(int(match[1]), match[2])


def new_id() -> str:
    """Return a new ``jti`` or ``sid``; none begins with a dash, which a command would take for a flag."""
    return secrets.token_urlsafe(12).replace("-", "_")


def is_text(value: object) -> bool:
    """Return whether a claim is a text that can be written down: JSON can also hold halves of characters."""
    return isinstance(value, str) and value != "" and not any("\ud800" <= sign <= "\udfff" for sign in value)


def is_time(value: object) -> bool:
    """Return whether a claim is a time that a clock may show (RFC 7519 §2, NumericDate)."""
    return type(value) in (int, float) and 0 <= value < MAX_TIME  # type: ignore[operator]
