"""What a stream gives its caller: pure, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a channel.

    Attributes:
        id: its place in the log, to resume after.
        channel: where it was published.
        type: the event type.
        data: the JSON object that was published, with ``channel`` and ``timestamp``.
    """

    id: str
    channel: str
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reset:
    """The channel has a gap here: what is known of it is out of date, and has to be fetched afresh.

    Attributes:
        channel: which one; the others continue without a gap.
        reason: the server's, for instance that the events missed are no longer kept.
    """

    channel: str
    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The stream is open.

    Attributes:
        client_id: the stream's label.
        channels: those it carries.
        recovered: whether it continues where the last connection ended, without a gap.
        expires_in: seconds until the token expires, at which the stream ends unless it is renewed.
    """

    client_id: str
    channels: tuple[str, ...]
    recovered: bool
    expires_in: float


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
