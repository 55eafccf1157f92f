"""The ways to run the server: one process, several on one log in a file, several machines on PostgreSQL, or a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from tests.faults.databases import Database, Setup, alone
from tests.support.node_processes import node_processes
from tests.support.server_process import until_the_end
from tests.support.service import managed
from tests.support.unit_server import UnitServer
from tests.support.upgradable import Upgradable
from tests.support.worker_processes import worker_processes

STATE = "state"
"""The directory that has what servers keep on this machine's disk."""


class Way(Protocol):
    """Runs servers in a directory, with settings as those of `ServerProcess`, and further variables."""

    def __call__(
        self, directory: Path, environment: Mapping[str, str], **settings: Any
    ) -> AbstractContextManager[Deployment]:
        """Return a context in which they run; they have to end well, and with nothing unexpected in their logs."""


@dataclass(frozen=True)
class Deployment:
    """Servers that share one log and their keys.

    Attributes:
        servers: they run.
        database: that has their log, if one has.
    """

    servers: Sequence[Upgradable]
    database: Database | None = None


@contextmanager
def one_process(directory: Path, environment: Mapping[str, str], **settings: Any) -> Iterator[Deployment]:
    """One process, with its log in a file."""
    server = Upgradable(state_dir=directory / STATE, **settings)
    server.environment |= environment
    with until_the_end(server):
        yield Deployment([server])


@contextmanager
def several_processes(
    directory: Path, environment: Mapping[str, str], **settings: Any
) -> Iterator[Deployment]:
    """Three workers of one machine, with their log in a file."""
    with worker_processes(3, directory / STATE, environment=environment, **settings) as workers:
        yield Deployment([*workers])


@contextmanager
def several_machines(
    directory: Path, environment: Mapping[str, str], database: Setup = alone, **settings: Any
) -> Iterator[Deployment]:
    """Two workers of one machine and another machine, with their log on PostgreSQL."""
    with (
        database() as shared,
        node_processes(
            directory / STATE,
            shared.url,
            url_of_workers=shared.url_of_workers,
            environment=environment,
            **settings,
        ) as servers,
    ):
        yield Deployment(servers, shared)


@contextmanager
def under_systemd(
    directory: Path, environment: Mapping[str, str], *, workers: int = 1, **settings: Any
) -> Iterator[Deployment]:
    """One process, or several workers, as a unit of a manager of its own."""
    assert not environment, "a unit has its own environment"
    with contextmanager(managed)(None) as manager:
        server = UnitServer(manager, workers=workers, **settings)
        with until_the_end(server):
            yield Deployment([server])


BY_HAND = ("one process", "several processes", "several machines")
"""Those whose processes are started and ended by nothing but the tests."""

IN_A_FILE = ("one process", "several processes")
"""Those whose log is in a file."""

ON_POSTGRES = ("several machines",)
"""Those whose log is on PostgreSQL."""

UNDER_SYSTEMD = ("one process under systemd", "several processes under systemd")
"""Those whose processes systemd starts and ends."""

WAYS: Mapping[str, Way] = {
    "one process": one_process,
    "several processes": several_processes,
    "several machines": several_machines,
    "one process under systemd": under_systemd,
    "several processes under systemd": partial(under_systemd, workers=3),
}
