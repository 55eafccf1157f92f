"""One request and its response, as the application's handlers see it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import NamedTuple, Protocol

from tornado import httputil
from tornado.iostream import StreamClosedError

from sse_app.core.framing import CHUNKED
from sse_app.http.request_head import RequestHead, tokens
from sse_app.http.response_head import encode_head


class Context(NamedTuple):
    """The address that a request comes from: what `tornado.httputil.HTTPServerRequest` asks its connection for."""

    remote_ip: str
    protocol: str = "http"


class ClientConnection(Protocol):
    """What an exchange needs of the client's connection."""

    context: Context

    @property
    def body_incomplete(self) -> bool:
        """Whether some of the request's body is still to come."""

    def send(self, data: bytes) -> asyncio.Future[None]:
        """Send bytes; the future resolves when the socket has accepted them, or fails when the client is gone."""

    def answered(self, keep_alive: bool) -> None:
        """Begin the next request, or end, because the response is complete."""

    def detach(self) -> socket.socket:
        """Return the socket, which is the caller's from now on."""

    def close(self) -> None:
        """Close the socket."""


class Exchange(httputil.HTTPConnection):
    """Frames the response to one request. It is `request.connection` of Tornado's handlers.

    Once the response is complete, or the client is gone, it has no connection any more, so a handler that still
    writes does not write into the response to another request.

    Args:
        connection: the client's, which sends the response.
        head: what the request says.
        max_body_size: how many bytes of body the request may have, unless the handler says otherwise.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_head",
        "_unwritten",
        "close_callback",
        "context",
        "keep_alive",
        "max_body_size",
        "responding",
    )

    def __init__(self, connection: ClientConnection, head: RequestHead, max_body_size: int) -> None:
        self.context = connection.context
        self.keep_alive = head.keep_alive
        self.max_body_size = max_body_size
        self.responding = False
        """Whether the head of the response is written."""
        self.close_callback: Callable[[], None] | None = None
        """Called when the client disconnects before the response is complete."""
        self._connection: ClientConnection | None = connection
        self._head = head
        self._chunked = False
        self._unwritten: int | None = None
        """How many bytes of the body are yet to be written; None where that is not known."""

    @property
    def over(self) -> bool:
        """Whether the response is complete, or the client has gone."""
        return self._connection is None

    def end(self) -> None:
        """Stop sending: what the handler still writes is dropped."""
        self._connection = None
        self.close_callback = None  # it belongs to the handler, whose request has this object

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Set what is called when the client disconnects before the response is complete."""
        self.close_callback = callback

    def set_max_body_size(self, size: int) -> None:
        """Limit the body of this request, in bytes; only before any of it has been read."""
        self.max_body_size = size

    def write_headers(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
        chunk: bytes | None = None,
    ) -> asyncio.Future[None]:
        """Write the head of the response, and with it the first of its body.

        It is framed as RFC 9112 §6 says: by its ``Content-Length``, or else in chunks, or else by the end of the
        connection. A ``Connection: close`` of the handler's is kept, and a response that is complete before the body of
        its request has one: the rest is not read as a body (§9.6).

        Raises:
            ValueError: a header contains CR or LF.
            HTTPOutputError: there is more of the body than its length says.
        """
        assert isinstance(start_line, httputil.ResponseStartLine)
        connection = self._connection
        if connection is None:
            return _gone()
        method, _, version = self._head.start_line
        if method == "HEAD" or start_line.code in (204, 304) or start_line.code < 200:
            self._unwritten = 0
        elif lengths := headers.get_list("Content-Length"):
            self._unwritten = int(lengths[0])
        elif version == "HTTP/1.1":
            self._chunked = True
            headers.update(CHUNKED.headers)
        else:
            self.keep_alive = False
        for value in headers.get_list("Connection"):
            self.keep_alive = self.keep_alive and "close" not in tokens(value)
        if connection.body_incomplete and self._unwritten == len(chunk or b""):
            self.keep_alive = False
        if not self.keep_alive:
            headers["Connection"] = "close"
        elif version == "HTTP/1.0":
            headers["Connection"] = "keep-alive"
        head = encode_head(start_line, headers)
        self.responding = True
        return connection.send(head + self._framed(chunk) if chunk else head)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Write a piece of the body; the future resolves when the socket has accepted it.

        Raises:
            HTTPOutputError: there is more of the body than its length says.
        """
        if self._connection is None:
            return _gone()
        return self._connection.send(self._framed(chunk))

    def finish(self) -> None:
        """End the response.

        Raises:
            HTTPOutputError: there is less of the body than its length says.
        """
        connection = self._connection
        if connection is None:
            return
        if not self.responding:  # its head could not be written, and the client waits for it
            connection.close()
            return
        if self._unwritten:
            connection.close()
            raise httputil.HTTPOutputError(f"{self._unwritten} bytes less than Content-Length were written")
        if self._chunked:
            connection.send(CHUNKED.end)
            if self.over:  # the client is gone
                return
        self._connection = None
        connection.answered(self.keep_alive)

    def detach(self) -> socket.socket:
        """Return the socket: from now on only the caller reads from it and writes to it.

        Raises:
            StreamClosedError: the client is gone already.
        """
        if self._connection is None:
            raise StreamClosedError
        connection, self._connection = self._connection, None
        self.close_callback = None
        return connection.detach()

    def _framed(self, content: bytes) -> bytes:
        if self._unwritten is not None:
            self._unwritten -= len(content)
            if self._unwritten < 0:
                assert self._connection is not None
                self._connection.close()
                raise httputil.HTTPOutputError("more bytes than Content-Length were written")
        return CHUNKED.frame(content) if self._chunked and content else content


def _gone() -> asyncio.Future[None]:
    return failed(asyncio.get_running_loop().create_future())


def failed(future: asyncio.Future[None]) -> asyncio.Future[None]:
    """Return the future, failed because the client is gone; it is no error that nothing waits for it."""
    future.set_exception(StreamClosedError())
    future.exception()
    return future
