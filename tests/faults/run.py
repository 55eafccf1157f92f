"""One run: servers, publishers and clients, what is done to the servers meanwhile, and the account of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.faults.databases import Setup
from tests.faults.disk import Disk
from tests.faults.journal import Answered, AnyRecord
from tests.faults.ledger import Loss, Promises
from tests.faults.traffic import SETTLES, Traffic, head_of, history_of
from tests.faults.verdict import Verdict
from tests.faults.ways import ON_POSTGRES, STATE, WAYS, Deployment
from tests.support.namespaces import Link, links
from tests.support.programs import compiled
from tests.support.room import sequence
from tests.support.upgradable import Upgradable
from tests.support.waiting import until
from tests.support.wall_clock import SOURCE, WallClock
from tests.support.worker_processes import WorkerProcess

PUBLISHERS = 4
CLIENTS = 12

SETTINGS: dict[str, Any] = {
    "KEEPALIVE__PING_INTERVAL": 1,
    "HISTORY__SIZE": 10_000_000,
    "LIMITS__STREAMS_PER_USER": 10_000,
    "STREAM__DRAIN_TIME": 0.5,
}


@dataclass(frozen=True)
class Needs:
    """What a run needs, and what may be promised in it.

    Attributes:
        kept: everything is kept whatever happens, so that no ``reset`` may come.
        told: the servers always have the time to send ``closing``.
        ended: streams may end at any time; else only where `Run.ends_streams` says that they may.
        expected: texts that lines of the servers' logs at level warning or above may contain, besides `EXPECTED`.
        disk: something is done to the disk.
        clock: something is done to the wall clock.
        network: half of the clients are on the other side of a link.
        listeners: how many clients there are.
        state: lays out the directory of the state before the servers start, where their log is in a file.
        database: sets up the one that has their log, where one has; None for one of which nothing special is asked.
        settings: of the servers, as those of `tests.support.server_process.ServerProcess`, besides `SETTINGS`.
        publishers, clients: settings of theirs.
    """

    kept: bool = True
    told: bool = False
    ended: bool = True
    expected: Sequence[str] = ()
    disk: bool = False
    clock: bool = False
    network: bool = False
    listeners: int = CLIENTS
    state: Callable[[Path], AbstractContextManager[None]] | None = None
    database: Setup | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    publishers: Mapping[str, Any] = field(default_factory=dict)
    clients: Mapping[str, Any] = field(default_factory=dict)


EXPECTED = ("worker_silent", "node_silent", "event_log_unavailable", "accounts_unavailable")
"""What servers say of others that do not answer, and of what cannot be written or read for a while."""


class Run:
    """Publishers and clients of servers to which something is done.

    Args:
        way: how the server is run.
        directory: an empty one, for state, logs and journals.
        seed: of what is left to chance.
        needs: what it needs.
    """

    def __init__(self, way: str, directory: Path, seed: int, needs: Needs) -> None:
        self.chance = random.Random(seed)
        self.deployment: Deployment
        self.traffic: Traffic
        """Publishers and clients."""
        self.disk: Disk | None = None
        """The disk, where something is done to it."""
        self.clock: WallClock | None = None
        self.link: Link | None = None
        """The link between the servers and half of the clients, where there is one."""
        self.losses: list[Loss] = []
        """Each time that the log was replaced by one that may lack what was acknowledged last."""
        self.silence = 0.0
        """The longest time in which no publisher got an acknowledgement, in seconds; known once the run is settled."""
        self.figures: dict[str, float] = {}
        """What a fault has measured the last time that it was brought about, with the units."""
        self._began_at = ""
        """The head of the log then."""
        self._harmed_at = 0.0
        self._ends_of_streams: list[tuple[float, float]] = []
        self._seed = seed
        self._needs = needs
        self._way = WAYS[way]
        self._on_postgres = way in ON_POSTGRES
        self._directory = directory
        self._ends = ExitStack()

    @property
    def servers(self) -> Sequence[Upgradable]:
        """The servers."""
        return self.deployment.servers

    def __enter__(self) -> Run:
        """Start all; clients listen before publishers begin."""
        with self._ends:
            self._start()
            self._ends = self._ends.pop_all()
        return self

    def _start(self) -> None:
        needs, state = self._needs, self._directory / STATE
        settings = {**SETTINGS, **needs.settings}
        environment: dict[str, str] = {}
        beyond: Sequence[str] = ()
        if needs.state is not None and not self._on_postgres:
            self._ends.enter_context(needs.state(state))
        if needs.database is not None and self._on_postgres:
            settings["database"] = needs.database
        if needs.disk:
            self.disk = Disk(self._directory / "disk", state)
            environment |= self.disk.environment
        if needs.clock:
            self.clock = WallClock(compiled(SOURCE, self._directory), self._directory / "clock")
            environment |= self.clock.environment
        if needs.network:
            beyond, (self.link,) = self._ends.enter_context(links(1))
            settings["HOST"] = "0.0.0.0"
        self.deployment = self._ends.enter_context(
            self._way(self._directory, environment, expected=(*EXPECTED, *needs.expected), **settings)
        )
        if self.disk is not None:
            self.disk.synchronise()
        with self.servers[0].publisher() as http:
            self._began_at = head_of(http)
        self.traffic = Traffic(
            self._directory / "journals",
            self.servers,
            self._seed,
            publishers=PUBLISHERS,
            clients=needs.listeners,
            publishing=needs.publishers,
            listening=needs.clients,
        )
        self._ends.callback(self.traffic.close)
        self.traffic.open(beyond, self.link.near if self.link is not None else "127.0.0.1")

    def __exit__(self, *failure: object) -> None:
        """End all."""
        self._ends.__exit__(*failure)  # type: ignore[arg-type]

    def advance(self, count: int = 10) -> None:
        """Wait until so many more requests are acknowledged."""
        self.traffic.advance(count)

    def refuses(self) -> bool:
        """Return whether a request to publish has been refused by now."""
        since = self._harmed_at
        return any(
            isinstance(record, Answered) and record.status == 503 and record.at > since
            for records in self.traffic.journals("publisher").values()
            for record in records
        )

    def oldest(self, channel: str) -> list[Any]:
        """Return the events of a channel that were stored before the run began."""
        epoch, _, _ = self._began_at.rpartition("-")
        with self.servers[0].publisher() as http:
            query: dict[str, str | int] = {"after": f"{epoch}-0", "limit": 1000}
            page = http.get(f"/api/v1/sse/{channel}/history", params=query).raise_for_status().json()
        return [event for event in page["events"] if sequence(event["id"]) <= sequence(self._began_at)]

    def harmed(self) -> None:
        """Note that the servers were harmed just now."""
        self._harmed_at = time.monotonic()

    def ends_streams(self, until: float) -> None:
        """Note that a process which had streams was ended from when the servers were harmed until a time."""
        self._ends_of_streams.append((self._harmed_at, until))

    def restart_all(self) -> None:
        """Start all servers, which have ended, as a machine does that was started anew."""
        for server in self.servers:
            if isinstance(server, WorkerProcess):
                server.launch()
            else:
                server.start()
        for server in self.servers:
            if isinstance(server, WorkerProcess):
                server.wait_until_ready()

    def harm(self, fault: Callable[[Run], None]) -> None:
        """Do something to the servers, and wait until each of them serves again."""
        fault(self)
        self.advance()
        for server in self.servers:
            until(partial(_is_ready, server), "each server is ready")

    def settle(self) -> Verdict:
        """Publish no more, wait until each client has been sent all, end all, and balance the account."""
        kept = self._needs.kept
        self.traffic.settle(5.0 if self.losses or not kept else SETTLES)
        self.silence = _longest_silence(self.traffic.journals("publisher").values())
        verdict = self.traffic.account(
            history_of(self.chance.choice(self.servers), self._began_at, kept=kept),
            Promises(
                kept=kept,
                keeps=0 if kept else {**SETTINGS, **self._needs.settings}["HISTORY__SIZE"],
                told=self._needs.told,
                ends=None if self._needs.ended else self._ends_of_streams,
                losses=self.losses,
            ),
        )
        assert verdict.findings or verdict.taken_back or not self.losses, (
            "nothing was lost, so nothing was tried"
        )
        return verdict


def _is_ready(server: Upgradable) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def _longest_silence(journals: Iterable[Iterable[AnyRecord]]) -> float:
    """Return the longest time in which no request was acknowledged, in seconds."""
    acknowledged = sorted(
        record.at
        for records in journals
        for record in records
        if isinstance(record, Answered) and record.status == 201
    )
    return max((later - earlier for earlier, later in pairwise(acknowledged)), default=0.0)
