"""The last events of the log in their wire form, so that clients who come right back do not read the disk."""

from __future__ import annotations

from collections import deque
from itertools import islice

from sse_app.channels import ChannelName
from sse_app.events import Event
from sse_app.wire import encode_event

MAX_ANSWERS = 64
PIECE_BYTES = 64 * 1024
"""How much a client who comes back is sent at a time: what a stalled one can hold on to."""


class RecentEvents:
    """A ring of encoded events without a gap between them.

    Args:
        epoch: the log's, for the events' ids.
        max_bytes: about how much is kept.
    """

    def __init__(self, epoch: str, max_bytes: int) -> None:
        self._epoch = epoch.encode()
        self._max_bytes = max_bytes
        self._bytes = 0
        self._answers: dict[tuple[int, int, frozenset[ChannelName]], tuple[bytes, int]] = {}
        self._ring: deque[tuple[int, ChannelName, bytes]] = deque()

    def add(self, event: Event) -> bytes:
        """Encode an event that follows the last one, keep it, and return it."""
        self._answers.clear()  # nobody will ask for the past as it was
        encoded = self.encode(event)
        self._ring.append((event.seq, event.channel, encoded))
        self._bytes += len(encoded)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._ring.popleft()[2])
        return encoded

    def encode(self, event: Event) -> bytes:
        """Return an event of the log in the event stream format."""
        id = b"%b-%d" % (self._epoch, event.seq)
        return encode_event(id, event.type.encode(), event.data, event.retry)

    def between(self, after: int, until: int, channels: frozenset[ChannelName]) -> tuple[bytes, int] | None:
        """Return the channels' first events with ``after < seq <= until``, and the ``seq`` to go on from.

        About `PIECE_BYTES` at a time. None where the ring begins later. Clients who lost their connections
        together ask for the same, so the last answers are kept.
        """
        if not self._ring or self._ring[0][0] > after + 1:
            return None
        key = (after, until, channels)
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= MAX_ANSWERS:
                self._answers.clear()
            answer = self._answers[key] = self._join(after, until, channels)
        return answer

    def _join(self, after: int, until: int, channels: frozenset[ChannelName]) -> tuple[bytes, int]:
        found: list[bytes] = []
        size = 0
        for seq, channel, encoded in islice(self._ring, after + 1 - self._ring[0][0], None):
            if seq > until:
                break
            if channel in channels:
                found.append(encoded)
                size += len(encoded)
                if size >= PIECE_BYTES:
                    return b"".join(found), seq
        return b"".join(found), until
