"""The event log: where published events are kept, numbered and read back; the one seam for scale."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import NamedTuple

from sse_app.core.channels import ChannelName
from sse_app.core.events import Event, EventId, NewEvent

IDEMPOTENCY_AGE = 86_400.0
"""How long the answer to an idempotency key is kept, in seconds."""

PAGE_BYTES = 1024 * 1024
"""How much data is read from the log at a time."""


class Retention(NamedTuple):
    """How much of a channel's past is kept: at most ``size`` events, none older than ``age`` seconds."""

    size: int = 10_000
    age: float = 86_400.0


class IdempotencyKey(NamedTuple):
    """What makes a repeated append answer as the first did: the key, whose it is, and a digest of the request."""

    subject: str
    key: str
    digest: bytes


class Page(NamedTuple):
    """Part of the past: ``events`` in log order, and whether more follow before the position asked for.

    ``gap`` says that events after the position are no longer kept. It is of the same moment as the events:
    what `EventLog.lost` said before may have been overtaken by the trimming.
    """

    events: list[Event]
    more: bool
    gap: bool


def first_page(events: Iterator[Event], limit: int, *, gap: bool = False) -> Page:
    """Take a page from events in log order (or from the end, against it)."""
    taken: list[Event] = []
    size = 0
    for event in events:
        if len(taken) == limit or size >= PAGE_BYTES:
            return Page(taken, True, gap)
        taken.append(event)
        size += len(event.data)
    return Page(taken, False, gap)


class EventLog(ABC):
    """Appends events, replays them, and yields them as they come.

    Every method raises `EventLogUnavailable` while the log cannot be reached; nothing is stored then.
    What `tail` yields is what a node sends to its clients, in log order, so one node on SQLite and
    several on a shared log are the same program.
    """

    @property
    @abstractmethod
    def head(self) -> EventId:
        """The id of the last event in the log, as far as this process knows; ``seq`` 0 in an empty log."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether the last attempt to use the log succeeded."""

    @abstractmethod
    async def open(self) -> None:
        """Open the log for use.

        Raises:
            StateError: it cannot be used at all, e.g. it was written by a newer version.
        """

    @abstractmethod
    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        """Store the events, all or none, and return their ids once they are durable.

        Raises:
            IdempotencyKeyReused: the key was used within 24 h for another request.
            EventLogUnavailable: nothing was stored.
        """

    @abstractmethod
    async def lost(self, channels: Collection[ChannelName], position: EventId) -> dict[ChannelName, str]:
        """Return the channels that cannot be continued from the position without a gap, each with the reason.

        The reasons are ``log_replaced`` (another epoch), ``position_ahead`` (of the head) and
        ``history_trimmed`` (an event of that channel after the position is no longer kept).
        """

    @abstractmethod
    async def replay(self, channels: Collection[ChannelName], after: int, until: int, limit: int) -> Page:
        """Return the first kept events of the channels with ``after < seq <= until``.

        At most ``limit``, and no more once their data is `PAGE_BYTES`; at least one where there is one.
        """

    @abstractmethod
    async def latest(self, channel: ChannelName, limit: int) -> list[Event]:
        """Return the last kept events of a channel, oldest first; as many as `replay` would."""

    @abstractmethod
    async def published(self, channel: ChannelName) -> tuple[int, int]:
        """Return how many events the channel was ever given, and the ``seq`` of its last one (0: none)."""

    @abstractmethod
    def tail(self) -> AsyncIterator[list[Event]]:
        """Yield the events that come after `open`, in log order; those that wait together come together."""

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun and let go of the log; further appends raise `EventLogUnavailable`."""
