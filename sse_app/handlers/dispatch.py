"""From the head of a request to its handler, with less work than Tornado's where the handler allows it.

Tornado finds a handler by trying all rules, reads parts of the request that most have no use for, and makes a task for
each. Where a request comes alone, every function that runs for it is cold, and that was a third of what a publish
cost. The handlers do not notice: they are the same under Tornado's own `Application`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from functools import lru_cache
from typing import Any, NamedTuple

from tornado import httputil, web
from tornado.escape import parse_qs_bytes

from sse_app.core.private_apis import execution

MAX_TARGETS = 1024
"""Of how many paths the handler is remembered."""

LONGEST_REMEMBERED = 255
"""How many characters a path or a host has at most that is remembered."""

MAX_FIELDS = 64
"""How many fields a query has at most that is not left to Tornado, which refuses what is too much."""


class Request(httputil.HTTPServerRequest):
    """What a handler knows of a request; it costs less than Tornado's own.

    Args:
        connection: that frames the response.
        server_connection: the client's.
        start_line: the request line.
        headers: of the request.
    """

    def __init__(
        self,
        connection: httputil.HTTPConnection,
        server_connection: object,
        start_line: httputil.RequestStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        self._begun = time.time()
        method, uri, version = start_line
        path, _, query = uri.partition("?")
        fields = query.count("&") + 1
        host = headers.get("Host", "")
        if fields > MAX_FIELDS or not host or len(host) > LONGEST_REMEMBERED:
            super().__init__(
                connection=connection,
                server_connection=server_connection,
                start_line=start_line,
                headers=headers,
            )
            return
        self.host_name = _host_name(host)
        self.method, self.uri, self.version = method, uri, version
        self.path, self.query = path, query
        self.headers = headers
        self.host = host
        self.body = b""
        self.files = {}
        self.arguments = parse_qs_bytes(query, keep_blank_values=True) if query else {}
        self.query_arguments = (
            {name: values.copy() for name, values in self.arguments.items()} if query else {}
        )
        self.body_arguments = {}
        self.connection = connection
        self.server_connection = server_connection
        context = connection.context  # type: ignore[attr-defined]
        self.remote_ip = context.remote_ip
        self.protocol = context.protocol

    def request_time(self) -> float:
        """Return for how many seconds the request has been under way."""
        return time.time() - self._begun


@lru_cache(256)
def _host_name(host: str) -> str:
    """Return the name in a ``Host`` header, as Tornado reads it.

    Raises:
        HTTPInputError: it has none.
    """
    headers = httputil.HTTPHeaders({"Host": host})
    start_line = httputil.RequestStartLine("GET", "/", "HTTP/1.1")
    return httputil.HTTPServerRequest(start_line=start_line, headers=headers).host_name


class _Target(NamedTuple):
    """What a path leads to."""

    handler: type[web.RequestHandler]
    parts: dict[str, Any]
    path_arguments: list[bytes]


class Application(web.Application):
    """Tornado's, but for requests whose handler names their method in ``stepped``: these get no task.

    Such a method, and ``prepare``, waits for nothing but futures, and does not ask for the task that it runs in.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.targets: dict[tuple[str, str], _Target] = {}
        """What was found before: the handlers that answer requests of a method and a path without a task."""
        super().__init__(*args, **settings)

    def add_handlers(self, *args: Any, **kwargs: Any) -> None:
        """Add rules for some hosts, as Tornado does."""
        super().add_handlers(*args, **kwargs)
        self.targets.clear()

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Return what takes a request."""
        return _Arrival(self, server_conn, request_conn)

    def remember(self, request: Request, target: _Target) -> None:
        """Remember a handler that answers such requests without a task."""
        if len(self.default_router.rules) > 1:  # there are rules that look at more than the path
            return
        if len(request.path) <= LONGEST_REMEMBERED:
            if len(self.targets) >= MAX_TARGETS:
                self.targets.clear()
            self.targets[request.method or "", request.path] = target


class _Arrival(httputil.HTTPMessageDelegate):
    """Takes one request, and gives it to its handler; or runs that itself, where it needs no task."""

    def __init__(
        self, application: Application, server_connection: object, connection: httputil.HTTPConnection
    ) -> None:
        self._application = application
        self._server_connection = server_connection
        self._connection = connection
        self._rest: httputil.HTTPMessageDelegate | None = None
        """Tornado's, which takes what follows the head."""
        self._handler: web.RequestHandler | None = None
        """What takes the body, where there is no task."""

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        application = self._application
        request = Request(self._connection, self._server_connection, start_line, headers)
        target = application.targets.get((start_line.method, request.path))
        if target is None:
            delegate = application.find_handler(request)
            if request.method not in getattr(delegate.handler_class, "stepped", ()):
                self._rest = delegate
                return delegate.headers_received(start_line, headers)
            target = _Target(delegate.handler_class, delegate.handler_kwargs, delegate.path_args)
            application.remember(request, target)
        self._handler = handler = target.handler(application, request, **target.parts)
        self._body = asyncio.get_running_loop().create_future()
        self._execution: Coroutine[Any, Any, None] = execution(handler, self._body, target.path_arguments)
        self._step()  # up to where the body is waited for; a refusal is answered by then
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        taker = self._handler or self._rest
        assert taker is not None
        return taker.data_received(chunk)

    def finish(self) -> None:
        if self._rest is not None:
            self._rest.finish()
        elif self._body.remove_done_callback(self._step):  # not in the next turn of the event loop, but now
            self._body.set_result(None)
            self._step()
        elif not self._body.done():
            self._body.set_result(None)

    def on_connection_close(self) -> None:
        if self._rest is not None:
            self._rest.on_connection_close()
        elif self._handler is not None:  # it is None where the head was malformed
            self._handler.on_connection_close()

    def _step(self, _: asyncio.Future[Any] | None = None) -> None:
        """Run the handler's method up to where it waits again."""
        try:
            awaited = self._execution.send(None)
        except StopIteration:
            return
        if awaited is None:
            asyncio.get_running_loop().call_soon(self._step)
        else:
            awaited.add_done_callback(self._step)
