"""The application behind Pushpin: answers each stream with the GRIP instruction to hold it."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler


class HoldHandler(RequestHandler):
    """Hold the stream open, subscribed to the channel of its path, with a keep-alive every 30 s."""

    def get(self, channel: str) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Grip-Hold", "stream")
        self.set_header("Grip-Channel", channel)
        self.set_header("Grip-Keep-Alive", ":\\n\\n; format=cstring; timeout=30")
        self.write(":\n\n")


async def main() -> None:
    app = Application([(r"/stream/(.+)", HoldHandler)], log_function=lambda handler: None)
    HTTPServer(app).add_sockets(bind_sockets(int(sys.argv[1]), "127.0.0.1", backlog=4096))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
