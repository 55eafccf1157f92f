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
    """Where a request comes from: what `tornado.httputil.HTTPServerRequest` asks its connection for."""

    remote_ip: str
    protocol: str = "http"


class Carrier(Protocol):
    """The connection that carries a request and its response."""

    context: Context

    def send(self, data: bytes) -> asyncio.Future[None]:
        """Send bytes; the future resolves when the socket has accepted them, or fails when the client is gone."""

    def answered(self, keep_alive: bool) -> None:
        """Take note that the response is complete."""

    def detach(self) -> socket.socket:
        """Give the socket away."""

    def close(self) -> None:
        """Close the socket."""


class Exchange(httputil.HTTPConnection):
    """Frames the response to one request. It is `request.connection` of Tornado's handlers.

    Once the response is complete, or the client is gone, it has no connection any more: a handler that writes on
    does not write into the response to another request.

    Args:
        carrier: carries it.
        head: what the request says.
        max_body_size: how many bytes of body the request may have, unless the handler says otherwise.
    """

    __slots__ = (
        "_carrier",
        "_chunked",
        "_head",
        "_unwritten",
        "close_callback",
        "context",
        "keep_alive",
        "max_body_size",
        "responding",
    )

    def __init__(self, carrier: Carrier, head: RequestHead, max_body_size: int) -> None:
        self.context = carrier.context
        self.keep_alive = head.keep_alive
        self.max_body_size = max_body_size
        self.responding = False
        """Whether the head of the response is written."""
        self.close_callback: Callable[[], None] | None = None
        """Called when the client goes before the response is complete."""
        self._carrier: Carrier | None = carrier
        self._head = head
        self._chunked = False
        self._unwritten: int | None = None
        """How many bytes of the body are yet to be written; None where that is not known."""

    @property
    def over(self) -> bool:
        """Whether the response is complete, or cannot be any more."""
        return self._carrier is None

    def end(self) -> None:
        """Send nothing any more."""
        self._carrier = None

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """Have the callback called when the client goes before the response is complete."""
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
        connection. A ``Connection: close`` of the handler's is kept.

        Raises:
            ValueError: a header contains CR or LF.
            HTTPOutputError: there is more of the body than its length says.
        """
        assert isinstance(start_line, httputil.ResponseStartLine)
        carrier = self._carrier
        if carrier is None:
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
        if not self.keep_alive:
            headers["Connection"] = "close"
        elif version == "HTTP/1.0":
            headers["Connection"] = "keep-alive"
        head = encode_head(start_line, headers)
        self.responding = True
        return carrier.send(head + self._framed(chunk) if chunk else head)

    def write(self, chunk: bytes) -> asyncio.Future[None]:
        """Write a piece of the body; the future resolves when the socket has accepted it.

        Raises:
            HTTPOutputError: there is more of the body than its length says.
        """
        if self._carrier is None:
            return _gone()
        return self._carrier.send(self._framed(chunk))

    def finish(self) -> None:
        """End the response.

        Raises:
            HTTPOutputError: there is less of the body than its length says.
        """
        carrier = self._carrier
        if carrier is None:
            return
        if self._unwritten:
            carrier.close()
            raise httputil.HTTPOutputError(f"{self._unwritten} bytes less than Content-Length were written")
        if self._chunked:
            carrier.send(CHUNKED.end)
            if self.over:  # the client is gone
                return
        self._carrier = None
        carrier.answered(self.keep_alive)

    def detach(self) -> socket.socket:
        """Give the socket away: no request is read from it any more, and only the caller writes to it.

        Raises:
            StreamClosedError: the client is gone already.
        """
        if self._carrier is None:
            raise StreamClosedError
        carrier, self._carrier = self._carrier, None
        self.close_callback = None
        return carrier.detach()

    def _framed(self, content: bytes) -> bytes:
        if self._unwritten is not None:
            self._unwritten -= len(content)
            if self._unwritten < 0:
                assert self._carrier is not None
                self._carrier.close()
                raise httputil.HTTPOutputError("more bytes than Content-Length were written")
        return CHUNKED.frame(content) if self._chunked and content else content


def _gone() -> asyncio.Future[None]:
    return failed(asyncio.get_running_loop().create_future())


def failed(future: asyncio.Future[None]) -> asyncio.Future[None]:
    """Return the future, failed because the client is gone; it is no error that nothing waits for it."""
    future.set_exception(StreamClosedError())
    future.exception()
    return future
