"""Groups of streams that are sent the same events: each is a flat table that a fan-out walks, found by its channels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Generic, Protocol, TypeVar

from sse_app.core.channels import ChannelName, is_internal
from sse_app.core.framing import Framing
from sse_app.core.pattern_index import PatternIndex
from sse_app.core.selection import Interest
from sse_app.streams.bulk_send import BulkSender
from sse_app.streams.send_table import Member, SendTable


class Subscribed(Member, Protocol):
    """What a group knows of a stream."""

    group: FanoutGroup[Any] | None
    slot: int


AnyStream = TypeVar("AnyStream", bound=Subscribed)


class FanoutGroup(SendTable[AnyStream]):
    """The streams that are sent the same events.

    They share the bytes also where events of several channels go out together, in log order.

    Streams that have a rate are not sent them: they fall out, and read them when it is their turn.

    Args:
        interest: that of each stream.
        framing: that of each stream.
        sender: sends the bytes.
        fall_out: called with a stream that is behind, in place of queueing events for it.
    """

    __slots__ = ("fall_out", "interest")

    def __init__(
        self,
        interest: Interest,
        framing: Framing,
        sender: BulkSender,
        fall_out: Callable[[AnyStream], None] | None = None,
    ) -> None:
        super().__init__(framing, sender)
        self.interest = interest
        self.fall_out = fall_out

    def send(self, frames: bytes, start: int, stop: int) -> None:
        """Send the frames to the slots from ``start`` to ``stop``, or have their streams fall out."""
        if self.interest.rate is None or self.fall_out is None:
            super().send(frames, start, stop)
        else:
            for stream in filter(None, self.streams[start:stop]):
                self.fall_out(stream)

    def queue(self, stream: AnyStream, frames: bytes) -> None:
        """Queue frames for a stream that is behind, or have it fall out."""
        if self.fall_out is None:
            stream.enqueue(frames)
        else:
            self.fall_out(stream)

    def place(self, stream: AnyStream, slot: int) -> None:
        """Tell a stream its slot."""
        stream.group = self if slot >= 0 else None
        stream.slot = slot


class FanoutGroups(Generic[AnyStream]):
    """The groups, found by what they are sent."""

    __slots__ = ("_groups", "_of_channel", "_of_pattern")

    def __init__(self) -> None:
        self._groups: dict[tuple[Interest, Framing], FanoutGroup[AnyStream]] = {}
        self._of_channel: dict[ChannelName, dict[FanoutGroup[AnyStream], None]] = {}
        self._of_pattern: PatternIndex[FanoutGroup[AnyStream]] = PatternIndex()

    def get(self, interest: Interest, framing: Framing) -> FanoutGroup[AnyStream] | None:
        """Return the group of streams with this interest and framing, or None where there are no such streams."""
        return self._groups.get((interest, framing))

    def add(self, group: FanoutGroup[AnyStream]) -> None:
        """Add a group; there is none yet for the same interest and framing."""
        self._groups[group.interest, group.framing] = group
        selection = group.interest.selection
        for channel in selection.names:
            self._of_channel.setdefault(channel, {})[group] = None
        for pattern in selection.patterns:
            self._of_pattern.add(pattern.text, group)

    def remove(self, group: FanoutGroup[AnyStream]) -> None:
        """Remove a group, whose last stream has left it."""
        del self._groups[group.interest, group.framing]
        selection = group.interest.selection
        for channel in selection.names:
            of_channel = self._of_channel[channel]
            del of_channel[group]
            if not of_channel:
                del self._of_channel[channel]
        for pattern in selection.patterns:
            self._of_pattern.discard(pattern.text, group)

    def all(self) -> Collection[FanoutGroup[AnyStream]]:
        """Return all groups."""
        return self._groups.values()

    def naming(self, channel: ChannelName) -> Collection[FanoutGroup[AnyStream]]:
        """Return the groups whose streams have asked for a channel by its name."""
        return self._of_channel.get(channel, ())

    def on(self, channel: ChannelName) -> Collection[FanoutGroup[AnyStream]]:
        """Return the groups whose streams have asked for a channel, by its name or by a pattern, each once."""
        by_name = self._of_channel.get(channel, {})
        if not self._of_pattern or is_internal(channel):
            return by_name
        return by_name | dict.fromkeys(self._of_pattern.matching(channel))
