"""Conflated channels, and streams with a rate: what is a key, what comes of each, and what is refused."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.support.room import DEADLINE, Frame, Room, first, listen, take

CHANNELS: list[Any] = [
    {"pattern": "table.*", "conflate": "key"},
    {"pattern": "few.*", "conflate": "key", "history_size": 5},
    "test.**",
]


@pytest.fixture
def desk(start_room: Callable[..., Room]) -> Room:
    """A room with conflated channels."""
    return start_room(CHANNELS=CHANNELS, EVENT_LOG="memory:")


def publish(room: Room, channel: str, *keys: object, n: int = 0, event: str = "e") -> list[str]:
    """Publish an event for each key, at once, and return their ids."""
    events = [
        {"channel": channel, "event": event, "data": {"key": key, "n": n + place}}
        for place, key in enumerate(keys)
    ]
    return [str(id) for id in room.http.post("/api/v1/sse", json={"events": events}).json()["ids"]]


def pairs(frames: list[Frame]) -> list[tuple[object, int]]:
    return [(frame.data["key"], frame.data["n"]) for frame in frames]


def events(frames: Iterator[Frame]) -> Iterator[Frame]:
    return (frame for frame in frames if frame.type != "ping")


def test_a_key_is_any_json_value_and_each_is_there_once(desk: Room) -> None:
    values = [
        "null",
        "true",
        "1",
        '"1"',
        '""',
        "12345678901234567890",
        "12345678901234567891",
        "[1]",
        '{"a":1}',
        r'"\u00e9"',
        r'"\n"',
    ]
    same = {'{"a":1}': '{ "a" : 1 }', r'"\u00e9"': '"é"'}
    ids = []
    for value in [*values, *(same.get(value, value) for value in values)]:
        body = f'{{"event": "e", "data": {{"key": {value}}}}}'
        ids.append(desk.http.post("/api/v1/sse/table.keys", content=body.encode()).json()["id"])
    with listen(desk.url("table.keys", last="1")) as frames:
        connected = first(frames)
        assert connected.data["conflated"] == ["table.keys"]
        found = take(frames, len(values))
        assert [frame.id for frame in found] == ids[len(values) :]
        publish(desk, "table.keys", "after")
        assert next(events(frames)).data["key"] == "after"


@pytest.mark.parametrize(
    "data",
    [
        "text",
        pytest.param([1], marks=pytest.mark.slow),
        None,
        pytest.param({}, marks=pytest.mark.slow),
        {"Key": 1},
        pytest.param(5, marks=pytest.mark.slow),
    ],
)
def test_what_has_no_key_is_refused_with_the_member_s_name(desk: Room, data: object) -> None:
    answer = desk.http.post("/api/v1/sse/table.none", json={"event": "e", "data": data})
    assert answer.status_code == 422
    assert "data.key" in answer.json()["error"]["message"]
    batch = [
        {"channel": "test.a", "event": "e", "data": 1},
        {"channel": "table.a", "event": "e", "data": data},
    ]
    assert desk.http.post("/api/v1/sse", json={"events": batch}).status_code == 422
    with listen(desk.url("test.a", **{"from": "earliest"})) as frames:
        first(frames)
        publish(desk, "test.a", "alone")
        assert next(events(frames)).data["key"] == "alone"


def test_a_history_smaller_than_the_table_is_all_that_a_stream_begins_with(desk: Room) -> None:
    publish(desk, "few.a", *range(20))
    for query in ({"last": "1"}, {"last": "3"}, {"from": "earliest"}):
        with listen(desk.url("few.a", **query)) as frames:
            first(frames)
            assert pairs(take(frames, 5)) == [(n, n) for n in range(15, 20)]


def test_the_newest_of_each_key_is_that_of_the_types_asked_for(desk: Room) -> None:
    for n in range(3):
        publish(desk, "table.typed", "a", n=n, event="price")
        publish(desk, "table.typed", "a", n=n, event="halt")
    with listen(desk.url("table.typed", last="1", types="price")) as frames:
        first(frames)
        (frame,) = take(frames, 1)
        assert (frame.type, frame.data["n"]) == ("price", 2)
    with listen(desk.url("table.typed", last="1")) as frames:
        first(frames)
        (frame,) = take(frames, 1)
        assert (frame.type, frame.data["n"]) == ("halt", 2)


def test_a_rate_lets_so_many_events_of_each_key_through_and_the_last_one_always(desk: Room) -> None:
    with listen(desk.url("table.rate,test.rate", rate="4")) as frames:
        first(frames)
        begun = time.monotonic()
        for n in range(40):
            publish(desk, "table.rate", "a", "b", n=n)
            publish(desk, "test.rate", "whole", n=n)
            time.sleep(0.025)
        spent = time.monotonic() - begun
        seen: list[Frame] = []
        while pairs(seen[-1:]) != [("whole", 39)]:
            seen.append(next(events(frames)))
    table = [frame for frame in seen if frame.data["channel"] == "table.rate"]
    for key, last in (("a", 39), ("b", 40)):
        of_key = [frame.data["n"] for frame in table if frame.data["key"] == key]
        assert of_key == sorted(set(of_key))
        assert of_key[-1] == last
        assert len(of_key) <= 4 * spent + 2
    assert [frame.data["n"] for frame in seen if frame.data["key"] == "whole"] == list(range(40))


BAD = [
    "",
    "0",
    "0.0",
    "-1",
    "101",
    "100.1",
    "1e1",
    "NaN",
    "inf",
    "%2B1",
    "1,2",
    "%B2",
    "1.",
    ".5",
    "1&rate=1",
]


@pytest.mark.parametrize(
    "rate",
    [rate if rate in ("", "0", "101", "NaN") else pytest.param(rate, marks=pytest.mark.slow) for rate in BAD],
)
def test_a_bad_rate_is_400_that_names_it_and_nothing_is_registered(desk: Room, rate: str) -> None:
    for channels in ("table.a", "table.*", "test.a,table.a"):
        answer = httpx.get(f"{desk.url(channels)}&rate={rate}", timeout=DEADLINE)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "invalid_rate"
        assert "rate" in answer.json()["error"]["message"]
    assert desk.status()["total_connections"] == 0
    assert not any(line["event"] == "stream_opened" for line in desk.server.log_lines())


@pytest.mark.parametrize("channels", ["test.a", "test.*", "test.a,test.b"])
def test_a_rate_is_refused_where_no_channel_is_conflated(desk: Room, channels: str) -> None:
    answer = httpx.get(desk.url(channels, rate="1"), timeout=DEADLINE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_rate")
    assert desk.status()["total_connections"] == 0


def test_streams_with_a_rate_for_which_nothing_comes_cost_nothing(desk: Room) -> None:
    with ExitStack() as stack, httpx.Client(timeout=DEADLINE) as client:
        for _ in range(50):
            first(stack.enter_context(listen(desk.url("table.*", rate="100"), client=client)))
        publish(desk, "table.idle", "a")
        time.sleep(0.5)
        before = desk.server.processor_time()
        time.sleep(2.0)
        assert desk.server.processor_time() - before < 0.5, (
            "a turn of each a hundredth of a second takes more"
        )


def test_a_client_with_a_rate_that_comes_back_has_the_newest_of_what_it_missed(desk: Room) -> None:
    with listen(desk.url("table.back", rate="100")) as frames:
        first(frames)
        publish(desk, "table.back", "a", "b")
        position = take(frames, 2)[-1].id
    publish(desk, "table.back", *itertools.islice(itertools.cycle("abc"), 300), n=100)
    with listen(desk.url("table.back", rate="100"), after=position) as frames:
        assert first(frames).data["recovered"] is True
        assert pairs(take(frames, 3)) == [("a", 397), ("b", 398), ("c", 399)]
        publish(desk, "table.back", "d", n=500)
        assert pairs(take(frames, 1)) == [("d", 500)]


@pytest.mark.slow
def test_the_tables_of_thousands_of_channels_come_whole_by_their_pattern(desk: Room) -> None:
    names = [f"table.c{number}" for number in range(2000)]
    for start in range(0, len(names), 1000):
        batch = [
            {"channel": name, "event": "e", "data": {"key": key, "n": number}}
            for number, name in enumerate(names[start : start + 1000], start)
            for key in ("x",)
        ]
        desk.http.post("/api/v1/sse", content=json.dumps({"events": batch})).raise_for_status()
    with listen(desk.url("table.*", last="1")) as one, listen(desk.url("**", last="1", rate="100")) as two:
        for frames in (one, two):
            first(frames)
            assert [frame.data["channel"] for frame in take(frames, len(names))] == names
