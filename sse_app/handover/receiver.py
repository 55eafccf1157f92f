"""The process that takes over: builds the streams anew from what the one before said of them."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from sse_app.core.framing import FRAMINGS, Framing
from sse_app.core.private_apis import bare_socket
from sse_app.core.sse import encode_closing
from sse_app.handover.message import IDLE, STREAM, Parcel, State, StreamState
from sse_app.http.server import HTTPServer
from sse_app.node import Node
from sse_app.streams.connection import StreamConnection
from sse_app.streams.stream import Replay, Stream

SLICE = 128
"""How many streams `Taking.settle` sees to before it lets others run."""

log = logging.getLogger(__name__)


class Taking:
    """Adopts connections.

    Args:
        node: the parts, started.
        server: where idle connections go on.
    """

    def __init__(self, node: Node, server: HTTPServer) -> None:
        self._node = node
        self._server = server
        self._revoked: list[Stream] = []
        """What was built ahead, and is to be ended when the handover comes."""

    def build(self, state: State, descriptors: list[int]) -> list[Stream]:
        """Return quiet streams, ready to be sent to, ahead of the handover itself.

        Nothing is sent to them before the handover: the process before still does.
        """
        built = []
        for stream_state, parcel, descriptor in zip(state.streams, state.parcels, descriptors, strict=True):
            stream = self._register(
                state, stream_state, StreamConnection(_socket(descriptor), FRAMINGS[parcel.framing])
            )
            self._watch(stream)
            self._node.pump.adopt(stream)
            if self._is_revoked(stream):
                self._revoked.append(stream)
            built.append(stream)
        return built

    def _is_revoked(self, stream: Stream) -> bool:
        return any(map(self._node.revocations.covers, stream.subscriber.tokens))

    def adopt(self, state: State, descriptors: Sequence[int], built: Sequence[Stream] = ()) -> list[Stream]:
        """Go on with all connections, and return the streams that `settle` has yet to see to.

        Args:
            state: what is said of them.
            descriptors: of the sockets that come with it, in the parcels' order.
            built: the streams that came before, in their order. Those that the state says something of are
                built anew.
        """
        left = dict(enumerate(built))
        for place in state.gone:
            left.pop(place).close()
        arrived = iter(descriptors)
        adopted = []
        hub = self._node.hub
        revocable = len(self._node.revocations) > 0
        continuable = self._is_continuable(state)
        behind = Replay(state.head) if state.head != hub.head.seq else None
        for stream_state, parcel in zip(state.streams, state.parcels, strict=False):  # others come after
            if parcel.place < 0:
                connection = StreamConnection(_socket(next(arrived)), FRAMINGS[parcel.framing])
            else:
                connection = self._withdraw(left.pop(parcel.place))
                if connection.closed:
                    continue
            stream = self._register(state, stream_state, connection)
            if parcel.data:
                connection.leave_rest(parcel.data, 0)
            if stream.replay is None:
                stream.replay = behind
            if revocable and self._is_revoked(stream):
                stream.end("revoked", None)
            elif not continuable:
                stream.end("unavailable", hub.jittered_retry())
            self._node.pump.adopt(stream)
            adopted.append(stream)
        for parcel, descriptor in zip(state.parcels[len(state.streams) :], arrived, strict=True):
            if parcel.kind == IDLE:
                with suppress(OSError):  # it has ended meanwhile
                    self._server.adopt(socket.socket(fileno=descriptor), parcel.data)
        for stream in self._revoked:
            stream.end("revoked", None)
        sys.audit("sse_app.adopted", len(adopted) + len(left))
        return adopted

    async def settle(self, streams: Sequence[Stream]) -> None:
        """Ping adopted streams, end them when their tokens expire, and notice when their clients go.

        None of that is missed for the while of a restart, so the process is ready before it.
        """
        for start in range(0, len(streams), SLICE):
            for stream in streams[start : start + SLICE]:
                if not stream.closed:
                    self._watch(stream)
            await asyncio.sleep(0)

    def _watch(self, stream: Stream) -> None:
        assert stream.connection is not None
        stream.connection.watch(self._node.hub.disconnects)
        self._node.keepalive.watch(stream)  # ends it where its token has expired

    def _withdraw(self, stream: Stream) -> StreamConnection:
        """Undo what was built ahead, and return the connection."""
        assert stream.connection is not None
        self._node.keepalive.forget(stream)
        if stream in self._node.hub.streams:  # else its client has gone meanwhile
            self._node.hub.withdraw(stream)
        stream.connection.unwatch()
        return stream.connection

    def refuse(self, parcels: Sequence[Parcel], descriptors: Sequence[int]) -> None:
        """End connections whose state cannot be read: streams with ``closing``, so that they come back."""
        for parcel, descriptor in zip(parcels, descriptors, strict=True):
            framing = FRAMINGS.get(parcel.framing) if parcel.kind == STREAM else None
            if framing is not None:
                connection = StreamConnection(_socket(descriptor), framing)
                # A slow client has all of it in the end; one that reads nothing is closed by the user timeout.
                sent = connection.write(parcel.data + self._closing(framing))
                sent.add_done_callback(partial(_close, connection))
            else:
                os.close(descriptor)

    def _closing(self, framing: Framing) -> bytes:
        closing = encode_closing("shutdown", self._node.hub.jittered_retry())
        return framing.frame(closing) + framing.end

    def is_at_head(self, state: State) -> bool:
        """Return whether quiet streams have every event that the log has."""
        return (state.epoch, state.head) == self._node.eventlog.head

    def _is_continuable(self, state: State) -> bool:
        """Return whether the log is still the one that the streams have their events from."""
        head = self._node.eventlog.head
        return state.epoch == head.epoch and state.head <= head.seq

    def _register(self, state: State, stream_state: StreamState, connection: StreamConnection) -> Stream:
        stream = self._node.hub.register(
            stream_state.subscriber,
            state.channels[stream_state.channels],
            framing=connection.framing,
            number=stream_state.number,
        )
        stream.adopted = True
        stream.opened_at = stream_state.opened_at
        stream.retry = stream_state.retry
        stream.replay = stream_state.replay
        connection.on_close = stream.woken_by_close
        stream.attach(connection)
        return stream


def _close(connection: StreamConnection, _: asyncio.Future[None]) -> None:
    connection.close()


def _socket(descriptor: int) -> socket.SocketType:
    sock = bare_socket(descriptor)
    sock.setblocking(False)
    return sock
