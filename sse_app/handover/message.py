"""What one process tells the next of its connections: pure, no I/O.

The text begins with an envelope whose form never changes: which connections there are, how each is framed,
and how many bytes belong to it. So a process that does not understand the state behind it, because another
version of the program wrote it, can still end each stream properly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import msgspec

from sse_app.core.channels import ChannelName, parse_channel
from sse_app.core.errors import SSEAppError
from sse_app.core.framing import CHUNKED, FRAMINGS, UNFRAMED
from sse_app.streams.stream import Replay, Subscriber

FORMAT = 3
"""The version of the state behind the envelope: raised with every change of what is in it."""

STREAM = "stream"
"""A parcel with a stream's connection."""

IDLE = "idle"
"""A parcel with a connection between two requests."""


class UnreadableState(SSEAppError):
    """A state is of a format that this program does not know, or is broken."""


class Parcel(NamedTuple):
    """A connection in the envelope.

    Args:
        kind: `STREAM`, `IDLE`, or the name of something else that goes along.
        framing: the name of a stream's framing; perhaps one that only a newer version knows. Empty of others.
        data: of a stream what is still to be sent, of an idle connection what was read of the next request.
        place: where its socket is among those that came with the text before; -1 where it comes with this one.
    """

    kind: str
    framing: str
    data: bytes
    place: int = -1


class StreamState(msgspec.Struct, array_like=True, frozen=True):
    """What is to be known of a stream, beside its parcel.

    Args:
        number: tells it from all others.
        subscriber: who listens.
        channels: the place of its channels in `State.channels`.
        opened_at: in seconds since the epoch.
        retry: the reconnection time that it was told, in milliseconds.
        replay: how far it is, where it is still being brought up to the present.
    """

    number: int
    subscriber: Subscriber
    channels: int
    opened_at: float
    retry: int
    replay: Replay | None


class State(NamedTuple):
    """All that one process leaves to the next.

    Args:
        epoch, head: the position up to which every stream has its events, unless it is being replayed to.
        channels: what streams listen to; many share theirs.
        streams: in the order of their parcels.
        parcels: the streams', then the others.
        gone: the places of streams that came with the text before, and have ended since.
    """

    epoch: str
    head: int
    channels: Sequence[tuple[ChannelName, ...]]
    streams: Sequence[StreamState]
    parcels: Sequence[Parcel]
    gone: Sequence[int] = ()


class _Envelope(msgspec.Struct):
    """The envelope as it is written: of parcels their kind, framing, bytes, place, and how many are alike.

    Up to format 2 there were two framings, and it said whether the body is chunked.
    """

    format: int
    bytes: int
    parcels: Sequence[tuple[str, str | bool, int, int, int]]
    gone: list[int]


class _Body(msgspec.Struct):
    """The state as it is written."""

    epoch: str
    head: int
    channels: list[tuple[ChannelName, ...]]
    streams: list[StreamState]


_encode = msgspec.json.Encoder().encode
_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_body = msgspec.json.Decoder(_Body).decode


def encode(state: State) -> bytes:
    """Return the text that `decode` reads."""
    body = _encode(_Body(state.epoch, state.head, list(state.channels), list(state.streams)))
    heads = ((kind, framing, len(data), place) for kind, framing, data, place in state.parcels)
    parcels = [(*head, len(list(alike))) for head, alike in groupby(heads)]
    envelope = _encode(_Envelope(FORMAT, len(body), parcels, list(state.gone)))
    return b"".join([envelope, b"\n", body, *(parcel.data for parcel in state.parcels if parcel.data)])


class Envelope(NamedTuple):
    """What can be told of a text whatever its format: the parcels; and the state behind, yet to be read."""

    format: int
    parcels: list[Parcel]
    gone: list[int]
    body: bytes

    def open(self) -> State:
        """Return the state.

        Raises:
            UnreadableState: another version of the program wrote it, or it is broken.
        """
        if self.format != FORMAT:
            raise UnreadableState(f"the handover is of format {self.format}; this program knows {FORMAT}")
        try:
            return _state(_decode_body(self.body), self.parcels, self.gone)
        except (ValueError, SSEAppError) as error:
            raise UnreadableState(f"the handover is broken: {error}") from error


def decode(text: bytes) -> Envelope:
    """Return the envelope of a text.

    Raises:
        UnreadableState: it has none.
    """
    first, _, rest = text.partition(b"\n")
    try:
        envelope = _decode_envelope(first)
        start = envelope.bytes
        parcels = []
        for kind, framing, length, place, alike in envelope.parcels:
            if isinstance(framing, bool):
                framing = (CHUNKED if framing else UNFRAMED).name
            if not length:
                parcels += [Parcel(kind, framing, b"", place)] * alike
                continue
            for _ in range(alike):
                parcels.append(Parcel(kind, framing, rest[start : start + length], place))
                start += length
        if start != len(rest):
            raise ValueError("its length is wrong")
        return Envelope(envelope.format, parcels, envelope.gone, rest[: envelope.bytes])
    except ValueError as error:
        raise UnreadableState(f"the handover has no envelope: {error}") from error


def _state(body: _Body, parcels: Sequence[Parcel], gone: Sequence[int]) -> State:
    channels = [tuple(map(parse_channel, names)) for names in body.channels]
    if not all(0 <= stream.channels < len(channels) for stream in body.streams):
        raise ValueError("the channels of a stream are missing")
    others = len(parcels) - len(body.streams)
    if [parcel.kind == STREAM for parcel in parcels] != [True] * len(body.streams) + [False] * others:
        raise ValueError("streams and parcels do not agree")
    if not all(parcel.framing in FRAMINGS for parcel in parcels[: len(body.streams)]):
        raise ValueError("the framing of a stream is unknown")
    return State(body.epoch, body.head, channels, body.streams, parcels, gone)
