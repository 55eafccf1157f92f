"""Pages of other origins, and logins of the wrong shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.hostility import MIB, ORIGINS, Answer, Target, assert_refused, body_of, request

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")


def preflight(target: Target, origin: str, path: str, method: str, headers: str = "") -> Answer:
    extra = [f"Access-Control-Request-Headers: {headers}"] if headers else []
    return target.send(
        request(
            "OPTIONS",
            path,
            "Connection: close",
            f"Origin: {origin}",
            f"Access-Control-Request-Method: {method}",
            *extra,
        )
    )


def names_in(header: str) -> set[str]:
    return {name.strip().lower() for name in header.split(",")}


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_preflight_of_a_configured_origin_allows_what_a_page_needs(target: Target, origin: str) -> None:
    for path, method, headers in (
        ("/api/v1/sse/dashboard", "GET", "last-event-id"),
        ("/api/v1/sse/dashboard", "POST", "authorization, content-type, idempotency-key"),
        ("/api/v1/sse", "POST", "authorization, content-type, idempotency-key"),
        ("/api/v1/sse/dashboard/history", "GET", "authorization"),
        ("/api/v1/auth/login", "POST", "content-type"),
        ("/api/v1/auth/stream-token", "POST", "authorization, content-type"),
        ("/api/v1/auth/me", "GET", "authorization"),
    ):
        answer = preflight(target, origin, path, method, headers)
        assert answer.status in (200, 204), (path, answer)
        assert answer.headers["access-control-allow-origin"] == origin
        assert method.lower() in names_in(answer.headers["access-control-allow-methods"])
        assert names_in(headers) <= names_in(answer.headers["access-control-allow-headers"])
        assert "origin" in names_in(answer.headers["vary"])


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "*",
        "",
        "http://localhost:3021",
        "http://localhost",
        "https://localhost:3020",
        "http://localhost:3020.evil.example",
        "http://localhost:30200",
        "http://evil.example?http://localhost:3020",
        "http://xlocalhost:3020",
        "http://localhost:3020/",
        "http://localhost:3020, http://evil.example",
        "https://deskXexample.com",
        "é",
    ],
)
def test_another_origin_gets_no_cors_headers(target: Target, origin: str) -> None:
    answers = [
        preflight(target, origin, "/api/v1/sse/dashboard", "POST", "authorization"),
        preflight(target, origin, "/api/v1/auth/login", "POST", "content-type"),
        target.open("dashboard", "", f"Origin: {origin}"),
        target.get("/api/v1/sse/dashboard", f"Origin: {origin}"),
        target.get("/api/v1/sse/status", f"Origin: {origin}"),
        target.history("dashboard"),
    ]
    for answer in answers:
        assert answer.status < 500
        assert not [name for name in answer.headers if name.startswith("access-control-")], answer


@pytest.mark.parametrize("origin", ["http://[", "http://[x]", "http://[::1%", "http://[/a]"])
def test_an_origin_that_is_no_url_is_any_other_origin(target: Target, origin: str) -> None:
    header = f"Origin: {origin}"
    assert target.publish("dashboard", {"event": "e", "data": {}}, header).status == 201
    for path in ("/api/v1/auth/login", "/api/v1/auth/refresh", "/api/v1/auth/logout"):
        assert_refused(target.post(path, {}, header, bearer=False), 403)
    for path in ("/", "/nope", "/healthz", "/static/page.css"):
        assert_refused(target.post(path, b"", header, bearer=False), 404, 405)


def test_a_configured_origin_may_read_streams_answers_and_errors(target: Target) -> None:
    origin = f"Origin: {ORIGINS[0]}"
    answers = {
        "stream": target.open("dashboard", "", origin),
        "401": target.get("/api/v1/sse/dashboard", origin),
        "400": target.open("BAD", "", origin),
        "404": target.open("nowhere", "", origin),
        "405": target.send(request("PUT", "/api/v1/sse/dashboard", "Connection: close", origin)),
        "413": target.publish("dashboard", body_of(MIB + 1), origin),
        "422": target.publish("dashboard", {"event": "ping", "data": {}}, origin),
        "201": target.publish("dashboard", {"event": "e", "data": {}}, origin),
        "login": target.post("/api/v1/auth/login", {"username": "a", "password": "b"}, origin, bearer=False),
        "status": target.get("/api/v1/sse/status", origin),
    }
    for name, answer in answers.items():
        assert answer.headers.get("access-control-allow-origin") == ORIGINS[0], (name, answer)
        assert "origin" in names_in(answer.headers["vary"]), name
    assert {name: answer.status for name, answer in answers.items() if name.isdigit()} == {
        name: int(name) for name in answers if name.isdigit()
    }


def test_options_without_an_origin_or_a_good_path_is_no_crash(target: Target) -> None:
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse/BAD", "/nope", "/healthz", "/api/v1/auth/login", "/"):
        answer = target.send(request("OPTIONS", path, "Connection: close"))
        assert answer.status in (200, 204) or assert_refused(answer, 400, 404, 405)
        assert "access-control-allow-origin" not in answer.headers


# Login


@pytest.mark.parametrize(
    "body",
    [
        {"username": None, "password": None},
        {"username": 1, "password": 2},
        {"username": ["ann"], "password": "x"},
        {"username": "ann", "password": ["x"]},
        {"username": {"$ne": ""}, "password": {"$ne": ""}},
        {"username": True, "password": True},
        {"username": "ann"},
        {"password": "x"},
        {"user": "ann", "pass": "x"},
    ],
    ids=lambda body: ascii(body)[:50],
)
def test_a_login_of_the_wrong_shape_is_422_or_400(target: Target, body: object) -> None:
    assert_refused(target.post("/api/v1/auth/login", body, bearer=False), 400, 422)


@pytest.mark.parametrize(
    ("username", "password"),
    [
        ("", ""),
        ("ann", ""),
        ("", "x"),
        ("ann\u0000", "x"),
        ("ann", "x\u0000y"),
        ("\n", "\n"),
        ("' OR 1=1 --", "x"),
        ("ann", "é" * 1_000),
        ("a" * 60_000, "x"),
        ("ann", "a" * 60_000),
        ("😀", "😀"),
        ("**", "x"),
        ("../../etc/passwd", "x"),
        ("\u202eann", "x"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_login_with_strange_text_is_a_4xx(target: Target, username: str, password: str) -> None:
    answer = target.post("/api/v1/auth/login", {"username": username, "password": password}, bearer=False)
    assert answer.status in (400, 401, 422), answer
    assert set(answer.json()["error"]) >= {"code", "message"}


def test_a_login_larger_than_64_kib_is_413(target: Target) -> None:
    for login in (
        {"username": "a" * 100_000, "password": "x"},
        {"username": "ann", "password": "a" * 900_000},
    ):
        assert_refused(target.post("/api/v1/auth/login", login, bearer=False), 413)


def test_a_path_or_a_name_cannot_write_lines_of_its_own_into_the_log(target: Target, tmp_path: Path) -> None:
    login = {"username": 'ann\n{"event":"forged"}\x1b[31m', "password": "x"}
    target.post("/api/v1/auth/login", login, bearer=False)
    target.get("/nope%0a%7b%22event%22:%22forged%22%7d")
    target.get("/nope", "Referer: x", "User-Agent: \u2028\x85forged", b"X-Forwarded-For: \xff{}")
    target.open("dashboard", "", "Referer: https://desk.example.com/?token=" + target.stream_token)
    for line in target.server.log_path.read_bytes().split(b"\n"):
        if line:
            assert json.loads(line)["event"] != "forged"
