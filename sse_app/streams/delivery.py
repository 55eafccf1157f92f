"""Finds the clients that have vanished, and those that do not read, by what the kernel knows of data under way.

The kernel's own timer for that, ``TCP_USER_TIMEOUT``, also runs while a client that lives has closed its window
(tcp(7)).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import NamedTuple

from sse_app.streams.stream import Stream
from sse_app.streams.tcp_info import Unacknowledged

_TOLERANCE = 1 / 16
"""By what share of the time since a ping a client's silence must be longer: it may have answered the ping at once,
and the kernel counts in jiffies."""


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

    @property
    def watches(self) -> bool:
        """Whether there are such streams."""
        return bool(self._in_flight or self._closed_windows)

    def look(self, stream: Stream, pinged_at: float, now: float) -> bool:
        """Note a stream whose client has not acknowledged all; once a ping interval for each.

        Returns whether the client has acknowledged nothing at all since its last ping, which was long ago: it has
        vanished.

        Args:
            stream: to look at.
            pinged_at: when it was sent its last ping (`time.monotonic`); the time now where it was sent none.
            now: the time.
        """
        state = stream.connection.unacknowledged() if stream.connection is not None else None
        if state is None:
            self.forget(stream)
            return False
        since_ping = now - pinged_at
        if (
            state.in_flight
            and state.silent_for > since_ping * (1 + _TOLERANCE)
            and since_ping >= self._unanswered
            and stream.replay is None  # else the ping may have waited here
        ):
            return True
        self._note(stream, state, now)
        return False

    def dead(self, now: float) -> Iterator[tuple[Stream, str | None]]:
        """Yield the streams to close, each with the reason: None where the client has vanished.

        Args:
            now: the time (`time.monotonic`).
        """
        if not self.watches:  # mostly so, several times a second
            return
        for noted, longest, reason in (
            (self._in_flight, self._unanswered, None),
            (self._closed_windows, self._unread, "stalled"),
        ):
            for stream in _noted_until(noted, now - longest):
                before = noted[stream]
                state = stream.connection.unacknowledged() if stream.connection is not None else None
                if state is None:
                    self.forget(stream)
                    continue
                self._note(stream, state, now)
                if noted.get(stream) is before:  # nothing has been acknowledged since
                    del noted[stream]
                    yield stream, reason

    def forget(self, stream: Stream) -> None:
        """Forget a stream."""
        self._in_flight.pop(stream, None)
        self._closed_windows.pop(stream, None)

    def _note(self, stream: Stream, state: Unacknowledged, now: float) -> None:
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
