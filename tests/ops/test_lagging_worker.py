"""A worker that lags behind the others, since it was stopped or hears no bell, misleads no client that comes to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client
from tests.support.server_process import ROOT
from tests.support.waiting import until
from tests.support.worker_processes import WorkerProcess, worker_processes

DEAF = """
from sse_app.eventlog.sqlite import bells, log, writer
bells.Bells.ring = lambda *_: None
bells.LOOK_AGAIN = 0
log.LOOK_INTERVAL = writer.LOOK_INTERVAL = writer.ALONE_INTERVAL = 3600
"""
"""Has a process learn of what others commit only when it asks the log; and look with each commit who they are, as it
does not hear those either that have just come."""

RUNG_ALONE = """
from sse_app.eventlog.sqlite import bells, log, writer
bells.LOOK_AGAIN = log.LOOK_INTERVAL = writer.LOOK_INTERVAL = writer.ALONE_INTERVAL = 3600
"""
"""Has a process learn of others, and of what they commit, only by its bell."""

KILLED = """
import os, signal
def ring(bells, previous, head, events=()):
    if any(event.type == "last" for event in events):
        os.kill(os.getpid(), signal.SIGKILL)
bells.Bells.ring = ring
"""
"""Has a process killed that has committed an event of this type, before it tells the others."""


@contextmanager
def injected(code: str, directory: Path) -> Iterator[list[WorkerProcess]]:
    """Run two workers with some code in each."""
    (directory / "injected").mkdir()
    (directory / "injected/sitecustomize.py").write_text(code)
    environment = {"PYTHONPATH": f"{directory / 'injected'}:{ROOT}"}
    with worker_processes(2, directory / "state", environment=environment) as workers:
        yield workers


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[list[WorkerProcess]]:
    """Two workers that do not hear of each other's events."""
    with injected(DEAF, tmp_path) as workers:
        yield workers


def publish(worker: WorkerProcess, number: int) -> str:
    with worker.publisher() as http:
        answer = http.post("/api/v1/sse/dashboard", json={"event": "e", "data": {"number": number}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def history(worker: WorkerProcess, after: str) -> list[str]:
    with worker.publisher() as http:
        page = http.get("/api/v1/sse/dashboard/history", params={"after": after}).json()
    assert page["complete"]
    return [event["id"] for event in page["events"]]


@contextmanager
def stream(worker: WorkerProcess, after: str) -> Iterator[Client]:
    url = worker.stream_url("dashboard", worker.stream_token("dashboard"), last_event_id=after)
    client = Client(worker.port, url.removeprefix(worker.url))
    try:
        yield client
    finally:
        client.socket.close()


@pytest.mark.slow
def test_what_one_worker_has_acknowledged_is_in_the_history_that_any_other_shows(
    deaf: list[WorkerProcess],
) -> None:
    one, other = deaf
    first = publish(one, 0)
    ids = [publish(one, number) for number in range(1, 6)]
    assert history(other, first) == ids
    assert history(other, ids[1]) == ids[2:]
    ids.append(publish(other, 6))
    ids.append(publish(one, 7))
    assert history(other, first) == ids
    assert history(one, ids[-1]) == []


@pytest.mark.slow
def test_a_client_goes_on_at_a_worker_that_has_not_heard_of_its_last_event(
    deaf: list[WorkerProcess],
) -> None:
    one, other = deaf
    ids = [publish(one, number) for number in range(5)]
    with stream(other, ids[2]) as client, stream(other, ids[-1]) as at_the_head:
        client.read_until(ids[-1])
        at_the_head.read_until("event: connected")
        ids.append(publish(other, 5))
        for one_client, expected in ((client, ids[3:]), (at_the_head, ids[5:])):
            one_client.read_until(ids[-1])
            assert one_client.ids() == expected
            assert b"event: reset" not in one_client.received
            assert b'"recovered":true' in one_client.received


@pytest.mark.slow
def test_what_a_worker_has_committed_that_was_killed_before_it_told_of_it_reaches_the_others_at_its_death(
    tmp_path: Path,
) -> None:
    with injected(DEAF + KILLED, tmp_path) as (one, other):
        first = publish(other, 0)
        with stream(other, first) as client:
            client.read_until("event: connected")
            with one.publisher() as http, pytest.raises(httpx.TransportError):
                http.post("/api/v1/sse/dashboard", json={"event": "last", "data": {}})
            client.read_until("event: last")
        one.kill()
        one.start()


@pytest.mark.long
@pytest.mark.parametrize(
    "how",
    [
        "killed",
        pytest.param("stopped", marks=pytest.mark.long),
        pytest.param("upgraded", marks=pytest.mark.long),
    ],
)
def test_a_worker_that_has_just_come_is_told_of_what_others_commit_from_then_on(
    tmp_path: Path, how: str
) -> None:
    with injected(RUNG_ALONE, tmp_path) as (one, other):
        first = publish(one, 0)
        for _ in range(2):
            if how == "upgraded":
                other.upgrade()
            else:
                if how == "stopped":
                    assert other.stop() == 0
                else:
                    other.kill()
                other.start()
            with stream(other, first) as there, stream(one, first) as here:
                for client in (there, here):
                    client.read_until("event: connected")
                for worker in (one, other):
                    id = publish(worker, 1)
                    there.read_until(id)
                    here.read_until(id)


@pytest.mark.long
def test_a_client_goes_on_at_a_worker_that_was_stopped_while_others_published(tmp_path: Path) -> None:
    with worker_processes(2, tmp_path / "state", expected=("worker_silent",)) as (one, other):
        ids = [publish(one, 0)]
        with stream(other, ids[0]) as stayed:
            stayed.read_until("event: connected")
            os.kill(other.pid, signal.SIGSTOP)
            try:
                ids += [publish(one, number) for number in range(1, 200)]
                with stream(other, ids[-1]) as client, stream(other, ids[100]) as older:
                    os.kill(other.pid, signal.SIGCONT)
                    ids.append(publish(one, 200))
                    ids.append(publish(other, 201))
                    for each, begin in ((stayed, 1), (older, 101), (client, 200)):
                        each.read_until(ids[-1])
                        assert each.ids() == ids[begin:]
                        assert b"event: reset" not in each.received
                    until(lambda: history(other, ids[0]) == ids[1:101], "the history has all")
            finally:
                os.kill(other.pid, signal.SIGCONT)
