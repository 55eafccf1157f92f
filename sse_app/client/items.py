"""What a stream gives its caller: pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a channel.

    Attributes:
        id: its place in the log, to resume after; "" where it is not stored, so that it is never replayed.
        channel: where it was published; "" where that cannot be told: nothing is added to data that is no object, so of
            these only a stream on one channel, and no pattern, knows it.
        type: the event type.
        data: what was published: an object with ``channel`` and ``timestamp``, another JSON value, or a text.
        text: the same as it came.
    """

    id: str
    channel: str
    type: str
    data: Any
    text: str = ""


@dataclass(frozen=True, slots=True)
class Reset:
    """The channel has a gap here: what is known of it is out of date, and has to be fetched afresh.

    Attributes:
        channel: which one, or the pattern where it is every channel of it; the others continue without a gap.
        reason: the server's, for instance that the events missed are no longer kept.
    """

    channel: str
    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream is open.

    Attributes:
        client_id: the stream's label.
        channels: those it carries, and patterns.
        recovered: whether it continues where the last connection ended, without a gap.
        expires_in: seconds until the token expires, at which the stream ends unless it is renewed; None where it
            has none.
        conflated: channels and patterns of which a stream that is behind gets only the newest event of each key.
    """

    client_id: str
    channels: tuple[str, ...]
    recovered: bool
    expires_in: float | None
    conflated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """The connection has ended, or could not be made; the stream will try again.

    Attributes:
        reason: why, for people.
        delay: seconds until the next attempt.
        attempt: 1 for the first after a connection that was stable, and so on; 0 where it follows at once.
    """

    reason: str
    delay: float
    attempt: int


@dataclass(frozen=True, slots=True)
class Moved:
    """The stream's position has moved over events that it leaves out; callers are not given it.

    Attributes:
        id: up to where.
    """

    id: str
