"""One run: servers, publishers and clients, what is done to the servers meanwhile, and the account of it."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
import msgspec

from tests.faults import client, flood, publisher
from tests.faults.accountant import Accountant, Loss, Verdict
from tests.faults.databases import Setup
from tests.faults.disk import Disk, small
from tests.faults.journal import Answered, AnyRecord, payload_of, read
from tests.faults.ways import ON_POSTGRES, STATE, WAYS, Deployment
from tests.support.namespaces import Link, links
from tests.support.programs import compiled
from tests.support.upgradable import Upgradable
from tests.support.waiting import until
from tests.support.wall_clock import SOURCE, WallClock
from tests.support.worker_processes import WorkerProcess

CHANNELS = ("dashboard", "alerts", "training", "backtest", "user.ann.orders", "user.bob.orders")
QUIET = "user.tester.quiet"
"""A channel that neither publishers nor clients use, for what a fault measures."""

PUBLISHERS = 4
CLIENTS = 12

SETTLES = 90.0
"""Seconds within which clients are sent all that is due to them, once nothing is done to the servers any more."""

TTL = 36_000.0
"""Seconds that the tokens of publishers and clients are valid: longer than any run."""

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
        megabytes: of the disk, where it is a small one.
        clock: something is done to the wall clock.
        network: half of the clients are on the other side of a link.
        listeners: how many clients there are.
        before: puts something into the directory of the state before the servers start, where their log is in a file.
        database: sets up the one that has their log, where one has; None for one of which nothing special is asked.
        open_files: how many files a server may have open; 0 leaves that to the system.
        unit: what is added to the section ``[Service]`` of a server's unit.
        settings: of the servers, without those that all have.
        publishers, clients: settings of theirs.
    """

    kept: bool = True
    told: bool = False
    ended: bool = True
    expected: Sequence[str] = ()
    disk: bool = False
    megabytes: int = 0
    clock: bool = False
    network: bool = False
    listeners: int = CLIENTS
    before: Callable[[Path], None] | None = None
    database: Setup | None = None
    open_files: int = 0
    unit: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    publishers: Mapping[str, Any] = field(default_factory=dict)
    clients: Mapping[str, Any] = field(default_factory=dict)


EXPECTED = ("worker_silent", "node_silent", "event_log_unavailable", "accounts_unavailable")
"""What servers say of others that do not answer, and of what cannot be written or read for a while."""


class Result(msgspec.Struct, kw_only=True):
    """What became of a run.

    Attributes:
        date, commit: when it was run, and of which program.
        fault: what was done.
        way: how the server was run.
        seed: of what was left to chance.
        times: how often the fault was brought about.
        seconds: that the run took.
        silence: the longest time in which no publisher got an acknowledgement, in seconds.
        acknowledged, received: how many events, the second over all clients.
        streams, resets: how many, over all clients.
        taken_back: acknowledged events that were lost where that may be.
        found: how often each kind of mistake was found.
        findings: the first of them, in words.
        figures: what the fault has measured besides, with the units.
        failure: what has ended the run early: it did not come to an account.
    """

    date: str
    commit: str
    fault: str
    way: str
    seed: int
    times: int
    seconds: float = 0.0
    silence: float = 0.0
    acknowledged: int = 0
    received: int = 0
    streams: int = 0
    resets: int = 0
    taken_back: int = 0
    found: dict[str, int] = msgspec.field(default_factory=dict)
    findings: list[str] = msgspec.field(default_factory=list)
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    failure: str = ""

    @property
    def failed(self) -> bool:
        """Whether something was wrong."""
        return bool(self.failure or any(self.found.values()))


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
        self._journals = directory / "journals"
        self._beyond: Sequence[str] = ()
        """A command that runs another one on the other side of the link."""
        self._ends = ExitStack()
        self._publishers: list[Popen[bytes]] = []
        self._clients: list[Popen[bytes]] = []
        self._channels: dict[str, Sequence[str]] = {}
        """Of each client."""

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
        self._journals.mkdir()
        if needs.megabytes:
            state.mkdir(mode=0o700)
            self._ends.enter_context(small(state, needs.megabytes))
        if needs.before is not None and not self._on_postgres:
            needs.before(state)
        if needs.database is not None and self._on_postgres:
            settings["database"] = needs.database
        if needs.disk:
            self.disk = Disk(self._directory / "disk", state)
            environment |= self.disk.environment
        if needs.clock:
            self.clock = WallClock(compiled(SOURCE, self._directory), self._directory / "clock")
            environment |= self.clock.environment
        if needs.network:
            self._beyond, (self.link,) = self._ends.enter_context(links(1))
            settings["HOST"] = "0.0.0.0"
        if needs.open_files:
            settings["open_files"] = needs.open_files
        if needs.unit:
            settings["unit"] = needs.unit
        self.deployment = self._ends.enter_context(
            self._way(self._directory, environment, expected=(*EXPECTED, *needs.expected), **settings)
        )
        if self.disk is not None:
            self.disk.synchronise()
        with self.servers[0].publisher() as http:
            self._began_at = _head(http)
        self._ends.callback(self._kill)
        self._open_clients()
        self._open_publishers()

    def __exit__(self, *failure: object) -> None:
        """End all."""
        self._ends.__exit__(*failure)  # type: ignore[arg-type]

    def _open_clients(self) -> None:
        ports = [server.port for server in self.servers]
        settings = []
        for number in range(self._needs.listeners):
            name = f"client-{number}"
            channels = self.chance.sample(CHANNELS, self.chance.randint(1, len(CHANNELS)))
            self._channels[name] = channels
            habits = {
                "stays": self.chance.choice((0.5, 3.0, 600.0)),
                "reads": self.chance.choice((65_536, 65_536, 300)),
                "types": self.chance.random() < 0.3,
            }
            settings.append(
                client.Settings(
                    name=name,
                    seed=f"{self._seed} {name}",
                    journal=str(self._journals / name),
                    ports=ports,
                    channels=channels,
                    **{**habits, **self._needs.clients},
                )
            )
        tokens = {one.name: self.servers[0].stream_token(*one.channels, ttl=TTL) for one in settings}
        self._clients.append(client.launch(settings[::2], tokens))
        if self.link is not None:
            for one in settings[1::2]:
                one.host = self.link.near
        self._clients.append(client.launch(settings[1::2], tokens, self._beyond))
        until(lambda: all(self._has(name, "opened") for name in self._channels), "all clients have a stream")

    def _has(self, name: str, what: str) -> bool:
        path = self._journals / name
        return path.exists() and f'"what":"{what}"'.encode() in path.read_bytes()

    def _open_publishers(self) -> None:
        for number in range(PUBLISHERS):
            habits = {"keyed": number % 2 == 0, "kept": number % 4 < 2}
            self.launch_publisher(f"publisher-{number}", **{**habits, **self._needs.publishers})

    def launch_publisher(self, name: str, **settings: Any) -> Popen[bytes]:
        """Start one more publisher, which the run ends.

        Args:
            name: no other has it.
            settings: further ones of `tests.faults.publisher.Settings`.
        """
        process = publisher.launch(self._settings_of(name, **settings), self._token())
        self._publishers.append(process)
        return process

    def publisher_here(self, name: str) -> publisher.Publisher:
        """Return a publisher in this process, to be closed by the caller."""
        return publisher.Publisher(self._settings_of(name), self._token())

    def launch_flood(self, name: str, **settings: Any) -> Popen[bytes]:
        """Start a flood of requests, which the run ends if it has not ended.

        Args:
            name: begins like that of a publisher; no other has it.
            settings: further ones of `tests.faults.flood.Settings`.
        """
        process = flood.launch(flood.Settings(**self._common(name), **settings), self._token())
        self._publishers.append(process)
        return process

    def _settings_of(self, name: str, **settings: Any) -> publisher.Settings:
        return publisher.Settings(**{**self._common(name), **settings})

    def _common(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "seed": f"{self._seed} {name}",
            "journal": str(self._journals / name),
            "ports": [server.port for server in self.servers],
            "channels": CHANNELS,
        }

    def _token(self) -> str:
        return self.servers[0].access_token(ttl=TTL)

    @contextmanager
    def unread(self) -> Iterator[None]:
        """Have half of the clients read nothing meanwhile."""
        process = self.chance.choice(self._clients)
        process.send_signal(signal.SIGSTOP)
        yield
        process.send_signal(signal.SIGCONT)

    @property
    def acknowledged(self) -> int:
        """How many requests have been acknowledged so far."""
        return self.acknowledged_by("publisher-*")

    def acknowledged_by(self, names: str) -> int:
        """Return how many requests of these publishers have been acknowledged so far."""
        return sum(path.read_bytes().count(b'"status":201') for path in self._journals.glob(names))

    def advance(self, count: int = 10) -> None:
        """Wait until so many more requests are acknowledged."""
        goal = self.acknowledged + count
        until(lambda: self.acknowledged >= goal, "events are acknowledged")

    def refuses(self) -> bool:
        """Return whether a request to publish has been refused by now."""
        since = self._harmed_at
        return any(
            isinstance(record, Answered) and record.status == 503 and record.at > since
            for path in self._journals.glob("publisher-*")
            for record in read(path)
        )

    def oldest(self, channel: str) -> list[Any]:
        """Return the events of a channel that were stored before the run began."""
        epoch, _, _ = self._began_at.rpartition("-")
        with self.servers[0].publisher() as http:
            query: dict[str, str | int] = {"after": f"{epoch}-0", "limit": 1000}
            page = http.get(f"/api/v1/sse/{channel}/history", params=query).raise_for_status().json()
        return [event for event in page["events"] if _number(event["id"]) <= _number(self._began_at)]

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
            until(lambda server=server: _is_ready(server), "each server is ready")  # type: ignore[misc]

    def settle(self) -> Verdict:
        """Publish no more, wait until each client has been sent all, end all, and balance the account.

        A client that is not sent all in time lacks what it is not sent.
        """
        for process in self._publishers:
            process.terminate()
        for process in self._publishers:
            assert process.wait(timeout=60) in (0, -signal.SIGKILL)  # a publisher may have been killed
        for process in self._clients:
            process.send_signal(signal.SIGUSR1)
        ends = time.monotonic() + SETTLES
        lossy = self.losses or not self._needs.kept
        for round in itertools.count(1):
            if self._all_have_come(round, min(ends, time.monotonic() + 5) if lossy else ends):
                break
            if time.monotonic() > ends:
                break
        for process in self._clients:
            process.terminate()
        for process in self._clients:
            assert process.wait(timeout=60) == 0
        journals = self.journals()
        publishers = {name: records for name, records in journals.items() if name.startswith("publisher")}
        clients = {name: records for name, records in journals.items() if name.startswith("client")}
        self.silence = _longest_silence(publishers.values())
        kept = self._needs.kept
        keeps = 0 if kept else {**SETTINGS, **self._needs.settings}["HISTORY__SIZE"]
        verdict = Accountant(
            publishers,
            clients,
            self._listing(),
            kept=kept,
            keeps=keeps,
            told=self._needs.told,
            ends=None if self._needs.ended else self._ends_of_streams,
            losses=self.losses,
        ).balance()
        assert verdict.findings or verdict.taken_back or not self.losses, (
            "nothing was lost, so nothing was tried"
        )
        return verdict

    def journals(self) -> dict[str, list[AnyRecord]]:
        """Return what publishers and clients have written down so far, by their names."""
        return {path.name: list(read(path)) for path in sorted(self._journals.iterdir())}

    def _all_have_come(self, round: int, ends: float) -> bool:
        """Publish at each server an event on each channel, and return whether each client is sent the last in time.

        A client that was told of a loss meanwhile may be past them: it has the next ones.
        """
        for number, server in enumerate(self.servers):
            settings = self._settings_of(f"publisher-of-the-end-{round}-{number}", ports=[server.port])
            with closing(publisher.Publisher(settings, self._token())) as last:
                name = f"end.{round}.{number}"
                last.publish(name, [(channel, f"{name}.{channel}") for channel in CHANNELS])
        missing = dict(self._channels)
        while missing and time.monotonic() < ends:
            for client_name, channels in list(missing.items()):
                written = (self._journals / client_name).read_bytes()
                if all(f'"payload":"{name}.{channel} '.encode() in written for channel in channels):
                    del missing[client_name]
            time.sleep(0.02)
        return not missing

    def _listing(self) -> Iterator[tuple[str, str, str]]:
        """Yield all events that the log has got since the run began."""
        with self.chance.choice(self.servers).publisher() as http:
            epoch, _, _ = _head(http).rpartition("-")
            beginning = self._began_at if self._began_at.startswith(f"{epoch}-") else f"{epoch}-0"
            for channel in (*CHANNELS, QUIET):
                after = beginning
                while True:
                    query: dict[str, str | int] = {"after": after, "limit": 1000}
                    page = http.get(f"/api/v1/sse/{channel}/history", params=query).raise_for_status().json()
                    for event in page["events"]:
                        yield event["id"], channel, payload_of(event["data"])
                        after = event["id"]
                    if not page["events"]:
                        break

    def _kill(self) -> None:
        for process in (*self._publishers, *self._clients):
            if process.poll() is None:
                process.kill()
                process.wait()


def _is_ready(server: Upgradable) -> bool:
    try:
        return httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def _head(http: httpx.Client) -> str:
    """Return the id of the last event of the configured channels; empty where there is none."""
    channels: dict[str, Any] = http.get("/api/v1/sse/status").raise_for_status().json()["channels"]
    ids = [str(channel["last_event_id"]) for channel in channels.values() if channel["last_event_id"]]
    return max(ids, key=_number, default="")


def _number(id: str) -> int:
    return int(id.rpartition("-")[2])


def _longest_silence(journals: Iterable[Iterable[AnyRecord]]) -> float:
    """Return the longest time in which no request was acknowledged, in seconds."""
    acknowledged = sorted(
        record.at
        for records in journals
        for record in records
        if isinstance(record, Answered) and record.status == 201
    )
    return max((later - earlier for earlier, later in pairwise(acknowledged)), default=0.0)
