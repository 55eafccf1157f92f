"""What one process tells the next of its connections: pure, no I/O.

The text begins with an envelope whose form never changes: which connections there are, how each is framed,
and how many bytes belong to it. So a process that does not understand the state behind it, because another
version of the program wrote it, can still end each stream properly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from sse_app.auth.claims import Claims
from sse_app.auth.grants import Grants
from sse_app.channels import ChannelName, parse_channel
from sse_app.errors import SSEAppError
from sse_app.stream import Listener, Replay

FORMAT = 1
"""The version of the state behind the envelope: raised with every change of what is in it."""

STREAM = "stream"
"""A parcel with a stream's connection."""

IDLE = "idle"
"""A parcel with a connection between two requests."""


class UnreadableState(SSEAppError):
    """A state is of a format that this program does not know, or is broken."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A connection in the envelope.

    Args:
        kind: `STREAM`, `IDLE`, or the name of something else that goes along.
        chunked: how the body of a stream is framed.
        data: of a stream what is still to be sent, of an idle connection what was read of the next request.
        attached: whether its socket travels with this text, or came before.
    """

    kind: str
    chunked: bool
    data: bytes
    attached: bool = True


@dataclass(frozen=True, slots=True)
class StreamState:
    """What is to be known of a stream, beside its parcel."""

    number: int
    listener: Listener
    channels: tuple[ChannelName, ...]
    opened_at: float
    retry: int
    replay: Replay | None


@dataclass(frozen=True, slots=True)
class State:
    """All that one process leaves to the next.

    Args:
        epoch, head: the position up to which every stream has its events, unless it is being replayed to.
        streams: in the order of their parcels.
        parcels: the streams', then the others.
        gone: numbers of streams that were copied ahead, and have ended since.
    """

    epoch: str
    head: int
    streams: Sequence[StreamState]
    parcels: Sequence[Parcel]
    gone: Sequence[int] = ()


@dataclass(slots=True)
class _Table:
    """Values that many streams share, each written once."""

    values: list[Any] = field(default_factory=list)
    _places: dict[Any, int] = field(default_factory=dict)

    def place(self, key: Any, value: Any) -> int:
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = len(self.values)
            self.values.append(value)
        return place


def encode(state: State) -> bytes:
    """Return the text that `decode` reads."""
    grants, channels = _Table(), _Table()
    rows = []

    def written(claims: Claims) -> tuple[Any, ...]:
        return (*claims[:5], grants.place(id(claims.grants), claims.grants))

    for stream in state.streams:
        rows.append(
            (
                stream.number,
                stream.listener.client_id,
                stream.listener.address,
                [written(claims) for claims in stream.listener.tokens],
                channels.place(stream.channels, stream.channels),
                stream.opened_at,
                stream.retry,
                stream.replay and tuple(stream.replay),
            )
        )
    body = orjson.dumps(
        {
            "epoch": state.epoch,
            "head": state.head,
            "grants": [granted.to_claim() for granted in grants.values],
            "channels": channels.values,
            "streams": rows,
            "gone": state.gone,
        }
    )
    envelope = {
        "format": FORMAT,
        "bytes": len(body),
        "parcels": [(p.kind, p.chunked, len(p.data), p.attached) for p in state.parcels],
    }
    return b"".join([orjson.dumps(envelope), b"\n", body, *(parcel.data for parcel in state.parcels)])


@dataclass(frozen=True, slots=True)
class Envelope:
    """What can be told of a text whatever its format: the parcels; and the state behind, yet to be read."""

    format: int
    parcels: list[Parcel]
    body: bytes

    def open(self) -> State:
        """Return the state.

        Raises:
            UnreadableState: another version of the program wrote it, or it is broken.
        """
        if self.format != FORMAT:
            raise UnreadableState(f"the handover is of format {self.format}; this program knows {FORMAT}")
        try:
            return _state(orjson.loads(self.body), self.parcels)
        except (ValueError, KeyError, TypeError, IndexError, SSEAppError) as error:
            raise UnreadableState(f"the handover is broken: {error}") from error


def decode(text: bytes) -> Envelope:
    """Return the envelope of a text.

    Raises:
        UnreadableState: it has none.
    """
    first, _, rest = text.partition(b"\n")
    try:
        envelope = json.loads(first)
        size = int(envelope["bytes"])
        start = size
        parcels = []
        for kind, chunked, length, attached in envelope["parcels"]:
            parcels.append(Parcel(kind, chunked, rest[start : start + length], attached))
            start += length
        if start != len(rest):
            raise ValueError("its length is wrong")
        return Envelope(int(envelope["format"]), parcels, rest[:size])
    except (ValueError, KeyError, TypeError) as error:
        raise UnreadableState(f"the handover has no envelope: {error}") from error


def _state(document: dict[str, Any], parcels: Sequence[Parcel]) -> State:
    grants = [Grants.from_claim(claim) for claim in document["grants"]]
    channels = [tuple(parse_channel(name) for name in names) for names in document["channels"]]
    streams = []
    for number, client_id, address, tokens, listened, opened_at, retry, replay in document["streams"]:
        claims, *earlier = [Claims._make([*token[:5], grants[token[5]]]) for token in tokens]
        listener = Listener(client_id, claims, address, tuple(earlier))
        streams.append(
            StreamState(number, listener, channels[listened], opened_at, retry, replay and Replay(*replay))
        )
    if [parcel.kind == STREAM for parcel in parcels] != [at < len(streams) for at in range(len(parcels))]:
        raise ValueError("streams and parcels do not agree")
    return State(document["epoch"], document["head"], streams, parcels, document["gone"])
