"""Whatever happens to nodes, to PostgreSQL or between them: each acknowledged id is accounted for.

What is left to chance comes from a seed, which a failing test shows; ``FAULTS_SEED`` in the environment sets it.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.faults.journal import Answered, Journal, Reset, Sent, payload_of
from tests.faults.ledger import Loss, Promises
from tests.faults.traffic import Traffic, history_of
from tests.support.fleet import Client, Fleet
from tests.support.namespaces import links, small_disk
from tests.support.nodes import TIMEOUT, nodes
from tests.support.postgres import Postgres, cluster, ending, server_directory, standby
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

EXPECTED = ("event_log_unavailable", "replay_failed", "log_replaced", "accounts_unavailable", "node_silent")
BOUND = TIMEOUT + 6
"""Seconds within which a publish is answered that the database does not take; generous."""


@pytest.fixture
def chance() -> random.Random:
    """What is left to chance."""
    seed = int(os.environ.get("FAULTS_SEED", 0)) or random.randrange(1, 1_000_000)
    print(f"FAULTS_SEED={seed}")
    return random.Random(seed)


@contextmanager
def traffic_of(
    servers: list[ServerProcess], chance: random.Random, losses: Sequence[Loss] | None = None
) -> Iterator[Traffic]:
    """Publishers and clients, whose account has to balance in the end; with losses each client is told of some."""
    folder = servers[0].state_dir.parent / "journals"
    with closing(Traffic(folder, servers, chance.randrange(1_000_000), clients=6)) as traffic:
        traffic.open()
        traffic.advance()
        yield traffic
        traffic.settle(10.0)
        histories = [history_of(server) for server in servers]
    assert all(history == histories[0] for history in histories)
    verdict = traffic.account(histories[0], Promises(losses=losses or (), whole=True, refusals=()))
    print(verdict)
    assert verdict.findings == []
    if losses is not None:
        assert verdict.taken_back > 0
        for records in traffic.journals("client").values():
            assert any(isinstance(record, Reset) for record in records)


def status_of(server: ServerProcess, path: str) -> int:
    """Return the status of a probe, which is answered at once."""
    # The machine may stand still for longer; a probe that waits for the database does so each time.
    for _ in range(3):
        begun = time.monotonic()
        answer = httpx.get(f"{server.url}{path}", timeout=60)
        if time.monotonic() - begun < 2:
            return answer.status_code
    pytest.fail(f"{path} is not answered at once")


def publish(server: ServerProcess, traffic: Traffic, name: str = "") -> httpx.Response:
    """Publish an event once, or once more by its name, and write that down."""
    name = name or f"test.{time.monotonic_ns()}"
    data = {"of": name}
    with closing(Journal(traffic.directory / "publisher-test")) as journal, server.publisher() as http:
        journal.write(Sent(at=time.monotonic(), name=name, events=[("dashboard", payload_of(data))]))
        event = {"event": "e", "data": data}
        answer = http.post("/api/v1/sse/dashboard", json=event, headers={"Idempotency-Key": name})
        status, content = answer.status_code, answer.json()
        ids, code = ([content["id"]], "") if status == 201 else ([], content["error"]["code"])
        journal.write(Answered(at=time.monotonic(), name=name, status=status, ids=ids, code=code))
    return answer


# -- nodes and the server end -----------------------------------------------------------------------------------


def kill_node(postgres: Postgres, servers: list[ServerProcess], chance: random.Random) -> None:
    server = chance.choice(servers)
    server.kill()
    time.sleep(chance.random() * 0.3)
    server.start()


def kill_postgres(postgres: Postgres, servers: list[ServerProcess], chance: random.Random) -> None:
    postgres.kill()
    time.sleep(chance.random() * 0.3)
    postgres.start()


def restart_postgres(postgres: Postgres, servers: list[ServerProcess], chance: random.Random) -> None:
    postgres.stop(chance.choice(("fast", "immediate")))
    postgres.start()


def pause_postgres(postgres: Postgres, servers: list[ServerProcess], chance: random.Random) -> None:
    postgres.pause()
    time.sleep(TIMEOUT * (0.5 + 3 * chance.random()))
    postgres.resume()


def cut_connections(postgres: Postgres, servers: list[ServerProcess], chance: random.Random) -> None:
    for _ in range(3):
        postgres.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'")
        time.sleep(chance.random() * 0.2)


FAULTS = [kill_node, kill_postgres, restart_postgres, pause_postgres, cut_connections]


def go_through(faults: list[Callable[..., None]], chance: random.Random, folder: Path) -> None:
    with (
        cluster() as postgres,
        nodes(folder, [postgres.new_database()] * 2, expected=EXPECTED) as servers,
        traffic_of(servers, chance) as traffic,
    ):
        for fault in faults:
            print(f"{time.monotonic():.2f} {fault.__name__}")
            fault(postgres, servers, chance)
            traffic.advance()


@pytest.mark.ci
def test_whatever_ends_or_stops_nothing_acknowledged_is_lost_and_every_client_is_sent_each_event_once(
    chance: random.Random, tmp_path: Path
) -> None:
    go_through(chance.sample(FAULTS, len(FAULTS)), chance, tmp_path)


@pytest.mark.long
def test_over_fifty_faults_nothing_acknowledged_is_lost_and_every_client_is_sent_each_event_once(
    chance: random.Random, tmp_path: Path
) -> None:
    go_through(chance.choices(FAULTS, k=50), chance, tmp_path)


# -- out of reach, slow, full -----------------------------------------------------------------------------------


def refuses(server: ServerProcess, traffic: Traffic) -> None:
    """Check that a node without the database refuses publishes in time, and answers probes at once."""
    begun = time.monotonic()
    answer = publish(server, traffic)
    assert time.monotonic() - begun < BOUND
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] in ("log_unavailable", "outcome_unknown"), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert status_of(server, "/readyz") == 503
    assert status_of(server, "/healthz") == 200


@contextmanager
def watching(server: ServerProcess) -> Iterator[Client]:
    """A client whose stream has to stay open."""
    fleet = Fleet(server.port)
    try:
        (client,) = fleet.open(1, server.stream_url("dashboard", server.stream_token("dashboard")))
        yield client
        assert client.ended is None
        assert client.longest_wait < 5, "pings come each second"
    finally:
        fleet.close()


@pytest.mark.long
@pytest.mark.netns
@pytest.mark.parametrize("seconds", [3, pytest.param(10, marks=pytest.mark.long)])
def test_a_partition_refuses_publishes_on_one_node_and_ends_no_stream(
    chance: random.Random, tmp_path: Path, seconds: int
) -> None:
    with server_directory() as directory, links(2) as (within, (first, second)):
        postgres = Postgres(directory, {"listen_addresses": "*"}, within=within)
        postgres.host = second.far
        with ending(postgres):
            postgres.make()
            for link in (first, second):
                postgres.allow(f"{link.near}/32")
            postgres.start()
            url = postgres.new_database()
            urls = [url.replace(second.far, first.far), url]
            with (
                nodes(tmp_path, urls, expected=EXPECTED) as servers,
                traffic_of(servers, chance) as traffic,
                watching(servers[0]) as client,
            ):
                cut_off, other = servers
                first.drop()
                ends = time.monotonic() + seconds
                unknown = "unknown"
                assert publish(cut_off, traffic, unknown).status_code == 503
                while time.monotonic() < ends:
                    refuses(cut_off, traffic)
                    # On a busy machine it may take longer than a query may.
                    until(lambda: publish(other, traffic).status_code == 201, "the other one stores")
                    until(lambda: status_of(other, "/readyz") == 200, "the other one is ready")
                first.mend()
                answer = publish(other, traffic, unknown)
                until(lambda: status_of(cut_off, "/readyz") == 200, "the node is ready again")
                assert publish(cut_off, traffic, unknown).json() == answer.json()
                client.wait_for(answer.json()["id"])


@pytest.mark.long
def test_a_database_that_does_not_answer_holds_up_no_probe_no_ping_and_no_stream(
    chance: random.Random, tmp_path: Path
) -> None:
    with (
        cluster() as postgres,
        nodes(tmp_path, [postgres.new_database()] * 2, expected=EXPECTED) as servers,
        traffic_of(servers, chance) as traffic,
        watching(servers[0]) as client,
    ):
        postgres.pause()
        try:
            for _ in range(3):
                refuses(servers[0], traffic)
            pings = client.received.count(b"event: ping")
            until(lambda: client.received.count(b"event: ping") > pings + 1, "it is pinged")
        finally:
            postgres.resume()
        until(lambda: status_of(servers[0], "/readyz") == 200, "the node is ready again")


@pytest.mark.long
@pytest.mark.netns
def test_a_full_disk_of_the_database_refuses_publishes_until_there_is_room(
    chance: random.Random, tmp_path: Path
) -> None:
    with server_directory() as directory, small_disk(directory, 80) as disk:
        postgres = Postgres(
            directory, {"max_wal_size": "8MB", "min_wal_size": "4MB"}, within=disk.within, root=disk.root
        )
        with ending(postgres):
            postgres.make_anew()
            postgres.start()
            url = postgres.new_database()
            with (
                nodes(tmp_path, [url] * 2, expected=EXPECTED) as servers,
                traffic_of(servers, chance) as traffic,
                watching(servers[0]),
            ):

                def is_refused() -> bool:
                    disk.fill()  # anew each time: the database gives back what it needs no longer
                    answer = publish(servers[0], traffic)
                    return answer.status_code == 503 and status_of(servers[0], "/readyz") == 503

                for _ in range(4):
                    until(is_refused, "the disk is full")
                    assert status_of(servers[0], "/healthz") == 200
                    time.sleep(0.3)
                disk.empty()
                if not postgres.runs:
                    postgres.start()
                until(lambda: status_of(servers[0], "/readyz") == 200, "the node is ready again")
                traffic.advance()


# -- failover ---------------------------------------------------------------------------------------------------


def url_of(*servers: Postgres, database: str) -> str:
    """Return a URL that finds that one of these servers which can be written."""
    hosts = ",".join(f"{server.host}:{server.port}" for server in servers)
    return f"postgresql://app@{hosts}/{database.rpartition('/')[2]}?target_session_attrs=read-write"


@pytest.mark.parametrize(
    "quorum",
    [pytest.param("second", marks=pytest.mark.long), pytest.param("ANY 1 (second)", marks=pytest.mark.long)],
)
def test_a_failover_to_the_synchronous_standby_loses_nothing_and_no_client_is_told_of_a_loss(
    chance: random.Random, tmp_path: Path, quorum: str
) -> None:
    with cluster() as first, standby(first, "second") as second:
        first.set("synchronous_standby_names", quorum)
        until(
            lambda: first.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state <> 'async'"),
            "it is synchronous",
        )
        url = url_of(first, second, database=first.new_database())
        with nodes(tmp_path, [url] * 2, expected=EXPECTED) as servers, traffic_of(servers, chance) as traffic:
            first.kill()
            time.sleep(chance.random() * 0.5)
            second.promote()
            second.execute("ALTER SYSTEM RESET synchronous_standby_names")
            second.execute("SELECT pg_reload_conf()")
            traffic.advance()


@pytest.mark.long
def test_a_failover_to_an_asynchronous_standby_loses_the_latest_and_tells_each_client(
    chance: random.Random, tmp_path: Path
) -> None:
    losses: list[Loss] = []
    with cluster() as first, standby(first, "second") as second:
        url = url_of(first, second, database=first.new_database())
        with (
            nodes(tmp_path, [url] * 2, expected=EXPECTED) as servers,
            traffic_of(servers, chance, losses) as traffic,
        ):
            begins = time.monotonic()
            second.catch_up_with(first)
            first.stop_replication()
            traffic.advance(20)
            first.kill()
            second.promote()
            losses.append(Loss(begins, time.monotonic()))
            traffic.advance()


@pytest.mark.long
def test_an_old_primary_that_is_written_again_gives_no_id_to_another_event(
    chance: random.Random, tmp_path: Path
) -> None:
    losses: list[Loss] = []
    with cluster() as first, standby(first, "second") as second:
        first.set("synchronous_standby_names", "second")
        until(
            lambda: first.execute("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"),
            "it is synchronous",
        )
        url = url_of(first, second, database=first.new_database())
        with (
            nodes(tmp_path, [url] * 2, expected=EXPECTED) as servers,
            traffic_of(servers, chance, losses) as traffic,
        ):
            begins = time.monotonic()
            first.kill()
            second.promote()
            traffic.advance(20)
            first.settings["synchronous_standby_names"] = ""
            first.start()
            second.kill()
            losses.append(Loss(begins, time.monotonic()))
            traffic.advance()


@pytest.mark.long
def test_a_crash_loses_nothing_also_where_the_commits_of_others_do_not_wait_for_the_disk(
    chance: random.Random, tmp_path: Path
) -> None:
    with (
        cluster(synchronous_commit="off", wal_buffers="16MB") as postgres,
        nodes(tmp_path, [postgres.new_database()] * 2, expected=EXPECTED) as servers,
        traffic_of(servers, chance) as traffic,
    ):
        ((writer,),) = postgres.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
        assert isinstance(writer, int)
        os.kill(writer, signal.SIGSTOP)  # what it has written would outlive the server, if not the machine
        traffic.advance(20)
        postgres.kill()
        postgres.start()
        traffic.advance()


@pytest.mark.long
@pytest.mark.parametrize(
    ("nodes_run", "recover"),
    [
        pytest.param(True, True, id="under the nodes-to a point in time"),
        pytest.param(False, False, id="while no node runs-as a plain copy", marks=pytest.mark.long),
        pytest.param(True, False, id="under the nodes-as a plain copy", marks=pytest.mark.long),
        pytest.param(False, True, id="while no node runs-to a point in time", marks=pytest.mark.long),
    ],
)
def test_a_restored_backup_loses_the_latest_and_tells_each_client(
    chance: random.Random, tmp_path: Path, recover: bool, nodes_run: bool
) -> None:
    losses: list[Loss] = []
    with (
        cluster() as postgres,
        nodes(tmp_path, [postgres.new_database()] * 2, expected=EXPECTED) as servers,
        traffic_of(servers, chance, losses) as traffic,
    ):
        begins = time.monotonic()
        backup = postgres.directory / "backup"
        postgres.backup(backup)
        traffic.advance(20)
        if not nodes_run:
            for server in servers:
                assert server.stop() == 0
        postgres.stop()
        postgres.restore(backup, recover=recover)
        postgres.start()
        losses.append(Loss(begins, time.monotonic()))
        if not nodes_run:
            for server in servers:
                server.start()
        traffic.advance()
