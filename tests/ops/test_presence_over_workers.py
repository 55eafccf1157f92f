"""Presence over several workers, a restart of one, its death, and an upgrade under live streams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.minting import mint
from tests.support.people import Ear, Site, bearer
from tests.support.waiting import until
from tests.support.worker_processes import WorkerProcess, worker_processes

GRANTS = Grants.of(subscribe=["dashboard"], presence=["dashboard"])
BESIDE = "sse_app.presence.dashboard"


class Office(Site):
    """A worker whose users may see who is there."""

    def enter(self, subject: str, channel: str = "dashboard") -> Ear:
        grants = GRANTS.only_subscribing()
        return self.hear(mint(self.server.state_dir, TokenKind.STREAM, grants, subject=subject), channel)

    def present(self) -> dict[str, Any]:
        token = mint(self.server.state_dir, TokenKind.ACCESS, GRANTS, subject="ann")
        answer = self.http.get("/api/v1/sse/dashboard/presence", headers=bearer(token))
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def users(self) -> dict[str, int]:
        return {user["sub"]: user["streams"] for user in self.present()["users"]}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[WorkerProcess]]:
    directory: Path = tmp_path_factory.mktemp("presence") / "state"
    with worker_processes(3, directory, expected=("worker_silent",)) as workers:
        yield workers


@pytest.fixture
def offices(workers: list[WorkerProcess]) -> Iterator[list[Office]]:
    offices = [Office(worker) for worker in workers]
    until(lambda: all(office.present()["complete"] for office in offices), "each knows the others")
    yield offices
    for office in offices:
        office.leave_all()
        office.http.close()


def changes(ear: Ear) -> list[tuple[str, str]]:
    return [(type, data["sub"]) for type, data in list(ear.events) if type in ("join", "leave")]


def test_users_are_counted_over_all_workers_and_come_and_leave_once(offices: list[Office]) -> None:
    watching = offices[0].enter("eve", BESIDE)
    ears = [office.enter("ann") for office in offices]
    for office in offices:
        until(lambda office=office: office.users() == {"ann": 3}, "all streams are counted")  # type: ignore[misc]
    until(lambda: changes(watching) == [("join", "ann")], "the user has come")
    ears[0].leave()
    offices[2].enter("bob")
    until(lambda: changes(watching)[1:] == [("join", "bob")], "the user is still there on the others")
    ears[1].leave()
    ears[2].leave()
    until(lambda: changes(watching)[2:] == [("leave", "ann")], "the user has left")


@pytest.mark.ci
def test_it_is_true_again_soon_after_a_worker_has_died(
    offices: list[Office], workers: list[WorkerProcess]
) -> None:
    watching = offices[0].enter("eve", BESIDE)
    offices[0].enter("dan")
    offices[1].enter("fay")
    until(lambda: {("join", "dan"), ("join", "fay")} <= set(changes(watching)), "both have come")
    watching.events.clear()
    workers[1].kill()
    until(lambda: changes(watching) == [("leave", "fay")], "who was on it has left", 15)
    assert offices[0].users() == {"dan": 1}
    workers[1].start()
    offices[1].enter("fay")
    until(lambda: changes(watching)[1:] == [("join", "fay")], "and comes again")
    until(lambda: offices[0].present()["complete"], "all answer")


@pytest.mark.slow
def test_an_upgrade_changes_nothing_and_has_watching_clients_ask_anew(
    offices: list[Office], workers: list[WorkerProcess]
) -> None:
    watching = offices[0].enter("eve", BESIDE)
    offices[0].enter("gus")
    offices[1].enter("hal")
    until(lambda: {("join", "gus"), ("join", "hal")} <= set(changes(watching)), "both have come")
    before = offices[2].present()["users"]
    watching.events.clear()
    workers[0].upgrade()
    assert offices[2].present()["users"] == before
    until(lambda: any(type == "reset" for type, _ in watching.events), "the client is to ask")
    reset = next(data for type, data in watching.events if type == "reset")
    assert reset == {"channel": BESIDE, "reason": "presence_unknown"}
    offices[1].enter("ida")
    until(lambda: ("join", "ida") in changes(watching), "who comes is told of by the next process")
    assert ("leave", "gus") not in changes(watching)
