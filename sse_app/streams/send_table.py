"""A flat table of streams that the same bytes are sent to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from sse_app.core.framing import Framing


class Member(Protocol):
    """What a table knows of a stream."""

    @property
    def sender(self) -> Callable[[bytes], int]:
        """What takes its bytes just now."""

    def fall_behind(self, frames: bytes, sent: int) -> None:
        """Queue what the socket did not accept of the frames, and take no bytes directly until that is written."""

    def close(self) -> None:
        """Close the connection."""


AnyStream = TypeVar("AnyStream", bound=Member)


def _discard(frames: bytes) -> int:
    """Take the bytes for a stream that was removed."""
    return len(frames)


class SendTable(Generic[AnyStream]):
    """A table with a slot for each stream: the function that takes its bytes.

    That is the bare ``socket.send`` of a stream that is parked, and `Stream.enqueue` of one that is behind, so
    the hot loop checks nothing and touches little memory: at 10,000 streams its cost is cache misses.
    The streams share their framing, so they share the bytes.

    Slots do not move while the table is walked: a stream that is removed leaves a hole, and a new one is put at the
    end.

    Args:
        framing: that of each stream.
    """

    __slots__ = ("framing", "holes", "sends", "streams")

    def __init__(self, framing: Framing) -> None:
        self.framing = framing
        self.sends: list[Callable[[bytes], int]] = []
        self.streams: list[AnyStream | None] = []
        self.holes = 0

    def __len__(self) -> int:
        """The number of streams."""
        return len(self.sends) - self.holes

    def place(self, stream: AnyStream, slot: int) -> None:
        """Tell a stream its slot in this table; -1 where it has none any more."""
        raise NotImplementedError

    def add(self, stream: AnyStream) -> None:
        """Give the stream a slot."""
        self.place(stream, len(self.sends))
        self.sends.append(stream.sender)
        self.streams.append(stream)

    def remove(self, stream: AnyStream, slot: int) -> None:
        """Take the stream out of its slot."""
        self.sends[slot] = _discard
        self.streams[slot] = None
        self.holes += 1
        self.place(stream, -1)

    def close_holes(self) -> None:
        """Move the streams together, once holes are a quarter of the table; not while it is walked."""
        if self.holes * 4 <= len(self.sends):
            return
        kept = [(send, stream) for send, stream in zip(self.sends, self.streams, strict=True) if stream]
        self.sends = [send for send, _ in kept]
        self.streams = [stream for _, stream in kept]
        self.holes = 0
        for slot, (_, stream) in enumerate(kept):
            self.place(stream, slot)

    def send(self, frames: bytes, start: int, stop: int) -> None:
        """Send the frames to the slots from ``start`` to ``stop``; a stream that does not take all falls behind."""
        size = len(frames)
        short: list[tuple[int, int]] = []
        failed: list[int] = []
        slot = start
        for send in self.sends[start:stop]:
            try:
                if (sent := send(frames)) != size:
                    short.append((slot, sent))
            except BlockingIOError:
                short.append((slot, 0))
            except OSError:
                failed.append(slot)
            slot += 1
        for slot, sent in short:
            if (stream := self.streams[slot]) is not None:
                stream.fall_behind(frames, sent)
        for slot in failed:
            if (stream := self.streams[slot]) is not None:
                stream.close()
