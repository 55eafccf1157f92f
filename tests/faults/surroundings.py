"""What is done to the clock, the network and the database server."""

from __future__ import annotations

import time

import httpx
import psycopg

from tests.faults.databases import Database
from tests.faults.ledger import Loss
from tests.faults.processes import a_server
from tests.faults.run import Run
from tests.support.node_processes import NAMES
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

JUMPS = (-2 * 365 * 86_400.0, -3600.0, -20.0, 20.0, 3600.0)
"""By how many seconds the wall clock is off."""


def set_clock(run: Run) -> None:
    """The wall clock is set back or forward, and right again after some seconds."""
    assert run.clock is not None
    run.harmed()
    run.clock.set(run.chance.choice(JUMPS))
    time.sleep(1 + 2 * run.chance.random())
    run.clock.set(0)


def drop_link(run: Run) -> None:
    """All that goes over a link between servers and clients is lost for some seconds, without a word."""
    assert run.link is not None
    run.harmed()
    run.link.drop()
    time.sleep(0.5 + 3 * run.chance.random())
    run.link.mend()


def end_database(run: Run) -> None:
    """PostgreSQL ends at any moment, as by a power cut, and is started."""
    postgres = _database_of(run).postgres
    time.sleep(run.chance.random() * 0.3)
    run.harmed()
    postgres.kill()
    time.sleep(run.chance.random())
    postgres.start()


def pause_database(run: Run) -> None:
    """PostgreSQL does not answer for some seconds."""
    postgres = _database_of(run).postgres
    run.harmed()
    postgres.pause()
    time.sleep(0.5 + 2 * run.chance.random())
    postgres.resume()


def end_node_and_database(run: Run) -> None:
    """A node and PostgreSQL end together."""
    postgres, server = _database_of(run).postgres, a_server(run)
    run.harmed()
    postgres.kill()
    server.kill()
    postgres.start()
    server.start()


def fill_disk_of_database(run: Run) -> None:
    """There is no room for PostgreSQL, which may end by that, until there is; then it is started."""
    database = _database_of(run)
    assert database.disk is not None
    run.harmed()
    ends = time.monotonic() + 1.0 + 2 * run.chance.random()
    while not run.refuses() or time.monotonic() < ends:
        database.disk.fill()  # anew each time: the database gives back what it needs no longer
        time.sleep(0.05)
    database.disk.empty()
    until(lambda: _starts(database), "PostgreSQL serves")


def _starts(database: Database) -> bool:
    """Start PostgreSQL where it has ended, and return whether it answers."""
    if not database.postgres.runs:
        database.postgres.start()
    try:
        return bool(database.postgres.execute("SELECT 1"))
    except psycopg.OperationalError:
        return False


def cut_off_from_database(run: Run) -> None:
    """All that goes over the link between a machine and PostgreSQL is lost for some seconds, without a word."""
    number = run.chance.randrange(2)
    link = _database_of(run).links[number]
    of_workers = [server for server, name in zip(run.servers, NAMES, strict=True) if "." in name]
    cut_off = [server for server in run.servers if (server in of_workers) == (number == 0)]
    run.harmed()
    link.drop()
    until(lambda: {_readiness(server) for server in cut_off} == {503}, "the machine notices")
    until(run.refuses, "a publish is refused")
    assert {httpx.get(f"{server.url}/healthz", timeout=60).status_code for server in cut_off} == {200}
    run.advance()  # by the other machine
    time.sleep(2 * run.chance.random())
    link.mend()
    until(lambda: {_readiness(server) for server in run.servers} == {200}, "all are ready")


def fail_over(run: Run) -> None:
    """PostgreSQL ends for good, and the standby that its commits wait for takes over."""
    database = _database_of(run)
    database.follow(synchronous=True)
    time.sleep(run.chance.random() * 0.3)
    run.harmed()
    database.postgres.kill()
    time.sleep(run.chance.random())
    database.take_over()


def fail_over_with_losses(run: Run) -> None:
    """PostgreSQL ends for good, and a standby takes over that has not got the latest."""
    database = _database_of(run)
    database.follow(synchronous=False)
    postgres, standby = database.postgres, database.standby
    assert standby is not None
    begins = time.monotonic()
    standby.catch_up_with(postgres)
    postgres.stop_replication()
    run.advance(5 + run.chance.randrange(20))
    run.harmed()
    postgres.kill()
    time.sleep(run.chance.random())
    database.take_over()
    run.losses.append(Loss(begins, time.monotonic()))


def _database_of(run: Run) -> Database:
    assert run.deployment.database is not None
    return run.deployment.database


def _readiness(server: ServerProcess) -> int:
    return httpx.get(f"{server.url}/readyz", timeout=60).status_code
