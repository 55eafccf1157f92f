"""The last events of the log in memory, so that clients that resume soon cause no reads from disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice

from sse_app.core.events import TEXT, Event, held_bytes
from sse_app.core.selection import Interest
from sse_app.core.sse import encode_event, encode_text_event
from sse_app.eventlog.base import Page

MAX_ANSWERS = 64
"""How many replays are kept, until the next event."""

ANSWER_BYTES = 64 * 1024
"""About how many bytes a replay is given at a time: as much as a stalled client can keep in memory."""

MAX_ANSWERS_BYTES = 4 * 1024 * 1024
"""How many bytes the replays that are kept may have; a single event may have a million."""


class ReplayCache:
    """A ring of events without a gap between them, encoded when they are asked for.

    Args:
        epoch: the log's, for the events' ids.
        max_bytes: about how much memory the events may take.
    """

    def __init__(self, epoch: str, max_bytes: int) -> None:
        self.epoch = epoch
        self._encoded_epoch = epoch.encode()
        self._max_bytes = max_bytes
        self._bytes = 0
        self._answers: dict[tuple[int, int, Interest], tuple[bytes, int]] = {}
        self._answers_bytes = 0
        self._ring: deque[Event] = deque()

    def add(self, events: list[Event]) -> None:
        """Add events that follow the last one; where numbers are left out, the ring begins anew after them."""
        if self._answers:
            self._forget_answers()  # the next replay goes up to a later event
        before = self._ring[-1].seq if self._ring else events[0].seq - 1
        if events[-1].seq != before + len(events):
            self._ring.clear()
            self._bytes = 0
            last = events[-1].seq
            events = [
                event for place, event in enumerate(events, 1 - len(events)) if event.seq == last + place
            ]
        self._ring.extend(events)
        for event in events:
            self._bytes += held_bytes(event)
        while self._bytes > self._max_bytes:
            self._bytes -= held_bytes(self._ring.popleft())

    def encode(self, event: Event) -> bytes:
        """Return an event of the log in the event stream format."""
        id = b"%b-%d" % (self._encoded_epoch, event.seq)
        encode = encode_text_event if event.flags & TEXT else encode_event
        return encode(id, event.type.encode(), event.data, event.retry)

    def between(
        self, after: int, until: int, interest: Interest, floors: Mapping[str, int]
    ) -> tuple[bytes, int] | None:
        """Return the first events with ``after < seq <= until`` of an interest, and the ``seq`` that the next follow.

        About `ANSWER_BYTES` at a time. None where the ring begins later. Clients that lost their connections
        together ask for the same, so the last answers are kept.
        """
        if not self._ring or self._ring[0].seq > after + 1:
            return None
        if floors:
            return self._join(after, until, interest, floors)
        key = (after, until, interest)
        answer = self._answers.get(key)
        if answer is None:
            answer = self._join(after, until, interest, floors)
            if len(self._answers) >= MAX_ANSWERS or self._answers_bytes + len(answer[0]) > MAX_ANSWERS_BYTES:
                self._forget_answers()
            self._answers[key] = answer
            self._answers_bytes += len(answer[0])
        return answer

    def page(self, after: int, until: int, interest: Interest, floors: Mapping[str, int]) -> Page | None:
        """Return the first events with ``after < seq <= until`` of an interest; None where the ring begins later."""
        if not self._ring or self._ring[0].seq > after + 1:
            return None
        taken: list[Event] = []
        size = 0
        for event in self._select(after, until, interest, floors):
            if size >= ANSWER_BYTES:
                return Page(taken, True, False)
            taken.append(event)
            size += held_bytes(event)
        return Page(taken, False, False)

    def _forget_answers(self) -> None:
        self._answers.clear()
        self._answers_bytes = 0

    def _join(
        self, after: int, until: int, interest: Interest, floors: Mapping[str, int]
    ) -> tuple[bytes, int]:
        found: list[bytes] = []
        size = 0
        for event in self._select(after, until, interest, floors):
            encoded = self.encode(event)
            found.append(encoded)
            size += len(encoded)
            if size >= ANSWER_BYTES:
                return b"".join(found), event.seq
        return b"".join(found), until

    def _select(
        self, after: int, until: int, interest: Interest, floors: Mapping[str, int]
    ) -> Iterator[Event]:
        """Yield the events with ``after < seq <= until`` of an interest; the ring begins early enough."""
        selection = interest.selection
        covers = selection.names.__contains__ if not selection.patterns else selection.covers
        for event in islice(self._ring, after + 1 - self._ring[0].seq, None):
            if event.seq > until:
                return
            if not covers(event.channel) or not interest.takes(event.type):
                continue
            if not floors or event.seq > selection.floor(floors, event.channel):
                yield event
