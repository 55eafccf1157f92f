"""Peers on plain Tornado: a handler with a queue a stream; for the publish rows one with SQLite, and a bare one."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from importlib.metadata import version

from bench.load import Publish
from bench.payload import EVENT_ITEM
from bench.servers.interface import PythonApp


class _TornadoApp(PythonApp):
    @classmethod
    def version(cls) -> str:
        return f"Tornado {version('tornado')}, uvloop {version('uvloop')}"


class TornadoQueue(_TornadoApp):
    """What one writes first: a queue a stream, `write` and `flush` for each event."""

    name = "tornado-queue"
    title = "plain Tornado handler with a queue"
    module = "tornado_queue_app"


class TornadoSqlite(_TornadoApp):
    """What one writes first where events have to be on disk: each is inserted in a thread, then sent and answered."""

    name = "tornado-sqlite"
    title = "plain Tornado handler with SQLite"
    module = "tornado_sqlite_app"

    @classmethod
    def version(cls) -> str:
        return f"{super().version()}, SQLite {sqlite3.sqlite_version}"

    def arguments(self) -> list[str]:
        return [str(self.directory / "events.db")]


class TornadoPost(_TornadoApp):
    """The upper bound of publishing over HTTP in this interpreter and framework. It has no streams."""

    name = "tornado-post"
    title = "bare Tornado POST handler"
    module = "tornado_post_app"
    streams = False
    health_path = ""
    batches = True

    def arguments(self) -> list[str]:
        return [str(self.options.workers)]

    def publish(self, channels: Sequence[str], batch: int = 1) -> Publish:
        del channels
        return Publish(self.port, "/publish", EVENT_ITEM, separator=",", batch=batch)
