"""The history of all channels of a pattern."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.room import CHANNELS, Room
from tests.support.server_process import running

KEPT = 10
"""How many events are kept of a channel."""


@pytest.fixture(scope="module", params=["memory:", "sqlite:"])
def room(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Room]:
    with running(
        state_dir=tmp_path_factory.mktemp("patterns") / "state",
        CHANNELS=CHANNELS,
        EVENT_LOG=request.param,
        HISTORY__SIZE=KEPT,
    ) as server:
        room = Room(server)
        with room.http:
            yield room


def history(room: Room, pattern: str, **query: object) -> tuple[list[Any], bool]:
    answer = room.http.get(f"/api/v1/sse/{pattern}/history", params={k: str(v) for k, v in query.items()})
    assert answer.status_code == 200, answer.text
    return answer.json()["events"], answer.json()["complete"]


def ids_of(events: list[Any]) -> list[str]:
    return [event["id"] for event in events]


def test_the_events_of_all_channels_of_a_pattern_are_there_in_order(room: Room) -> None:
    root = room.channel()
    dice = random.Random(7)
    names = [f"{root}.{name}" for name in ("a", "b", "c", "a.x")]
    jobs = [(dice.choice(names), number) for number in range(20)]
    ids = [room.publish(channel, number) for channel, number in jobs]
    of_one_segment = [id for id, (channel, _) in zip(ids, jobs, strict=True) if channel != names[3]]
    for pattern in (f"{root}.*", f"{root}.%2A", f"{root}.%2a"):
        events, complete = history(room, pattern)
        assert (ids_of(events), complete) == (of_one_segment, True)
    for pattern in (f"{root}.**", f"{root}.%2A%2A"):
        assert history(room, pattern)[0] == (everything := history(room, f"{root}.**")[0])
        assert ids_of(everything) == ids
    assert [(event["channel"], event["data"]["n"]) for event in everything] == jobs
    assert ids_of(history(room, f"{root}.**", limit=3)[0]) == ids[-3:], "the last, as a page that opens wants"
    for after in (0, 5, 19):
        events, complete = history(room, f"{root}.**", after=ids[after])
        assert (ids_of(events), complete) == (ids[after + 1 :], True)
    assert (
        ids_of(history(room, f"{root}.*", after=ids[3], limit=4)[0])
        == [id for id in of_one_segment if id not in ids[:4]][:4]
    )
    assert history(room, f"{root}.none.*") == ([], True)


def test_it_is_not_complete_where_one_of_the_channels_has_lost_something_after_the_position(
    room: Room,
) -> None:
    root = room.channel()
    first = room.publish(f"{root}.quiet", 0)
    kept = [room.publish(f"{root}.quiet", number) for number in (1, 2)]
    busy = [room.publish(f"{root}.busy", number) for number in range(KEPT + 5)]
    events, complete = history(room, f"{root}.*", after=first)
    assert not complete
    assert ids_of(events) == [*kept, *busy[5:]], "what there is after the position, and nothing from before"
    assert history(room, f"{root}.quiet", after=first)[1] is True
    events, complete = history(room, f"{root}.*", after=busy[4])
    assert (ids_of(events), complete) == (busy[5:], True), "what is lost lies before the position"
    for unknown in ("made-5", f"{first}0000000"):
        events, complete = history(room, f"{root}.*", after=unknown, limit=1000)
        assert not complete
        assert ids_of(events) == [first, *kept, *busy[5:]]


def test_pages_of_a_pattern_come_to_its_end_whatever_lies_between(room: Room) -> None:
    root, other = room.channel(), room.channel()
    ids = []
    position = room.publish(f"{root}.a", -1)
    for number in range(6):
        room.publish_batch([(f"{other}.{n % 100}", n) for n in range(300)])
        ids.append(room.publish(f"{root}.{number}", number))
    seen: list[str] = []
    while True:
        events, complete = history(room, f"{root}.*", after=seen[-1] if seen else position, limit=2)
        assert complete
        if not events:
            break
        seen += ids_of(events)
    assert seen == ids


@pytest.mark.parametrize(
    ("grant", "pattern", "status"),
    [
        ("test.**", "test.*", 200),
        ("test.*", "test.*", 200),
        ("test.*.x", "test.*.x", 200),
        ("**", "test.*", 200),
        ("test.a", "test.*", 403),
        ("test.*", "test.**", 403),
        ("test.*.x", "test.*.*", 403),
        ("test.*", "*", 403),
        ("**", "sse_app.*", 403),
        ("**", "*.admin", 200),
        ("**", "none.*", 404),
    ],
)
def test_it_takes_a_grant_of_the_pattern_or_of_one_that_covers_it(
    room: Room, grant: str, pattern: str, status: int
) -> None:
    token = room.server.access_token(subscribe=grant)
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.get(f"{room.server.url}/api/v1/sse/{pattern}/history", headers=headers)
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "pattern",
    ["a**b", "*a", "test.**.x", "test..*", "***", "Test.*", ".*", "*.", "test.*,alerts", "%2A%2A%2A", "*%00"],
)
def test_what_is_no_pattern_is_400_also_of_a_stream(room: Room, pattern: str) -> None:
    for answer in (
        room.http.get(f"/api/v1/sse/{pattern}/history"),
        httpx.get(room.url(pattern))
        if "," not in pattern
        else room.http.get(f"/api/v1/sse/{pattern}/history"),
        httpx.get(room.url(f"alerts,{pattern}")) if "," not in pattern else httpx.get(room.url("alerts,*a")),
    ):
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["code"] == "invalid_channel"
    assert "WWW-Authenticate" not in answer.headers


def test_a_stream_token_is_narrowed_to_patterns_as_to_channels(room: Room) -> None:
    headers = {"Authorization": f"Bearer {room.server.access_token(subscribe='test.**')}"}

    def narrow(*channels: object) -> httpx.Response:
        url = f"{room.server.url}/api/v1/auth/stream-token"
        return httpx.post(url, json={"channels": channels}, headers=headers)

    token = narrow("test.*", "test.a.b").json()["stream_token"]
    for names, status in (("test.*", 200), ("test.x,test.a.b", 200), ("test.**", 403), ("test.a.*", 403)):
        with httpx.stream("GET", room.server.stream_url(names, token)) as answer:
            assert answer.status_code == status, names
    assert narrow("alerts").status_code == 403
    assert narrow("*").status_code == 403
    for bad in ("test.**.x", "a b*", 1, None, "status"):
        answer = narrow(bad)
        assert answer.status_code == 422
        assert "channels[0]" in answer.json()["error"]["message"]
