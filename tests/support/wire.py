"""A wire between a client and a server, on real sockets, that fails when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self

from tests.support.waiting import stop_accepting


class Wire:
    """Forwards TCP connections, in the event loop of the test.

    Args:
        target: the port of the server on this machine.

    Attributes:
        swallow: called when the server's first bytes of an answer come; where it returns true they are lost,
            and the connection with them.
        instead: what to answer by itself to the next requests, as a proxy does; each is used once.
        requests: the first line of each connection's first request.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.swallow: Callable[[], bool] = lambda: False
        self.instead: list[bytes] = []
        self.requests: list[str] = []
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        await stop_accepting(self._server)
        self.cut()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in self._open:
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            request = await reader.read(65_536)
            if not request:
                return
            self.requests.append(request.split(b"\r\n", 1)[0].decode())
            if self.instead:
                writer.write(self.instead.pop(0))
                await writer.drain()
                return
            try:
                upstream, out = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                return
            self._open.add(out)
            out.write(request)
            await asyncio.gather(self._forward(reader, out), self._back(upstream, writer))
        except OSError:
            pass
        finally:
            writer.transport.abort()
            self._open.discard(writer)

    async def _forward(self, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65_536):
                out.write(piece)
                await out.drain()
        except OSError:
            pass
        finally:
            out.transport.abort()
            self._open.discard(out)

    async def _back(self, upstream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await upstream.read(65_536):
                if self.swallow():
                    break
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.transport.abort()


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    """Return an answer as a proxy would send it."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    if status.startswith("204"):
        del lines[1]
    return "\r\n".join([*lines, "", ""]).encode() + body
