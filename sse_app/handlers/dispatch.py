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

from sse_app.core.private_apis import execution, set_body_future

MAX_TARGETS = 1024
"""Of how many paths the handler is remembered."""

LONGEST_REMEMBERED = 255
"""How many characters a path or a host has at most that is remembered."""


class Request(httputil.HTTPServerRequest):
    """What a handler knows of a request; one without a query costs less than Tornado's own.

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
        method, uri, version = start_line
        if "?" in uri or "Host" not in headers or len(host := headers["Host"]) > LONGEST_REMEMBERED:
            super().__init__(
                connection=connection,
                server_connection=server_connection,
                start_line=start_line,
                headers=headers,
            )
            self._begun = time.time()
            return
        self._begun = time.time()
        self.host_name = _host_name(host)
        self.method, self.uri, self.version = method, uri, version
        self.path, self.query = uri, ""
        self.headers = headers
        self.host = host
        self.body = b""
        self.files = {}
        self.arguments = {}
        self.query_arguments = {}
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
        self._targets: dict[tuple[str, str], _Target] = {}
        super().__init__(*args, **settings)

    def add_handlers(self, *args: Any, **kwargs: Any) -> None:
        """Add rules for some hosts, as Tornado does."""
        super().add_handlers(*args, **kwargs)
        self._targets.clear()

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        """Return what takes a request."""
        return _Arrival(self, server_conn, request_conn)

    def stepped_target(self, request: Request) -> _Target | None:
        """Return the handler of a request that it answers without a task, if it was asked for before."""
        return self._targets.get((request.method or "", request.path))

    def remember(self, request: Request, target: _Target) -> None:
        """Remember a handler that answers such requests without a task."""
        if len(self.default_router.rules) > 1:  # there are rules that look at more than the path
            return
        if len(request.path) <= LONGEST_REMEMBERED:
            if len(self._targets) >= MAX_TARGETS:
                self._targets.clear()
            self._targets[request.method or "", request.path] = target


class _Arrival(httputil.HTTPMessageDelegate):
    """Takes one request, and gives it to its handler."""

    def __init__(
        self, application: Application, server_connection: object, connection: httputil.HTTPConnection
    ) -> None:
        self._application = application
        self._server_connection = server_connection
        self._connection = connection
        self._rest: httputil.HTTPMessageDelegate | None = None
        """Takes what follows the head; None where that was malformed."""

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, httputil.RequestStartLine)
        request = Request(self._connection, self._server_connection, start_line, headers)
        application = self._application
        target = application.stepped_target(request)
        if target is None:
            delegate = application.find_handler(request)
            if request.method not in getattr(delegate.handler_class, "stepped", ()):
                self._rest = delegate
                return delegate.headers_received(start_line, headers)
            target = _Target(delegate.handler_class, delegate.handler_kwargs, delegate.path_args)
            application.remember(request, target)
        self._rest = stepped = _Stepped(application, request, target)
        stepped.begin()
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        assert self._rest is not None
        return self._rest.data_received(chunk)

    def finish(self) -> None:
        assert self._rest is not None
        self._rest.finish()

    def on_connection_close(self) -> None:
        if self._rest is not None:
            self._rest.on_connection_close()


class _Stepped(httputil.HTTPMessageDelegate):
    """Runs a handler's method without a task: at once, and on when what it waits for is done."""

    def __init__(self, application: Application, request: Request, target: _Target) -> None:
        self._body = asyncio.get_running_loop().create_future()
        set_body_future(request, self._body)
        self._handler = target.handler(application, request, **target.parts)
        self._execution: Coroutine[Any, Any, None] = execution(self._handler, target.path_arguments)

    def begin(self) -> None:
        """Run up to where the body is waited for; a refusal is answered by then."""
        self._step()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._handler.data_received(chunk)

    def finish(self) -> None:
        if self._body.remove_done_callback(self._step):  # not in the next turn of the event loop, but now
            self._body.set_result(None)
            self._step()
        elif not self._body.done():
            self._body.set_result(None)

    def on_connection_close(self) -> None:
        self._handler.on_connection_close()

    def _step(self, _: asyncio.Future[Any] | None = None) -> None:
        try:
            awaited = self._execution.send(None)
        except StopIteration:
            return
        if awaited is None:
            asyncio.get_running_loop().call_soon(self._step)
        else:
            awaited.add_done_callback(self._step)
