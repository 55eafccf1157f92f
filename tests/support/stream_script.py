"""A server for the tests of clients, on real sockets, that sends the bytes that a test says."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from tests.support.waiting import stop_accepting


class Request(NamedTuple):
    """A request that came.

    Attributes:
        at: when, on the clock of the event loop.
        method: its method.
        path: its path without the query.
        query: the query as it stands.
        headers: by their names in lower case.
        body: what it carried.
    """

    at: float
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes


class Script:
    """Gives each path its answers in turn, the last one for ever; runs in the event loop of the test.

    An answer is a list of pieces that are sent one after the other, a number among them being seconds to wait. After
    the last one the connection is closed; where that is None, it stays open until the client goes.

    Attributes:
        answers: of each path by how it ends: ``/sse/news``, ``/renew``.
        asked: the requests that came.
    """

    def __init__(self, answers: dict[str, list[list[bytes | float | None]]]) -> None:
        self.answers = answers
        self.asked: list[Request] = []
        self._came = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def to(self, path: str) -> list[Request]:
        """Return the requests whose path ends so."""
        return [request for request in self.asked if request.path.endswith(path)]

    async def came(self, path: str, count: int = 1) -> list[Request]:
        """Wait until so many requests have come whose path ends so, and return them."""
        async with self._came:
            await self._came.wait_for(lambda: len(self.to(path)) >= count)
        return self.to(path)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            fields = (line.partition(":") for line in head[1:] if line)
            headers = {name.lower(): value.strip() for name, _, value in fields}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            parts = urlsplit(target)
            now = asyncio.get_running_loop().time()
            self.asked.append(Request(now, method, parts.path, parts.query, headers, body))
            async with self._came:
                self._came.notify_all()
            answers = next(each for path, each in self.answers.items() if parts.path.endswith(path))
            for piece in answers.pop(0) if len(answers) > 1 else answers[0]:
                if piece is None:
                    await reader.read()
                elif isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(piece)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            if not writer.is_closing():
                writer.transport.abort()


def status(number: int, body: bytes = b"", *headers: str) -> list[bytes | float | None]:
    """Return a whole answer with a status."""
    lines = [f"HTTP/1.1 {number} Status", "Connection: close", *headers]
    if number != 204:
        lines.append(f"Content-Length: {len(body)}")
    return ["\r\n".join([*lines, "", ""]).encode() + body]


def answer_json(number: int, content: Any, *headers: str) -> list[bytes | float | None]:
    """Return a whole answer with a status and JSON."""
    return status(number, json.dumps(content).encode(), "Content-Type: application/json", *headers)


def stream(
    *pieces: bytes | float | None, type: str = "Content-Type: text/event-stream"
) -> list[bytes | float | None]:
    """Return the answer that is a stream of pieces."""
    return [f"HTTP/1.1 200 OK\r\n{type}\r\nConnection: close\r\n\r\n".encode(), *pieces]


def event(type: str, data: Any, id: str = "") -> bytes:
    """Return an event as it stands on the wire."""
    return ((f"id: {id}\n" if id else "") + f"event: {type}\ndata: {json.dumps(data)}\n\n").encode()


def connected(expires_in: float | None = 600, id: str = "e-1") -> bytes:
    """Return the first event of a stream."""
    return event(
        "connected",
        {"client_id": "me", "channels": ["news"], "recovered": False, "expires_in": expires_in},
        id,
    )
