"""Idempotency keys, and history asked for in odd ways."""

from __future__ import annotations

import threading

import pytest

from tests.support.hostility import Answer, Target, assert_refused

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")


def test_a_repeat_with_the_same_key_answers_as_the_first_did_and_stores_once(target: Target) -> None:
    body = {"event": "e", "data": {"n": 1}}
    first, second = (target.publish("user.key", body, "Idempotency-Key: one") for _ in range(2))
    assert (first.status, second.status) == (201, 201)
    assert first.json() == second.json()
    assert len(target.stored("user.key")) == 1
    batch = {"events": [{"channel": "user.key", **body}] * 3}
    first, second = (target.post("/api/v1/sse", batch, "Idempotency-Key: two") for _ in range(2))
    assert (first.status, second.status) == (201, 201)
    assert first.json() == second.json()
    assert len(target.stored("user.key")) == 4


def test_the_same_key_with_another_body_or_channel_is_422_and_stores_nothing(target: Target) -> None:
    body = {"event": "e", "data": {"n": 1}}
    target.publish("user.otherbody", body, "Idempotency-Key: three")
    other = {"event": "e", "data": {"n": 2}}
    assert_refused(target.publish("user.otherbody", other, "Idempotency-Key: three"), 422)
    assert len(target.stored("user.otherbody")) == 1
    elsewhere = target.publish("user.otherplace", body, "Idempotency-Key: three")
    if elsewhere.status == 201:
        assert elsewhere.json()["channel"] == "user.otherplace"
        assert len(target.stored("user.otherplace")) == 1
    else:
        assert_refused(elsewhere, 422)
        assert target.stored("user.otherplace") == []
    batch = {"events": [{"channel": "user.otherbody", **body}]}
    answer = target.post("/api/v1/sse", batch, "Idempotency-Key: three")
    assert answer.status == 422 or set(answer.json()) == {"ids"}


def test_keys_belong_to_their_subject(target: Target) -> None:
    body = {"event": "e", "data": {}}
    first = target.publish("user.subjects", body, "Idempotency-Key: four").json()["id"]
    other = target.server.access_token(subject="somebody-else")
    answer = target.post(
        "/api/v1/sse/user.subjects",
        {"event": "other", "data": {}},
        "Idempotency-Key: four",
        f"Authorization: Bearer {other}",
        bearer=False,
    )
    assert answer.status == 201
    assert answer.json()["id"] != first
    assert len(target.stored("user.subjects")) == 2


def test_concurrent_duplicates_store_once_and_all_get_the_same_answer(target: Target) -> None:
    answers: list[Answer] = []
    start = threading.Barrier(12)

    def publish() -> None:
        start.wait()
        answers.append(target.publish("user.race", {"event": "e", "data": {}}, "Idempotency-Key: five"))

    threads = [threading.Thread(target=publish) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.status for answer in answers] == [201] * 12
    assert len({answer.body for answer in answers}) == 1
    assert len(target.stored("user.race")) == 1


def test_concurrent_bodies_under_one_key_store_exactly_one_of_them(target: Target) -> None:
    answers: list[Answer] = []
    start = threading.Barrier(8)

    def publish(number: int) -> None:
        start.wait()
        body = {"event": "e", "data": {"n": number}}
        answers.append(target.publish("user.bodies", body, "Idempotency-Key: six"))

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer.status for answer in answers) == [201] + [422] * 7
    assert len(target.stored("user.bodies")) == 1


def test_a_refused_request_is_not_remembered_as_an_event(target: Target) -> None:
    assert_refused(target.publish("user.later", {"event": "ping", "data": {}}, "Idempotency-Key: seven"), 422)
    assert target.stored("user.later") == []
    answer = target.publish("user.later", {"event": "ok", "data": {}}, "Idempotency-Key: seven")
    assert answer.status == 201


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b" ",
        b"\xff\xfe",
        "é".encode(),
        b"a" * 256,
        b"a" * 5_000,
        b'"',
        b"'; drop table",
        b"a, b",
        b"a\tb",
    ],
)
def test_a_strange_key_is_taken_or_refused(target: Target, key: bytes) -> None:
    answer = target.publish("user.keys", {"event": "e", "data": {}}, b"Idempotency-Key: " + key)
    assert answer.status == 201 or assert_refused(answer, 400, 422)


# History


@pytest.mark.parametrize(
    "limit",
    ["abc", "-1", "1.5", "%0a5", "5%0a", "1_0", "%d9%a3", "0x5", "nan", "1e1", "--1", "%ff", "%00", "5,5"],
)
def test_a_malformed_limit_is_400(target: Target, limit: str) -> None:
    assert_refused(target.history("dashboard", f"?limit={limit}"), 400, 422)


@pytest.mark.parametrize(
    "limit", ["0", "", "%205", "1000000000", "9223372036854775808", "9" * 100, "9" * 5_000, "5&limit=6"]
)
def test_a_strange_limit_is_taken_or_refused(target: Target, limit: str) -> None:
    answer = target.history("dashboard", f"?limit={limit}")
    assert answer.status == 200 or assert_refused(answer, 400, 422)


def test_history_answers_in_order_after_a_position_and_within_a_limit(target: Target) -> None:
    ids = [
        target.publish("user.past", {"event": "e", "data": {"n": number}}).json()["id"] for number in range(5)
    ]
    answer = target.history("user.past", f"?after={ids[1]}&limit=2").json()
    assert [event["id"] for event in answer["events"]] == ids[2:4]
    assert answer["complete"] is True
    assert set(answer["events"][0]) == {"id", "channel", "event", "data"}
    assert target.history("user.past", f"?after={ids[4]}").json() == {"events": [], "complete": True}


def test_history_wants_an_access_token_in_the_header(target: Target) -> None:
    path = "/api/v1/sse/dashboard/history"
    assert_refused(target.get(path), 401)
    assert_refused(target.get(f"{path}?token={target.stream_token}"), 401)
    assert_refused(target.get(f"{path}?token={target.access}"), 401)
    assert_refused(target.get(path, f"Authorization: Bearer {target.stream_token}"), 401)
    narrow = target.server.access_token(subscribe="alerts")
    assert_refused(target.get(path, f"Authorization: Bearer {narrow}"), 403)
    assert_refused(target.history("nowhere"), 404)
