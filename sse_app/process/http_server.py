"""The listening side: Tornado's HTTP server, with a short way in for requests that open streams.

To read one request after another from a connection Tornado sets up an IOStream, two connection objects, a
task and a timer. The request for a stream is the last one of its connection, mostly the first, and comes in
one piece: it is read at once, and goes to the application through the same public interface
(`tornado.httputil.HTTPServerConnectionDelegate`). That is a third of what a connect costs otherwise.

Whatever is not plainly such a request goes Tornado's way: it has only been looked at, and is still there.
"""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Iterable
from typing import Any

from tornado import httputil
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream

from sse_app.core.framing import framing_for
from sse_app.settings.model import Settings
from sse_app.streams.connection import Context, StreamConnection, tune

PATIENCE = 1.0
"""Seconds after which a connection that has sent nothing goes Tornado's way, where the timeouts are."""

MAX_HEAD = 16 * 1024
"""How many bytes are looked at; a longer head goes Tornado's way."""

_OPENS_STREAM = re.compile(rb"GET /api/v1/sse/(?!status\b)[^/? ]+\?[^ ]*token=[^ ]* HTTP/1\.[01]\r\n")
_NOT_HERE = ("Content-Length", "Transfer-Encoding", "Expect", "Upgrade")
_INHERITS_OPTIONS = sys.platform == "linux"


class StreamServer(HTTPServer):
    """Tornado's server, and the short way beside it.

    Its listening sockets carry the options that streams want: on Linux what they accept has them already.
    """

    def initialize(  # type: ignore[override]  # Tornado means it to be extended
        self, *args: Any, settings: Settings, **options: Any
    ) -> None:
        """Take the settings, and what `HTTPServer` takes."""
        super().initialize(*args, **options)
        self._settings = settings
        self._waiting: dict[IOStream, tuple[Any, float]] = {}
        """Connections that have sent nothing yet, with the address and when they came; the oldest is first."""
        self._timer: asyncio.TimerHandle | None = None

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept connections on these sockets, whose options are set here."""
        sockets = list(sockets)
        for listening in sockets:
            if _is_tcp(listening):
                tune(listening, self._settings)
        super().add_sockets(sockets)

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Wait for the first bytes of a connection."""
        if self.ssl_options is not None or self.xheaders or not _is_tcp(stream.socket):
            super().handle_stream(stream, address)
            return
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(PATIENCE, self._lose_patience)
        self._waiting[stream] = (address, loop.time())
        loop.add_reader(stream.fileno(), self._arrived, stream)

    def watch_arrivals(self, watch: bool) -> None:
        """Look at what comes from connections that have sent nothing yet, or leave it where it is."""
        loop = asyncio.get_running_loop()
        for stream in self._waiting:
            if watch:
                loop.add_reader(stream.fileno(), self._arrived, stream)
            else:
                loop.remove_reader(stream.fileno())

    async def close_all_connections(self) -> None:
        """Close also those that have sent nothing."""
        for stream in list(self._waiting):
            self._go_tornados_way(stream)
        await super().close_all_connections()

    def _arrived(self, stream: IOStream) -> None:
        try:
            head: bytes = stream.socket.recv(MAX_HEAD, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        if not self._open_stream(stream, head):
            self._go_tornados_way(stream)

    def _go_tornados_way(self, stream: IOStream) -> None:
        address, _ = self._waiting.pop(stream)
        asyncio.get_running_loop().remove_reader(stream.fileno())
        super().handle_stream(stream, address)

    def _lose_patience(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._waiting:
            stream, (_, since) = next(iter(self._waiting.items()))
            if since + PATIENCE > loop.time():
                self._timer = loop.call_at(since + PATIENCE, self._lose_patience)
                return
            self._go_tornados_way(stream)

    def _open_stream(self, stream: IOStream, head: bytes) -> bool:
        """Hand a request for a stream to the application; return False where it is none, or not one so simple."""
        if not _OPENS_STREAM.match(head) or head.find(b"\r\n\r\n") != len(head) - 4:
            return False
        if head.count(b"\n") != head.count(b"\r\n"):
            return False
        line, _, rest = head.decode("latin1").partition("\r\n")
        sock: socket.socket = stream.socket
        (host, *_), _ = self._waiting[stream]
        connection = StreamConnection(sock, framing_for(line[line.rindex(" ") + 1 :]), context=Context(host))
        delegate = self.start_request(self, connection)
        try:
            headers = httputil.HTTPHeaders.parse(rest)
            if any(name in headers for name in _NOT_HERE):
                return False
            delegate.headers_received(httputil.parse_request_start_line(line), headers)
        except httputil.HTTPInputError:
            return False
        del self._waiting[stream]
        asyncio.get_running_loop().remove_reader(sock.fileno())
        sock.recv(len(head))
        if not _INHERITS_OPTIONS:
            tune(sock, self._settings)
        delegate.finish()
        return True


def _is_tcp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)
