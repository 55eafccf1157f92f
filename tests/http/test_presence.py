"""Presence: who is on a channel, since when, and who comes and leaves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.minting import mint
from tests.support.people import Ear, Site, bearer, serving
from tests.support.waiting import until

SEES = Grants.of(subscribe=["**"], publish=["**"], presence=["dashboard", "desk.*"])
BESIDE = "sse_app.presence."


class Floor(Site):
    """A server whose users may see who is there."""

    def token(self, kind: TokenKind, grants: Grants = SEES, subject: str = "ann") -> str:
        granted = grants if kind is TokenKind.ACCESS else grants.only_subscribing()
        return mint(self.server.state_dir, kind, granted, subject=subject)

    def enter(self, subject: str, channels: str = "dashboard") -> Ear:
        return self.hear(self.token(TokenKind.STREAM, subject=subject), channels)

    def status_of(self, channel: str, grants: Grants = SEES) -> int:
        path = f"/api/v1/sse/{channel}/presence"
        return self.http.get(path, headers=bearer(self.token(TokenKind.ACCESS, grants))).status_code

    def present(self, channel: str = "dashboard") -> dict[str, Any]:
        path = f"/api/v1/sse/{channel}/presence"
        answer = self.http.get(path, headers=bearer(self.token(TokenKind.ACCESS)))
        assert answer.status_code == 200, answer.text
        document: dict[str, Any] = answer.json()
        return document

    def users(self, channel: str = "dashboard") -> dict[str, int]:
        return {user["sub"]: user["streams"] for user in self.present(channel)["users"]}


CHANNELS = ["dashboard", "alerts", "desk.*", {"pattern": "ticker", "public": True}]


@pytest.fixture
def floor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Floor]:
    with serving(Floor, tmp_path_factory.mktemp("floor") / "state", CHANNELS=CHANNELS) as floor:
        yield floor


def changes(ear: Ear) -> list[tuple[str, str]]:
    return [(type, data["sub"]) for type, data in list(ear.events) if type in ("join", "leave")]


def test_it_says_how_many_who_and_since_when(floor: Floor) -> None:
    assert floor.present() == {"count": 0, "users": [], "anonymous": 0, "complete": True}
    before = time.time()
    first = floor.enter("ann", "dashboard,alerts")
    floor.enter("bob")
    floor.enter("ann")
    found = floor.present()
    assert (found["count"], found["complete"]) == (2, True)
    assert {user["sub"]: user["streams"] for user in found["users"]} == {"ann": 2, "bob": 1}
    since = [datetime.fromisoformat(user["since"]).timestamp() for user in found["users"]]
    assert before - 0.01 <= since[0] <= since[1] <= time.time()
    first.leave()
    until(lambda: floor.users() == {"ann": 1, "bob": 1}, "one stream is gone")
    later = datetime.fromisoformat(floor.present()["users"][0]["since"]).timestamp()
    assert later >= since[1]


def test_a_stream_on_a_pattern_is_present_on_no_channel(floor: Floor) -> None:
    floor.enter("ann", "desk.*")
    floor.enter("bob", "desk.1")
    assert floor.users("desk.1") == {"bob": 1}
    assert floor.users("desk.2") == {}


def test_a_stream_on_every_channel_is_told_of_none_who_comes(floor: Floor) -> None:
    everything = floor.enter("eve", "**")
    watcher = floor.enter("ann", BESIDE + "dashboard")
    floor.enter("bob")
    until(lambda: ("join", "bob") in changes(watcher), "who may see it is told")
    event = {"event": "last", "data": {}}
    headers = bearer(floor.token(TokenKind.ACCESS))
    assert floor.http.post("/api/v1/sse/dashboard", json=event, headers=headers).status_code == 201
    until(lambda: everything.events and everything.events[-1][0] == "last", "the event is there")
    assert changes(everything) == []


def test_it_takes_a_grant_of_its_own(floor: Floor) -> None:
    without = Grants.of(subscribe=["**"], publish=["**"], admin=True)
    assert floor.status_of("dashboard", without) == 403
    assert floor.status_of("alerts") == 403
    assert floor.status_of("desk.7") == 200
    assert floor.status_of("desk.*") == 400
    everything = Grants.of(presence=["**"])
    assert floor.status_of("elsewhere", everything) == 404
    assert floor.status_of("sse_app.admin", everything) == 404
    assert floor.http.get("/api/v1/sse/dashboard/presence").status_code == 401
    stream_token = floor.token(TokenKind.STREAM)
    answer = floor.http.get("/api/v1/sse/dashboard/presence", headers=bearer(stream_token))
    assert answer.status_code == 401
    only = floor.token(TokenKind.STREAM, without)
    assert floor.stream_status(only, f"{BESIDE}dashboard") == 403
    assert floor.stream_status(floor.token(TokenKind.STREAM), f"{BESIDE}alerts") == 403
    assert floor.stream_status(floor.token(TokenKind.STREAM, everything), f"{BESIDE}elsewhere") == 404
    assert floor.stream_status(floor.token(TokenKind.STREAM, everything), f"{BESIDE}*") == 403
    answer = floor.http.post(
        f"/api/v1/sse/{BESIDE}dashboard",
        json={"event": "join", "data": {}},
        headers=bearer(floor.token(TokenKind.ACCESS)),
    )
    assert answer.status_code in (403, 404)


def test_a_stream_token_can_be_narrowed_to_a_channel_of_presence(floor: Floor) -> None:
    access = floor.token(TokenKind.ACCESS)
    narrowed = floor.stream_token(access, f"{BESIDE}dashboard").json()["stream_token"]
    assert floor.stream_status(narrowed, f"{BESIDE}dashboard") == 200
    assert floor.stream_status(narrowed, f"{BESIDE}desk.1") == 403
    assert floor.stream_status(narrowed) == 403
    assert floor.stream_token(access, f"{BESIDE}alerts").status_code == 403


def test_joins_and_leaves_are_told_once_for_each_user(floor: Floor) -> None:
    floor.enter("eve")
    watching = floor.enter("ann", f"{BESIDE}dashboard")
    until(lambda: changes(watching) == [("join", "eve")], "who is there already is told of at first")
    watching.events.clear()
    ears = [floor.enter("bob") for _ in range(3)]
    until(lambda: changes(watching) == [("join", "bob")], "a user has come")
    for ear in ears[:2]:
        ear.leave()
    floor.enter("cy")
    until(lambda: changes(watching) == [("join", "bob"), ("join", "cy")], "another has come")
    ears[2].leave()
    until(lambda: changes(watching)[2:] == [("leave", "bob")], "a user has left")
    data = next(data for type, data in watching.events if type == "leave")
    assert set(data) == {"sub", "channel", "timestamp"}
    assert data["channel"] == f"{BESIDE}dashboard"


@pytest.mark.long
def test_who_comes_and_leaves_quickly_is_told_at_most_once_a_second(floor: Floor) -> None:
    watching = floor.enter("ann", f"{BESIDE}dashboard")
    begun = time.monotonic()
    while time.monotonic() < begun + 3:
        floor.enter("bob").leave()
    until(lambda: floor.users() == {}, "all are gone")
    seconds = time.monotonic() - begun
    assert len(changes(watching)) <= seconds + 2


def test_public_streams_without_a_token_are_counted_and_not_named(floor: Floor) -> None:
    with floor.http.stream("GET", "/api/v1/sse/ticker") as answer:
        assert answer.status_code == 200
        grants = Grants.of(presence=["ticker"])
        token = bearer(floor.token(TokenKind.ACCESS, grants))
        found = floor.http.get("/api/v1/sse/ticker/presence", headers=token).json()
        assert found == {"count": 0, "users": [], "anonymous": 1, "complete": True}


@pytest.mark.parametrize("hard", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_is_true_again_after_a_restart(floor: Floor, hard: bool) -> None:
    floor.enter("bob")
    floor.restart(hard)
    assert floor.users() == {}
    watching = floor.enter("ann", f"{BESIDE}dashboard")
    floor.enter("cy")
    until(lambda: changes(watching) == [("join", "cy")], "who comes is told")
