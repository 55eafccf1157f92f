"""Peer of the publish rows: a bare Tornado POST handler that reads the body and answers 201, nothing else.

Arguments: the port, and how many processes.
"""

from __future__ import annotations

import asyncio
import os
import sys

import uvloop
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler


class PublishHandler(RequestHandler):
    """No routing worth the name, no authentication, no parsing, no log."""

    def post(self) -> None:
        self.set_status(201)
        self.write({"id": len(self.request.body)})


async def main(port: int, shared: bool) -> None:
    app = Application([(r"/publish", PublishHandler)], log_function=lambda handler: None)
    HTTPServer(app).add_sockets(bind_sockets(port, "127.0.0.1", backlog=4096, reuse_port=shared))
    await asyncio.Event().wait()


if __name__ == "__main__":
    port, workers = map(int, sys.argv[1:])
    for _ in range(workers - 1):
        if os.fork() == 0:
            break
    uvloop.run(main(port, workers > 1))
