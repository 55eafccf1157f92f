"""Fixtures of the tests in this folder alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sse_app.eventlog.base import EventLog, Retention, RetentionRules
from sse_app.eventlog.memory import MemoryEventLog
from tests.support.log_processes import LogOfProcesses, SharedEventLog, log_at, log_processes


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a log can be that several processes share: a file, or a database by its URL."""
    if request.param == "sqlite":
        return tmp_path / "e.db"
    return str(request.getfixturevalue("database_url"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Four processes that can open a log and append to it, by their addresses."""
    with log_processes(4, tmp_path_factory.mktemp("processes")) as addresses:
        yield addresses


KINDS = (
    ("memory", 0),
    *(("sqlite", processes) for processes in (0, 4)),
    ("postgres", "shared"),
)
"""Where a log is, and how many other processes append to it at once; ``shared`` are two logs in this one."""

OTHERS = (("sqlite", "shared"), ("sqlite", 1), ("sqlite", 2), ("postgres", 0), ("postgres", 2))
"""Kinds that have nothing which those do not have, for `make test-long`."""


def _id_of(kind: tuple[str, object]) -> str:
    return ", ".join(map(str, filter(None, kind)))


@pytest.fixture(
    params=[*KINDS, *(pytest.param(kind, marks=pytest.mark.long, id=_id_of(kind)) for kind in OTHERS)],
    ids=_id_of,
)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., EventLog]:
    """A function that makes a log of one of the kinds."""
    kind, others = request.param
    addresses = request.getfixturevalue("processes") if isinstance(others, int) and others else []
    place = request.getfixturevalue("database_url") if kind == "postgres" else tmp_path / "e.db"

    def make(size: int = 10_000, age: float = 86_400.0, rules: RetentionRules | None = None) -> EventLog:
        retention = rules or Retention(size, age)
        if kind == "memory":
            return MemoryEventLog(retention)
        if addresses:
            return LogOfProcesses(addresses[:others], place, retention)
        return SharedEventLog(place, retention) if others else log_at(place, retention)

    return make
