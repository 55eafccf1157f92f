"""The process that hands over: brings everything to a standstill, and says what there is."""

from __future__ import annotations

import asyncio
import logging
import time

from sse_app.handover.connections import HandoverServer
from sse_app.handover.state import IDLE, STREAM, Parcel, State, StreamState
from sse_app.services import Services

CALM_TIMEOUT = 2.0
"""How long requests that are being answered may take to end, in seconds; those that do not are cut off."""

ARRIVAL_TIMEOUT = 0.25
"""How long requests that are still being sent may take to arrive: a slow client would keep all others waiting."""

CALM_TURNS = 8
"""For so many turns of the event loop nothing must be under way: what was read may take a few to be seen."""

log = logging.getLogger(__name__)


class Giving:
    """Holds a server still, so that its connections can go on in another process.

    Args:
        services: whose streams.
        server: whose connections.
    """

    def __init__(self, services: Services, server: HandoverServer) -> None:
        self._services = services
        self._server = server

    async def hold(self) -> None:
        """Let what is under way end, and begin nothing: what `state` then says stays true."""
        log.info("holding", extra={"streams": len(self._services.hub.streams)})
        self._server.hold()
        begun = time.monotonic()
        turns = 0
        while turns < CALM_TURNS:
            answered, arriving = self._server.under_way
            passed = time.monotonic() - begun
            if passed > CALM_TIMEOUT:
                break
            calm = not (answered or self._services.opening.count or (arriving and passed < ARRIVAL_TIMEOUT))
            turns = turns + 1 if calm else 0
            await asyncio.sleep(0 if calm else 0.001)
        await self._services.hub.settled()
        self._services.keepalive.stop()
        await self._services.enforcement.stop()

    @property
    def publishing(self) -> bool:
        """Whether an event may yet be written to the log, although the server is held."""
        return self._services.publisher.appending > 0

    def let_go_on(self) -> None:
        """Take up everything again: there is no successor after all."""
        self._services.keepalive.start()
        self._services.enforcement.start()
        self._server.let_go_on()

    def streams(self, carried: frozenset[int] = frozenset()) -> tuple[State, list[int]]:
        """Return the streams as they are, and the descriptors of those that are not carried already.

        Args:
            carried: the numbers of the streams whose sockets the receiver has.
        """
        head = self._services.hub.head
        states, parcels, descriptors = [], [], []
        for stream in self._services.hub.streams:
            connection = stream.connection
            if connection is None or connection.closed or stream.ending is not None:
                continue
            states.append(
                StreamState(
                    stream.number,
                    stream.listener,
                    stream.channels,
                    stream.opened_at,
                    stream.retry,
                    stream.replay,
                )
            )
            attached = stream.number not in carried
            parcels.append(Parcel(STREAM, stream.chunked, stream.unsent(), attached))
            if attached:
                descriptors.append(connection.descriptor)
        return State(head.epoch, head.seq, states, parcels), descriptors

    def everything(self, carried: frozenset[int] = frozenset()) -> tuple[State, list[int]]:
        """Return streams and idle connections; only while the server is held."""
        state, descriptors = self.streams(carried)
        parcels = list(state.parcels)
        for descriptor, half_read in self._server.idle():
            parcels.append(Parcel(IDLE, False, half_read))
            descriptors.append(descriptor)
        return State(state.epoch, state.head, state.streams, parcels), descriptors
