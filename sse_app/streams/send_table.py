"""A flat table of streams that the same bytes are sent to."""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from sse_app.core.framing import Framing
from sse_app.streams.bulk_send import BulkSender

NONE = -1
"""The socket of a slot whose stream is behind, or was removed."""

_NOT_NOW = (-errno.EAGAIN, -errno.EINTR)


class Member(Protocol):
    """What a table knows of a stream."""

    @property
    def parked_socket(self) -> int:
        """The descriptor of its socket while it is parked, else `NONE`."""

    def enqueue(self, frames: bytes) -> None:
        """Queue frames while the stream is behind."""

    def offer(self, frames: bytes) -> bool:
        """Queue frames that may be dropped while the stream is behind, and return whether it has."""

    def fall_behind(self, frames: bytes, sent: int) -> None:
        """Queue what the socket did not accept of the frames, and take no bytes directly until that is written."""

    def close(self) -> None:
        """Close the connection."""


AnyStream = TypeVar("AnyStream", bound=Member)


class SendTable(Generic[AnyStream]):
    """A table with a slot for each stream: the descriptor that takes its bytes.

    That is the socket of a stream that is parked, so a fan-out touches little memory: at 10,000 streams its cost is
    cache misses. The streams share their framing, so they share the bytes.

    A descriptor is a number that the system gives anew as soon as it is closed, so a stream takes it out of its
    tables before that.

    Slots do not move while the table is walked: a stream that is removed leaves a hole, and a new one is put at the
    end.

    Args:
        framing: that of each stream.
        sender: sends the bytes.
    """

    __slots__ = ("_sender", "framing", "holes", "sockets", "streams")

    def __init__(self, framing: Framing, sender: BulkSender) -> None:
        self._sender = sender
        self.framing = framing
        self.sockets = array("i")
        self.streams: list[AnyStream | None] = []
        self.holes = 0

    def __len__(self) -> int:
        """The number of streams."""
        return len(self.streams) - self.holes

    def place(self, stream: AnyStream, slot: int) -> None:
        """Tell a stream its slot in this table; -1 where it has none any more."""
        raise NotImplementedError

    def add(self, stream: AnyStream) -> None:
        """Give the stream a slot."""
        self.place(stream, len(self.streams))
        self.sockets.append(stream.parked_socket)
        self.streams.append(stream)

    def remove(self, stream: AnyStream, slot: int) -> None:
        """Take the stream out of its slot."""
        self.sockets[slot] = NONE
        self.streams[slot] = None
        self.holes += 1
        self.place(stream, -1)

    def close_holes(self) -> None:
        """Move the streams together, once holes are a quarter of the table; not while it is walked."""
        if self.holes * 4 <= len(self.streams):
            return
        kept = [(sock, stream) for sock, stream in zip(self.sockets, self.streams, strict=True) if stream]
        self.sockets = array("i", [sock for sock, _ in kept])
        self.streams = [stream for _, stream in kept]
        self.holes = 0
        for slot, (_, stream) in enumerate(kept):
            self.place(stream, slot)

    def send(self, frames: bytes, start: int, stop: int) -> None:
        """Send the frames to the slots from ``start`` to ``stop``; a stream that does not take all falls behind."""
        for stream, sent in self._not_taken(frames, start, stop):
            if sent < 0:
                self.queue(stream, frames)
            else:
                stream.fall_behind(frames, sent)

    def queue(self, stream: AnyStream, frames: bytes) -> None:
        """Queue frames for a stream that is behind."""
        stream.enqueue(frames)

    def offer(self, frames: bytes, start: int, stop: int) -> int:
        """Send frames that may be dropped, and return to how many streams they were not sent, for they are behind."""
        dropped = 0
        for stream, sent in self._not_taken(frames, start, stop):
            if sent > 0:
                stream.fall_behind(frames, sent)
            elif sent == 0 or not stream.offer(frames):
                dropped += 1
        return dropped

    def _not_taken(self, frames: bytes, start: int, stop: int) -> Iterator[tuple[AnyStream, int]]:
        """Send the frames, and yield the streams that have not taken all, each with how many bytes it has.

        -1 says that it is behind, and was not sent any. One whose connection has ended is closed.
        """
        for place, sent in self._sender.send(self.sockets[start:stop], frames):
            slot = start + place
            stream = self.streams[slot]
            if stream is None:
                continue
            if self.sockets[slot] == NONE:
                yield stream, -1
            elif sent >= 0 or sent in _NOT_NOW:
                yield stream, max(0, sent)
            else:
                stream.close()
