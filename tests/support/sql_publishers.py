"""A database whose roles publish in transactions of their own, and what the log has of that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection

from sse_app.core.channel_rules import ChannelRules
from sse_app.settings.channels import rules_of
from sse_app.settings.model import Limits
from sse_app.storage.postgres.database import Database
from sse_app.streams.rules_in_database import RulesInDatabase
from tests.support.postgres import Postgres


class Stored(NamedTuple):
    """An event as the log has it."""

    seq: int
    channel: str
    type: str
    data: bytes
    retry: int | None
    flags: int


class Shop:
    """A database with our schema, and a table and a role of an application.

    Args:
        postgres: the server.
        url: of an empty database, as its owner.
        channels: those that are configured.
    """

    def __init__(self, postgres: Postgres, url: str, channels: Sequence[str] = ("**",)) -> None:
        self.postgres = postgres
        self.owner_url = url
        self.database = url.rpartition("/")[2]
        self.role = self.new_role("shop")
        self.url = postgres.url(self.database, self.role)
        asyncio.run(self.configure(channels))
        with self.owner() as owner:
            owner.execute("SELECT sse_app.look('', 0, 0)")
            owner.execute("SELECT sse_app.allow_publishing(%s, '**')", [self.role])
        self.superuser(
            f"CREATE TABLE public.orders (id serial PRIMARY KEY); GRANT ALL ON orders TO {self.role}"
        )
        self.superuser(f"GRANT ALL ON SEQUENCE orders_id_seq TO {self.role}")

    async def configure(self, channels: Sequence[str] | ChannelRules, body_bytes: int = 1_048_576) -> None:
        """Make the schema, and write the rules as a node does."""
        database = Database(self.owner_url)
        configured = channels if isinstance(channels, ChannelRules) else rules_of(channels)
        rules = RulesInDatabase(database, configured, Limits(body_bytes=body_bytes))
        await rules.start()
        await rules.stop()

    def new_role(self, name: str) -> str:
        """Make a role that may log in and no more, and return its name."""
        role = f"{name}_{self.database}"
        self.postgres.execute(f'CREATE ROLE "{role}" LOGIN')
        return role

    def superuser(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement as the superuser."""
        return self.postgres.execute(statement, self.database)

    @contextmanager
    def owner(self) -> Iterator[Connection[Any]]:
        """Connect as the owner of the schema, each statement a transaction."""
        with psycopg.connect(self.owner_url, autocommit=True) as connection:
            yield connection

    @contextmanager
    def connect(self, role: str | None = None, *, autocommit: bool = False) -> Iterator[Connection[Any]]:
        """Connect as the application; what is not committed is rolled back."""
        url = self.postgres.url(self.database, role or self.role)
        connection = psycopg.connect(url, autocommit=autocommit)
        try:
            yield connection
        finally:
            connection.close()

    def stored(self) -> list[Stored]:
        """Return all events of the log."""
        with self.owner() as owner:
            rows = owner.execute(
                "SELECT e.seq, c.name, e.type, e.data, e.retry, e.flags FROM sse_app.events AS e "
                "JOIN sse_app.channels AS c ON c.id = e.channel ORDER BY e.seq"
            ).fetchall()
        return [Stored(*row) for row in rows]

    def types(self) -> list[str]:
        """Return the types of all events of the log."""
        return [event.type for event in self.stored()]


PUBLISH = "SELECT sse_app.publish(%s, %s, %s)"


def publish(connection: Connection[Any], type: str, data: str = "{}", channel: str = "alerts") -> None:
    """Publish an event in the connection's transaction."""
    connection.execute(PUBLISH, [channel, type, data])
