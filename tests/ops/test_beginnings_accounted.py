"""Streams that begin anywhere, on channels of each retention, while all is published, dropped, killed and restarted.

Plans are made up by hypothesis; each runs on channels of its own, on a server that all of them share. What
each client was sent is compared with what it was due, event by event.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from tests.support.beginnings import CHANNELS, KEPT_SECONDS, KINDS, TYPES, Account
from tests.support.node_processes import node_processes
from tests.support.server_process import ServerProcess, running
from tests.support.waiting import until
from tests.support.worker_processes import WorkerProcess, worker_processes

SETTINGS: dict[str, Any] = {
    "CHANNELS": [*CHANNELS, "dashboard"],
    "KEEPALIVE__PING_INTERVAL": 1.0,
    "LIMITS__STREAMS_PER_USER": 1000,
    "STREAM__DRAIN_TIME": 0.0,
}

EXPECTED = ("replay_failed", "events_trimmed")
"""What is missed may be erased while it is replayed, or before a process that lags has read it; then streams end, and
their clients are told on the next."""

WHICH = ("a", "b")
"""The channels of each kind."""


@dataclass(frozen=True)
class Publish:
    """Publish on these channels at once."""

    channels: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Unstored:
    """Publish an event that is not stored."""


@dataclass(frozen=True)
class StormBegins:
    """Publish in the background."""


@dataclass(frozen=True)
class StormEnds:
    """Publish no more in the background."""


@dataclass(frozen=True)
class Open:
    """Open a stream, in a way that its fields say."""

    channels: Sequence[str]
    types: Sequence[str]
    begins: str
    value: float
    rate: str
    server: int


@dataclass(frozen=True)
class Drop:
    """End a client's stream."""

    client: int


@dataclass(frozen=True)
class Resume:
    """Have a client come back."""

    client: int
    server: int


@dataclass(frozen=True)
class Wait:
    """Let events become too old."""

    seconds: float


@dataclass(frozen=True)
class Restart:
    """End a server and start it again."""

    how: str
    server: int


PLACES = st.tuples(st.sampled_from(KINDS), st.sampled_from(WHICH))
ASKED = st.one_of(
    st.lists(PLACES.map(".".join), min_size=1, max_size=4, unique=True),
    st.lists(
        st.sampled_from([f"{kind}.*" for kind in (*KINDS, "gone")]), min_size=1, max_size=3, unique=True
    ),
    st.lists(
        st.sampled_from(["**", "*.a", "size.**", "all.a", "gone.a"]), min_size=1, max_size=2, unique=True
    ),
)
OPENS = st.builds(
    Open,
    ASKED,
    st.sampled_from([(), (), TYPES[:1], TYPES]),
    st.sampled_from(["", "earliest", "latest", "last", "since", "position"]),
    st.floats(0, 1),
    st.sampled_from(["", "", "", "40"]),
    st.integers(0, 2),
)
CLIENTS = st.integers(0, 5)
STEPS = [
    st.builds(Publish, st.lists(PLACES, min_size=1, max_size=8)),
    st.builds(Publish, st.lists(PLACES, min_size=1, max_size=3)),
    OPENS,
    st.builds(Drop, CLIENTS),
    st.builds(Resume, CLIENTS, st.integers(0, 2)),
    st.builds(Unstored),
    st.builds(StormBegins),
    st.builds(StormEnds),
    st.builds(Wait, st.sampled_from([0.02, 0.1, KEPT_SECONDS + 0.1])),
]


def plans(restarts: Sequence[str]) -> st.SearchStrategy[list[Any]]:
    """Return plans that begin with something to be replayed, and with a stream."""
    steps = [*STEPS]
    if restarts:
        steps.append(st.builds(Restart, st.sampled_from(restarts), st.integers(0, 2)))
    return st.tuples(
        st.lists(STEPS[0], min_size=1, max_size=3), OPENS, st.lists(st.one_of(steps), min_size=4, max_size=12)
    ).map(lambda parts: [*parts[0], parts[1], *parts[2]])


class Runner:
    """Runs plans on servers.

    Args:
        servers: they run, and share one log.
    """

    def __init__(self, servers: Sequence[ServerProcess]) -> None:
        self._servers = servers
        self._names = itertools.count()

    def run(self, plan: Sequence[Any]) -> None:
        """Run one, and check what its clients were sent."""
        number = next(self._names)
        account = Account(self._servers, f"e{number}", number)
        try:
            for step in plan:
                self._do(step, account)
            account.settle()
        finally:
            account.close()
        account.check()

    def _do(self, step: Any, account: Account) -> None:
        match step:
            case Publish(channels):
                account.publish([account.channel(*place) for place in channels])
            case Unstored():
                account.publish_unstored()
            case StormBegins():
                account.begin_storm([account.channel(kind, which) for kind in KINDS for which in WHICH])
            case StormEnds():
                account.end_storm()
            case Open(asked, types, begins, value, rate, server):
                names = [f"{account.name}.{channel}" for channel in asked]
                if not any(map(account.has_table, names)):
                    rate = ""  # it is for conflated channels alone
                account.open(names, types, self._beginning(begins, value, account), rate, server)
            case Drop(client) if account.clients:
                account.clients[client % len(account.clients)].close()
            case Resume(client, server) if account.clients:
                account.clients[client % len(account.clients)].open(server)
            case Wait(seconds):
                time.sleep(seconds)
            case Restart(how, server):
                self._restart(how, self._servers[server % len(self._servers)])

    @staticmethod
    def _beginning(begins: str, value: float, account: Account) -> dict[str, str]:
        match begins:
            case "earliest" | "latest":
                return {"from": begins}
            case "last":
                return {"last": str(1 + int(value * 6))}
            case "since":
                return {"since": f"-{value * 2 * KEPT_SECONDS:.3f}"}
            case "position":
                known = sorted(account.published, key=lambda event: event.number)
                return {"last_event_id": known[int(value * (len(known) - 1))].id}
        return {}

    @staticmethod
    def _restart(how: str, server: ServerProcess) -> None:
        if how == "warm" and isinstance(server, WorkerProcess):
            server.upgrade()
            until(lambda: httpx.get(f"{server.url}/readyz").status_code == 200, "the successor serves")
        elif how == "kill":
            if isinstance(server, WorkerProcess):
                kill(server)
            server.kill()
            server.start()
        elif how == "cold":
            assert server.stop() == 0
            server.start()


def kill(worker: WorkerProcess) -> None:
    """End the process that serves, also where that is a successor of the one that was started."""
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists() or is_dead(pid), "the process has gone")


def is_dead(pid: int) -> bool:
    """Return whether a process has ended that its parent has not asked for yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def run_plans(servers: Sequence[ServerProcess], restarts: Sequence[str], count: int) -> None:
    """Run so many plans; the first one that fails is printed, and can be run again with its seed."""
    runner = Runner(servers)
    chosen = random.randrange(1 << 32)

    @seed(chosen)
    @hypothesis(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(plans(restarts))
    def each_client_gets_what_it_is_due(plan: list[Any]) -> None:
        try:
            runner.run(plan)
        except BaseException as error:
            error.add_note(f"seed {chosen}: {plan}")
            raise

    each_client_gets_what_it_is_due()


SHORT = 10
"""How many plans the suite runs; the long form runs `LONG`."""

LONG = 300

HOW_OFTEN = pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.long)])


@pytest.mark.long
@HOW_OFTEN
def test_one_process_on_a_file_sends_each_client_what_it_is_due(tmp_path: Path, count: int) -> None:
    with running(state_dir=tmp_path / "state", expected=EXPECTED, **SETTINGS) as server:
        run_plans([server], ["kill", "cold"], count)


@pytest.mark.long
@HOW_OFTEN
def test_two_workers_on_a_file_send_each_client_what_it_is_due(tmp_path: Path, count: int) -> None:
    with worker_processes(2, tmp_path / "state", expected=EXPECTED, **SETTINGS) as workers:
        run_plans(workers, ["warm", "kill", "cold"], count)


@pytest.mark.long
def test_a_log_in_memory_sends_each_client_what_it_is_due(tmp_path: Path) -> None:
    with running(state_dir=tmp_path / "state", expected=EXPECTED, EVENT_LOG="memory:", **SETTINGS) as server:
        run_plans([server], [], LONG)


@pytest.mark.long
def test_two_machines_on_a_database_send_each_client_what_it_is_due(
    tmp_path: Path, database_url: str
) -> None:
    with node_processes(tmp_path, database_url, expected=(*EXPECTED, "node_silent"), **SETTINGS) as nodes:
        run_plans(nodes, ["warm", "kill", "cold"], LONG // 2)
