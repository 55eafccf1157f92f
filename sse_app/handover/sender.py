"""The process that hands over: it pauses at a position in the log, and describes its connections."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import compress
from operator import attrgetter, is_not

from sse_app.core.counters import InProgress
from sse_app.core.framing import FRAMINGS
from sse_app.handover.message import IDLE, STREAM, PassedDescriptor, State, StreamState
from sse_app.http.server import HTTPServer
from sse_app.streams.enforcement import Enforcement
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.publisher import Publisher
from sse_app.streams.stream import Stream

REQUESTS_TIMEOUT = 2.0
"""How long requests that are being answered may take to end, in seconds; those that do not are cut off."""

APPENDS_TIMEOUT = 6.0
"""How long those may take that wait for the event log, in seconds: a disk may be slow, and who waits for the log's lock
is refused after five. Their publishers would not know whether their events are stored."""

UPLOADS_TIMEOUT = 0.25
"""How long clients may take to send the rest of their requests, in seconds: one slow client must not delay all."""

FANOUT_TIMEOUT = 0.5
"""How long the sender waits for the end of the fan-outs under way, in seconds, before it pauses the server."""

QUIET_TURNS = 8
"""For how many turns of the event loop nothing may be under way: a request that was read may take a few to begin."""

log = logging.getLogger(__name__)


class Copied:
    """Streams that were copied before the pause, each with its place among them.

    Args:
        streams: in the order in which they came.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.places = {stream: place for place, stream in enumerate(streams)}
        self._subscribers = [stream.subscriber for stream in streams]

    def renewed(self) -> set[Stream]:
        """Return those that live on another token now."""
        now = map(attrgetter("subscriber"), self.places)  # in C, as the server stands still meanwhile
        return set(compress(self.places, map(is_not, now, self._subscribers)))


class HandoverSender:
    """Pauses a server, so that another process can adopt its connections.

    Args:
        hub: whose streams are handed over.
        keepalive: is stopped meanwhile.
        enforcement: is stopped meanwhile.
        publisher: whose appends to the log end first.
        opening: the streams that are being opened.
        server: whose connections are handed over.
    """

    def __init__(
        self,
        hub: Hub,
        keepalive: Keepalive,
        enforcement: Enforcement,
        publisher: Publisher,
        opening: InProgress,
        server: HTTPServer,
    ) -> None:
        self._hub = hub
        self._keepalive = keepalive
        self._enforcement = enforcement
        self._publisher = publisher
        self._opening = opening
        self._server = server

    async def pause(self) -> None:
        """Finish the requests under way, begin none, and stop the hub at a position in the log.

        What `everything` then returns stays true, also while other processes append: what they append after the
        position is for the next process to deliver.
        """
        hub = self._hub
        # A fan-out to thousands of streams takes a while; until it ends, the server still serves.
        with suppress(TimeoutError):
            async with asyncio.timeout(FANOUT_TIMEOUT):
                await hub.settled()
        log.info("holding", extra={"streams": len(hub.streams)})
        self._server.pause()
        begun = time.monotonic()
        turns = 0
        while turns < QUIET_TURNS:
            answered, arriving = self._server.under_way
            passed = time.monotonic() - begun
            if passed > (APPENDS_TIMEOUT if self.publishing else REQUESTS_TIMEOUT):
                break
            quiet = not (answered or self._opening.count or (arriving and passed < UPLOADS_TIMEOUT))
            turns = turns + 1 if quiet else 0
            await asyncio.sleep(0 if quiet else 0.001)
        await hub.pause()
        self._keepalive.stop()
        await self._enforcement.stop()
        log.info("held", extra={"seconds": round(time.monotonic() - begun, 3)})

    def stop_watching_disconnects(self) -> None:
        """Stop noticing when clients go, ahead of the pause: for many sockets that takes a while."""
        self._hub.disconnects.suspend()

    @property
    def publishing(self) -> bool:
        """Whether an append to the log is still under way, although the server is paused."""
        return self._publisher.appending > 0

    def resume(self) -> None:
        """Serve again, because no other process has taken over."""
        self._hub.disconnects.resume()
        self._keepalive.start()
        self._enforcement.start()
        self._hub.resume()
        self._server.resume()

    def quiet_streams(self, min_lifetime: float) -> tuple[Copied, State, list[int]]:
        """Return the streams that have nothing waiting, and their descriptors; the server may serve meanwhile.

        Args:
            min_lifetime: how many seconds their tokens must still be in force: a stream may have to be ended
                before the handover.
        """
        hub = self._hub
        expired_soon, over_soon = time.time() + min_lifetime, time.monotonic() + min_lifetime
        quiet = [
            stream
            for stream in hub.streams - hub.laggards
            if _continues(stream)
            and stream.replay is None
            and stream.interest.rate is None  # until its turn comes it has nothing waiting either
            and stream.subscriber.lease.expires_at > expired_soon
            and stream.deadline > over_soon
        ]
        return Copied(quiet), *self._state([(stream, -1) for stream in quiet], [])

    def everything(self, copied: Copied) -> tuple[State, list[int]]:
        """Return streams and idle connections; only while the server is paused.

        Args:
            copied: the streams that the receiver has as quiet ones; of these only changes are described.
        """
        hub = self._hub
        places = copied.places
        going_on = {stream for stream in hub.laggards if _continues(stream)}
        gone = (hub.laggards - going_on) & places.keys()
        if not hub.streams.issuperset(places):
            gone |= places.keys() - hub.streams
        new = {stream for stream in hub.streams.difference(places, hub.laggards) if _continues(stream)}
        changed = going_on | new | (copied.renewed() - gone)
        state, descriptors = self._state(
            [(stream, places.get(stream, -1)) for stream in changed], [places[stream] for stream in gone]
        )
        passed = list(state.passed)
        for descriptor, half_read in self._server.idle():
            passed.append(PassedDescriptor(IDLE, "", half_read))
            descriptors.append(descriptor)
        return state._replace(passed=passed), descriptors

    def _state(self, streams: Sequence[tuple[Stream, int]], gone: Sequence[int]) -> tuple[State, list[int]]:
        """Return the state of streams, each with its place among those that the receiver has, or -1."""
        hub = self._hub
        laggards = hub.laggards
        channels: dict[tuple[str, ...], int] = {}
        quiet = {framing: PassedDescriptor(STREAM, framing.name, b"") for framing in FRAMINGS.values()}
        states, passed, descriptors = [], [], []
        for stream, place in streams:
            assert stream.connection is not None
            listened = channels.setdefault(stream.channels, len(channels))
            states.append(
                StreamState(
                    stream.number,
                    stream.subscriber,
                    listened,
                    stream.opened_at,
                    stream.retry,
                    stream.replay,
                    stream.begun_at,
                    stream.deadline,
                    stream.interest.types,
                    stream.interest.rate,
                    stream.ungranted,
                )
            )
            about = quiet[stream.framing]
            if stream in laggards or place >= 0:
                about = about._replace(data=stream.unsent(), place=place)
            if place < 0:
                descriptors.append(stream.connection.descriptor)
            passed.append(about)
        head = hub.head
        return State(head.epoch, head.seq, list(channels), states, passed, gone), descriptors


def _continues(stream: Stream) -> bool:
    """Return whether the next process can adopt a stream."""
    return stream.connection is not None and not stream.connection.closed and stream.ending is None
