"""The streams on the same channels, as one flat table that a fan-out walks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from sse_app.core.channels import ChannelName
from sse_app.core.framing import Framing


class Member(Protocol):
    """What a group knows of a stream."""

    group: FanoutGroup[Any] | None
    slot: int

    def enqueue(self, frames: bytes) -> int:
        """Queue frames, and return how many bytes that took: all of them."""

    def fall_behind(self, frames: bytes, sent: int) -> None:
        """Queue what the socket did not accept of the frames, and take no bytes directly until that is written."""

    def close(self) -> None:
        """Close the connection."""


Stream = TypeVar("Stream", bound=Member)


def _discard(frames: bytes) -> int:
    """Take the bytes for a stream that was removed."""
    return len(frames)


class FanoutGroup(Generic[Stream]):
    """A table with a slot for each stream: the function that takes its bytes.

    That is the bare ``socket.send`` of a stream that is parked, and `Member.enqueue` of one that is behind, so
    the hot loop checks nothing and touches little memory: at 10,000 streams its cost is cache misses.
    The streams share their channels and their framing, so they share the bytes also where events of several
    channels go out together, in log order.

    Slots do not move during a fan-out: a stream that is removed leaves a hole, and a new one is put at the end.

    Args:
        channels: those of each stream.
        framing: that of each stream.
    """

    __slots__ = ("channels", "framing", "holes", "sends", "streams")

    def __init__(self, channels: frozenset[ChannelName], framing: Framing) -> None:
        self.channels = channels
        self.framing = framing
        self.sends: list[Callable[[bytes], int]] = []
        self.streams: list[Stream | None] = []
        self.holes = 0

    def __len__(self) -> int:
        """The number of streams."""
        return len(self.sends) - self.holes

    def add(self, stream: Stream) -> None:
        """Give the stream a slot; it starts as one that is behind."""
        stream.group = self
        stream.slot = len(self.sends)
        self.sends.append(stream.enqueue)
        self.streams.append(stream)

    def remove(self, stream: Stream) -> None:
        """Take the stream out."""
        self.sends[stream.slot] = _discard
        self.streams[stream.slot] = None
        self.holes += 1
        stream.group = None
        stream.slot = -1

    def close_holes(self) -> None:
        """Move the streams together, once holes are a quarter of the table; not during a fan-out."""
        if self.holes * 4 <= len(self.sends):
            return
        kept = [(send, stream) for send, stream in zip(self.sends, self.streams, strict=True) if stream]
        self.sends = [send for send, _ in kept]
        self.streams = [stream for _, stream in kept]
        self.holes = 0
        for slot, (_, stream) in enumerate(kept):
            stream.slot = slot

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
