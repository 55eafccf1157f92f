"""The HTTP server as a handover needs it: held between two requests, its idle connections given away or taken."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

from tornado import httputil
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from sse_app.process.http_server import StreamServer


class _CarriedStream(IOStream):
    """An IOStream that begins with bytes that another process has read from the connection."""

    def __init__(self, sock: socket.socket, carried: bytes) -> None:
        super().__init__(sock)
        self._carried = carried

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        if not self._carried:
            return super().read_from_fd(buf)
        size = min(len(buf), len(self._carried))
        buf[:size] = self._carried[:size]
        self._carried = self._carried[size:]
        return size


class HandoverServer(StreamServer):
    """Can be held: requests under way are finished, and no new one is read; until it is let go on, or ends."""

    def initialize(self, *args: Any, **options: Any) -> None:
        """Take what `StreamServer` takes."""
        super().initialize(*args, **options)
        self._requests: dict[HTTP1ServerConnection, HTTP1Connection] = {}
        """Each connection with the request that it reads, answers or waits for."""
        self._paused = False
        self._listening: list[socket.socket] = []

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Note which request a connection has come to."""
        if isinstance(server_conn, HTTP1ServerConnection) and isinstance(request_conn, HTTP1Connection):
            self._requests[server_conn] = request_conn
            if self._paused:
                _hold(server_conn.stream)
        return super().start_request(server_conn, request_conn)

    def on_close(self, server_conn: object) -> None:
        """Forget a connection."""
        if isinstance(server_conn, HTTP1ServerConnection):
            self._requests.pop(server_conn, None)
        super().on_close(server_conn)

    def add_sockets(self, sockets: Any) -> None:
        """Accept connections on these sockets."""
        sockets = list(sockets)
        self._listening += [sock.dup() for sock in sockets]
        super().add_sockets(sockets)

    @property
    def listening(self) -> list[socket.socket]:
        """The sockets that connections are accepted on, also while the server is held."""
        return self._listening

    def pause(self) -> None:
        """Accept no connection, and read no further request; connections wait in the kernel."""
        self._paused = True
        self.stop()
        for server_conn, request in self._requests.items():
            if _is_waiting(request):
                _hold(server_conn.stream)
        self.watch_arrivals(False)

    def resume(self) -> None:
        """Take up again what `pause` interrupted."""
        self._paused = self._stopped = False
        self._sockets.clear()  # Tornado keeps those that it has closed, and would close them again
        for server_conn in self._requests:
            _let_go(server_conn.stream)
        self.watch_arrivals(True)
        listening, self._listening = self._listening, []
        self.add_sockets(listening)

    def close_listening(self) -> None:
        """Let go of the listening sockets, so that connections are refused unless somebody else has them too."""
        self.stop()
        for sock in self._listening:
            sock.close()
        self._listening = []

    @property
    def under_way(self) -> tuple[int, int]:
        """How many requests are being answered, and how many are still being sent by the client."""
        answered = arriving = 0
        for server_conn, request in self._requests.items():
            if _is_waiting(request):
                answered += server_conn.stream.writing()
            elif request._read_finished:
                answered += 1
            else:
                arriving += 1
        return answered, arriving

    def idle(self) -> Iterator[tuple[int, bytes]]:
        """Yield the descriptor of each connection between two requests, with what was read of the next one."""
        for server_conn, request in self._requests.items():
            stream = server_conn.stream
            if _is_waiting(request) and not stream.closed():
                yield stream.socket.fileno(), bytes(stream._read_buffer)
        for stream in self._waiting:
            yield stream.socket.fileno(), b""

    def adopt(self, sock: socket.socket, carried: bytes) -> None:
        """Go on with a connection that another process has held."""
        sock.setblocking(False)
        address = sock.getpeername()
        if carried:
            HTTPServer.handle_stream(self, _CarriedStream(sock, carried), address)
        else:
            self.handle_stream(IOStream(sock), address)


def _is_waiting(request: HTTP1Connection) -> bool:
    """Return whether the headers of a request are not complete yet: then nobody has begun to answer it."""
    return request._request_start_line is None


def _hold(stream: IOStream) -> None:
    stream.read_from_fd = lambda buf: None  # type: ignore[method-assign]  # as if nothing had arrived


def _let_go(stream: IOStream) -> None:
    vars(stream).pop("read_from_fd", None)
