"""The last events of the log in memory, so that clients that resume soon cause no reads from disk."""

from __future__ import annotations

from collections import deque
from itertools import islice

from sse_app.core.channels import ChannelName
from sse_app.core.events import Event
from sse_app.core.sse import encode_event

MAX_ANSWERS = 64
EVENT_OVERHEAD_BYTES = 256
"""About how many bytes an event takes in memory besides its data."""

ANSWER_BYTES = 64 * 1024
"""About how many bytes a replay is given at a time: as much as a stalled client can keep in memory."""


class ReplayCache:
    """A ring of events without a gap between them, encoded when they are asked for.

    Args:
        epoch: the log's, for the events' ids.
        max_bytes: about how much data is kept.
    """

    def __init__(self, epoch: str, max_bytes: int) -> None:
        self._epoch = epoch.encode()
        self._max_bytes = max_bytes
        self._bytes = 0
        self._answers: dict[tuple[int, int, frozenset[ChannelName]], tuple[bytes, int]] = {}
        self._ring: deque[Event] = deque()

    def add(self, events: list[Event]) -> None:
        """Add events that follow the last one."""
        self._answers.clear()  # the next replay goes up to a later event
        self._ring.extend(events)
        self._bytes += sum([len(event.data) for event in events]) + EVENT_OVERHEAD_BYTES * len(events)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._ring.popleft().data) + EVENT_OVERHEAD_BYTES

    def encode(self, event: Event) -> bytes:
        """Return an event of the log in the event stream format."""
        id = b"%b-%d" % (self._epoch, event.seq)
        return encode_event(id, event.type.encode(), event.data, event.retry)

    def between(self, after: int, until: int, channels: frozenset[ChannelName]) -> tuple[bytes, int] | None:
        """Return the channels' first events with ``after < seq <= until``, and the ``seq`` that the next ones follow.

        About `ANSWER_BYTES` at a time. None where the ring begins later. Clients that lost their connections
        together ask for the same, so the last answers are kept.
        """
        if not self._ring or self._ring[0].seq > after + 1:
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
        for event in islice(self._ring, after + 1 - self._ring[0].seq, None):
            if event.seq > until:
                break
            if event.channel in channels:
                encoded = self.encode(event)
                found.append(encoded)
                size += len(encoded)
                if size >= ANSWER_BYTES:
                    return b"".join(found), event.seq
        return b"".join(found), until
