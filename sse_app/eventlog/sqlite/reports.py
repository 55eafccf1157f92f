"""What the writer's thread of the SQLite event log tells the event loop."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import msgspec

from sse_app.core.channels import ChannelName
from sse_app.core.events import Event, EventId
from sse_app.eventlog.sqlite.schema import ChannelState


class Forgotten(NamedTuple):
    """Channels that are no longer remembered, and the ``seq`` of the last event of any that ever was."""

    until: int
    names: frozenset[ChannelName]


class Commit(msgspec.Struct):
    """What one round of the writer did: the events stored, and what becomes of each append.

    Where there are events, ``seen_at`` is a time by the wall clock up to which all that is in the file was seen.
    """

    events: list[Event] = []
    channels: dict[ChannelName, ChannelState] = {}
    forgotten: Forgotten | None = None
    outcomes: list[tuple[asyncio.Future[list[EventId]], range | Exception]] = []
    failure: Exception | None = None
    seen_at: float = 0.0


class Growth(NamedTuple):
    """How far the log goes: other processes have committed.

    Args:
        head: of the log.
        seen_at: a time by the wall clock up to which all that is in the file was seen; 0 where none is known.
    """

    head: int
    seen_at: float


class Alone(NamedTuple):
    """The state of the log, which no other process has open, as far as is known."""

    head: int
    forgotten: int
    channels: dict[ChannelName, ChannelState]


class BellLost(NamedTuple):
    """This process's bell is not where others find it."""


Report = Commit | Growth | Alone | BellLost


def place(report: Report) -> int:
    """Return which ``seq`` must have come before the report is taken, less one; 0 where none has to."""
    if isinstance(report, Commit):
        return report.events[0].seq if report.events else 0
    return report.head + 1 if isinstance(report, Growth | Alone) else 0
