"""Three machines on one log in PostgreSQL: all clients have all events, whatever node they are at, and come to.

Each machine is a server with two workers of its own, with its own state directory; they share the keys.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg
import pytest

from tests.faults.journal import Answered, Journal, Sent, payload_of
from tests.faults.ledger import Promises
from tests.faults.traffic import CHANNELS, Traffic
from tests.support.fleet import Client, Fleet
from tests.support.ports import reserved_port
from tests.support.programs import require
from tests.support.proxies import make_certificate, running
from tests.support.server_process import ROOT, ServerProcess
from tests.support.supervised import ServerWithWorkers, starting_workers
from tests.support.waiting import until


@pytest.fixture
def nodes(tmp_path: Path, database_url: str) -> Iterator[list[ServerWithWorkers]]:
    """Three servers of two workers each."""
    starts = [starting_workers(tmp_path / f"node{number}") for number in (1, 2, 3)]
    try:
        started = []
        for number, starting in enumerate(starts, 1):
            keys = {"AUTH__KEYS_DIR": str(tmp_path / "node1/keys")} if number > 1 else {}
            start: Callable[..., ServerWithWorkers] = next(starting)
            started.append(
                start(
                    workers=2,
                    EVENT_LOG=database_url,
                    NODE=f"node{number}",
                    TRUSTED_PROXIES=["127.0.0.0/8"],
                    HISTORY__SIZE=1_000_000,
                    expected=("node_silent",),
                    **keys,
                )
            )
        yield started
    finally:
        for starting in starts:
            with pytest.raises(StopIteration):
                next(starting)


class Transactions(threading.Thread):
    """Publishes in transactions of an application's own, some of which are rolled back."""

    def __init__(self, journals: Path, seed: str, url: str) -> None:
        super().__init__(name="transactions", daemon=True)
        self.ends = threading.Event()
        self.rolled_back = 0
        self._journal = Journal(journals / "publisher-sql")
        self._chance = random.Random(seed)
        self._url = url
        self._committed: list[tuple[float, Sent]] = []

    def run(self) -> None:
        """Publish one request after another, each in a transaction."""
        with closing(psycopg.connect(self._url)) as database:
            while not self.ends.wait(0.12 * self._chance.random()):
                self._transact(database, f"sql.{len(self._committed) + self.rolled_back}")

    def _transact(self, database: psycopg.Connection[Any], name: str) -> None:
        channels = self._chance.choices(CHANNELS, k=self._chance.randint(1, 5))
        events = [(channel, {"of": f"{name}.{part}"}) for part, channel in enumerate(channels)]
        sent = Sent(
            at=time.monotonic(), name=name, events=[(channel, payload_of(data)) for channel, data in events]
        )
        self._journal.write(sent)
        for channel, data in events:
            database.execute("SELECT sse_app.publish(%s, 'e', %s)", [channel, json.dumps(data)])
        if self._chance.random() < 0.3:
            database.rollback()
            self.rolled_back += 1
            self._journal.write(Answered(at=time.monotonic(), name=name, status=503))
        else:
            database.commit()
            self._committed.append((time.monotonic(), sent))

    def look_up(self, listing: Sequence[tuple[str, str, str]]) -> None:
        """Note the ids of what was committed, which a transaction is not told; all of it is stored."""
        ids = {payload: id for id, _, payload in listing}
        for at, sent in self._committed:
            found = [ids[payload] for _, payload in sent.events]
            self._journal.write(Answered(at=at, name=sent.name, status=201, ids=found))
        self._journal.close()


class Entrance(ServerProcess):
    """Stands for a server whose port is a proxy's."""

    def __init__(self, server: ServerProcess, port: int) -> None:
        self.__dict__.update(server.__dict__)
        self.port = port
        self.url = f"http://127.0.0.1:{port}"


def stored_in(url: str) -> list[tuple[str, str, Any]]:
    """Return the id, the channel and the data of each event of the log, in order."""
    with closing(psycopg.connect(url)) as database:
        ((epoch,),) = database.execute("SELECT epoch FROM sse_app.log").fetchall()
        rows = database.execute(
            "SELECT e.seq, c.name, e.data FROM sse_app.events AS e JOIN sse_app.channels AS c ON c.id = e.channel "
            "ORDER BY e.seq"
        ).fetchall()
    return [(f"{epoch}-{seq}", name, orjson.loads(data)) for seq, name, data in rows]


@contextmanager
def haproxy(nodes: Sequence[ServerProcess], folder: Path) -> Iterator[int]:
    """Run HAProxy on the configuration that comes with the server, with these nodes, and yield a port without TLS."""
    certificate = make_certificate(folder)
    both = folder / "both.pem"
    both.write_bytes(certificate.certificate.read_bytes() + certificate.key.read_bytes())
    with reserved_port() as port, reserved_port() as encrypted:
        text = (ROOT / "config/haproxy.cfg").read_text()
        changes = {f"10.0.0.1{n}:8000": f"127.0.0.1:{node.port}" for n, node in enumerate(nodes, 1)}
        changes |= {
            "maxconn 100000": "maxconn 2000",
            "log /dev/log": "log stdout format raw",
            "bind :443 ": f"bind 127.0.0.1:{port}\n    bind 127.0.0.1:{encrypted} ",
            "/etc/ssl/sse_app/both.pem": str(both),
        }
        for theirs, ours in changes.items():
            assert theirs in text, theirs
            text = text.replace(theirs, ours)
        configuration = folder / "haproxy.cfg"
        configuration.write_text(text)
        command = [require("haproxy"), "-db", "-f", str(configuration)]
        with running(command, f"http://127.0.0.1:{port}", folder, {}) as proxy:
            curl = [require("curl"), "--silent", "--fail", "--cacert", str(certificate.certificate)]
            asked = [
                f"https://localhost:{encrypted}/readyz",
                "--output",
                str(folder / "ready"),
                "--write-out",
            ]
            done = subprocess.run([*curl, *asked, "%{http_version}"], stdout=subprocess.PIPE, text=True)
            assert (done.returncode, done.stdout) == (0, "2")
            yield port
            logged = proxy.logs()
            assert " GET /api/v1/sse/" in logged
            assert "eyJ" not in logged, "a token is in the log"


@pytest.mark.long
@pytest.mark.parametrize("count", [1, pytest.param(3, marks=pytest.mark.long)])
def test_nodes_behind_haproxy_are_restarted_and_upgraded_in_turn_and_no_event_is_lost(
    nodes: list[ServerWithWorkers], database_url: str, tmp_path: Path, count: int
) -> None:
    seed = int(os.environ.get("NODES_SEED", 0)) or random.randrange(1, 1_000_000)
    print(f"NODES_SEED={seed}")
    fleets = [Fleet(node.port) for node in nodes]
    token = nodes[0].stream_token("dashboard", ttl=6000)
    path = nodes[0].stream_url("dashboard", token).removeprefix(nodes[0].url)
    with haproxy(nodes, tmp_path) as port:
        traffic = Traffic(tmp_path / "journals", [Entrance(nodes[0], port)], seed)
        transactions = Transactions(traffic.directory, f"{seed} sql", database_url)
        try:
            for fleet in fleets:
                fleet.open(10, path)
            traffic.open()
            transactions.start()
            for number, node in enumerate(nodes[:count]):
                traffic.advance()
                done = len(node.logged("upgraded")), len(node.logged("parent_replaced"))
                node.signal(signal.SIGUSR2)
                node.wait_for_log("parent_replaced", done[1] + 1)
                traffic.advance()
                assert not any(fleet.ended for fleet in fleets[number:]), "an upgrade ended a stream"
                before = [len(fleet.ended) for fleet in fleets]
                node.stop()
                traffic.advance()
                node.start()
                traffic.advance()
                after = [len(fleet.ended) for fleet in fleets]
                assert after[:number] + after[number + 1 :] == before[:number] + before[number + 1 :]
                assert after[number] == 10
            transactions.ends.set()
            transactions.join()
            traffic.settle()
        finally:
            transactions.ends.set()
            traffic.close()
            for fleet in fleets:
                fleet.close()
    listing = [(id, channel, payload_of(data)) for id, channel, data in stored_in(database_url)]
    transactions.look_up(listing)
    verdict = traffic.account(listing, Promises(whole=True, refusals=()))
    print(verdict, f"{transactions.rolled_back} transactions rolled back")
    assert transactions.rolled_back
    assert verdict.findings == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "least"),
    [
        pytest.param(40, 300, id="40"),
        pytest.param(100, 300, id="100", marks=pytest.mark.long),
        pytest.param(1000, 600, id="1000", marks=pytest.mark.long),
    ],
)
def test_all_clients_of_three_nodes_have_every_event_of_their_channels_once_and_in_one_order(
    nodes: list[ServerWithWorkers], database_url: str, count: int, least: int
) -> None:
    """Publishers at each node, and in transactions, some of them rolled back: at least so many events."""
    fleets = [Fleet(node.port) for node in nodes]
    stop = threading.Event()
    subscribed: dict[Sequence[str], list[Client]] = defaultdict(list)

    def in_sql() -> None:
        chance = random.Random(1)
        with closing(psycopg.connect(database_url)) as database:
            number = 0
            while not stop.is_set():
                number += 1
                for part in range(3):
                    channel = CHANNELS[(number + part) % 2]
                    database.execute(
                        "SELECT sse_app.publish(%s, 'e', %s)", [channel, f'{{"of": "{number}"}}']
                    )
                if chance.random() < 0.3:
                    database.rollback()
                else:
                    database.commit()
                time.sleep(0.01)

    def over_http(node: ServerWithWorkers) -> None:
        headers = {"Authorization": f"Bearer {nodes[0].access_token(ttl=6000)}"}
        with httpx.Client(base_url=node.url, headers=headers, timeout=60) as http:
            number = 0
            while not stop.is_set():
                number += 1
                answer = http.post(
                    f"/api/v1/sse/{CHANNELS[number % 2]}", json={"event": "e", "data": {"of": str(number)}}
                )
                assert answer.status_code == 201, answer.text
                time.sleep(0.02)

    try:
        for fleet, node in zip(fleets, nodes, strict=True):
            for asked in (CHANNELS[:1], CHANNELS[1:2], CHANNELS[:2]):
                token = nodes[0].stream_token(*asked, ttl=6000)
                url = node.stream_url(",".join(asked), token)
                subscribed[asked] += fleet.open(count // 3 + 1, url.removeprefix(node.url))
        threads = [threading.Thread(target=in_sql)]
        threads += [threading.Thread(target=over_http, args=(node,)) for node in nodes]
        for thread in threads:
            thread.start()
        until(lambda: len(stored_in(database_url)) >= least, "enough is published", pause=0.2)
        stop.set()
        for thread in threads:
            thread.join()
        stored = stored_in(database_url)
        for channels, clients in subscribed.items():
            expected = [id for id, channel, _ in stored if channel in channels]
            assert len(expected) > 100
            for client in clients:
                client.wait_for(expected[-1])
                assert client.ids() == expected
        assert not any(fleet.ended for fleet in fleets)
    finally:
        stop.set()
        for fleet in fleets:
            fleet.close()
