"""The description of connections that one process sends to the next: pure, no I/O.

The text begins with a header whose form never changes: which connections there are, how each is framed, and
how many bytes belong to it. So a process that does not understand the state behind it, because another
version of the program wrote it, can still end each stream properly.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Generic, NamedTuple, TypeVar

import msgspec

from sse_app.core.channels import parse_channel_or_pattern
from sse_app.core.errors import SSEAppError
from sse_app.core.events import EventId
from sse_app.core.framing import CHUNKED, FRAMINGS, UNFRAMED
from sse_app.streams.stream import Replay, Subscriber

FORMAT = 4
"""The version of the state behind the header: raised with every change that another version would misread."""

STREAM = "stream"
"""The kind of a stream's connection."""

IDLE = "idle"
"""The kind of a connection between two requests."""


class UnreadableState(SSEAppError):
    """A state is of a format that this program does not know, or is broken."""


class PassedDescriptor(NamedTuple):
    """What the header says of a descriptor that is passed, mostly a connection's.

    Args:
        kind: `STREAM`, `IDLE`, or that of something else that is passed beside the connections.
        framing: the name of a stream's framing; perhaps one that only a newer version knows. Empty of others.
        data: of a stream what is still to be sent, of an idle connection what was read of the next request.
        place: where its socket is among those that came with the text before; -1 where it comes with this one.
    """

    kind: str
    framing: str
    data: bytes
    place: int = -1


class StreamState(msgspec.Struct, array_like=True, frozen=True):
    """The state of a stream, beside what the header says of its connection.

    Args:
        number: of the stream, which no other has.
        subscriber: whose stream it is.
        channels: the place of its channels in `State.channels`.
        opened_at: in seconds since the epoch.
        retry: the reconnection time that its client was given, in milliseconds.
        replay: how far its replay is; None where it has joined the present.
        begun_at, deadline: see `Stream`; None from a version that did not have them.
        types: of the events that it is sent; all where it is None.
        rate: as of its `Interest`.
        ungranted: as of `Stream`.
    """

    number: int
    subscriber: Subscriber
    channels: int
    opened_at: float
    retry: int
    replay: Replay | None
    begun_at: float | None = None
    deadline: float | None = None
    types: frozenset[str] | None = None
    rate: float | None = None
    ungranted: tuple[str, ...] = ()


class _Replay3(NamedTuple):
    """A `Replay` up to format 3: the channels that were lost continue from ``lost_until``."""

    after: int
    lost: tuple[str, ...] = ()
    lost_until: int = 0

    def now(self) -> Replay:
        """Return what it is now."""
        return Replay(self.after, dict.fromkeys(self.lost, self.lost_until))


class _StreamState3(msgspec.Struct, array_like=True, frozen=True):
    """A `StreamState` of format 3."""

    number: int
    subscriber: Subscriber
    channels: int
    opened_at: float
    retry: int
    replay: _Replay3 | None
    begun_at: float | None = None
    deadline: float | None = None

    def now(self) -> StreamState:
        """Return what it is now."""
        replay = None if self.replay is None else self.replay.now()
        start = (self.number, self.subscriber, self.channels, self.opened_at, self.retry)
        return StreamState(*start, replay, self.begun_at, self.deadline)


class State(NamedTuple):
    """All that one process hands over to the next.

    Args:
        epoch, head: the position up to which every stream has its events, unless it is being replayed to. The
            log may have grown since.
        channels: those of the streams; many streams have the same.
        streams: in the order of their descriptors.
        passed: the descriptors: the streams', then the others.
        gone: the places of streams that came with the text before, and have ended since.
    """

    epoch: str
    head: int
    channels: Sequence[tuple[str, ...]]
    streams: Sequence[StreamState]
    passed: Sequence[PassedDescriptor]
    gone: Sequence[int] = ()

    @property
    def position(self) -> EventId:
        """Where the next process begins to deliver events."""
        return EventId(self.epoch, self.head)


AnyState = TypeVar("AnyState", StreamState, _StreamState3)


class _Header(msgspec.Struct):
    """The header as it is written: of descriptors their kind, framing, bytes, place, and how many are alike.

    Up to format 2 there were two framings, and it said whether the body is chunked.
    """

    format: int
    bytes: int
    passed: Sequence[tuple[str, str | bool, int, int, int]] = msgspec.field(name="parcels")
    gone: list[int]


class _Body(msgspec.Struct, Generic[AnyState]):
    """The state as it is written."""

    epoch: str
    head: int
    channels: list[tuple[str, ...]]
    streams: list[AnyState]


_encode = msgspec.json.Encoder().encode
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_body = msgspec.json.Decoder(_Body[StreamState]).decode
_decode_body_3 = msgspec.json.Decoder(_Body[_StreamState3]).decode


def encode(state: State) -> bytes:
    """Return the text that `decode` reads."""
    body = _encode(_Body(state.epoch, state.head, list(state.channels), list(state.streams)))
    heads = ((kind, framing, len(data), place) for kind, framing, data, place in state.passed)
    passed = [(*head, len(list(alike))) for head, alike in groupby(heads)]
    header = _encode(_Header(FORMAT, len(body), passed, list(state.gone)))
    return b"".join([header, b"\n", body, *(one.data for one in state.passed if one.data)])


class Message(NamedTuple):
    """A text whose header has been read; the state behind it may be of a format that this program does not know."""

    format: int
    passed: list[PassedDescriptor]
    gone: list[int]
    body: bytes

    def state(self) -> State:
        """Return the state.

        Raises:
            UnreadableState: another version of the program wrote it, or it is broken.
        """
        if self.format not in (3, FORMAT):
            raise UnreadableState(f"the handover is of format {self.format}; this program knows {FORMAT}")
        try:
            if self.format == 3:
                before = _decode_body_3(self.body)
                streams = [stream.now() for stream in before.streams]
                body = _Body(before.epoch, before.head, before.channels, streams)
            else:
                body = _decode_body(self.body)
            return _state(body, self.passed, self.gone)
        except (ValueError, SSEAppError) as error:
            raise UnreadableState(f"the handover is broken: {error}") from error


def decode(text: bytes) -> Message:
    """Return a text with its header read.

    Raises:
        UnreadableState: it has no header.
    """
    first, _, rest = text.partition(b"\n")
    try:
        header = _decode_header(first)
        start = header.bytes
        passed = []
        for kind, framing, length, place, alike in header.passed:
            if isinstance(framing, bool):
                framing = (CHUNKED if framing else UNFRAMED).name
            if not length:
                passed += [PassedDescriptor(kind, framing, b"", place)] * alike
                continue
            for _ in range(alike):
                passed.append(PassedDescriptor(kind, framing, rest[start : start + length], place))
                start += length
        if start != len(rest):
            raise ValueError("its length is wrong")
        return Message(header.format, passed, header.gone, rest[: header.bytes])
    except ValueError as error:
        raise UnreadableState(f"the handover has no envelope: {error}") from error


def _state(body: _Body[StreamState], passed: Sequence[PassedDescriptor], gone: Sequence[int]) -> State:
    channels = [tuple(map(parse_channel_or_pattern, names)) for names in body.channels]
    if not all(0 <= stream.channels < len(channels) for stream in body.streams):
        raise ValueError("the channels of a stream are missing")
    others = len(passed) - len(body.streams)
    if [one.kind == STREAM for one in passed] != [True] * len(body.streams) + [False] * others:
        raise ValueError("streams and descriptors do not agree")
    if not all(one.framing in FRAMINGS for one in passed[: len(body.streams)]):
        raise ValueError("the framing of a stream is unknown")
    return State(body.epoch, body.head, channels, body.streams, passed, gone)
