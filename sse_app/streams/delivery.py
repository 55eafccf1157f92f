"""Finds the clients that have vanished, and those that do not read, by what the kernel knows of data under way.

The kernel's own timer for that, ``TCP_USER_TIMEOUT``, also runs while a client that lives has closed its window
(tcp(7)).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import NamedTuple

from sse_app.streams.stream import Stream


class _Noted(NamedTuple):
    acknowledged: int
    since: float


class DeliveryWatch:
    """Watches the streams whose clients have not acknowledged all that was sent.

    Args:
        unanswered: for how many seconds a client may leave what was sent to it without any acknowledgement.
        unread: for how many seconds a client may keep its window closed: it acknowledges, and reads nothing.
    """

    def __init__(self, unanswered: float, unread: float) -> None:
        self._unanswered = unanswered
        self._unread = unread
        # In the order in which they were noted, so only the oldest are looked at again.
        self._in_flight: dict[Stream, _Noted] = {}
        self._closed_windows: dict[Stream, _Noted] = {}

    def look(self, streams: Iterable[Stream], now: float) -> None:
        """Note those of the streams whose clients have not acknowledged all; once a ping interval for each.

        Args:
            streams: that were sent a ping some time ago.
            now: the time (`time.monotonic`).
        """
        for stream in streams:
            self._note(stream, now)

    def dead(self, now: float) -> Iterator[tuple[Stream, str | None]]:
        """Yield the streams to close, each with the reason: None where the client has vanished.

        Args:
            now: the time (`time.monotonic`).
        """
        for noted, longest, reason in (
            (self._in_flight, self._unanswered, None),
            (self._closed_windows, self._unread, "stalled"),
        ):
            for stream in _noted_until(noted, now - longest):
                before = noted[stream]
                self._note(stream, now)
                if noted.get(stream) is before:  # nothing has been acknowledged since
                    del noted[stream]
                    yield stream, reason

    def forget(self, stream: Stream) -> None:
        """Forget a stream."""
        self._in_flight.pop(stream, None)
        self._closed_windows.pop(stream, None)

    def _note(self, stream: Stream, now: float) -> None:
        state = stream.connection.unacknowledged() if stream.connection is not None else None
        if state is None:
            self.forget(stream)
            return
        noted, other = self._in_flight, self._closed_windows
        if not state.in_flight:
            noted, other = other, noted
        other.pop(stream, None)
        before = noted.get(stream)
        answered = state.in_flight and before is not None and state.silent_for < now - before.since
        if before is None or before.acknowledged != state.acknowledged or answered:
            noted.pop(stream, None)
            noted[stream] = _Noted(state.acknowledged, now)


def _noted_until(noted: dict[Stream, _Noted], until: float) -> list[Stream]:
    return [stream for stream, _ in takewhile(lambda item: item[1].since <= until, noted.items())]
