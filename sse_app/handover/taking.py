"""The process that takes over: builds the streams anew from what the one before said of them."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

from sse_app.channels import ChannelName
from sse_app.connection import StreamConnection
from sse_app.handlers.running import AdoptedStreams
from sse_app.handover.connections import HandoverServer
from sse_app.handover.state import IDLE, STREAM, Envelope, Parcel, State, StreamState
from sse_app.services import Services
from sse_app.stream import Replay, Stream
from sse_app.wire import LAST_CHUNK, chunk, encode_json

log = logging.getLogger(__name__)


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
            connection = StreamConnection(_socket(descriptor), parcel.chunked)
            one = built[stream.number] = self._register(
                stream, state.channels[stream.channels], parcel, connection
            )
            self._streams.go_on(one)
            if self._is_revoked(one):
                self._revoked.append(one)
        return built

    def _is_revoked(self, stream: Stream) -> bool:
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
        adopted = 0
        hub = self._services.hub
        revocable = len(self._services.revocations) > 0
        continuable = self._is_continuable(state)
        behind = Replay(state.head) if state.head != hub.head.seq else None
        for stream_state, parcel in zip(
            state.streams, state.parcels, strict=False
        ):  # the idle ones come after
            if parcel.attached:
                connection = StreamConnection(_socket(next(arrived)), parcel.chunked)
            else:
                connection = self._withdraw(known.pop(stream_state.number))
            if connection.closed:
                continue
            stream = self._register(stream_state, state.channels[stream_state.channels], parcel, connection)
            if stream.replay is None:
                stream.replay = behind
            if revocable and self._is_revoked(stream):
                stream.end("revoked", None)
            elif not continuable:
                stream.end("unavailable", hub.jittered_retry())
            self._streams.go_on(stream)
            adopted += 1
        for parcel in state.parcels[len(state.streams) :]:
            descriptor = next(arrived)
            if parcel.kind == IDLE:
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

    def _register(
        self,
        state: StreamState,
        channels: tuple[ChannelName, ...],
        parcel: Parcel,
        connection: StreamConnection,
    ) -> Stream:
        hub = self._services.hub
        stream = hub.register(state.listener, channels, chunked=parcel.chunked, number=state.number)
        stream.adopted = True
        stream.opened_at = state.opened_at
        stream.retry = state.retry
        stream.replay = state.replay
        connection.watch(hub.disconnects, stream.woken_by_close)
        stream.attach(connection)
        if parcel.data:
            connection.leave_rest(parcel.data, 0)
        self._services.keepalive.watch(stream)  # ends it where its token has expired
        return stream


def _socket(descriptor: int) -> socket.SocketType:
    """Return a socket as C has it: `socket.socket` adds nothing that a stream needs."""
    sock = socket.SocketType(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)
    sock.setblocking(False)
    return sock
