"""The databases of servers whose log is on PostgreSQL: how they are set up for what is to be done to them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import psycopg

from sse_app.storage.postgres.schema import FILES
from tests.support.namespaces import Link, SmallDisk, links, small_disk
from tests.support.postgres import Postgres, ending, server_directory
from tests.support.waiting import until

MEGABYTES = 120
"""Of the small disk: a new cluster takes half of it."""

OLDER = 7
"""The version of the schema that an older program has made."""

OLD_EVENTS = 200


@dataclass
class Database:
    """A database of servers.

    Attributes:
        postgres: the server that has it.
        url: where the machine with one process finds it.
        url_of_workers: where the one with several does.
        disk: that it is on, where that is a small one.
        links: to it, of the machine with several processes and of the other one, where it is beyond links.
        standby: follows it, where one does.
    """

    postgres: Postgres
    url: str
    url_of_workers: str = ""
    disk: SmallDisk | None = None
    links: Sequence[Link] = field(default_factory=list)
    standby: Postgres | None = None

    def take_over(self) -> None:
        """Promote the standby, and have it be the server; what was the server does not run any more."""
        assert self.standby is not None
        self.standby.promote()
        self.postgres, self.standby = self.standby, self.postgres

    def follow(self, *, synchronous: bool) -> None:
        """Have it followed by its standby, which is made anew where it was the server itself until now."""
        assert self.standby is not None
        if self.standby.runs:
            return
        shutil.rmtree(self.standby.data, ignore_errors=True)
        name = f"standby_{self.standby.port}"
        self.standby.follow(self.postgres, name)
        self.standby.start()
        if synchronous:
            self.postgres.set("synchronous_standby_names", name)
        state = "sync" if synchronous else "async"
        question = f"SELECT 1 FROM pg_stat_replication WHERE (state, sync_state) = ('streaming', '{state}')"
        until(lambda: self.postgres.execute(question), f"a standby follows: {state}")


Setup = Callable[[], AbstractContextManager[Database]]
"""Sets up a database in a new cluster, and removes it."""


@contextmanager
def alone() -> Iterator[Database]:
    """A server on a disk of any size."""
    with server_directory() as place:
        postgres = Postgres(place)
        with _running(postgres):
            yield Database(postgres, postgres.new_database())


@contextmanager
def on_small_disk() -> Iterator[Database]:
    """A server on a small disk."""
    with server_directory() as place, small_disk(place, MEGABYTES) as disk:
        postgres = Postgres(
            place, {"max_wal_size": "8MB", "min_wal_size": "4MB"}, within=disk.within, root=disk.root
        )
        with _running(postgres):
            yield Database(postgres, postgres.new_database(), disk=disk)


@contextmanager
def beyond_links() -> Iterator[Database]:
    """A server that each machine reaches by a link of its own."""
    with server_directory() as place, links(2) as (within, (of_workers, of_other)):
        postgres = Postgres(place, {"listen_addresses": "*"}, within=within)
        postgres.host = of_other.far
        with _running(postgres, allowed=[f"{link.near}/32" for link in (of_workers, of_other)]):
            url = postgres.new_database()
            yield Database(
                postgres, url, url.replace(of_other.far, of_workers.far), links=[of_workers, of_other]
            )


@contextmanager
def of_an_older_version() -> Iterator[Database]:
    """A server with what an older version of the program has stored."""
    with alone() as database:
        with psycopg.connect(database.url, autocommit=True) as connection:
            for file in FILES[:OLDER]:
                connection.execute(file.read_bytes())
            connection.execute("UPDATE sse_app.schema SET version = %s", [OLDER])
            connection.execute("SELECT sse_app.look('', 0, 1000)")
            connection.execute(
                "SELECT sse_app.append('', 0, 1000, 'old', array_fill('alerts'::text, ARRAY[%(count)s]), "
                "array_fill('order'::text, ARRAY[%(count)s]), (SELECT array_agg(format('{\"number\": %%s}', n)::bytea) "
                "FROM generate_series(1, %(count)s) AS n), NULL, NULL, ARRAY[%(count)s], NULL, NULL, NULL, NULL)",
                {"count": OLD_EVENTS},
            )
        yield database


@contextmanager
def with_standby(*, synchronous: bool) -> Iterator[Database]:
    """A server with a standby, for which it waits at each commit or does not."""
    with server_directory() as first, server_directory() as second:
        postgres, standby = Postgres(first), Postgres(second)
        with _running(postgres), ending(standby):
            hosts = ",".join(f"{one.host}:{one.port}" for one in (postgres, standby))
            name = postgres.new_database().rpartition("/")[2]
            url = f"postgresql://app@{hosts}/{name}?target_session_attrs=read-write"
            database = Database(postgres, url, standby=standby)
            database.follow(synchronous=synchronous)
            yield database


@contextmanager
def _running(postgres: Postgres, allowed: Sequence[str] = ()) -> Iterator[None]:
    """Make a cluster, and run its server; clients of these networks are trusted too."""
    with ending(postgres):
        postgres.make_anew()
        for network in allowed:
            postgres.allow(network)
        postgres.start()
        yield
