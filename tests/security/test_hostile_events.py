"""Event types and fields, and batches: one bad event spoils its batch and nothing else."""

from __future__ import annotations

import re

import pytest

from tests.support.hostility import Target, assert_refused

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")


@pytest.mark.parametrize(
    "event",
    [
        "",
        " ",
        "e\n",
        "\ne",
        "e\r",
        "e\r\n",
        "e\ndata: evil",
        "e\x00",
        "\x00",
        "e e",
        "e\t",
        "e/e",
        "é",
        "٣",
        "\uff25",
        "e\u2028",
        "e\ufeff",
        "a" * 129,
        "a" * 500_000,
        "😀",
        "connected",
        "ping",
        "reset",
        "closing",
        "open",
        "error",
        None,
        1,
        1.5,
        True,
        [],
        ["e"],
        {},
        {"e": 1},
    ],
    ids=lambda event: ascii(event)[:30],
)
def test_a_malformed_or_reserved_event_type_is_422_and_names_the_field(target: Target, event: object) -> None:
    assert "event" in assert_refused(target.publish("user.types", {"event": event, "data": {}}), 422)
    batch = {"events": [{"channel": "user.types", "event": event, "data": {}}]}
    assert "event" in assert_refused(target.post("/api/v1/sse", batch), 422)
    assert target.stored("user.types") == []


def test_event_types_of_every_allowed_character_come_through(target: Target) -> None:
    with target.stream("user.goodtypes") as stream:
        stream.next("connected")
        for event in (
            "e",
            "a" * 128,
            "A.b:c-d_9",
            "Ping",
            "CONNECTED",
            "message",
            "constructor",
            ".",
            ":",
            "-",
        ):
            assert target.publish("user.goodtypes", {"event": event, "data": {}}).status == 201
            assert stream.next().type == event


def test_a_missing_field_is_422_and_named(target: Target) -> None:
    assert "data" in assert_refused(target.publish("user.data", {"event": "e"}), 422)
    assert "event" in assert_refused(target.publish("user.data", {"data": {}}), 422)
    batch: dict[str, object] = {"events": [{"event": "e", "data": {}}]}
    assert "channel" in assert_refused(target.post("/api/v1/sse", batch), 422)
    assert "events" in assert_refused(target.post("/api/v1/sse", {}), 422)
    assert target.stored("user.data") == []


@pytest.mark.parametrize("retry", [-1, 1.5, "5", True, [], {}, 10**30, "1\ndata: evil"], ids=ascii)
def test_a_malformed_retry_is_422_and_names_the_field(target: Target, retry: object) -> None:
    body = {"event": "e", "data": {}, "retry": retry}
    assert "retry" in assert_refused(target.publish("user.retry", body), 422)
    assert target.stored("user.retry") == []


def test_a_retry_comes_through_as_a_field_of_the_event(target: Target) -> None:
    with target.stream("user.goodretry") as stream:
        stream.next("connected")
        target.publish("user.goodretry", {"event": "e", "data": {}, "retry": 5000})
        assert stream.next("e").retry == 5000


# Batches


GOOD = {"channel": "user.batch", "event": "e", "data": {}}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({**GOOD, "event": "connected"}, "event"),
        ({**GOOD, "event": "e\n"}, "event"),
        ({**GOOD, "final": "true"}, "final"),
        ({**GOOD, "retry": -1}, "retry"),
        ({"event": "e", "data": {}}, "channel"),
        ({**GOOD, "channel": 1}, "channel"),
        ({**GOOD, "channel": ["user.batch"]}, "channel"),
        ({**GOOD, "channel": None}, "channel"),
        ({"channel": "user.batch", "data": {}}, "event"),
        ({"channel": "user.batch", "event": "e"}, "data"),
        ("text", "events"),
        (None, "events"),
        ([], "events"),
        (1, "events"),
    ],
    ids=lambda value: ascii(value)[:60],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_event_in_a_batch_stores_none_and_is_named(
    target: Target, bad: object, field: str, place: int
) -> None:
    events: list[object] = [GOOD, GOOD]
    events.insert(place, bad)
    message = assert_refused(target.post("/api/v1/sse", {"events": events}), 422)
    assert field in message
    assert re.search(rf"\b{place}\b", message), message
    assert target.stored("user.batch") == []


@pytest.mark.parametrize(
    "channel",
    ["Bad", "", "a..b", "user.x\n", "user.**", "\u0000", "*", "a" * 65, "x" * 100_000, "é", "a,b"],
    ids=lambda channel: ascii(channel)[:30],
)
def test_a_malformed_channel_in_a_batch_stores_none(target: Target, channel: str) -> None:
    batch = {"events": [GOOD, {**GOOD, "channel": channel}]}
    assert_refused(target.post("/api/v1/sse", batch), 400, 422)
    assert target.stored("user.batch") == []


def test_a_batch_with_an_unknown_channel_stores_none(target: Target) -> None:
    assert_refused(target.post("/api/v1/sse", {"events": [GOOD, {**GOOD, "channel": "nowhere"}]}), 404)
    assert target.stored("user.batch") == []


def test_a_batch_with_a_channel_beyond_the_grant_stores_none(target: Target) -> None:
    token = target.server.access_token(publish="user.batch")
    bearer = f"Authorization: Bearer {token}"
    batch = {"events": [GOOD, {**GOOD, "channel": "alerts"}, GOOD]}
    assert_refused(target.post("/api/v1/sse", batch, bearer, bearer=False), 403)
    batch["events"][1]["channel"] = "nowhere"
    assert_refused(target.post("/api/v1/sse", batch, bearer, bearer=False), 403)
    assert target.stored("user.batch") == []


@pytest.mark.parametrize(
    "events", [None, 1, "text", {}, True, {"0": GOOD}], ids=lambda value: ascii(value)[:20]
)
def test_a_batch_that_is_no_list_is_422_and_names_the_field(target: Target, events: object) -> None:
    assert "events" in assert_refused(target.post("/api/v1/sse", {"events": events}), 422)


def test_a_batch_of_too_many_events_stores_none(target: Target) -> None:
    assert_refused(target.post("/api/v1/sse", {"events": [GOOD] * 1_001}), 400, 413, 422)
    assert target.stored("user.batch") == []


def test_a_batch_keeps_its_order_and_an_empty_one_stores_nothing(target: Target) -> None:
    answer = target.post("/api/v1/sse", {"events": []})
    assert (answer.status, answer.body[:10]) == (201, b'{"ids":[]}'[:10]) or assert_refused(answer, 422)
    events = [{**GOOD, "channel": "user.order", "data": {"n": number}} for number in range(50)]
    answer = target.post("/api/v1/sse", {"events": events})
    assert answer.status == 201
    ids = answer.json()["ids"]
    numbers = [int(id.rpartition("-")[2]) for id in ids]
    assert numbers == list(range(numbers[0], numbers[0] + 50))
    stored = target.stored("user.order")
    assert [event["id"] for event in stored] == ids
    assert [event["data"]["n"] for event in stored] == list(range(50))
