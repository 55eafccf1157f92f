"""Limits of streams, the end of a token, and what the log must not say."""

from __future__ import annotations

import math
import socket
import time
from contextlib import ExitStack
from urllib.parse import quote

import httpx
import pytest

from tests.support.house import PASSWORDS, House, assert_refused, bearer, mint
from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet")


def test_over_a_limit_of_streams_is_429_with_retry_after_at_once(limited: House) -> None:
    ann, bob, carl = (mint(limited.key, "stream", sub=name) for name in ("ann", "bob", "carl"))
    narrow = mint(
        limited.key, "stream", sub="ann", sse={"subscribe": ["dashboard"], "publish": [], "admin": False}
    )
    with ExitStack() as streams:

        def hold(token: str) -> httpx.Response:
            request = limited.http.stream("GET", "/api/v1/sse/dashboard", params={"token": token})
            return streams.enter_context(request)

        assert hold(ann).status_code == 200
        first = streams.pop_all()
        with first:
            assert hold(ann).status_code == 200
            took = []
            for _ in range(3):  # a busy machine may delay one of them
                before = time.monotonic()
                assert_too_many(limited.open("dashboard", ann))
                assert_too_many(limited.open("dashboard", narrow, client_id="another"))
                took.append(time.monotonic() - before)
            assert min(took) < 1
            # What comes before a limit is still told first.
            assert_refused(limited.open("BAD", ann), 400)
            assert_refused(limited.open("dashboard", ann + "x"), 401)
            assert_refused(limited.open("alerts", narrow), 403)
            assert_refused(limited.open("nowhere", ann), 404)
            # The limit of the user is not that of another, until the address has its share.
            assert hold(bob).status_code == 200
            assert hold(bob).status_code == 200
            for headers in (
                {},
                {"X-Forwarded-For": "9.9.9.9"},
                {"X-Real-IP": "9.9.9.9"},
                {"Forwarded": "for=9.9.9.9"},
            ):
                answer = limited.http.get("/api/v1/sse/dashboard", params={"token": carl}, headers=headers)
                assert_too_many(answer)
            assert status_from("127.0.0.2", limited, carl) == 200
            assert limited.http.get("/api/v1/sse/status").json()["total_connections"] <= 5
        # A place that is given up is free again.
        answers: list[int] = []

        def free() -> bool:
            answers.append(limited.open("dashboard", carl).status_code)
            return answers[-1] != 429

        until(free, "the place is free")
        assert answers[-1] == 200


def test_streams_that_are_refused_take_no_place(limited: House) -> None:
    until(
        lambda: limited.http.get("/api/v1/sse/status").json()["total_connections"] == 0,
        "the other streams are gone",
    )
    eve = mint(
        limited.key, "stream", sub="eve", sse={"subscribe": ["dashboard"], "publish": [], "admin": False}
    )
    for _ in range(5):
        assert_refused(limited.open("alerts", eve), 403)
        assert_refused(limited.open("BAD", eve), 400)
        assert_refused(limited.open("dashboard", eve, client_id="a b"), 400)
    with (
        limited.http.stream("GET", "/api/v1/sse/dashboard", params={"token": eve}) as one,
        limited.http.stream("GET", "/api/v1/sse/dashboard", params={"token": eve}) as two,
    ):
        assert (one.status_code, two.status_code) == (200, 200)


def assert_too_many(answer: httpx.Response) -> None:
    assert_refused(answer, 429)
    assert int(answer.headers["retry-after"]) > 0


def status_from(address: str, house: House, token: str) -> int:
    """Open a stream from another of this machine's addresses, and return its status."""
    with (
        socket.create_connection(("127.0.0.1", house.server.port), 10, (address, 0)) as connection,
        connection.makefile("rb") as file,
    ):
        connection.sendall(
            f"GET /api/v1/sse/dashboard?token={token} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        return int(file.readline().split()[1])


# The end of a token


def test_a_stream_ends_when_its_token_does_and_says_so(house: House) -> None:
    late = math.inf
    for _ in range(3):  # a busy machine may delay the end of one
        expiry = int(time.time()) + 3  # at least two seconds: one is left when it is verified
        token = mint(house.key, "stream", exp=expiry)
        with house.http.stream("GET", "/api/v1/sse/dashboard", params={"token": token}) as stream:
            body = stream.read()
        late = time.time() - expiry
        assert late > -1.5
        if late < 1.5:
            break
    assert late < 1.5
    reader = EventStreamReader()
    connected, closing = (event for event in reader.feed(body) if event.type != "ping")
    reader.end()
    assert 0 < connected.json()["expires_in"] <= 3
    assert closing.type == "closing"
    assert closing.json() == {"reason": "token_expired", "retry": None}
    assert closing.id is None
    assert_refused(house.open("dashboard", token), 401)


# The log


def test_no_password_and_no_token_is_in_the_log_whatever_the_status(house: House) -> None:
    tokens = house.tokens("ann")
    access, stream = tokens["access_token"], tokens["stream_token"]
    strange = "sesame-open-" + "x" * 20
    expired = mint(house.key, "stream", exp=int(time.time()) - 5)
    other_key = mint(b"another secret that is long enough", "stream")
    escaped = "".join(f"%{byte:02x}" for byte in stream.encode())
    get = house.http.get
    statuses = [
        house.open("dashboard", stream).status_code,
        house.open("alerts", stream).status_code,
        house.open("BAD", stream).status_code,
        house.open("dashboard", access).status_code,
        house.open("dashboard", expired).status_code,
        house.open("dashboard", other_key).status_code,
        house.open("dashboard", stream, client_id=stream).status_code,
        house.open("dashboard", stream, client_id=stream[:64]).status_code,
        house.open("dashboard", stream, last_event_id=stream).status_code,
        house.open("dashboard", stream, last_event_id=stream[:128]).status_code,
        house.http.put("/api/v1/sse/dashboard", params={"token": stream}).status_code,
        house.http.post("/api/v1/sse/dashboard", params={"token": stream}, json={}).status_code,
        get(f"/nope?token={stream}").status_code,
        get(f"/healthz?token={stream}").status_code,
        get(f"/api/v1/sse/status?access_token={access}").status_code,
        get(f"/api/v1/sse/nowhere?token={escaped}").status_code,
        get(
            "/healthz", headers={"Referer": f"https://a.example/?token={stream}", "User-Agent": stream}
        ).status_code,
        get("/nope", headers={"Referer": f"https://a.example/?token={quote(stream)}"}).status_code,
        get("/api/v1/auth/me", headers={"Authorization": access}).status_code,
        get("/api/v1/auth/me", headers={"Authorization": f"Basic {access}"}).status_code,
        get("/api/v1/auth/me", headers={"Authorization": f"Bearer {access}x"}).status_code,
        get(f"/api/v1/sse/{stream}").status_code,
        get(f"/api/v1/sse/dashboard/{stream}").status_code,
        get(f"/{access}").status_code,
        get(f"/api/v1/auth/login?username=ann&password={strange}").status_code,
        house.login("ann", strange).status_code,
        house.login("nobody", strange).status_code,
        house.http.post("/api/v1/auth/login", content=f'{{"password": "{strange}"'.encode()).status_code,
        house.http.post("/api/v1/auth/login", json={"username": "ann", "password": [strange]}).status_code,
        house.http.post(
            "/api/v1/auth/login", json={"username": {"a": strange}, "password": strange}
        ).status_code,
        house.http.post("/api/v1/auth/login", json={"username": access, "password": strange}).status_code,
        house.http.post(
            "/api/v1/sse/alerts",
            json={"event": stream, "data": []},
            headers={**bearer(access), "Idempotency-Key": stream},
        ).status_code,
        house.http.post(
            "/api/v1/auth/stream-token", json={"channels": [stream]}, headers=bearer(access)
        ).status_code,
    ]
    assert {200, 400, 401, 403, 404, 405, 422} <= set(statuses)
    assert max(statuses) < 500
    log = house.server.log_path.read_text()
    for token in (access, stream, expired, other_key):
        for part in token.split(".")[1:]:
            assert part not in log
            assert part[10:50] not in log
    assert escaped[:120] not in log
    assert strange not in log
    assert not [password for password in PASSWORDS.values() if password in log]
    assert "argon2id$" not in log
    assert house.key.hex() not in log


def test_a_token_that_stands_in_the_path_by_mistake_is_not_in_the_log(house: House) -> None:
    token = mint(house.key, "stream")
    for path in (token, f"api/v1/sse/{token}", f"api/v1/sse/dashboard/{token}", f"static/{token}"):
        escaped = path.replace("eyJ", "%65%79%4a")
        for written in (path, escaped):
            assert house.http.get(f"/{written}").status_code in (400, 404)
    log = house.server.log_path.read_text()
    for part in token.split("."):
        assert part[10:50] not in log
