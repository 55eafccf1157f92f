"""When streams that ask for few events a second are written: each has a turn when its last one is long enough ago."""

from __future__ import annotations

import asyncio

from sse_app.streams.hub import Hub
from sse_app.streams.stream import Stream


class Turns:
    """The turns of streams that have a rate. Between two turns a stream is parked, and not given what is fanned out.

    Args:
        hub: has the events.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._next: dict[Stream, float] = {}
        """When the next turn of each may begin, by the event loop's clock."""
        self._timers: dict[Stream, asyncio.TimerHandle] = {}
        self._idle: set[Stream] = set()
        """Streams whose turn it is, and for which nothing has come."""
        self._watching: asyncio.Task[None] | None = None

    def begin(self, stream: Stream) -> bool:
        """Return whether it is the turn of a stream, which begins then."""
        now = asyncio.get_running_loop().time()
        if now < self._next.get(stream, 0.0):
            return False
        assert stream.interest.rate is not None
        self._next[stream] = now + 1 / stream.interest.rate
        return True

    def rest(self, stream: Stream) -> None:
        """Have a parked stream written again when its next turn has come and there is something to write."""
        if stream not in self._timers and stream not in self._idle:
            loop = asyncio.get_running_loop()
            self._timers[stream] = loop.call_at(self._next[stream], self._due, stream)

    def forget(self, stream: Stream) -> None:
        """Forget a stream that has ended."""
        self._next.pop(stream, None)
        self._idle.discard(stream)
        if (timer := self._timers.pop(stream, None)) is not None:
            timer.cancel()

    def _due(self, stream: Stream) -> None:
        del self._timers[stream]
        if not stream.parked:  # it rests again when it has been written
            return
        if self._has_something(stream):
            stream.resume()
            return
        self._idle.add(stream)
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    def _has_something(self, stream: Stream) -> bool:
        assert stream.replay is not None
        return stream.replay.after < self._hub.head.seq or self._hub.is_finished(stream)

    async def _watch(self) -> None:
        """Resume the idle streams as soon as something has come."""
        try:
            while self._idle:
                if not any(map(self._has_something, self._idle)):  # as there may be since this task was made
                    await self._hub.grown()
                idle, self._idle = self._idle, set()
                for stream in idle:
                    if stream.parked:
                        stream.resume()
        finally:
            self._watching = None
