"""The last events of the log in their wire form, so that clients who come right back do not read the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from sse_app.channels import ChannelName
from sse_app.events import Event, EventId
from sse_app.wire import encode


class RecentEvents:
    """A ring of encoded events without a gap between them.

    Args:
        epoch: the log's, for the events' ids.
        max_bytes: about how much is kept.
    """

    def __init__(self, epoch: str, max_bytes: int) -> None:
        self._epoch = epoch
        self._max_bytes = max_bytes
        self._bytes = 0
        self._ring: deque[tuple[int, ChannelName, bytes]] = deque()

    def add(self, event: Event) -> bytes:
        """Encode an event that follows the last one, keep it, and return it."""
        encoded = self.encode(event)
        self._ring.append((event.seq, event.channel, encoded))
        self._bytes += len(encoded)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._ring.popleft()[2])
        return encoded

    def encode(self, event: Event) -> bytes:
        """Return an event of the log in the event stream format."""
        id = EventId(self._epoch, event.seq)
        return encode(event.data, event=event.type, id=str(id), retry=event.retry)

    def between(self, after: int, until: int, channels: Collection[ChannelName]) -> list[bytes] | None:
        """Return the channels' events with ``after < seq <= until``; None where the ring begins later."""
        if not self._ring or self._ring[0][0] > after + 1:
            return None
        found: list[bytes] = []
        for seq, channel, encoded in reversed(self._ring):
            if seq <= after:
                break
            if channel in channels and seq <= until:
                found.append(encoded)
        found.reverse()
        return found
