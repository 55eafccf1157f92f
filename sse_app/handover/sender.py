"""The process that hands over: brings everything to a standstill, and says what there is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from sse_app.core.channels import ChannelName
from sse_app.core.framing import FRAMINGS
from sse_app.handover.message import IDLE, STREAM, Parcel, State, StreamState
from sse_app.http.server import HTTPServer
from sse_app.node import Node
from sse_app.streams.stream import Stream

CALM_TIMEOUT = 2.0
"""How long requests that are being answered may take to end, in seconds; those that do not are cut off."""

ARRIVAL_TIMEOUT = 0.25
"""How long requests that are still being sent may take to arrive: a slow client would keep all others waiting."""

REST_TIMEOUT = 0.5
"""How long a moment between two fan-outs is waited for, in seconds."""

CALM_TURNS = 8
"""For so many turns of the event loop nothing must be under way: what was read may take a few to be seen."""

log = logging.getLogger(__name__)


class Copied:
    """Streams that were copied ahead, each with its place among them.

    Args:
        streams: in the order in which they came.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self.places = {stream: place for place, stream in enumerate(streams)}
        self._listeners = [stream.subscriber for stream in streams]

    def renewed(self) -> set[Stream]:
        """Return those that live on another token now."""
        pairs = zip(self.places, self._listeners, strict=True)
        return {stream for stream, subscriber in pairs if stream.subscriber is not subscriber}


class Giving:
    """Holds a server still, so that its connections can go on in another process.

    Args:
        node: whose streams.
        server: whose connections.
    """

    def __init__(self, node: Node, server: HTTPServer) -> None:
        self._node = node
        self._server = server

    async def hold(self) -> None:
        """Let what is under way end, and begin nothing: what `everything` then says stays true."""
        hub = self._node.hub
        # A fan-out to thousands takes a while; as long as it lasts, the server may as well go on.
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_TIMEOUT):
                await hub.settled()
        log.info("holding", extra={"streams": len(hub.streams)})
        self._server.pause()
        begun = time.monotonic()
        turns = 0
        while turns < CALM_TURNS:
            answered, arriving = self._server.under_way
            passed = time.monotonic() - begun
            if passed > CALM_TIMEOUT:
                break
            calm = not (answered or self._node.opening.count or (arriving and passed < ARRIVAL_TIMEOUT))
            turns = turns + 1 if calm else 0
            await asyncio.sleep(0 if calm else 0.001)
        await hub.settled()
        self._node.keepalive.stop()
        await self._node.enforcement.stop()
        log.info("held", extra={"seconds": round(time.monotonic() - begun, 3)})

    def forget_disconnects(self) -> None:
        """Leave it to the next process to notice when clients go: to let go of all sockets takes a while."""
        self._node.hub.disconnects.suspend()

    @property
    def publishing(self) -> bool:
        """Whether an event may yet be written to the log, although the server is held."""
        return self._node.publisher.appending > 0

    def let_go_on(self) -> None:
        """Take up everything again: there is no successor after all."""
        self._node.hub.disconnects.resume()
        self._node.keepalive.start()
        self._node.enforcement.start()
        self._server.resume()

    def quiet_streams(self, ahead: float) -> tuple[Copied, State, list[int]]:
        """Return the streams that have nothing waiting, and their descriptors; the server may go on meanwhile.

        Args:
            ahead: how many seconds their tokens must still be in force: one that expires may have to be ended
                before the handover.
        """
        hub = self._node.hub
        soon = time.time() + ahead
        quiet = [
            stream
            for stream in hub.streams - hub.laggards
            if _goes_on(stream) and stream.replay is None and stream.subscriber.lease.expires_at > soon
        ]
        return Copied(quiet), *self._state([(stream, -1) for stream in quiet], [])

    def everything(self, copied: Copied) -> tuple[State, list[int]]:
        """Return streams and idle connections; only while the server is held.

        Args:
            copied: the streams that the receiver has as quiet ones; of these only what has changed is said.
        """
        hub = self._node.hub
        places = copied.places
        going_on = {stream for stream in hub.laggards if _goes_on(stream)}
        gone = (places.keys() - hub.streams) | ((hub.laggards - going_on) & places.keys())
        new = {stream for stream in hub.streams - places.keys() - hub.laggards if _goes_on(stream)}
        changed = going_on | new | (copied.renewed() - gone)
        state, descriptors = self._state(
            [(stream, places.get(stream, -1)) for stream in changed], [places[stream] for stream in gone]
        )
        parcels = list(state.parcels)
        for descriptor, half_read in self._server.idle():
            parcels.append(Parcel(IDLE, "", half_read))
            descriptors.append(descriptor)
        return state._replace(parcels=parcels), descriptors

    def _state(self, streams: Sequence[tuple[Stream, int]], gone: Sequence[int]) -> tuple[State, list[int]]:
        """Return what is said of streams, each with its place among those that the receiver has, or -1."""
        hub = self._node.hub
        laggards = hub.laggards
        channels: dict[tuple[ChannelName, ...], int] = {}
        quiet = {framing: Parcel(STREAM, framing.name, b"") for framing in FRAMINGS.values()}
        states, parcels, descriptors = [], [], []
        for stream, place in streams:
            assert stream.connection is not None
            listened = channels.setdefault(stream.channels, len(channels))
            states.append(
                StreamState(
                    stream.number, stream.subscriber, listened, stream.opened_at, stream.retry, stream.replay
                )
            )
            parcel = quiet[stream.framing]
            if stream in laggards or place >= 0:
                parcel = parcel._replace(data=stream.unsent(), place=place)
            if place < 0:
                descriptors.append(stream.connection.descriptor)
            parcels.append(parcel)
        head = hub.head
        return State(head.epoch, head.seq, list(channels), states, parcels, gone), descriptors


def _goes_on(stream: Stream) -> bool:
    """Return whether a stream has a future."""
    return stream.connection is not None and not stream.connection.closed and stream.ending is None
