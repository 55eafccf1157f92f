"""The process that takes over: it builds the streams anew from the description of the process before."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from sse_app.auth.revocations import Revocations
from sse_app.core.addresses import interned
from sse_app.core.framing import FRAMINGS, Framing
from sse_app.core.private_apis import bare_socket
from sse_app.core.sse import encode_closing
from sse_app.handover.message import IDLE, STREAM, PassedDescriptor, State, StreamState
from sse_app.http.server import HTTPServer
from sse_app.streams.admission import Admission
from sse_app.streams.connection import StreamConnection
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.pump import Pump
from sse_app.streams.stream import Stream

WATCH_SLICE = 128
"""How many streams `HandoverReceiver.watch` begins to watch before the event loop runs other callbacks."""

log = logging.getLogger(__name__)


class HandoverReceiver:
    """Adopts connections.

    Args:
        hub: registers the streams.
        pump: runs them.
        keepalive: pings them, and ends them when their tokens expire.
        revocations: whose tokens end them.
        admission: knows which may do without a token.
        server: adopts the idle connections.
    """

    def __init__(
        self,
        hub: Hub,
        pump: Pump,
        keepalive: Keepalive,
        revocations: Revocations,
        admission: Admission,
        server: HTTPServer,
    ) -> None:
        self._hub = hub
        self._pump = pump
        self._keepalive = keepalive
        self._revocations = revocations
        self._admission = admission
        self._server = server
        self._revoked: list[Stream] = []
        """Streams built before the pause that the settings of now do not allow; they are ended after it."""

    def build(self, state: State, descriptors: list[int]) -> list[Stream]:
        """Return the streams that were copied before the pause, ready to be sent to.

        Nothing is sent to them, or read from them, while the process before serves.
        """
        built = []
        for stream_state, passed, descriptor in zip(state.streams, state.passed, descriptors, strict=True):
            stream = self._register(
                state, stream_state, StreamConnection(_socket(descriptor), FRAMINGS[passed.framing])
            )
            self._pump.adopt(stream)
            if self._is_revoked(stream):
                self._revoked.append(stream)
            built.append(stream)
        return built

    def _is_revoked(self, stream: Stream) -> bool:
        tokens = stream.subscriber.tokens
        return any(map(self._revocations.covers, tokens)) or not self._admission.is_allowed(stream)

    def adopt(self, state: State, descriptors: Sequence[int], built: Sequence[Stream] = ()) -> list[Stream]:
        """Adopt all connections, and return the streams that are yet to be watched.

        The hub must have begun at the state's position, unless the log is not the one that the streams have
        their events from, or lacks some of them: then they are ended, and their clients resume by their last ids.

        Args:
            state: their description.
            descriptors: of the sockets that come with it, in their order in it.
            built: the streams that `build` returned, in their order. Those that the state mentions are built anew.
        """
        left = dict(enumerate(built))
        for place in state.gone:
            left.pop(place).close()
        arrived = iter(descriptors)
        adopted = []
        hub = self._hub
        revocable = len(self._revocations) > 0
        continues = hub.continues(state.position)
        for stream_state, passed in zip(state.streams, state.passed, strict=False):  # others come after
            if passed.place < 0:
                connection = StreamConnection(_socket(next(arrived)), FRAMINGS[passed.framing])
            else:
                before = left.pop(passed.place)
                assert before.connection is not None
                hub.withdraw(before)
                connection = before.connection
            stream = self._register(state, stream_state, connection)
            if passed.data:
                connection.queue_rest(passed.data, 0)
            may_be_over = revocable or stream.ungranted or stream.subscriber.lease.is_anonymous
            if may_be_over and self._is_revoked(stream):
                stream.end("revoked", None)
            elif not continues:
                stream.end("unavailable", hub.jittered_retry())
            self._pump.adopt(stream)
            adopted.append(stream)
        for passed, descriptor in zip(state.passed[len(state.streams) :], arrived, strict=True):
            if passed.kind == IDLE:
                with suppress(OSError):  # it has ended meanwhile
                    self._server.adopt(socket.socket(fileno=descriptor), passed.data)
        for stream in self._revoked:
            if stream in hub.streams:  # else it was made anew, as it has changed since
                stream.end("revoked", None)
        adopted += left.values()
        sys.audit("sse_app.adopted", len(adopted))
        return adopted

    async def watch(self, streams: Sequence[Stream]) -> None:
        """Ping adopted streams, end them when their tokens expire, and notice when their clients go.

        Runs after READY. Disconnect detection may start late, and waits for fan-outs: events must not be late.
        """
        slices = [streams[start : start + WATCH_SLICE] for start in range(0, len(streams), WATCH_SLICE)]
        for some in slices:
            for stream in some:
                if not stream.closed:
                    self._keepalive.watch(stream)  # ends it where its token has expired
            await asyncio.sleep(0)
        for some in slices:
            async with self._hub.between_fan_outs():
                for stream in some:
                    assert stream.connection is not None
                    try:
                        stream.connection.watch(self._hub.disconnects)
                    except OSError:  # the kernel watches too much, or has no memory for it
                        stream.close()  # its client resumes
            await asyncio.sleep(0)

    def refuse(self, passed: Sequence[PassedDescriptor], descriptors: Sequence[int]) -> None:
        """End connections whose state cannot be read: streams with ``closing``, so that they come back."""
        for one, descriptor in zip(passed, descriptors, strict=True):
            framing = FRAMINGS.get(one.framing) if one.kind == STREAM else None
            if framing is not None:
                connection = StreamConnection(_socket(descriptor), framing)
                # A slow client still gets all of it; one that reads nothing is closed by the kernel's user timeout.
                sent = connection.write(one.data + self._closing(framing))
                sent.add_done_callback(partial(_close, connection))
            else:
                os.close(descriptor)

    def _closing(self, framing: Framing) -> bytes:
        closing = encode_closing("shutdown", self._hub.jittered_retry())
        return framing.frame(closing) + framing.end

    def _register(self, state: State, stream_state: StreamState, connection: StreamConnection) -> Stream:
        subscriber = stream_state.subscriber
        stream = self._hub.register(
            subscriber._replace(address=interned(subscriber.address)),
            state.channels[stream_state.channels],
            types=stream_state.types,
            rate=stream_state.rate,
            framing=connection.framing,
            number=stream_state.number,
        )
        stream.adopted = True
        stream.opened_at = stream_state.opened_at
        if stream_state.begun_at is not None:
            stream.begun_at = stream_state.begun_at
        else:
            stream.begun_at -= max(0.0, time.time() - stream_state.opened_at)
        if stream_state.deadline is not None:
            stream.deadline = stream_state.deadline
        stream.retry = stream_state.retry
        stream.replay = stream_state.replay
        stream.ungranted = stream_state.ungranted
        stream.attach(connection)
        return stream


def _close(connection: StreamConnection, _: asyncio.Future[None]) -> None:
    connection.close()


def _socket(descriptor: int) -> socket.SocketType:
    sock = bare_socket(descriptor)
    sock.setblocking(False)
    return sock
