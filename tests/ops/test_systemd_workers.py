"""Several workers as instances of a unit: what restarts, upgrades, crashes and another number of them do to streams."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from argparse import Namespace
from collections.abc import Callable, Sequence

import pytest

from sse_app.cli.upgrade import upgrade
from sse_app.core.errors import StateError
from tests.support.fleet import Client, assert_all_received
from tests.support.service import Service
from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import until

STREAMS = 400


@pytest.fixture
def workers(start_service: Callable[..., Service]) -> Service:
    """Three workers."""
    return start_service(workers=3)


@pytest.fixture
def two_workers(start_service: Callable[..., Service]) -> Service:
    """Two workers, where a third one would show nothing further."""
    return start_service(workers=2)


def open_streams(service: Service, count: int) -> dict[int, list[Client]]:
    """Open streams, and return them by the workers that they came to."""
    path = service.stream_path(client_id="c")
    before = len(service.fleet.clients)
    clients = service.fleet.open(count, lambda number: f"{path}{before + number}")

    def workers() -> dict[str, int]:
        return {str(line["client_id"]): int(str(line["worker"])) for line in service.logged("stream_opened")}

    names = [f"c{number}" for number in range(before, before + count)]
    until(lambda: workers().keys() >= set(names), "the streams are logged")
    found: dict[int, list[Client]] = {number: [] for number in range(1, service.workers + 1)}
    for name, client in zip(names, clients, strict=True):
        found[workers()[name]].append(client)
    return found


def come_back(service: Service, clients: Sequence[Client]) -> list[Client]:
    """Open the streams of clients that were closed again, each where its last event was."""
    path = service.stream_path(client_id="again")
    return service.fleet.open(
        len(clients), lambda number: f"{path}&last_event_id={_last_id(clients[number])}"
    )


def _last_id(client: Client) -> str:
    """Return a client's position, which begins with its ``connected``."""
    return [event.id for event in EventStreamReader().feed(client.body()) if event.id is not None][-1]


def _refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_streams_go_on_in_each_worker_over_a_restart_of_the_target_and_an_upgrade(
    two_workers: Service,
) -> None:
    clients = two_workers.fleet.open(STREAMS, two_workers.stream_path())
    publisher = two_workers.publisher()
    for change in (two_workers.restart, two_workers.upgrade, two_workers.restart):
        change()
        two_workers.settle(publisher)
    ids = publisher.stop()
    assert not two_workers.fleet.ended
    assert_all_received(clients, ids)
    assert {line["worker"] for line in two_workers.logged("listening")} == {1, 2}
    handed_over = [line for line in two_workers.logged("succeeded") if line["streams"]]
    assert {line["worker"] for line in handed_over} == {1, 2}
    assert not two_workers.logged("adopted")  # each by its standby, none through the store


@pytest.mark.long
def test_a_cold_restart_of_the_target_keeps_the_streams_of_each_worker_in_its_own_store(
    two_workers: Service,
) -> None:
    two_workers.configure("cold", "KillMode=mixed")
    clients = two_workers.fleet.open(STREAMS, two_workers.stream_path())
    publisher = two_workers.publisher()
    two_workers.restart()
    two_workers.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not two_workers.fleet.ended
    assert {line["worker"] for line in two_workers.logged("adopted")} == {1, 2}
    assert sum(int(str(line["streams"])) for line in two_workers.logged("adopted")) == STREAMS


@pytest.mark.long
def test_kill_9_of_one_worker_ends_its_own_streams_alone_which_resume_elsewhere(workers: Service) -> None:
    streams = open_streams(workers, 60)
    assert all(streams.values())
    publisher = workers.publisher()
    workers.settle(publisher)
    first, second, third = workers.pids
    os.kill(second, signal.SIGKILL)
    until(lambda: len(workers.fleet.ended) == len(streams[2]), "the streams of that worker have ended")
    again = come_back(workers, streams[2])
    until(lambda: workers.manager.pid_of(2) not in (0, second), "another process serves")
    workers.settle(publisher)
    ids = publisher.stop()
    assert workers.pids[::2] == [first, third]
    assert len(workers.fleet.ended) == len(streams[2])
    assert_all_received(streams[1] + streams[3], ids)
    for before, after in zip(streams[2], again, strict=True):
        after.wait_for(ids[-1])
        assert before.ids() + after.ids() == ids


@pytest.mark.long
def test_a_worker_that_hangs_is_replaced_and_the_others_serve_on(workers: Service) -> None:
    workers.configure(
        "watchdog", "WatchdogSec=3"
    )  # a busy machine lets those that serve wait for a while, too
    workers.inject("import signal, time\nsignal.signal(signal.SIGRTMIN, lambda *_: time.sleep(1000))")
    workers.restart()
    streams = open_streams(workers, 30)
    publisher = workers.publisher()
    first, second, third = workers.pids
    os.kill(first, signal.SIGRTMIN)
    until(lambda: workers.manager.pid_of(1) not in (0, first), "another process serves")
    until(lambda: len(workers.fleet.ended) == len(streams[1]), "the streams of that worker have ended")
    workers.settle(publisher)
    assert workers.pids[1:] == [second, third]
    assert workers.manager.show("NRestarts", "sse-app@1.service") == "1"
    assert_all_received(streams[2] + streams[3], publisher.stop())


@pytest.mark.long
def test_fewer_workers_and_more_end_no_stream_but_those_of_workers_that_go(workers: Service) -> None:
    streams = open_streams(workers, 90)
    publisher = workers.publisher()
    workers.settle(publisher)
    told = workers.manager.installed(workers.port, 2)
    assert "stop sse-app@3.service" in told
    workers.change(2)  # by what is told again, as the first time it was not done
    until(lambda: len(workers.fleet.ended) == len(streams[3]), "the streams of the third have ended")
    for client in streams[3]:
        assert client.ended == "end of file"
        assert b'"reason":"shutdown"' in client.body()
    again = come_back(workers, streams[3])
    workers.change(4)
    workers.settle(publisher)
    more = open_streams(workers, 60)
    workers.settle(publisher)
    ids = publisher.stop()
    assert len(workers.fleet.ended) == len(streams[3])
    assert_all_received(streams[1] + streams[2], ids)
    for before, after in zip(streams[3], again, strict=True):
        after.wait_for(ids[-1])
        assert before.ids() + after.ids() == ids
    assert all(more.values())


@pytest.mark.long
def test_one_process_becomes_workers_and_one_again_with_every_position_good(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    ids: list[str] = []
    clients: list[Client] = service.fleet.open(20, service.stream_path())
    seen: list[list[str]] = [[] for _ in clients]
    for workers in (3, 1, 2, 1):
        ids += service.publish(5)
        for client, had in zip(clients, seen, strict=True):
            client.wait_for(ids[-1])
            had += client.ids()
        service.change(workers)
        until(lambda: all(client.ended for client in service.fleet.clients), "the streams have ended")
        assert all(b'"reason":"shutdown"' in client.body() for client in clients)
        assert service.command(
            "systemd", "check", "--user", "--config", str(service.manager.config), "--workers", str(workers)
        )
        ids += service.publish(5)
        clients = come_back(service, clients)
    for client, had in zip(clients, seen, strict=True):
        client.wait_for(ids[-1])
        assert had + client.ids() == ids
    assert not any(b"event: reset" in client.body() for client in service.fleet.clients)


@pytest.mark.slow
def test_stop_of_the_target_drains_all_workers(workers: Service) -> None:
    clients = workers.fleet.open(STREAMS, workers.stream_path())
    workers.manager.systemctl("stop", "sse-app.target", "sse-app@*")
    until(lambda: len(workers.fleet.ended) == len(clients), "the streams have ended")
    assert workers.fleet.ended == ["end of file"] * len(clients)
    assert all(b'"reason":"shutdown"' in client.body() for client in clients)
    assert not workers.logged("handed_over")
    assert _refused(workers.port)
    states = workers.manager.systemctl("show", "--value", "--property", "ActiveState", "sse-app@*").stdout
    assert "failed" not in states
    workers.manager.systemctl("start", "sse-app.target")
    workers.fleet.open(5, workers.stream_path())


@pytest.mark.long
def test_while_workers_run_one_process_is_refused_and_the_other_way_round(workers: Service) -> None:
    def serve(**variables: str) -> str:
        environment = {**workers.manager.environment, "SSE_APP_STATE_DIR": str(workers.manager.state_dir)}
        done = subprocess.run(
            [*workers.manager.program, "serve", "--port", "0"],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    named = ", ".join(map(str, workers.pids))
    assert serve().endswith(f"is in use by another server (process {named})")
    assert serve(SSE_APP_WORKER="2").endswith(f"runs already (process {workers.pids[1]})")
    assert serve(SSE_APP_WORKER="4").endswith("was given no listening socket: it cannot share a port without")
    workers.change(1)
    assert serve(SSE_APP_WORKER="1").endswith(f"is in use by another server (process {workers.pids[0]})")


@pytest.mark.long
def test_an_upgrade_stops_at_the_first_worker_that_fails_and_names_those_that_are_left(
    workers: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    workers.inject(
        "if os.environ.get('SSE_APP_SUCCESSOR') and os.environ['SSE_APP_WORKER'] == '2': os._exit(1)"
    )
    workers.configure("cold", "KillMode=mixed")
    workers.restart()
    workers.expected = {"upgrade_failed"}
    workers.fleet.open(30, workers.stream_path())
    publisher = workers.publisher()
    first, *others = workers.pids
    reason = rf"worker 2: process {others[0]} still serves: the other process ended .*; not replaced: 3"
    with pytest.raises(StateError, match=reason):
        upgrade(Namespace(state_dir=workers.manager.state_dir))
    assert capsys.readouterr().out == f"worker 1: process {workers.pids[0]} serves in the place of {first}\n"
    assert workers.pids[0] != first
    assert workers.pids[1:] == others
    assert_all_received(workers.fleet.clients, publisher.stop())
    assert not workers.fleet.ended


@pytest.mark.long
def test_ten_thousand_streams_on_four_workers_go_on_over_restarts_and_upgrades(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(workers=4)
    clients = service.fleet.open(10_000, service.stream_path())
    publisher = service.publisher(pause=0.5)
    for change in (service.restart, service.upgrade, service.restart, service.upgrade):
        change()
        service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
