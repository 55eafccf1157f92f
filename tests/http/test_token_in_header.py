"""A stream token in the Authorization header, for clients that can set one: fetch, Python, mobile."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.room import CHANNELS, DEADLINE, Room
from tests.support.server_process import running
from tests.support.sse_reader import EventStreamReader, ReceivedEvent

ORIGIN = "https://desk.example.com"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    with running(
        state_dir=tmp_path_factory.mktemp("headers") / "state", CHANNELS=CHANNELS, CORS_ORIGINS=[ORIGIN]
    ) as server:
        room = Room(server)
        with room.http:
            yield room


def ask(room: Room, authorization: str | None, *, method: str = "GET", **query: str) -> tuple[int, Any]:
    """Ask for a stream, and return the status, and the first event or the error."""
    headers = {} if authorization is None else {"Authorization": authorization}
    url = f"{room.server.url}/api/v1/sse/alerts"
    with httpx.stream(method, url, params=query, headers=headers, timeout=DEADLINE) as answer:
        if answer.status_code == 401:
            assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        if method == "HEAD":
            return answer.status_code, None
        if answer.status_code != 200:
            return answer.status_code, json.loads(answer.read())["error"]
        return 200, next(events_of(answer))


def events_of(answer: httpx.Response) -> Iterator[ReceivedEvent]:
    reader = EventStreamReader()
    for piece in answer.iter_bytes():
        yield from reader.feed(piece)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer   "])
def test_a_stream_token_in_the_header_opens_a_stream(room: Room, scheme: str) -> None:
    status, event = ask(room, f"{scheme} {room.token}")
    assert (status, event.type) == (200, "connected")
    assert ask(room, f"{scheme} {room.token}", method="HEAD")[0] == 200


def test_a_token_in_both_places_is_400(room: Room) -> None:
    for in_query in (room.token, room.access, "x", ""):
        for in_header in (room.token, room.access, "x", ""):
            for method in ("GET", "HEAD"):
                status, error = ask(room, f"Bearer {in_header}".strip(), token=in_query, method=method)
                assert status == 400
                if error is not None:
                    assert error["code"] == "invalid_request"
                    assert "query" in error["message"]
                    assert "header" in error["message"]


def test_what_is_malformed_comes_before_both_tokens_and_these_before_a_bad_one(room: Room) -> None:
    status, error = ask(room, "Bearer x", token="x", client_id="a b")
    assert (status, error["code"]) == (400, "invalid_client_id")
    status, error = ask(room, "Bearer x", token="x")
    assert (status, error["code"]) == (400, "invalid_request")


def test_an_access_token_in_the_header_is_of_the_wrong_kind(room: Room) -> None:
    for method in ("GET", "HEAD"):
        status, error = ask(room, f"Bearer {room.access}", method=method)
        assert status == 401
        if error is not None:
            assert error["code"] == "invalid_token"


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer",
        "Bearer x",
        "Bearer a b",
        "Bearer {token} {token}",
        "Bearer {token},Bearer {token}",
        "Bearer {token}x",
    ],
)
def test_a_bad_token_in_the_header_is_401(room: Room, authorization: str) -> None:
    for method in ("GET", "HEAD"):
        assert ask(room, authorization.format(token=room.token), method=method)[0] == 401


@pytest.mark.parametrize("other", ["Basic eDp5", "Digest username=x", "Negotiate abc", "Bearers x", "x", ""])
def test_a_header_of_a_proxy_is_no_token_and_leaves_that_in_the_query_good(room: Room, other: str) -> None:
    """A browser sends the user name and password of nginx's auth_basic along with each stream."""
    status, event = ask(room, other, token=room.token)
    assert (status, event.type) == (200, "connected")
    assert ask(room, other)[0] == 401


def test_a_token_in_the_header_grants_what_it_would_in_the_query(room: Room) -> None:
    bearer = f"Bearer {room.server.stream_token('dashboard')}"
    status, error = ask(room, bearer)
    assert (status, error["code"]) == (403, "forbidden")
    url = f"{room.server.url}/api/v1/sse/dashboard"
    with httpx.stream("GET", url, headers={"Authorization": bearer}, timeout=DEADLINE) as answer:
        events = events_of(answer)
        connected = json.loads(next(events).data)
        assert connected["expires_in"] > 0
        id = room.publish("dashboard", 1)
        assert next(event for event in events if event.type != "ping").id == id
    for path in ("dashboard/history", "status/history"):
        got = httpx.get(f"{room.server.url}/api/v1/sse/{path}", headers={"Authorization": bearer})
        assert got.status_code in (400, 401), "it opens streams and does nothing else"
    body = {"event": "e", "data": {}}
    assert httpx.post(url, json=body, headers={"Authorization": bearer}).status_code == 401


def test_a_page_of_a_configured_origin_may_send_it(room: Room) -> None:
    url = f"{room.server.url}/api/v1/sse/alerts"
    preflight = httpx.options(
        url,
        headers={
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "GET",
            "Access-Control-Request-Headers": "authorization,last-event-id",
        },
    )
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "GET" in preflight.headers["Access-Control-Allow-Methods"].split(", ")
    allowed = preflight.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "last-event-id"} <= set(allowed)
    headers = {"Authorization": f"Bearer {room.token}", "Origin": ORIGIN}
    for method in ("GET", "HEAD"):
        with httpx.stream(method, url, headers=headers, timeout=DEADLINE) as answer:
            assert answer.status_code == 200
            assert answer.headers["Access-Control-Allow-Origin"] == ORIGIN
    refused = httpx.get(url, headers={"Authorization": "Bearer x", "Origin": ORIGIN})
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, ORIGIN)
    elsewhere = httpx.options(
        url, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    )
    assert "Access-Control-Allow-Headers" not in elsewhere.headers


def test_no_part_of_a_token_in_the_header_is_in_the_log(start_room: Callable[..., Room]) -> None:
    room = start_room()
    parts = {part for token in (room.token, room.access) for part in token.split(".")[1:]}
    for authorization in (
        f"Bearer {room.token}",
        f"Bearer {room.access}",
        f"Bearer {room.token}x",
        room.token,
    ):
        ask(room, authorization)
        ask(room, authorization, token=room.token)
    room.server.stop()
    log = room.server.log_path.read_text()
    assert "stream_opened" in log
    assert not [part for part in parts if part in log]
