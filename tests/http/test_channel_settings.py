"""What is configured for the channels of a pattern: which types may be published, and what changes with a reload."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.room import first, listen, take
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

Start = Callable[..., ServerProcess]

PRICES = {"pattern": "prices.*", "types": ["price", "halt"]}


@pytest.fixture
def http(start_server: Start) -> Iterator[httpx.Client]:
    """A publisher at a server with a channel of certain types."""
    with start_server(CHANNELS=["dashboard", PRICES]).publisher() as http:
        yield http


def stored(http: httpx.Client, channel: str) -> list[str]:
    events = http.get(f"/api/v1/sse/{channel}/history").raise_for_status().json()["events"]
    return [event["event"] for event in events]


def test_another_type_than_those_configured_is_refused_and_named(http: httpx.Client) -> None:
    for type, status in (("price", 201), ("halt", 201), ("trade", 422), ("Price", 422)):
        answer = http.post("/api/v1/sse/prices.a", json={"event": type, "data": {}})
        assert answer.status_code == status, answer.text
        if status == 422:
            assert f"'{type}'" in answer.json()["error"]["message"]
            assert "prices.a" in answer.json()["error"]["message"]
    text = {"Content-Type": "text/plain"}
    assert http.post("/api/v1/sse/prices.b?event=trade", content="x", headers=text).status_code == 422
    assert http.post("/api/v1/sse/prices.b?event=halt", content="x", headers=text).status_code == 201
    assert stored(http, "prices.a") == ["price", "halt"]
    assert http.post("/api/v1/sse/dashboard", json={"event": "trade", "data": {}}).status_code == 201


def test_of_a_batch_with_one_type_that_is_refused_nothing_is_stored(http: httpx.Client) -> None:
    events = [
        {"channel": "dashboard", "event": "trade", "data": {}},
        {"channel": "prices.a", "event": "price", "data": {}},
        {"channel": "prices.b", "event": "trade", "data": {}},
    ]
    answer = http.post("/api/v1/sse", json={"events": events})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("events[2].event 'trade' ")
    assert [stored(http, name) for name in ("dashboard", "prices.a", "prices.b")] == [[], [], []]


def test_the_first_pattern_that_covers_a_channel_counts(start_server: Start) -> None:
    channels = ["prices.free", PRICES, {"pattern": "**", "types": ["other"]}]
    with start_server(CHANNELS=channels).publisher() as http:
        for channel, good in (("prices.free", "anything"), ("prices.a", "price"), ("x.y", "other")):
            answer = http.post(f"/api/v1/sse/{channel}", json={"event": good, "data": {}})
            assert answer.status_code == 201, answer.text
        for channel, bad in (("prices.a", "other"), ("x.y", "price"), ("prices.a.b", "price")):
            answer = http.post(f"/api/v1/sse/{channel}", json={"event": bad, "data": {}})
            assert answer.status_code == 422, answer.text


def test_each_pattern_keeps_as_much_as_is_configured_for_it(start_server: Start) -> None:
    channels = [
        {"pattern": "few.*", "history_size": 3},
        {"pattern": "state.*", "last_value_only": True},
        {"pattern": "brief", "history_age": 0.5},
        "rest",
    ]
    server = start_server(CHANNELS=channels, HISTORY__SIZE=5)
    token = server.stream_token("**")
    names = ("few.a", "few.b", "state.a", "rest", "brief")
    with server.publisher() as http:
        for n in range(10):
            for name in names:
                answer = http.post(f"/api/v1/sse/{name}", json={"event": f"e{n}", "data": {}})
                assert answer.status_code == 201
        for name, kept in (("few.a", 3), ("few.b", 3), ("state.a", 1), ("rest", 5)):
            assert stored(http, name) == [f"e{n}" for n in range(10 - kept, 10)]
        until(lambda: stored(http, "brief") == [], "the age has passed")
        with listen(server.stream_url("state.a,few.a", token, last="5")) as frames:
            first(frames)
            taken = [(frame.data["channel"], frame.type) for frame in take(frames, 4)]
            assert taken == [("few.a", "e7"), ("few.a", "e8"), ("few.a", "e9"), ("state.a", "e9")]


@pytest.fixture(params=["sqlite:", "memory:", "postgresql:"])
def event_log(request: pytest.FixtureRequest) -> str:
    """An event log of each kind."""
    is_there = request.param != "postgresql:"
    return str(request.param if is_there else request.getfixturevalue("database_url"))


def test_how_much_is_kept_changes_with_a_reload(event_log: str, start_server: Start, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f"channels = {_toml(['a', 'b'])}\n")
    server = start_server(CONFIG=str(file), EVENT_LOG=event_log)
    with server.publisher() as http:

        def publish(name: str) -> None:
            assert http.post(f"/api/v1/sse/{name}", json={"event": "e", "data": {}}).status_code == 201

        for name in "ab" * 5:
            publish(name)
        file.write_text(f"channels = {_toml([{'pattern': 'a', 'history_size': 2}, 'b'])}\n")
        _reload(server)
        publish("a")
        publish("b")
        until(lambda: len(stored(http, "a")) == 2, "the rest is erased")
        assert len(stored(http, "b")) == 6
        file.write_text(f"channels = {_toml(['a', 'b'])}\n")
        _reload(server)

        def one_more_is_kept() -> bool:
            before = len(stored(http, "a"))
            publish("a")
            return len(stored(http, "a")) == before + 1

        until(one_more_is_kept, "what was begun to be erased by the rules of before is erased")


def test_what_is_configured_for_channels_is_in_force_after_a_reload(
    start_server: Start, tmp_path: Path
) -> None:
    file = tmp_path / "settings.toml"

    def configure(*channels: object) -> None:
        file.write_text(f"channels = {_toml(list(channels))}\n")

    configure("old", {"pattern": "a", "types": ["x"]})
    server = start_server(CONFIG=str(file))
    token = server.stream_token("**")
    with server.publisher() as http, listen(server.stream_url("a", token)) as frames:
        first(frames)
        assert http.post("/api/v1/sse/a", json={"event": "y", "data": {}}).status_code == 422
        configure("new", {"pattern": "a", "types": ["y"], "stored": False})
        _reload(server)
        assert http.post("/api/v1/sse/a", json={"event": "x", "data": {}}).status_code == 422
        assert http.post("/api/v1/sse/a", json={"event": "y", "data": {}}).status_code == 202
        assert [frame.type for frame in take(frames, 1)] == ["y"]
        assert http.get("/api/v1/sse/old/history").status_code == 404
        assert list(http.get("/api/v1/sse/status").json()["channels"]) == ["new", "a"]
        configure({"pattern": "a", "history_age": 0})
        _reload(server)
        assert http.post("/api/v1/sse/a", json={"event": "y", "data": {}}).status_code == 202
    server.expected = ("reload_refused",)


def _reloads(server: ServerProcess) -> int:
    return sum(line["event"] in ("reloaded", "reload_refused") for line in server.log_lines())


def _reload(server: ServerProcess) -> None:
    reloads = _reloads(server)
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    until(lambda: _reloads(server) > reloads, "the settings are read again")


def _toml(value: object) -> str:
    """Return a value as TOML has it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(its)}" for name, its in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    text: Any = json.dumps(value)
    return str(text)
