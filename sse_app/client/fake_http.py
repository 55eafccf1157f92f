"""As much of HTTP/1.1 as the server for tests needs: requests with a Content-Length, on connections that persist."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

LONGEST_HEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        method: its method.
        path: its path, decoded.
        query: the query, decoded; of members that come twice the last.
        headers: by their names in lower case.
        body: what it carries.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str:
        """The token in the header or the query; "" where there is none."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else self.query.get("token", "")

    def json(self) -> dict[str, Any] | None:
        """Return the JSON object that the body is; None where it is none."""
        try:
            value = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes:
        status: its status; 0 closes the connection without one.
        content: JSON; None: no body.
        headers: besides those that say what the body is.
    """

    status: int
    content: Any = None
    headers: tuple[tuple[str, str], ...] = ()

    def encoded(self) -> bytes:
        """Return it as bytes."""
        body = b"" if self.content is None else json.dumps(self.content).encode()
        lines = [f"HTTP/1.1 {self.status} -", *(f"{name}: {value}" for name, value in self.headers)]
        if self.status != 204:
            lines += ["Content-Type: application/json; charset=UTF-8", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode() + body


Handle = Callable[[Request, asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, Answer | None]]
"""Answers a request; None where it has written its answer to the connection, which is then closed."""


class SmallServer:
    """Reads requests and has them answered.

    Args:
        handle: answers them.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen on loopback, and return the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=LONGEST_HEAD)
        return int(self._server.sockets[0].getsockname()[1])

    async def aclose(self) -> None:
        """Close all connections, and listen no more."""
        if self._server is None:
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await _read(reader)
                answer = await self._handle(request, reader, writer)
                if answer is None or answer.status == 0:
                    return
                writer.write(answer.encoded())
                await writer.drain()
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # the client has gone, or speaks no HTTP
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Request:
    """Return the next request.

    Raises:
        OSError, EOFError: there is none.
        ValueError, asyncio.LimitOverrunError: it cannot be read.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    fields = (line.partition(":") for line in head[1:] if line)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    parts = urlsplit(target)
    return Request(method, unquote(parts.path), dict(parse_qsl(parts.query)), headers, body)
