"""One client's connection: requests come in, one at a time are handed to the application, and answers go out."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol

from tornado import httputil
from tornado.iostream import StreamClosedError

from sse_app.http.chunked_body import ChunkedBody
from sse_app.http.deadlines import Deadlines
from sse_app.http.errors import BadRequest
from sse_app.http.exchange import Context, Exchange, failed
from sse_app.http.request_head import CHUNKED_BODY, RequestHead, parse_head

READ_AHEAD = 64 * 1024
"""How many bytes are read at once, and about how many are kept while there is no use for them yet."""

SEND_PROGRESS = 16 * 1024
"""How many bytes a client must take of a response for the time to begin anew within which it has to."""

LINGER_BYTES = 8 * 1024 * 1024
"""How many bytes are read and thrown away after the last response, so that the client gets to read it."""

LONGEST_HEAD_REMEMBERED = 2048
"""How many bytes a head has at most that is remembered while its connection is open."""

_HEAD_END = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

log = logging.getLogger(__name__)


class Server(Protocol):
    """What a connection needs of the server that it belongs to."""

    delegate: httputil.HTTPServerConnectionDelegate
    loop: asyncio.AbstractEventLoop
    sent: asyncio.Future[None]
    """A future that is done; it is returned for every write that the socket accepts at once."""
    received: memoryview
    """The buffer that all sockets are read into."""
    paused: bool
    """Whether connections must not begin another request."""
    max_header_size: int
    max_body_size: int
    waiting: Deadlines[Connection]
    """Connections that wait for the head of a request to be complete."""
    resting: Deadlines[Connection]
    """Connections that wait for the next request to begin."""
    receiving: Deadlines[Connection]
    """Connections that wait for a body to be complete."""
    sending: Deadlines[Connection]
    """Connections that wait for the client to read some of a response."""
    lingering: Deadlines[Connection]
    """Connections that wait until the client has read the last response."""
    deadlines: Sequence[Deadlines[Connection]]
    """All of these."""

    def forget(self, connection: Connection) -> None:
        """Forget a connection that has ended or has given its socket away."""

    def count_unread(self, size: int, connection: Connection) -> None:
        """Count so many bytes more of responses that wait for their clients, or fewer."""

    def exhausted(self, error: OSError) -> None:
        """Note that a connection cannot be served for lack of what the system limits."""


P = ParamSpec("P")


def _ends_with_errors(
    callback: Callable[Concatenate[Connection, P], None],
) -> Callable[Concatenate[Connection, P], None]:
    """Have an error in what the event loop calls end the connection.

    An error would leave the socket as it is, and the event loop would call again at once, for as long as the
    client likes.
    """

    @wraps(callback)
    def guarded(connection: Connection, /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            callback(connection, *args, **kwargs)
        except Exception:
            log.exception("uncaught")
            connection.close()

    return guarded


class Connection:
    """Reads requests from a socket, in order, each when the one before it has been answered.

    Handlers see it through an `Exchange` for each request. Nothing here waits: the event loop calls when the
    socket can be read or written, and handlers when they have an answer.

    Args:
        server: the server that it belongs to.
        sock: connected and non-blocking; closed by this object.
        context: the address that its requests come from.
        already_read: bytes that another process has read from the socket.
    """

    __slots__ = (
        "_awaited",
        "_body",
        "_buffer",
        "_delegate",
        "_drained",
        "_ended",
        "_ending",
        "_exchange",
        "_expects_continue",
        "_fd",
        "_head",
        "_head_bytes",
        "_incomplete",
        "_keep_alive",
        "_linger",
        "_reading",
        "_server",
        "_socket",
        "_taken",
        "_unasked",
        "_unread",
        "_unsent",
        "context",
    )

    def __init__(
        self, server: Server, sock: socket.socket, context: Context, already_read: bytes = b""
    ) -> None:
        self.context = context
        self._server = server
        self._socket: socket.socket | None = sock
        self._fd = sock.fileno()
        self._buffer = already_read
        """Received bytes that no request has used yet."""
        self._head_bytes = b""
        """The head of the last request, where it is remembered."""
        self._head: RequestHead | None = None
        """What it says; its headers are of no request."""
        self._reading = False
        """Whether the event loop calls when there is something to read."""
        self._ended = False
        """Whether the client has said that it sends no more; it may still want an answer."""
        self._exchange: Exchange | None = None
        """The request that is being received or answered."""
        self._delegate: httputil.HTTPMessageDelegate | None = None
        """The application's object that takes the body, until the body is complete."""
        self._body: int | ChunkedBody = 0
        """How many bytes of the body are still to come, or what decodes it."""
        self._incomplete = False
        """Whether some of the body is still to come."""
        self._unasked = False
        """Whether the body has not been begun: the application may still change its limit, or wait."""
        self._expects_continue = False
        self._awaited: asyncio.Future[None] | None = None
        """The application's future that must be done before it is given more of the body."""
        self._unsent: list[memoryview] = []
        self._unread = 0
        """How many bytes of responses are kept until the client has read all of them."""
        self._taken = 0
        """How many bytes of these the client has taken since its time began."""
        self._drained: asyncio.Future[None] | None = None
        self._ending = False
        """Whether the response is complete, and its last bytes wait for the socket."""
        self._keep_alive = True
        self._linger = -1
        """How many more bytes are read and thrown away at the end; negative until the last response is sent."""
        server.waiting.start(self)

    @_ends_with_errors
    def start(self) -> None:
        """Read the first request at once: most clients have sent it by now."""
        self._read()
        if self.closed:
            return
        self._proceed()
        if self._exchange is None:
            self.watch()
        else:  # a stream detaches the socket in the next turn of the event loop, and needs no watching until then
            self._server.loop.call_soon(self.watch)

    @property
    def closed(self) -> bool:
        """Whether the socket is closed or has been given away."""
        return self._socket is None

    @property
    def body_incomplete(self) -> bool:
        """Whether some of the body of the request under way is still to come, or has not been looked at."""
        return self._incomplete

    @property
    def arriving(self) -> bool:
        """Whether the application handles a request whose body is not complete yet."""
        return self._delegate is not None

    @property
    def answering(self) -> bool:
        """Whether a complete request waits for its response, or for the last bytes of it to be sent."""
        return self._ending or (self._exchange is not None and self._delegate is None)

    @property
    def descriptor(self) -> int:
        """The file descriptor of the socket."""
        return self._fd

    @property
    def half_read(self) -> bytes | None:
        """The bytes of the next request that have been read; None while another request is under way."""
        under_way = self.closed or self.arriving or self.answering or self._linger >= 0
        return None if under_way else self._buffer

    @_ends_with_errors
    def watch(self) -> None:
        """Have the event loop call `_readable`, or no longer, by whether more bytes can be used now."""
        if self._socket is None:
            return
        wanted = (
            not self._ended
            and len(self._buffer) < READ_AHEAD
            and not (self._server.paused and self.half_read is not None)
        )
        if wanted and not self._reading:
            try:
                self._server.loop.add_reader(self._fd, self._readable)
            except OSError as error:  # epoll_ctl(2) has limits of its own
                self._server.exhausted(error)
                self.close()
                return
            self._reading = True
        elif not wanted:
            self._unwatch()

    def _unwatch(self) -> None:
        if self._reading:
            self._reading = False
            self._server.loop.remove_reader(self._fd)

    @_ends_with_errors
    def resume(self) -> None:
        """Use what has been received during a pause of the server."""
        self._proceed()
        self.watch()

    # -- reading --------------------------------------------------------------------------------------------

    @_ends_with_errors
    def _readable(self) -> None:
        # uvloop calls just once for a socket that the client has reset, also where there is something to read
        # before that shows. So what there is is read to its end, or the loop is asked to watch it anew; where a request
        # is complete by then, it is quicker to ask the socket whether it has failed.
        while self._read() and len(self._buffer) < READ_AHEAD:
            if self._exchange is None and self._linger < 0:
                self._proceed()
                if self._socket is None:
                    return
                if self.answering:
                    if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                        self.close()
                    break
        if self._socket is not None and self._linger < 0:
            if len(self._buffer) >= READ_AHEAD:
                self._unwatch()
            self._proceed()
            self.watch()

    def _read(self) -> bool:
        """Add to the buffer what the socket has; return whether it had something, and may have more."""
        assert self._socket is not None
        received = self._server.received
        try:
            size = self._socket.recv_into(received)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self.close()
            return False
        if self._linger >= 0:
            self._linger -= size
            if size == 0 or self._linger < 0:
                self.close()
        elif size == 0:
            self._ended = True
        elif self._buffer:
            self._buffer += received[:size]
        else:
            self._buffer = bytes(received[:size])
        return size > 0 and self._socket is not None

    def _proceed(self) -> None:
        """Use what has been received, as far as possible now; refuse or close where that fails."""
        try:
            self._use_received()
        except (BadRequest, httputil.HTTPInputError) as error:
            self._refuse(error if isinstance(error, BadRequest) else BadRequest("the request is malformed"))
        except (StreamClosedError, asyncio.CancelledError):  # the application wants no more of the body
            self.close()
        except Exception:
            log.exception("uncaught")
            self.close()
        if self._ended and self._awaited is None and not self.answering and not self._begins_later():
            self.close()

    def _begins_later(self) -> bool:
        """Return whether another request has come that is not begun yet: in its own turn, or after a pause, maybe by
        the next process."""
        complete = self._exchange is None and _HEAD_END in self._buffer
        return complete or (self._server.paused and bool(self._buffer))

    def _use_received(self) -> None:
        if self._awaited is not None:
            if not self._awaited.done():
                return
            awaited, self._awaited = self._awaited, None
            awaited.result()
        while self._socket is not None and self._awaited is None and self._linger < 0 and not self._ending:
            if self._exchange is None:
                if self._server.paused or not self._begin():
                    return
            elif self._delegate is None or not self._receive(self._exchange, self._delegate):
                return

    def _begin(self) -> bool:
        """Begin the next request; return whether its body can be read."""
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):  # RFC 9112 §2.2
            lines = (len(buffer) - len(buffer.lstrip(b"\r\n"))) // 2
            if buffer.startswith(b"\r\n" * lines):  # else what follows is malformed
                self._buffer = buffer = buffer[2 * lines :]
        end = buffer.find(_HEAD_END) + len(_HEAD_END)
        complete = end >= len(_HEAD_END)
        server = self._server
        if (end if complete else len(buffer)) > server.max_header_size:
            raise BadRequest("the headers are too large", 431, "headers_too_large")
        if not complete:
            if buffer.count(b"\n") != buffer.count(b"\r\n"):
                raise BadRequest("lines end in CR and LF")
            if buffer and self in server.resting:  # from here on progress prolongs nothing
                server.resting.stop(self)
                server.waiting.start(self)
            return False
        head = self._head_of(buffer[:end])
        self._buffer = buffer[end:]
        server.waiting.stop(self)
        server.resting.stop(self)
        self._exchange = exchange = Exchange(self, head, server.max_body_size)
        self._incomplete = head.length != 0
        delegate = server.delegate.start_request(self, exchange)
        ready = delegate.headers_received(head.start_line, head.headers.copy())
        if self._exchange is not exchange:  # answered already, or detached; what follows has its own turn
            return False
        if head.length == 0:  # there is nothing that the application would have to be ready for
            delegate.finish()
            return False
        self._delegate = delegate
        self._body = ChunkedBody() if head.length == CHUNKED_BODY else head.length
        self._unasked = True
        self._expects_continue = head.expects_continue
        if head.length == CHUNKED_BODY or len(self._buffer) < head.length:
            server.receiving.start(self)
        if ready is not None:
            self._wait_for(ready)
        return True

    def _head_of(self, text: bytes) -> RequestHead:
        """Return what the head of a request says.

        A client that publishes sends the same head again and again, and to parse it is 5 % of what that costs.

        Raises:
            BadRequest: it breaks a rule.
        """
        if self._head is not None and text == self._head_bytes:
            return self._head
        head = parse_head(text)
        if len(text) <= LONGEST_HEAD_REMEMBERED:
            self._head_bytes, self._head = text, head
        return head

    def _receive(self, exchange: Exchange, delegate: httputil.HTTPMessageDelegate) -> bool:
        """Give the application what has come of the body; return whether there may be more to do."""
        if self._unasked:
            self._unasked = False
            if isinstance(self._body, int) and self._body > exchange.max_body_size:
                raise BadRequest("the body is too large", 413, "too_large")
            if self._expects_continue and not (exchange.responding or self._buffer):
                # Until the socket has accepted it, a handler that takes the socket would lose some of it.
                self._wait_for(self.send(_CONTINUE))
                return True
        if isinstance(self._body, int):
            content, self._buffer = self._buffer[: self._body], self._buffer[self._body :]
            self._body -= len(content)
            self._incomplete = self._body > 0
        else:
            content, self._buffer = self._body.feed(self._buffer)
            self._incomplete = not self._body.complete
            exchange.max_body_size -= len(content)
            if exchange.max_body_size < 0:
                raise BadRequest("the body is too large", 413, "too_large")
        if content and (done := delegate.data_received(content)) is not None:
            self._wait_for(done)
            return True
        if not self._incomplete and self._exchange is exchange:
            self._delegate = None
            self._server.receiving.stop(self)
            delegate.finish()
        return False

    def _wait_for(self, awaitable: Awaitable[None]) -> None:
        """Use no further bytes until the application's awaitable is done."""
        future = asyncio.ensure_future(awaitable)
        if future.done():
            future.result()
        else:
            self._awaited = future
            future.add_done_callback(self._waited)

    @_ends_with_errors
    def _waited(self, future: asyncio.Future[None]) -> None:
        if self._awaited is future:  # else the request has ended meanwhile
            self._proceed()
            self.watch()

    # -- writing --------------------------------------------------------------------------------------------

    def send(self, data: bytes) -> asyncio.Future[None]:
        """Send bytes; the future resolves when the socket has accepted them, or fails when the client is gone."""
        if self._socket is None:
            return failed(self._server.loop.create_future())
        sent = 0
        if not self._unsent:
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError:
                self.close()
                return failed(self._server.loop.create_future())
            if sent == len(data):
                return self._server.sent
            try:
                self._server.loop.add_writer(self._fd, self._writable)
            except OSError as error:
                self._server.exhausted(error)
                self.close()
                return failed(self._server.loop.create_future())
            self._server.sending.start(self)
            self._taken = 0
        self._unsent.append(memoryview(data)[sent:])
        self._unread += len(data)
        self._server.count_unread(len(data), self)
        if self._drained is None:
            self._drained = self._server.loop.create_future()
        return self._drained

    @_ends_with_errors
    def _writable(self) -> None:
        assert self._socket is not None
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent[0])
                self._note_progress(sent)
                if sent != len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][sent:]
                    return
                del self._unsent[0]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        self._server.loop.remove_writer(self._fd)
        self._forget_unread()
        self._server.sending.stop(self)
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        if self._ending:
            self._ending = False
            self._end()

    def _forget_unread(self) -> None:
        self._server.count_unread(-self._unread, self)
        self._unread = 0

    def _note_progress(self, sent: int) -> None:
        """Give a client that reads more time; a byte now and then is not enough."""
        self._taken += sent
        if self._taken >= SEND_PROGRESS:
            self._taken = 0
            self._server.sending.start(self)

    # -- ending ---------------------------------------------------------------------------------------------

    def answered(self, keep_alive: bool) -> None:
        """Begin the next request, or end, because the response is complete."""
        self._exchange = self._delegate = self._awaited = None
        # A client that is answered before its whole body came may send the rest or not: the next bytes are ambiguous.
        self._keep_alive = keep_alive and not self._incomplete
        self._server.receiving.stop(self)
        if self._unsent:
            self._ending = True
        else:
            self._end()

    def _end(self) -> None:
        """Begin the next request, or end, after the last byte of a response was sent."""
        if not self._keep_alive:
            self._close_gracefully()
            return
        server = self._server
        server.resting.start(self)
        if (self._buffer or self._ended) and not server.paused:
            server.loop.call_soon(self.resume)
        else:
            self.watch()

    def _refuse(self, error: BadRequest) -> None:
        """Answer a request that cannot be read, unless the answer has begun; and end."""
        log.info("malformed_request", extra={"detail": str(error), "address": self.context.remote_ip})
        responding = self._exchange is not None and self._exchange.responding
        self._abandon()
        self._server.waiting.stop(self)
        self._server.resting.stop(self)
        self._keep_alive = False
        self._incomplete = True
        if not responding:
            self.send(error.response())
        if self._unsent:
            self._ending = True
        else:
            self._close_gracefully()

    def _close_gracefully(self) -> None:
        """Close after the last response, so that the client can still read it.

        To close a socket that has unread input resets the connection, and the response is lost on its way
        (RFC 9112 §9.6). So what the client still sends is read and dropped for a while.
        """
        if not (self._incomplete or self._buffer or self._ended or self.closed):
            self._read()
        if self._socket is None:
            return
        if self._ended or not (self._incomplete or self._buffer):
            self.close()
            return
        self._buffer = b""
        self._linger = LINGER_BYTES
        self._server.lingering.start(self)
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
        self.watch()

    def detach(self) -> socket.socket:
        """Return the socket, which is the caller's from now on; bytes that were read and not used are dropped."""
        assert self._socket is not None
        assert not self._unsent
        sock = self._socket
        self._exchange = self._delegate = self._awaited = None
        self._unregister()
        return sock

    def close(self) -> None:
        """Close the socket, and inform the server and the application."""
        if self._socket is None:
            return
        if self._unsent:
            self._unsent.clear()
            self._forget_unread()
            self._server.loop.remove_writer(self._fd)
        sock = self._socket
        self._unregister()
        sock.close()
        if self._drained is not None and not self._drained.done():
            failed(self._drained)
        self._abandon()

    def _unregister(self) -> None:
        """Remove the connection from the event loop and the server."""
        self._unwatch()
        self._socket = None
        server = self._server
        for deadlines in server.deadlines:
            deadlines.stop(self)
        server.forget(self)

    def _abandon(self) -> None:
        """End the request under way, and tell the application that its client has gone."""
        exchange, delegate = self._exchange, self._delegate
        self._exchange = self._delegate = self._awaited = None
        self._server.receiving.stop(self)
        if exchange is None:
            return
        callback = exchange.close_callback if delegate is None else delegate.on_connection_close
        exchange.end()
        if callback is not None:  # later, for the caller may be the handler's own write
            self._server.loop.call_soon(callback)
