"""Publishers and clients of servers, and the account of all that was said to them."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from types import ModuleType
from typing import Any

import httpx
import msgspec

from tests.faults import accountant, client, flood, publisher
from tests.faults.journal import AnyRecord, payload_of, read
from tests.faults.ledger import Promises
from tests.faults.verdict import Verdict
from tests.support import preloaded
from tests.support.room import sequence
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

CHANNELS = ("dashboard", "alerts", "training", "backtest", "user.ann.orders", "user.bob.orders")

SETTLES = 90.0
"""Seconds within which clients are sent all that is due to them, once nothing is done to the servers any more."""

QUIET = "user.tester.quiet"
"""A channel that neither publishers nor clients use, for what a fault measures."""

TTL = 36_000.0
"""Seconds that the tokens of publishers and clients are valid: longer than any run."""


class Traffic:
    """Publishers and clients in processes of their own, each with a journal, until they are closed.

    Args:
        directory: for the journals; it is made.
        servers: they run, and share one log and their keys.
        seed: of what publishers and clients leave to chance.
        publishers, clients: how many there are.
        publishing, listening: settings that all of them have.
    """

    def __init__(
        self,
        directory: Path,
        servers: Sequence[ServerProcess],
        seed: int,
        *,
        publishers: int = 8,
        clients: int = 12,
        publishing: Mapping[str, Any] | None = None,
        listening: Mapping[str, Any] | None = None,
    ) -> None:
        directory.mkdir()
        self.directory = directory
        self._servers = servers
        self._seed = seed
        self._counts = publishers, clients
        self._publishing, self._listening = publishing or {}, listening or {}
        self._publishers: list[Popen[bytes]] = []
        self._clients: list[Popen[bytes]] = []
        self._channels: dict[str, Sequence[str]] = {}
        """Of each client."""

    def open(self, beyond: Sequence[str] = (), host: str = "127.0.0.1") -> None:
        """Have all begin; clients listen before publishers begin.

        Args:
            beyond: a command that runs another one where every other client is to be.
            host: where these find the servers.
        """
        chance = random.Random(f"{self._seed} clients")
        publishers, clients = self._counts
        settings = []
        for number in range(clients):
            habits = {
                "channels": chance.sample(CHANNELS, chance.randint(1, len(CHANNELS))),
                "stays": chance.choice((0.5, 3.0, 600.0)),
                "reads": chance.choice((65_536, 65_536, 300)),
                "types": chance.random() < 0.3,
                "host": host if number % 2 else "127.0.0.1",
            }
            one = client.Settings(**{**self._common(f"client-{number}"), **habits, **self._listening})
            settings.append(one)
            self._channels[one.name] = one.channels
        tokens = {one.name: self._servers[0].stream_token(*one.channels, ttl=TTL) for one in settings}
        self._clients += [
            self._launch(client, settings[::2], json.dumps(tokens)),
            self._launch(client, settings[1::2], json.dumps(tokens), beyond),
        ]
        until(lambda: all(self._has(name, "opened") for name in self._channels), "all clients have a stream")
        for number in range(publishers):
            habits = {"keyed": number % 2 == 0, "kept": number % 4 < 2, "batch": 8 if number < 4 else 1}
            self.launch_publisher(f"publisher-{number}", **{**habits, **self._publishing})

    def _common(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "seed": f"{self._seed} {name}",
            "journal": str(self.directory / name),
            "ports": [server.port for server in self._servers],
            "channels": CHANNELS,
        }

    def _has(self, name: str, what: str) -> bool:
        path = self.directory / name
        return path.exists() and f'"what":"{what}"'.encode() in path.read_bytes()

    def launch_publisher(self, name: str, **settings: Any) -> Popen[bytes]:
        """Start one more publisher.

        Args:
            name: begins with ``publisher-``, and no other has it.
            settings: further ones of `tests.faults.publisher.Settings`.
        """
        process = self._launch(publisher, self._settings_of(name, **settings), self._token())
        self._publishers.append(process)
        return process

    def publisher_here(self, name: str) -> publisher.Publisher:
        """Return a publisher in this process, to be closed by the caller."""
        return publisher.Publisher(self._settings_of(name), self._token())

    def launch_flood(self, name: str, **settings: Any) -> Popen[bytes]:
        """Start a flood of requests.

        Args:
            name: begins with ``publisher-``, and no other has it.
            settings: further ones of `tests.faults.flood.Settings`.
        """
        described = flood.Settings(**self._common(name), **settings)
        process = self._launch(flood, described, self._token(), stdout=PIPE)
        self._publishers.append(process)
        return process

    @staticmethod
    def _launch(
        module: ModuleType,
        settings: object,
        token: str,
        within: Sequence[str] = (),
        stdout: int | None = None,
    ) -> Popen[bytes]:
        """Start one of the modules in a process of its own, by a command that runs another one where there is one."""
        program, words = preloaded.module(module.__name__), [msgspec.json.encode(settings).decode()]
        secret = {publisher.TOKEN: token}
        if within:
            return Popen([*within, *program, *words], env=os.environ | secret, stdout=stdout)
        return preloaded.start(
            words, program=program, environment=os.environ, for_children=secret, stdout=stdout
        )

    def _settings_of(self, name: str, **settings: Any) -> publisher.Settings:
        return publisher.Settings(**{**self._common(name), **settings})

    def _token(self) -> str:
        return self._servers[0].access_token(ttl=TTL)

    @contextmanager
    def unread(self, chance: random.Random) -> Iterator[None]:
        """Have half of the clients read nothing meanwhile."""
        process = chance.choice(self._clients)
        process.send_signal(signal.SIGSTOP)
        yield
        process.send_signal(signal.SIGCONT)

    def answered(self, status: int, by: str = "publisher-*") -> int:
        """Return how many requests of these publishers have been answered so by now."""
        word = f'"status":{status},'.encode()
        return sum(path.read_bytes().count(word) for path in self.directory.glob(by))

    def advance(self, count: int = 10) -> None:
        """Wait until so many more requests are acknowledged."""
        goal = self.answered(201) + count
        until(lambda: self.answered(201) >= goal, "events are acknowledged")

    def settle(self, patience: float = SETTLES) -> None:
        """Publish no more, wait until each client has been sent all, and end all; the servers serve.

        A client that is not sent all in time lacks what it is not sent.

        Args:
            patience: seconds after which more is published: a client that was told of a loss may lack the last.
        """
        for process in self._publishers:
            process.terminate()
        for process in self._publishers:
            assert process.wait(timeout=60) in (0, -signal.SIGKILL)  # a publisher may have been killed
        for process in self._clients:
            process.send_signal(signal.SIGUSR1)
        ends = time.monotonic() + SETTLES
        for round in itertools.count(1):
            if self._all_have_come(round, min(ends, time.monotonic() + patience)) or time.monotonic() > ends:
                break
        for process in self._clients:
            process.terminate()
        for process in self._clients:
            assert process.wait(timeout=60) == 0

    def _all_have_come(self, round: int, ends: float) -> bool:
        """Publish at each server an event on each channel, and return whether each client is sent the last in time.

        A client that was told of a loss meanwhile may be past them: it has the next ones.
        """
        for number, server in enumerate(self._servers):
            settings = self._settings_of(f"publisher-of-the-end-{round}-{number}", ports=[server.port])
            with closing(publisher.Publisher(settings, self._token())) as last:
                name = f"end.{round}.{number}"
                last.publish(name, [(channel, f"{name}.{channel}") for channel in CHANNELS])
        missing = dict(self._channels)
        while missing and time.monotonic() < ends:
            for client_name, channels in list(missing.items()):
                written = (self.directory / client_name).read_bytes()
                if all(f'"payload":"{name}.{channel} '.encode() in written for channel in channels):
                    del missing[client_name]
            time.sleep(0.02)
        return not missing

    def journals(self, of: str = "") -> dict[str, list[AnyRecord]]:
        """Return what publishers and clients have written down so far, by their names, which begin so."""
        return {path.name: list(read(path)) for path in sorted(self.directory.glob(f"{of}*"))}

    def account(self, listing: Iterable[tuple[str, str, str]], promises: Promises) -> Verdict:
        """Compare all that was said with all that the log has, and return what was found; call it after `settle`.

        Args:
            listing, promises: as those of `accountant.account`.
        """
        return accountant.account(self.journals("publisher"), self.journals("client"), listing, promises)

    def close(self) -> None:
        """End all."""
        for process in (*self._publishers, *self._clients):
            if process.poll() is None:
                process.kill()
                process.wait()


def head_of(http: httpx.Client) -> str:
    """Return the id of the last event of the configured channels; empty where there is none."""
    channels: dict[str, Any] = http.get("/api/v1/sse/status").raise_for_status().json()["channels"]
    ids = [str(channel["last_event_id"]) for channel in channels.values() if channel["last_event_id"]]
    return max(ids, key=sequence, default="")


def history_of(server: ServerProcess, begins: str = "", *, kept: bool = True) -> list[tuple[str, str, str]]:
    """Return the id, the channel and the payload of each event, as the server's history has them.

    Args:
        begins: the id after which they begin; all are meant where it is empty, or of another epoch than the log.
        kept: whether nothing may be missing.
    """
    found: list[tuple[str, str, str]] = []

    def is_still_the_same() -> bool:
        before = list(found)
        found[:] = _history_of(http, begins, kept)
        return found == before

    with server.publisher() as http:
        # A node whose database was away may learn only now that it is back.
        until(lambda: http.get("/readyz").status_code == 200, "the log can be read")
        # What was asked of a database that was cut off may be stored while one channel after the other is read.
        until(is_still_the_same, "all that comes late has come")
    return found


def _history_of(http: httpx.Client, begins: str, kept: bool) -> list[tuple[str, str, str]]:
    found = []
    epoch = head_of(http).rpartition("-")[0]
    for channel in (*CHANNELS, QUIET):
        after = begins if begins.startswith(f"{epoch}-") else f"{epoch}-0"
        while True:
            query: dict[str, str | int] = {"after": after, "limit": 1000}
            page = http.get(f"/api/v1/sse/{channel}/history", params=query).raise_for_status().json()
            assert page["complete"] or not kept
            if not page["events"]:
                break
            after = page["events"][-1]["id"]
            found += [(event["id"], channel, payload_of(event["data"])) for event in page["events"]]
    return found
