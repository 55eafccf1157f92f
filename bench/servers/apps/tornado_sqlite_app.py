"""Peer of the lone publish: plain Tornado handlers and SQLite. An event is on disk before it is sent and answered.

Arguments: the port, and the path of the database.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor

import uvloop
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

streams: dict[str, set[StreamHandler]] = {}
writer = ThreadPoolExecutor(1)


class StreamHandler(RequestHandler):
    """A stream: what is published on its channel from now on."""

    async def get(self, channel: str) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-store")
        self.channel = channel
        streams.setdefault(channel, set()).add(self)
        await self.flush()
        await asyncio.Event().wait()

    def on_connection_close(self) -> None:
        streams[self.channel].discard(self)


class PublishHandler(RequestHandler):
    """A publish: the body is the event's data."""

    async def post(self, channel: str) -> None:
        body = self.request.body
        id = await asyncio.get_running_loop().run_in_executor(writer, insert, channel, body)
        for stream in streams.get(channel, ()):
            stream.write(b"id: %d\nevent: tick\ndata: %s\n\n" % (id, body))
            stream.flush()
        self.set_status(201)
        self.write({"id": id})


class HealthHandler(RequestHandler):
    """Answers at once, when the loop comes round."""

    def get(self) -> None:
        self.write("ok")


def insert(channel: str, data: bytes) -> int:
    """Store an event, and return its number once it is on disk; runs in the writer's thread."""
    statement = "INSERT INTO events (channel, data) VALUES (?, ?)"
    id = database.execute(statement, (channel, data)).lastrowid
    assert id is not None
    return id


async def main() -> None:
    app = Application(
        [(r"/stream/(.+)", StreamHandler), (r"/publish/(.+)", PublishHandler), (r"/healthz", HealthHandler)],
        log_function=lambda handler: None,
    )
    HTTPServer(app).add_sockets(bind_sockets(int(sys.argv[1]), "127.0.0.1", backlog=4096))
    await asyncio.Event().wait()


if __name__ == "__main__":
    database = sqlite3.connect(sys.argv[2], isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute(
        "CREATE TABLE events (id INTEGER PRIMARY KEY, channel TEXT NOT NULL, data BLOB NOT NULL)"
    )
    uvloop.run(main())
