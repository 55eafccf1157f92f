"""The sending half of a stream's connection once its headers are out: a bare non-blocking socket."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from tornado import httputil
from tornado.iostream import IOStream, StreamClosedError

from sse_app.settings import Socket
from sse_app.wire import LAST_CHUNK

_DISCARD_SIZE = 4096


def take_socket(iostream: IOStream) -> socket.socket:
    """Take the socket out of an IOStream that has nothing left to write; the IOStream is of no use afterwards.

    Raises:
        StreamClosedError: the client is gone already.
    """
    if iostream.closed():
        raise StreamClosedError(real_error=iostream.error)
    iostream.io_loop.remove_handler(iostream.fileno())
    sock: socket.socket = iostream.socket
    return sock


def tune(iostream: IOStream, settings: Socket, ping_interval: float) -> None:
    """Let the kernel find dead clients, and hold little for slow ones; options that the system lacks are left out.

    TCP keepalive finds dead clients of idle streams, the user timeout those with data under way (RFC 5482).

    Raises:
        StreamClosedError: the client is gone already.
    """
    if iostream.closed():
        raise StreamClosedError(real_error=iostream.error)
    sock: socket.socket = iostream.socket
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", settings.keepalive_idle),
        ("TCP_KEEPINTVL", settings.keepalive_interval),
        ("TCP_KEEPCNT", settings.keepalive_count),
        ("TCP_USER_TIMEOUT", int(1000 * (settings.user_timeout or ping_interval / 2))),
        ("TCP_NOTSENT_LOWAT", settings.notsent_lowat),
    ):
        if value and (option := getattr(socket, name, None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


class StreamConnection(httputil.HTTPConnection):
    """Stands in for Tornado's connection behind a stream's handler, which goes on with ``write`` and ``flush``.

    It replaces an IOStream and an HTTP1Connection, whose memory it frees, and gives the hub the bare
    ``send`` of the socket. What it is given are wire bytes, framed already. A client that is gone is no
    error here: writing to it does nothing, and ``on_close`` has been called.

    Args:
        sock: connected and non-blocking; closed by this object.
        chunked: whether the body is chunked (HTTP/1.1) or ended by closing (HTTP/1.0).
        on_close: called once, when the connection ends for whatever reason.
    """

    __slots__ = (
        "_chunked",
        "_drained",
        "_fd",
        "_loop",
        "_on_close",
        "_rest",
        "_socket",
        "progressed_at",
        "send",
    )

    def __init__(self, sock: socket.socket, chunked: bool, on_close: Callable[[], None]) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._chunked = chunked
        self._on_close: Callable[[], None] | None = on_close
        self._loop = asyncio.get_running_loop()
        self._rest: list[memoryview] | None = None
        self._drained: asyncio.Future[None] | None = None
        self.send = sock.send
        self.progressed_at = 0.0
        """When bytes last went out, or had to wait (`time.monotonic`); only kept while some wait."""
        self._loop.add_reader(self._fd, self._readable)

    @property
    def closed(self) -> bool:
        """Whether the connection has ended."""
        return self._on_close is None

    @property
    def unsent_bytes(self) -> int:
        """How many bytes wait for the socket."""
        return sum(map(len, self._rest)) if self._rest else 0

    def leave_rest(self, chunk: bytes, sent: int) -> None:
        """Take over what the socket did not accept of a chunk that somebody else sent."""
        if not self.closed:
            self._queue(memoryview(chunk)[sent:])

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Send wire bytes; the future resolves when the socket has accepted all of them, or has closed."""
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
        if self._drained is None:
            self._drained = self._loop.create_future()
            if not self._rest:
                return self._resolve(self._drained)
        return self._drained

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        """The headers of a stream are out before this object is made."""
        raise NotImplementedError

    def finish(self) -> None:
        """End the body where the socket accepts it, and close."""
        if self._chunked and not self._rest and not self.closed:
            with suppress(OSError):  # it is closed next, whatever becomes of the last five bytes
                self.send(LAST_CHUNK)
        self.close()

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Tornado clears its callback when it finishes a response; ours stays until the close."""

    def close(self) -> None:
        """Close the socket, and say so once."""
        if self._on_close is None:
            return
        on_close, self._on_close = self._on_close, None
        self._loop.remove_reader(self._fd)
        if self._rest:
            self._loop.remove_writer(self._fd)
            self._rest = None
        self._socket.close()
        if self._drained is not None:
            self._resolve(self._drained)
        on_close()

    def _queue(self, rest: memoryview) -> None:
        if self._rest:
            self._rest.append(rest)
            return
        self._rest = [rest]
        self.progressed_at = time.monotonic()
        self._loop.add_writer(self._fd, self._writable)

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
        self._loop.remove_writer(self._fd)
        self._rest = None
        if self._drained is not None:
            self._resolve(self._drained)

    def _resolve(self, future: asyncio.Future[None]) -> asyncio.Future[None]:
        self._drained = None
        if not future.done():
            future.set_result(None)
        return future

    def _readable(self) -> None:
        """Notice the end of the connection; what a client sends after its request means nothing here."""
        try:
            if self._socket.recv(_DISCARD_SIZE):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.close()
