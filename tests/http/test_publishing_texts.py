"""Publishing with a text as the body: what of the event stands in the query, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.room import Room, listen, receive, sequence

PLAIN = {"Content-Type": "text/plain"}


def post(
    room: Room, channel: str, query: str, body: bytes = b"x", headers: dict[str, str] | None = None
) -> httpx.Response:
    return room.http.post(f"/api/v1/sse/{channel}{query}", content=body, headers=PLAIN | (headers or {}))


def refused(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/html; charset=utf-8",
        "TEXT/Markdown;charset=UTF8",
        'text/plain; format=flowed; charset="utf-8"',
        "text/vnd.turbo-stream.html; charset=us-ascii",
        "text/csv;header=present",
        "text/event-stream",
    ],
)
def test_any_kind_of_text_is_taken_with_its_type_retry_and_end_in_the_query(
    room: Room, content_type: str
) -> None:
    channel = room.channel()
    with receive(room.url(channel)) as live:
        next(live)
        answer = post(
            room,
            channel,
            "?event=a.b:c-d_9&retry=1234",
            "é\n{}".encode(),
            headers={"Content-Type": content_type},
        )
        assert answer.status_code == 201, answer.text
        assert answer.json()["channel"] == channel
        event = next(live)
    assert (event.type, event.data, event.retry, event.id) == (
        "a.b:c-d_9",
        "é\n{}",
        1234,
        answer.json()["id"],
    )


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "event"),
        ("?", "event"),
        ("?event=", "event"),
        ("?event=a%20b", "event"),
        ("?event=a%0Adata:%20x", "event"),
        ("?event=%00", "event"),
        ("?event=%FF", "event"),
        ("?event=%C3%A9", "event"),
        ("?event=" + "a" * 129, "event"),
        ("?event=connected", "event"),
        ("?event=ping", "event"),
        ("?event=a&event=b", "event"),
        ("?Event=a", "Event"),
        ("?event=a&retry=", "retry"),
        ("?event=a&retry=-1", "retry"),
        ("?event=a&retry=1.5", "retry"),
        ("?event=a&retry=%D9%A3", "retry"),
        ("?event=a&retry=5%0A", "retry"),
        ("?event=a&retry=86400001", "retry"),
        ("?event=a&retry=1&retry=2", "retry"),
        ("?event=a&final=", "final"),
        ("?event=a&final=yes", "final"),
        ("?event=a&final=1", "final"),
        ("?event=a&final=True", "final"),
        ("?event=a&final=true&final=false", "final"),
        ("?event=a&finale=true", "finale"),
        ("?event=a&data=x", "data"),
        ("?event=a&types=a", "types"),
    ],
)
def test_a_bad_query_is_422_and_names_what_is_bad(room: Room, query: str, named: str) -> None:
    channel = room.channel()
    before = room.publish(channel, 0)
    assert named in refused(post(room, channel, query), 422)
    assert sequence(room.publish(channel, 1)) == sequence(before) + 1, "nothing was published"


@pytest.mark.parametrize(
    "body", [b"\xff", b"a\xc3", b"\xed\xa0\x80", b"\xc0\xaf", "é".encode("latin-1"), b"\xff\xfea\0"]
)
def test_a_text_that_is_not_utf_8_is_400(room: Room, body: bytes) -> None:
    assert "UTF-8" in refused(post(room, room.channel(), "?event=e", body), 400)


@pytest.mark.parametrize("charset", ["iso-8859-1", '"utf-16"', "windows-1252", "x" * 5000, "'utf-7'", "é"])
def test_a_text_in_another_charset_is_415_and_says_which_one_is_taken(room: Room, charset: str) -> None:
    answer = room.http.post(
        f"/api/v1/sse/{room.channel()}?event=e",
        content=b"x",
        headers={b"Content-Type": f"text/plain; charset={charset}".encode()},
    )
    message = refused(answer, 415)
    assert "UTF-8" in message
    assert len(message) < 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "application/json", None])
@pytest.mark.parametrize("query", ["event=e", "final=true", "retry=1"])
def test_a_query_without_a_text_is_415_and_names_the_header_to_set(
    room: Room, content_type: str | None, query: str
) -> None:
    """``curl -d hello '…?event=e'`` says that its body is a form."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    for body in (b"hello", b'{"event": "e", "data": {}}'):
        answer = room.http.post(f"/api/v1/sse/{room.channel()}?{query}", content=body, headers=headers)
        assert "Content-Type: text/plain" in refused(answer, 415)


@pytest.mark.parametrize(
    ("body", "status"), [(b"hello", 400), (b"a=b&c=d", 400), (b"", 400), (b"5", 422), (b'"a"', 422)]
)
def test_a_form_that_is_no_json_is_refused_with_the_header_to_set(
    room: Room, body: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = room.http.post(f"/api/v1/sse/{room.channel()}", content=body, headers=headers)
    message = refused(answer, status)
    assert "Content-Type" in message
    assert "text/plain" in message
    assert "application/json" in message


def test_json_that_says_it_is_a_form_is_taken_as_ever(room: Room) -> None:
    """``curl -d '{"event": …}'`` without a header."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = room.http.post(
        f"/api/v1/sse/{room.channel()}", content=b'{"event": "e", "data": {}}', headers=headers
    )
    assert answer.status_code == 201


def test_a_key_stands_for_the_text_and_for_what_the_query_says(room: Room) -> None:
    channel = room.channel()
    key = {"Idempotency-Key": f"text-{channel}"}
    first = post(room, channel, "?event=a&retry=5", headers=key)
    assert first.status_code == 201
    again = post(room, channel, "?retry=5&event=%61", headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    for query, body in [
        ("?event=b&retry=5", b"x"),
        ("?event=a&retry=6", b"x"),
        ("?event=a", b"x"),
        ("?event=a&retry=5&final=true", b"x"),
        ("?event=a&retry=5", b"y"),
    ]:
        assert "Idempotency-Key" in refused(post(room, channel, query, body, headers=key), 422)
    as_json = room.http.post(
        f"/api/v1/sse/{channel}",
        json={"event": "a", "data": "x", "retry": 5},
        headers=key,
    )
    assert as_json.status_code == 422, "another request"
    history = room.http.get(f"/api/v1/sse/{channel}/history").json()
    assert [event["id"] for event in history["events"]] == [first.json()["id"]]


def test_who_may_not_publish_may_not_publish_a_text_either(room: Room) -> None:
    url = f"{room.server.url}/api/v1/sse/{room.channel()}?event=e"
    assert httpx.post(url, content=b"x", headers=PLAIN).status_code == 401
    for token, status in ((room.token, 401), (room.server.access_token(publish="alerts"), 403)):
        headers = PLAIN | {"Authorization": f"Bearer {token}"}
        assert httpx.post(url, content=b"x", headers=headers).status_code == status


@pytest.mark.parametrize("pattern", ["test.*", "test.**", "**", "test.%2A", "%2a%2A"])
def test_a_pattern_cannot_be_published_to(room: Room, pattern: str) -> None:
    body: dict[str, Any] = {"event": "e", "data": {}}
    assert "channel" in refused(room.http.post(f"/api/v1/sse/{pattern}", json=body), 400)
    assert "channel" in refused(post(room, pattern, "?event=e"), 400)
    name = pattern.replace("%2A", "*").replace("%2a", "*")
    assert "channel" in refused(
        room.http.post("/api/v1/sse", json={"events": [{**body, "channel": name}]}), 422
    )


def test_the_mark_of_an_end_is_true_or_false(room: Room) -> None:
    channel = room.channel()
    finals: list[object] = [1, 0, "true", None, [], {}]
    for final in finals:
        body = {"event": "e", "data": {}, "final": final}
        assert "final" in refused(room.http.post(f"/api/v1/sse/{channel}", json=body), 422)
        batch = {"events": [{**body, "channel": channel}]}
        assert "events[0].final" in refused(room.http.post("/api/v1/sse", json=batch), 422)
    with listen(room.url(channel)) as frames:
        next(frames)
        assert room.publish(channel, 1)
