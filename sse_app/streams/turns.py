"""When streams that ask for few events a second are written: each has a turn when its last one is long enough ago."""

from __future__ import annotations

import asyncio

from sse_app.streams.stream import Stream


class Turns:
    """The turns of streams that have a rate. Between two turns one that has not joined the present is parked."""

    def __init__(self) -> None:
        self._next: dict[Stream, float] = {}
        """When the next turn of each may begin, by the event loop's clock."""
        self._timers: dict[Stream, asyncio.TimerHandle] = {}

    def begin(self, stream: Stream) -> bool:
        """Return whether it is the turn of a stream, which begins then."""
        now = asyncio.get_running_loop().time()
        if now < self._next.get(stream, 0.0):
            return False
        assert stream.interest.rate is not None
        self._next[stream] = now + 1 / stream.interest.rate
        return True

    def rest(self, stream: Stream) -> None:
        """Have a parked stream written again when its next turn has come."""
        if stream not in self._timers:
            loop = asyncio.get_running_loop()
            self._timers[stream] = loop.call_at(self._next[stream], self._due, stream)

    def forget(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        self._next.pop(stream, None)
        if (timer := self._timers.pop(stream, None)) is not None:
            timer.cancel()

    def _due(self, stream: Stream) -> None:
        del self._timers[stream]
        if stream.parked:  # else it rests again when it has been written
            stream.resume()
