"""What is done to the clock, the network and the database server."""

from __future__ import annotations

import time

from tests.faults.processes import a_server
from tests.faults.run import Run

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
    postgres = run.deployment.postgres
    assert postgres is not None
    time.sleep(run.chance.random() * 0.3)
    run.harmed()
    postgres.kill()
    time.sleep(run.chance.random())
    postgres.start()


def pause_database(run: Run) -> None:
    """PostgreSQL does not answer for some seconds."""
    postgres = run.deployment.postgres
    assert postgres is not None
    run.harmed()
    postgres.pause()
    time.sleep(0.5 + 2 * run.chance.random())
    postgres.resume()


def end_node_and_database(run: Run) -> None:
    """A node and PostgreSQL end together."""
    postgres, server = run.deployment.postgres, a_server(run)
    assert postgres is not None
    run.harmed()
    postgres.kill()
    server.kill()
    postgres.start()
    server.start()
