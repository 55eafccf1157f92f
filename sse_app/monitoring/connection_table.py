"""The open streams as a table: searched, sorted and cut into pages, in slices between which other tasks run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from sse_app.core.events import EventId, timestamp
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Stream

SLICE = 512
"""How many streams are looked at before other tasks run: about a millisecond."""

_ID = b"\nid: "
_number = attrgetter("number")

FIELDS: dict[str, Callable[[Stream], str]] = {
    "client_id": lambda stream: stream.subscriber.client_id,
    "subject": lambda stream: stream.subscriber.lease.subject,
    "channels": lambda stream: ",".join(stream.channels),
    "address": lambda stream: stream.subscriber.address,
}
"""How each column that can be searched is read."""


class Query(NamedTuple):
    """Which rows of the table to show.

    Args:
        search: a text that one of the fields contains, in upper or lower case; empty for all streams.
        field: which of the `FIELDS` has to contain it; empty for any.
        sort: one of the `COLUMNS`.
        descending: whether the greatest come first.
        offset, limit: the page.
    """

    search: str = ""
    field: str = ""
    sort: str = "connection"
    descending: bool = False
    offset: int = 0
    limit: int = 100


class Positions:
    """Computes the positions of streams in the log from its head."""

    def __init__(self, head: EventId) -> None:
        self._head = head

    def last_id(self, stream: Stream) -> EventId:
        """Return the id up to which the stream's events were handed to the network, or nearly so."""
        after = self._head.seq if stream.replay is None else stream.replay.after
        if (waiting := stream.unsent()) and (first := _first_seq(waiting)) is not None:
            after = min(after, first - 1)
        return EventId(self._head.epoch, after)

    def lag_events(self, stream: Stream) -> int:
        """Return how many events wait for the stream; in a replay also what is still to be read, over all channels."""
        unread = 0 if stream.replay is None else max(0, self._head.seq - stream.replay.after)
        return unread + (b"\n" + stream.unsent()).count(_ID)


Key = Callable[[Stream, Positions], Any]

COLUMNS: dict[str, Key] = {
    "connection": lambda stream, positions: stream.number,
    **{name: (lambda stream, positions, read=read: read(stream)) for name, read in FIELDS.items()},  # type: ignore[misc]
    "opened_at": lambda stream, positions: stream.begun_at,
    "expires_at": lambda stream, positions: stream.subscriber.lease.expires_at,
    "last_event_id": lambda stream, positions: positions.last_id(stream).seq,
    "lag_events": lambda stream, positions: positions.lag_events(stream),
    "backlog_bytes": lambda stream, positions: stream.backlog_bytes,
    "adopted": lambda stream, positions: stream.adopted,
}
"""How each column is sorted; streams with equal values stay in the order in which they were opened."""


async def list_streams(hub: Hub, query: Query) -> tuple[int, list[dict[str, Any]]]:
    """Return how many streams match, and a page of them."""
    positions = Positions(hub.head)
    streams = list(hub.streams)
    streams.sort(key=_number)
    if query.search:
        streams = await _search(streams, query)
    if query.sort != "connection":
        keys = await _keys(streams, COLUMNS[query.sort], positions)
        streams.sort(key=lambda stream: keys[stream], reverse=query.descending)
    elif query.descending:
        streams.reverse()
    page = streams[query.offset : query.offset + query.limit]
    return len(streams), list(_rows(page, positions))


async def _search(streams: list[Stream], query: Query) -> list[Stream]:
    wanted = query.search.casefold()
    read = [FIELDS[query.field]] if query.field else list(FIELDS.values())
    found = []
    async for some in _slices(streams):
        found += [stream for stream in some if any(wanted in part(stream).casefold() for part in read)]
    return found


async def _keys(streams: list[Stream], key: Key, positions: Positions) -> dict[Stream, Any]:
    keys = {}
    async for some in _slices(streams):
        keys.update({stream: key(stream, positions) for stream in some})
    return keys


async def _slices(streams: list[Stream]) -> AsyncIterator[list[Stream]]:
    for start in range(0, len(streams), SLICE):
        yield streams[start : start + SLICE]
        await asyncio.sleep(0)


def _rows(streams: Iterable[Stream], positions: Positions) -> Iterable[dict[str, Any]]:
    now = time.monotonic()
    for stream in streams:
        subscriber = stream.subscriber
        yield {
            "connection": str(stream.number),
            "client_id": subscriber.client_id,
            "subject": subscriber.lease.subject,
            "session": subscriber.lease.session,
            "token_id": subscriber.lease.token_id,
            "channels": stream.channels,
            "address": subscriber.address,
            "opened_at": timestamp(stream.opened_at),
            "open_seconds": round(now - stream.begun_at, 3),
            "expires_at": timestamp(subscriber.lease.expires_at),
            "last_event_id": str(positions.last_id(stream)),
            "lag_events": positions.lag_events(stream),
            "backlog_bytes": stream.backlog_bytes,
            "adopted": stream.adopted,
        }


def _first_seq(waiting: bytes) -> int | None:
    """Return the ``seq`` of the first event that waits as a whole, or None."""
    _, found, rest = (b"\n" + waiting).partition(_ID)
    digits = rest.partition(b"\n")[0].rpartition(b"-")[2]
    return int(digits) if found and digits.isdigit() else None
