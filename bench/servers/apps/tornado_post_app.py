"""Peer of the publish rows: a bare Tornado POST handler that reads the body and answers 201, nothing else."""

from __future__ import annotations

import asyncio
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


async def main() -> None:
    app = Application([(r"/publish", PublishHandler)], log_function=lambda handler: None)
    HTTPServer(app).add_sockets(bind_sockets(int(sys.argv[1]), "127.0.0.1", backlog=4096))
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
