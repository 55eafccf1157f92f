"""Peer: a plain Tornado handler, one queue a stream, a write and a flush for each event."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

subscribers: dict[str, set[asyncio.Queue[bytes]]] = {}
published = 0


class StreamHandler(RequestHandler):
    """A stream: what its queue yields."""

    async def get(self, channel: str) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store")
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        listeners = subscribers.setdefault(channel, set())
        listeners.add(queue)
        try:
            await self.flush()
            while True:
                self.write(await queue.get())
                await self.flush()
        except StreamClosedError:
            listeners.discard(queue)


class PublishHandler(RequestHandler):
    """A publish: the body is the event's data."""

    def post(self, channel: str) -> None:
        global published
        published += 1
        frame = b"id: %d\nevent: tick\ndata: %s\n\n" % (published, self.request.body)
        for queue in subscribers.get(channel, ()):
            queue.put_nowait(frame)
        self.set_status(201)
        self.write({"id": published})


class HealthHandler(RequestHandler):
    """Answers at once, when the loop comes round."""

    def get(self) -> None:
        self.write("ok")


async def main() -> None:
    app = Application(
        [(r"/stream/(.+)", StreamHandler), (r"/publish/(.+)", PublishHandler), (r"/healthz", HealthHandler)],
        log_function=lambda handler: None,
    )
    HTTPServer(app).add_sockets(bind_sockets(int(sys.argv[1]), "127.0.0.1", backlog=4096))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
