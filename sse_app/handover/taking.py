"""The process that takes over: builds the streams anew from what the one before said of them."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

from sse_app.connection import StreamConnection
from sse_app.handlers.running import AdoptedStreams
from sse_app.handover.connections import HandoverServer
from sse_app.handover.state import IDLE, STREAM, Envelope, Parcel, State, StreamState
from sse_app.services import Services
from sse_app.stream import Replay, Stream
from sse_app.wire import LAST_CHUNK, chunk, encode_json

log = logging.getLogger(__name__)


def connection_of(descriptor: int, chunked: bool) -> StreamConnection:
    """Return the connection of a stream whose socket another process has opened."""
    return StreamConnection(_socket(descriptor), chunked)


class Taking:
    """Adopts connections.

    Args:
        services: the parts, started.
        server: where idle connections go on.
        streams: where streams go on.
    """

    def __init__(self, services: Services, server: HandoverServer, streams: AdoptedStreams) -> None:
        self._services = services
        self._server = server
        self._streams = streams
        self._revoked: list[Stream] = []
        """What was built ahead, and is to be ended when the handover comes."""

    def build(self, state: State, descriptors: list[int]) -> dict[int, Stream]:
        """Return quiet streams by their numbers, ready to be sent to, ahead of the handover itself.

        Nothing is sent to them before the handover: the process before still does.
        """
        built = {}
        for stream, parcel, descriptor in zip(state.streams, state.parcels, descriptors, strict=True):
            connection = connection_of(descriptor, parcel.chunked)
            one = built[stream.number] = self._register(stream, parcel, connection)
            self._streams.go_on(one)
            if self._is_revoked(stream):
                self._revoked.append(one)
        return built

    def _is_revoked(self, stream: StreamState) -> bool:
        return any(map(self._services.revocations.covers, stream.listener.tokens))

    def adopt(self, state: State, descriptors: list[int], built: Mapping[int, Stream] | None = None) -> int:
        """Go on with all connections, and return how many streams that are.

        Args:
            state: what is said of them.
            descriptors: of the parcels that are attached, in their order.
            built: the streams that came before, by number. Those that the state says something of are built
                anew.
        """
        known = dict(built or {})
        for number in state.gone:
            known.pop(number).close()
        arrived = iter(descriptors)
        continuable = self._is_continuable(state)
        adopted = 0
        for number, parcel in enumerate(state.parcels):
            descriptor = next(arrived) if parcel.attached else -1
            if number < len(state.streams):
                stream = state.streams[number]
                if parcel.attached:
                    connection = connection_of(descriptor, parcel.chunked)
                else:
                    connection = self._withdraw(known.pop(stream.number))
                if not connection.closed:
                    self._adopt_stream(stream, parcel, connection, state.head, continuable)
                    adopted += 1
            elif parcel.kind == IDLE:
                with suppress(OSError):  # it has ended meanwhile
                    self._server.adopt(socket.socket(fileno=descriptor), parcel.data)
        adopted += len(known)
        for one in self._revoked:
            one.end("revoked", None)
        sys.audit("sse_app.adopted", adopted)
        return adopted

    def _withdraw(self, stream: Stream) -> StreamConnection:
        """Undo what was built ahead, and return the connection."""
        assert stream.connection is not None
        self._services.keepalive.forget(stream)
        if stream in self._services.hub.streams:  # else its client has gone meanwhile
            self._services.hub.withdraw(stream)
        return stream.connection

    def refuse(self, envelope: Envelope, descriptors: list[int]) -> None:
        """End connections whose state cannot be read: streams with ``closing``, so that they come back."""
        arrived = iter(descriptors)
        for parcel in envelope.parcels:
            if not parcel.attached:
                continue
            descriptor = next(arrived)
            if parcel.kind == STREAM:
                sock = _socket(descriptor)
                with suppress(OSError):
                    sock.send(parcel.data + self._farewell(parcel.chunked))
                sock.close()
            else:
                os.close(descriptor)

    def _farewell(self, chunked: bool) -> bytes:
        retry = self._services.hub.jittered_retry()
        closing = encode_json("closing", {"reason": "shutdown", "retry": retry}, retry=retry)
        return chunk(closing) + LAST_CHUNK if chunked else closing

    def is_at_head(self, state: State) -> bool:
        """Return whether quiet streams have every event that the log has."""
        return (state.epoch, state.head) == self._services.eventlog.head

    def _is_continuable(self, state: State) -> bool:
        """Return whether the log is still the one that the streams have their events from."""
        head = self._services.eventlog.head
        return state.epoch == head.epoch and state.head <= head.seq

    def _register(self, state: StreamState, parcel: Parcel, connection: StreamConnection) -> Stream:
        services = self._services
        stream = services.hub.register(
            state.listener, state.channels, chunked=parcel.chunked, number=state.number
        )
        stream.adopted = True
        stream.opened_at = state.opened_at
        stream.retry = state.retry
        stream.replay = state.replay
        connection.on_close = stream.woken_by_close
        stream.attach(connection)
        if parcel.data:
            connection.leave_rest(parcel.data, 0)
        services.keepalive.watch(stream)  # ends it where its token has expired
        return stream

    def _adopt_stream(
        self, state: StreamState, parcel: Parcel, connection: StreamConnection, head: int, continuable: bool
    ) -> None:
        services = self._services
        hub = services.hub
        stream = self._register(state, parcel, connection)
        if stream.replay is None and head != hub.head.seq:
            stream.replay = Replay(head)
        if self._is_revoked(state):
            stream.end("revoked", None)
        elif not continuable:
            stream.end("unavailable", hub.jittered_retry())
        self._streams.go_on(stream)


def _socket(descriptor: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    sock.setblocking(False)
    return sock
