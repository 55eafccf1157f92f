"""The streams that are sent the same events, as one flat table that a fan-out walks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sse_app.core.framing import Framing
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
