"""How a stream goes on: its flush loop, from the past to the present, and from one process to the next."""

from __future__ import annotations

import asyncio
import logging
import time

from tornado import httputil, web
from tornado.util import ObjectDict

from sse_app.core.errors import EventLogUnavailable
from sse_app.core.private_apis import drop_output_transforms, replace_response_headers
from sse_app.core.sse import chunk
from sse_app.handlers.api.publish import PublishHandler
from sse_app.node import Node
from sse_app.streams.connection import StreamConnection
from sse_app.streams.stream import Stream

log = logging.getLogger(__name__)

_NO_HEADERS = httputil.HTTPHeaders()
_NO_UI = ObjectDict()


class StreamRequest(httputil.HTTPServerRequest):
    """What a handler needs of its request once the stream is open: where it writes to."""

    method = "GET"
    path = "stream"
    remote_ip = ""

    def __init__(self, connection: StreamConnection) -> None:
        self.connection = connection


class RunningStream(PublishHandler):
    """Keeps a stream open: its loop waits for what is pending, writes it as one piece, and flushes."""

    async def run(self, stream: Stream) -> None:
        """Bring the stream up to the present, and go on until the client goes or the stream is ended."""
        try:
            if stream.replay is not None:
                await self._catch_up(stream)
            while await stream.behind():  # parked here, the hub writes to the socket by itself
                self.write(stream.take())
                await self.flush()
        finally:
            self._closed(stream)

    def let_go(self, connection: StreamConnection) -> None:
        """Write to the bare connection from now on, and drop what the request brought along: most of the memory."""
        self.request = StreamRequest(connection)
        replace_response_headers(self, _NO_HEADERS)
        drop_output_transforms(self)
        self.ui = _NO_UI
        self.path_args = []
        self.claims = None

    async def _catch_up(self, stream: Stream) -> None:
        """Replay what follows the position until the stream is at the head, and join it there.

        The last look at the head and the joining happen in one step of the event loop, so there is no gap
        between the past and the present, and nothing is sent twice, whatever is published meanwhile. Whenever
        the loop is left, what the stream has been given and what it is still owed add up.
        """
        hub = self.node.hub
        while stream.replay is not None and not stream.closed and stream.ending is None:
            after, lost, lost_until = stream.replay
            goal = hub.head.seq
            if after >= goal:
                stream.replay = None
                hub.join(stream)
                return
            channels = stream.channels
            if after < lost_until:  # the lost ones begin at what was the head at their reset
                channels = tuple(channel for channel in channels if channel not in lost)
                goal = lost_until
            try:
                past, after = await hub.past(channels, after, goal)
            except EventLogUnavailable as error:
                log.warning("replay_failed", extra=fields_of(stream, detail=str(error)))
                stream.end("unavailable", hub.jittered_retry())
                return
            stream.replay = stream.replay._replace(after=after)
            if past:
                self.write(chunk(past) if stream.chunked else past)
            self.write(stream.take())
            await self.flush()

    def on_finish(self) -> None:
        """Leave the access line of a stream to its own two lines; what was refused before it began gets one."""
        if not isinstance(self.request, StreamRequest):
            super().on_finish()

    def _closed(self, stream: Stream) -> None:
        self.node.hub.leave(stream)
        self.node.keepalive.forget(stream)
        log.info(
            "stream_closed",
            extra=fields_of(
                stream,
                reason=stream.ending or "client",
                seconds=round(time.time() - stream.opened_at, 3),
            ),
        )


class AdoptedStreams:
    """Gives the streams of an earlier process the handler that they had, once they need one.

    A stream that is ready needs none: the hub sends to its socket. So ten thousand are adopted in little time.

    Args:
        application: whose handlers they get.
        node: the parts that handlers work with.
    """

    def __init__(self, application: web.Application, node: Node) -> None:
        self._application = application
        self._node = node
        self._running: set[asyncio.Task[None]] = set()

    def go_on(self, stream: Stream) -> None:
        """Let an adopted stream go on: join the present if it is there already, else catch up."""
        hub = self._node.hub
        if stream.ending is None and not stream.closed and stream.replay is None:
            hub.join(stream)
            if not stream.backlog_bytes:
                stream.park(self._start)
                return
        self._start(stream)

    def _start(self, stream: Stream) -> None:
        running = asyncio.create_task(self._run(stream))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _run(self, stream: Stream) -> None:
        assert stream.connection is not None
        handler = RunningStream(self._application, StreamRequest(stream.connection), node=self._node)
        handler.let_go(stream.connection)
        handler._headers_written = True  # by the process before
        await handler.run(stream)
        handler.finish()


def fields_of(stream: Stream, **more: object) -> dict[str, object]:
    """Return what a log line says of a stream."""
    subscriber = stream.subscriber
    return {
        "client_id": subscriber.client_id,
        "subject": subscriber.lease.subject,
        "channels": ",".join(stream.channels),
        "address": subscriber.address,
        **more,
    }
