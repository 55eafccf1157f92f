"""The connection of a stream: a bare non-blocking socket, taken over from the server of its request."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream, StreamClosedError

from sse_app.core.framing import Framing
from sse_app.core.sse import encode_ping
from sse_app.http.exchange import Exchange
from sse_app.http.response_head import encode_head
from sse_app.settings.model import Settings
from sse_app.streams.disconnects import Disconnects
from sse_app.streams.tcp_info import Unacknowledged, settled, unacknowledged

_DISCARD_SIZE = 4096


def tune(sock: socket.socket, settings: Settings) -> None:
    """Let the kernel find dead clients, and hold little for slow ones; options that the system lacks are left out.

    TCP keepalive finds dead clients that nothing was sent to. Those with data under way are the matter of
    `sse_app.streams.delivery`; the kernel's user timeout (RFC 5482) is long enough never to end a client that lives.
    """
    options = settings.socket
    user_timeout = options.user_timeout + 4 * settings.keepalive.ping_interval
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", options.keepalive_idle),
        ("TCP_KEEPINTVL", options.keepalive_interval),
        ("TCP_KEEPCNT", options.keepalive_count),
        ("TCP_USER_TIMEOUT", int(1000 * user_timeout)),
        ("TCP_NOTSENT_LOWAT", options.notsent_lowat),
    ):
        if value and (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def take_over(
    request: httputil.HTTPServerRequest, framing: Framing, settings: Settings, disconnects: Disconnects
) -> StreamConnection:
    """Return the bare connection of a request that nothing has been written to.

    The request may have come through `sse_app.http` or, where the routes are mounted in another application,
    through Tornado's own server. Its response is a `StreamResponse` from then on.

    Args:
        request: whose connection.
        framing: how the bytes of the stream stand in the body of the response.
        settings: have the options of the socket.
        disconnects: notices when the client goes.

    Raises:
        StreamClosedError: the client is gone already.
    """
    assert isinstance(request.connection, Exchange | HTTP1Connection)
    detached = request.connection.detach()
    if isinstance(detached, IOStream):
        if detached.closed():
            raise StreamClosedError(real_error=detached.error)
        detached.io_loop.remove_handler(detached.fileno())
        detached = detached.socket
        tune(detached, settings)
    connection = StreamConnection(detached, framing)
    request.connection = StreamResponse(connection)
    try:
        connection.watch(disconnects)
    except OSError as error:  # epoll_ctl(2) has limits of its own
        connection.close()
        raise StreamClosedError(real_error=error) from None
    return connection


class Owner(Protocol):
    """What a connection needs of its stream."""

    def connection_closed(self) -> None:
        """Note that the connection has ended, for whichever reason."""


class StreamResponse(httputil.HTTPConnection):
    """The response to the request of a stream, as its handler writes it: ``write`` and ``flush`` end here.

    The body comes framed already. When the handler is done it detaches, and the connection stays open.

    Args:
        connection: where to.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: StreamConnection) -> None:
        self._connection = connection

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Write the head of the response, and with it the first of its body."""
        assert isinstance(start_line, httputil.ResponseStartLine)
        headers["Connection"] = "close"
        headers.update(self._connection.framing.headers)
        head = encode_head(start_line, headers)
        return self._connection.write(head + chunk if chunk else head)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Write a piece of the body."""
        return self._connection.write(chunk)

    def finish(self) -> None:
        """End the body and close: the handler has failed."""
        self._connection.finish()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Ignore Tornado, which clears its callback when it finishes a response; that of the stream stays."""

    def detach(self) -> StreamConnection:
        """Return the connection: the handler is done, and the stream is not."""
        return self._connection


class StreamConnection:
    """A bare socket, and what waits until it accepts more.

    It takes the place of an IOStream and an HTTP1Connection, which hold much more memory, and gives the hub
    the descriptor of the socket. It takes wire bytes, framed already. A client that is gone is no error here:
    writing to it does nothing, and the owner has been told.

    Args:
        sock: connected and non-blocking; closed by this object.
        framing: how the bytes stand in the body of the response.
    """

    __slots__ = (
        "_disconnects",
        "_drained",
        "_fd",
        "_rest",
        "_socket",
        "closed",
        "framing",
        "owner",
        "progressed_at",
    )

    def __init__(self, sock: socket.SocketType, framing: Framing) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self.framing = framing
        self.closed = False
        """Whether the connection has ended."""
        self.owner: Owner | None = None
        """Whose connection it is; it is told of the end."""
        self._disconnects: Disconnects | None = None
        self._rest: list[memoryview] | None = None
        self._drained: asyncio.Future[None] | None = None
        self.progressed_at = 0.0
        """When bytes last went out, or had to wait (`time.monotonic`); only kept while some wait."""

    def watch(self, disconnects: Disconnects) -> None:
        """Notice from now on when the client disconnects, also while nothing is sent."""
        if not self.closed:
            disconnects.watch(self._fd, self)
            self._disconnects = disconnects

    @property
    def unsent_bytes(self) -> int:
        """How many bytes wait for the socket."""
        return sum(map(len, self._rest)) if self._rest else 0

    @property
    def descriptor(self) -> int:
        """The file descriptor of the socket."""
        return self._fd

    def unsent(self) -> list[memoryview]:
        """Return the bytes that wait for the socket."""
        return list(self._rest or ())

    def unacknowledged(self) -> Unacknowledged | None:
        """Return what the kernel knows of bytes that the client has not acknowledged; None where there are none."""
        return None if self.closed else unacknowledged(self._socket)

    def settled(self) -> bool:
        """Return whether the client is known to have acknowledged all that was sent to it; quicker than the above."""
        return settled(self._socket)

    def send(self, chunk: bytes | memoryview) -> int:
        """Send wire bytes past what waits here, and return how many the socket has taken, as ``socket.send`` does."""
        return self._socket.send(chunk)

    def queue_rest(self, chunk: bytes, sent: int) -> None:
        """Queue what the socket did not accept of a chunk that the hub, or an earlier process, has sent in part."""
        if not self.closed:
            self._queue(memoryview(chunk)[sent:])

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Send wire bytes, and return what `flush` returns."""
        if chunk and not self.closed:
            sent = 0
            if not self._rest:
                try:
                    sent = self.send(chunk)
                except BlockingIOError:
                    pass
                except OSError:
                    self.close()
            if sent != len(chunk) and not self.closed:
                self._queue(memoryview(chunk)[sent:])
        return self.flush()

    def flush(self) -> asyncio.Future[None]:
        """Return a future that resolves when the socket has accepted all that was written, or has closed."""
        if self._drained is None:
            self._drained = asyncio.get_running_loop().create_future()
            if not self._rest:
                return self._resolve(self._drained)
        return self._drained

    def finish(self) -> None:
        """End the body where the socket accepts it, and close."""
        if self.framing.end and not self._rest and not self.closed:
            with suppress(OSError):  # the connection is closed next in any case
                self.send(self.framing.end)
        self.close()

    def close(self) -> None:
        """Close the socket, and tell the owner; harmless the second time."""
        if self.closed:
            return
        self.closed = True
        if self._disconnects is not None:
            self._disconnects.forget(self._fd)
            self._disconnects = None
        if self._rest:
            asyncio.get_running_loop().remove_writer(self._fd)
            self._rest = None
        if self._drained is not None:
            self._resolve(self._drained)
        owner, self.owner = self.owner, None
        try:
            if owner is not None:
                owner.connection_closed()
        finally:  # only now, for its number may be another one's then
            self._socket.close()

    def _queue(self, rest: memoryview) -> None:
        if self._rest:
            self._rest.append(rest)
            return
        self._rest = [rest]
        self.progressed_at = time.monotonic()
        try:
            asyncio.get_running_loop().add_writer(self._fd, self._writable)
        except OSError:  # epoll_ctl(2) has limits of its own; the client resumes by its last id
            self._rest = None
            self.close()

    def _writable(self) -> None:
        assert self._rest
        try:
            while self._rest:
                sent = self.send(self._rest[0])
                self.progressed_at = time.monotonic()
                if sent != len(self._rest[0]):
                    self._rest[0] = self._rest[0][sent:]
                    return
                del self._rest[0]
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        asyncio.get_running_loop().remove_writer(self._fd)
        self._rest = None
        if self._drained is not None:
            self._resolve(self._drained)

    def _resolve(self, future: asyncio.Future[None]) -> asyncio.Future[None]:
        self._drained = None
        if not future.done():
            future.set_result(None)
        return future

    def readable(self) -> None:
        """Notice the end of the connection; what a client sends after its request is read and dropped."""
        try:
            if self._socket.recv(_DISCARD_SIZE):
                return
            if not self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._find_out_whether_it_reads()
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close()

    def _find_out_whether_it_reads(self) -> None:
        """Send a ping to a client that sends no more: it may still read, or have closed its connection.

        Only a write can tell: the system of a client that has closed it answers with a reset (RFC 9293 §3.6.1), of
        which `readable` is called. What waits, or is under way, does as well as the ping.

        Raises:
            OSError: it has closed its connection, or there is something under way.
        """
        if self._disconnects is not None:
            self._disconnects.ignore_input(self._fd)
        ping = self.framing.frame(encode_ping(time.time()))
        if not self._rest and self.send(ping) != len(ping):
            self.close()  # the hub sends past what waits here, so nothing may wait here that it does not know of
