"""The open streams as a table: searched, sorted and cut into pages, in slices between which other tasks run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from sse_app.cluster.base import Answers, Cluster, NoAnswer, sort_key
from sse_app.core.events import EventId, timestamp
from sse_app.streams.hub import Hub
from sse_app.streams.slices import slices
from sse_app.streams.stream import Stream

MAX_KEY = 128
"""By how many characters of a text the rows of several nodes are sorted: each sends as many rows as come before the
page and in it."""

_ID = b"\nid: "
_number = attrgetter("number")

FIELDS: dict[str, Callable[[Stream], str]] = {
    "client_id": lambda stream: stream.subscriber.client_id,
    "subject": lambda stream: stream.subscriber.lease.subject,
    "channels": lambda stream: ",".join(stream.channels),
    "address": lambda stream: stream.subscriber.address,
}
"""How each column that can be searched is read."""

BY_TIME = ("connection", "opened_at")
"""The columns that are sorted by when a stream began, by a clock that all nodes have in common."""

NODE = ("worker", "node")
"""The names of the column with the node of a stream; it is searched only where it is named, and as a whole."""

SEARCHED = (*FIELDS, *NODE)
"""The columns that can be searched."""


class Query(NamedTuple):
    """Which rows of the table to show.

    Args:
        search: a text that one of the fields contains, in upper or lower case; empty for all streams.
        field: which of the columns `SEARCHED` has to contain it; empty for any but the node.
        sort: one of the columns `SORTED`.
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

SORTED = (*COLUMNS, *NODE)
"""The columns that can be sorted by."""


class Page(NamedTuple):
    """A page of the table.

    Args:
        total: how many streams match.
        rows: those of the page.
        missing: the nodes whose streams are not among them, for they did not answer.
    """

    total: int
    rows: list[dict[str, Any]]
    missing: tuple[str, ...] = ()


class ConnectionTable:
    """The open streams of all nodes as one table.

    Args:
        hub: whose streams are this node's.
        cluster: the other nodes.
    """

    def __init__(self, hub: Hub, cluster: Cluster) -> None:
        self._hub = hub
        self._cluster = cluster
        cluster.answer("connections.keys", self._keys_for)
        cluster.answer("connections.rows", lambda node, payload: self._rows_of(payload))

    async def page(self, query: Query) -> Page:
        """Return a page of the table."""
        if not self._cluster.peers():
            streams, _ = await self._found(query)
            return Page(len(streams), self._rows(streams[query.offset : query.offset + query.limit]))
        # Each node sends what its first rows are sorted by; only then is it known which of them are in the page.
        found = await self._cluster.ask("connections.keys", query._asdict())
        entries = [(*entry, node) for node, answer in found.by_node.items() for entry in answer["entries"]]
        entries.sort(key=itemgetter(1))  # equal ones stay in the order in which they were opened
        entries.sort(key=itemgetter(0), reverse=query.descending)
        page = entries[query.offset : query.offset + query.limit]
        wanted: dict[str, list[int]] = {}
        for _, _, number, node in page:
            wanted.setdefault(node, []).append(number)
        rows = await self._rows_from(wanted)
        by_number = {row["connection"]: row for answer in rows.by_node.values() for row in answer}
        missing = dict.fromkeys((*found.missing, *rows.missing))
        total = sum(int(answer["total"]) for answer in found.by_node.values())
        in_order = [by_number[str(number)] for _, _, number, _ in page if str(number) in by_number]
        return Page(total, in_order, tuple(missing))

    async def _rows_from(self, wanted: dict[str, list[int]]) -> Answers:
        answers = await asyncio.gather(
            *(self._cluster.ask("connections.rows", numbers, to=[node]) for node, numbers in wanted.items())
        )
        by_node = {node: answer for each in answers for node, answer in each.by_node.items()}
        return Answers(by_node, tuple(node for each in answers for node in each.missing))

    async def _keys_for(self, node: str, payload: dict[str, Any]) -> dict[str, Any]:
        """Return how many streams of this node match, and of the first in the order asked for what they are sorted by,
        when they began, and their numbers."""
        query = Query(**{name: payload[name] for name in Query._fields})
        if query.sort not in SORTED or (query.field and query.field not in SEARCHED):
            raise NoAnswer("a column is not known")
        streams, keys = await self._found(query)
        first = streams[: query.offset + query.limit]
        shared = self._cluster.shared_time
        entries = [(_short(keys(stream)), shared(stream.begun_at), stream.number) for stream in first]
        return {"total": len(streams), "entries": entries}

    def _rows_of(self, numbers: list[int]) -> list[dict[str, Any]]:
        """Return the rows of those of the streams that are still open."""
        wanted = set(numbers)
        streams = [stream for stream in self._hub.streams if stream.number in wanted]
        return self._rows(streams)

    def _rows(self, streams: Iterable[Stream]) -> list[dict[str, Any]]:
        of_node = {self._cluster.noun: self._cluster.name} if self._cluster.noun else {}
        return [row | of_node for row in _rows(streams, Positions(self._hub.head))]

    async def _found(self, query: Query) -> tuple[list[Stream], Callable[[Stream], Any]]:
        """Return the streams that match, in the order asked for, and what each is sorted by."""
        if query.field in NODE:
            if query.search and query.search.casefold() != self._cluster.name.casefold():
                return [], _number
            query = query._replace(search="", field="")
        if query.sort in NODE:  # of this node's streams each has the same
            cluster = self._cluster
            key = sort_key(cluster.name) if cluster.noun == "node" else cluster.number
            streams, _ = await _found(self._hub, query._replace(sort="connection", descending=False))
            return streams, lambda stream: key
        streams, keys = await _found(self._hub, query)
        if query.sort in BY_TIME:
            return streams, lambda stream: self._cluster.shared_time(keys(stream))
        return streams, keys


def _short(key: Any) -> Any:
    return key[:MAX_KEY] if isinstance(key, str) else key


async def _found(hub: Hub, query: Query) -> tuple[list[Stream], Callable[[Stream], Any]]:
    """Return the streams that match, in the order asked for, and what each is sorted by."""
    positions = Positions(hub.head)
    streams = list(hub.streams)
    streams.sort(key=_number)
    if query.search:
        streams = await _search(streams, query)
    if query.sort != "connection":
        keys = await _keys(streams, COLUMNS[query.sort], positions)
        streams.sort(key=lambda stream: keys[stream], reverse=query.descending)
        return streams, keys.__getitem__
    if query.descending:
        streams.reverse()
    return streams, attrgetter("begun_at")


async def _search(streams: list[Stream], query: Query) -> list[Stream]:
    wanted = query.search.casefold()
    read = [FIELDS[query.field]] if query.field else list(FIELDS.values())
    found = []
    async for some in slices(streams):
        found += [stream for stream in some if any(wanted in part(stream).casefold() for part in read)]
    return found


async def _keys(streams: list[Stream], key: Key, positions: Positions) -> dict[Stream, Any]:
    keys = {}
    async for some in slices(streams):
        keys.update({stream: key(stream, positions) for stream in some})
    return keys


def _rows(streams: Iterable[Stream], positions: Positions) -> Iterable[dict[str, Any]]:
    now = time.monotonic()
    for stream in streams:
        subscriber, lease = stream.subscriber, stream.subscriber.lease
        has_token = not lease.is_anonymous
        yield {
            "connection": str(stream.number),
            "client_id": subscriber.client_id,
            "subject": lease.subject if has_token else None,
            "session": lease.session if has_token else None,
            "token_id": lease.token_id if has_token else None,
            "channels": stream.channels,
            "address": subscriber.address,
            "opened_at": timestamp(stream.opened_at),
            "open_seconds": round(now - stream.begun_at, 3),
            "expires_at": timestamp(lease.expires_at) if has_token else None,
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
