"""The HTTP server: accepts connections, keeps their timeouts, and can pause for a handover."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

from tornado import httputil

from sse_app.core.addresses import UNIX_SOCKET
from sse_app.core.counters import ConnectionCounts
from sse_app.core.repeated_event import RepeatedEvent
from sse_app.http.connection import READ_AHEAD, Connection
from sse_app.http.deadlines import Deadlines
from sse_app.http.exchange import Context
from sse_app.http.open_connections import ConnectionLimits, OpenConnections, Sheddable

MAX_HEADER_SIZE = 32 * 1024
"""How many bytes the head of a request may have."""

MAX_BODY_SIZE = 1024 * 1024
"""How many bytes a body may have where the handler sets no limit of its own."""

IDLE_TIMEOUT = 75.0
"""How long the head of a request may take to come, in seconds, from the connection's start or its own first byte;
and how long the next request may take to begin."""

BODY_TIMEOUT = 60.0
"""How long a request's body may take to come, in seconds."""

SEND_TIMEOUT = 60.0
"""Seconds within which a client must take all of a response that waits for it, or `SEND_PROGRESS` bytes more.

The kernel has a limit only for clients that take nothing, only for TCP, and not on every system.
"""

MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""How many bytes of responses wait for their clients, over all connections."""

SLOW_AFTER = 1.0
"""Seconds after which a body that is still coming, or a response that is not read, may be cut off to make room."""

ACCEPTED_AT_ONCE = 32
"""How many connections are accepted before the event loop runs other callbacks: where each opens a stream at once, that
takes some four milliseconds."""

MOST_WAITING = 65_536
"""How many connections at most are still accepted when a listening socket is closed."""

ACCEPT_PAUSE = 1.0
"""Seconds for which no connection is accepted after that failed, for lack of descriptors or memory."""

BUSY_PAUSE = 0.1
"""Seconds for which no connection is accepted at most while all that there are are busy."""

LINGER_TIMEOUT = 2.0
"""Seconds for which a client is given time to read the last response."""

_OF_ONE_CONNECTION = frozenset(
    number
    for name in (
        *("ECONNABORTED", "EPERM", "EPROTO", "ENOPROTOOPT", "EOPNOTSUPP"),
        *("ENETDOWN", "ENETUNREACH", "EHOSTDOWN", "EHOSTUNREACH", "ENONET"),
    )
    if (number := getattr(errno, name, None)) is not None
)
"""Errors that concern only the connection that would have been accepted (accept(2), "Error handling")."""

NO_LIMITS = ConnectionLimits(sys.maxsize, sys.maxsize, lambda address: False)

_INHERITS_OPTIONS = sys.platform == "linux"

log = logging.getLogger(__name__)


class HTTPServer:
    """Serves a Tornado application over HTTP/1.1 and 1.0, without TLS.

    The sockets are bare, so that a handler can take one over, and another process all of them.

    Args:
        delegate: the application.
        tune: sets the options of a TCP socket: of listening ones, from which others inherit them on Linux.
        limits: on connections that no handler has taken over.
        counts: of connections, for metrics.
        max_header_size, max_body_size, idle_timeout, body_timeout, send_timeout, max_unread_bytes: see the
            constants.
    """

    def __init__(
        self,
        delegate: httputil.HTTPServerConnectionDelegate,
        *,
        tune: Callable[[socket.socket], None] = lambda sock: None,
        limits: ConnectionLimits = NO_LIMITS,
        counts: ConnectionCounts | None = None,
        max_header_size: int = MAX_HEADER_SIZE,
        max_body_size: int = MAX_BODY_SIZE,
        idle_timeout: float = IDLE_TIMEOUT,
        body_timeout: float = BODY_TIMEOUT,
        send_timeout: float = SEND_TIMEOUT,
        max_unread_bytes: int = MAX_UNREAD_BYTES,
    ) -> None:
        self.delegate = delegate
        self.max_header_size = max_header_size
        self.max_body_size = max_body_size
        self.loop = asyncio.get_running_loop()
        self.sent = self.loop.create_future()
        self.sent.set_result(None)
        self.received = memoryview(bytearray(READ_AHEAD))
        self.paused = False
        self.waiting = Deadlines(idle_timeout, Connection.close)
        self.resting = Deadlines(idle_timeout, Connection.close)
        self.receiving = Deadlines(body_timeout, Connection.close)
        self.sending = Deadlines(send_timeout, Connection.close)
        self.lingering = Deadlines(LINGER_TIMEOUT, Connection.close)
        self.deadlines: Sequence[Deadlines[Connection]] = (
            self.waiting,
            self.resting,
            self.receiving,
            self.sending,
            self.lingering,
        )
        self._unread_bytes = 0
        self._max_unread_bytes = max_unread_bytes
        self._tune = tune
        self._counts = ConnectionCounts() if counts is None else counts
        order = (
            Sheddable("silent", self.waiting),
            Sheddable("answered", self.lingering),
            Sheddable("idle", self.resting),
            Sheddable("slow_body", self.receiving, SLOW_AFTER),
            Sheddable("unread", self.sending, SLOW_AFTER),
        )
        self._connections = OpenConnections(limits, order, self._counts)
        self._listening: list[socket.socket] = []
        self._accept_again: asyncio.TimerHandle | None = None
        """Runs while no connection can be accepted."""
        self._full = False
        """Whether that is because all connections are busy."""
        self._failures = RepeatedEvent(log, logging.ERROR, "accept_failed")

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on listening, non-blocking sockets, which are the server's from now on."""
        for listening in sockets:
            if _is_tcp(listening):
                self._tune(listening)
            self._listening.append(listening)
            if not self.paused:
                self.loop.add_reader(listening.fileno(), self._accept, listening)

    def limit(self, limits: ConnectionLimits) -> None:
        """Put other limits in force for connections that are accepted from now on."""
        self._connections.limits = limits

    def forget(self, connection: Connection) -> None:
        """Forget a connection that has ended or has given its socket away."""
        self._connections.discard(connection)
        self.delegate.on_close(connection)
        if self._full and not self._connections.too_many:
            self._start_accepting()

    def exhausted(self, error: OSError) -> None:
        """Note that a connection cannot be accepted or served: there are no descriptors, or there is no memory."""
        self._counts.accept_failures += 1
        self._failures.add(error.strerror or type(error).__name__)

    def count_unread(self, size: int, connection: Connection) -> None:
        """Count so many bytes more of responses that wait for their clients, or fewer.

        Where they are too many, the connections whose clients have read nothing for the longest time are cut off.

        Args:
            size: how many more; negative once they are sent or dropped.
            connection: whose they are; it is not cut off.
        """
        self._unread_bytes += size
        if self._unread_bytes > self._max_unread_bytes:
            for slow in [each for each in self.sending if each is not connection]:
                slow.close()
                if self._unread_bytes <= self._max_unread_bytes:
                    break

    async def finish(self, within: float) -> None:
        """Begin no request any more, and wait until those under way are answered.

        Args:
            within: for how many seconds at most.
        """
        self.pause()
        ends = self.loop.time() + within
        while self.under_way[0]:
            if self.loop.time() > ends:
                return
            await asyncio.sleep(0.001)

    async def close_all_connections(self) -> None:
        """Close all connections, and stop accepting; requests under way are cut off."""
        self.close_listening()
        for connection in list(self._connections):
            connection.close()
        for deadlines in self.deadlines:
            deadlines.close()
        await asyncio.sleep(0)  # so that the handlers of the requests learn of it

    # -- for a handover -------------------------------------------------------------------------------------

    @property
    def listening(self) -> list[socket.socket]:
        """The sockets that connections are accepted on, also while the server is paused."""
        return list(self._listening)

    @property
    def under_way(self) -> tuple[int, int]:
        """How many requests are being answered, and how many bodies are still being sent by the client."""
        busy = set(self._connections).difference(self.waiting, self.resting)
        answering = sum(connection.answering for connection in busy)
        return answering, sum(connection.arriving for connection in busy)

    def pause(self) -> None:
        """Accept no connection, and begin no request; those under way are finished."""
        self.paused = True
        self._stop_accepting()
        for connection in list(self._connections):
            connection.watch()

    def resume(self) -> None:
        """Accept connections and begin requests again after `pause`."""
        self.paused = False
        self._start_accepting()
        for connection in list(self._connections):
            connection.resume()

    def stop_listening(self, sockets: Iterable[socket.socket]) -> None:
        """Close listening sockets, which other processes have too."""
        for listening in sockets:
            self._listening.remove(listening)
            self.loop.remove_reader(listening.fileno())
            listening.close()

    def close_listening(self) -> None:
        """Close the listening sockets, so that connections are refused unless another process has them too.

        Those that wait there are accepted first: the kernel would reset them.
        """
        for listening in () if self.paused else self._listening:
            self._accept_up_to(MOST_WAITING, listening)
        self._stop_accepting()
        for listening in self._listening:
            listening.close()
        self._listening.clear()

    def idle(self) -> Iterator[tuple[int, bytes]]:
        """Yield the descriptor of each connection between two requests, with what was read of the next one.

        They come in the order in which they would be closed to make room.
        """
        for connection in chain(self.waiting, self.resting):
            if (half_read := connection.half_read) is not None:
                yield connection.descriptor, half_read

    def adopt(self, sock: socket.socket, already_read: bytes) -> None:
        """Serve a connection that another process has accepted.

        Args:
            sock: the server's from now on.
            already_read: the bytes of the next request that the other process has read.

        Raises:
            OSError: the connection has ended meanwhile.
        """
        sock.setblocking(False)
        connection = Connection(self, sock, _context(sock, sock.getpeername()), already_read)
        self._connections.add(connection)
        if not already_read:
            self.waiting.stop(connection)
            self.resting.start(connection)
        self.loop.call_soon(connection.resume)

    # -- accepting ------------------------------------------------------------------------------------------

    def _accept(self, listening: socket.socket) -> None:
        self._accept_up_to(ACCEPTED_AT_ONCE, listening)

    def _accept_up_to(self, most: int, listening: socket.socket) -> None:
        if self._accept_again is not None:  # the call was under way when the pause began
            return
        if not self._connections.back_to_limit():
            self._wait_for_room()
            return
        for _ in range(most):
            try:
                sock, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    continue
                self.exhausted(error)
                if error.errno == errno.EMFILE and self._connections.shed():
                    continue
                self._pause_accepting(ACCEPT_PAUSE)
                return
            self._begin(sock, _context(sock, address))
            if self._connections.too_many:
                self._wait_for_room()
                return

    def _wait_for_room(self) -> None:
        """Accept no connection until one of those that there are has ended, or can be closed."""
        self._stop_accepting()
        self._accept_again = self.loop.call_later(BUSY_PAUSE, self._look_for_room)
        self._full = True

    def _look_for_room(self) -> None:
        """Accept again where there is room; say so where there was none all the while, as a burst does no harm."""
        if self._connections.back_to_limit():
            self._start_accepting()
            return
        self._counts.accept_failures += 1
        self._failures.add("all connections are busy")
        self._wait_for_room()

    def _begin(self, sock: socket.socket, context: Context) -> None:
        """Serve a new connection, unless its address has too many."""
        if not self._connections.make_room(context.remote_ip):
            sock.close()
            return
        sock.setblocking(False)
        if not _INHERITS_OPTIONS and _is_tcp(sock):
            try:
                self._tune(sock)
            except OSError:  # the client has gone already, which not every system forgives
                sock.close()
                return
        connection = Connection(self, sock, context)
        self._connections.add(connection)
        connection.start()

    def _pause_accepting(self, seconds: float) -> None:
        """Leave new connections to the kernel for a while; else the event loop would try again all the time."""
        self._stop_accepting()
        self._accept_again = self.loop.call_later(seconds, self._start_accepting)

    def _start_accepting(self) -> None:
        self._stop_accepting()
        if self.paused:
            return
        try:
            for listening in self._listening:
                self.loop.add_reader(listening.fileno(), self._accept, listening)
        except OSError as error:
            self.exhausted(error)
            self._pause_accepting(ACCEPT_PAUSE)

    def _stop_accepting(self) -> None:
        self._full = False
        if self._accept_again is not None:
            self._accept_again.cancel()
            self._accept_again = None
        for listening in self._listening:
            self.loop.remove_reader(listening.fileno())


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _context(sock: socket.socket, address: tuple[str, int]) -> Context:
    """Return the address that requests of a connection come from; a Unix socket has none."""
    if not _is_tcp(sock):
        return Context(UNIX_SOCKET)
    # On a socket of both families, which systemd makes for ::, an IPv4 address comes mapped (RFC 4291 §2.5.5.2).
    return Context(address[0].removeprefix("::ffff:") if "." in address[0] else address[0])
