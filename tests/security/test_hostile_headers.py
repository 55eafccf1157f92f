"""Methods, the order of errors, and strange authorization."""

from __future__ import annotations

import re

import pytest

from tests.support.hostility import Target, assert_refused, request

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/api/v1/sse/dashboard", {"GET", "POST"}),
        ("/api/v1/sse/BAD", {"GET", "POST"}),
        ("/api/v1/sse", {"POST"}),
        ("/api/v1/sse/status", {"GET"}),
        ("/api/v1/sse/dashboard/history", {"GET"}),
        ("/api/v1/auth/login", {"POST"}),
        ("/api/v1/auth/stream-token", {"POST"}),
        ("/api/v1/auth/me", {"GET"}),
        ("/healthz", {"GET"}),
        ("/readyz", {"GET"}),
        ("/metrics", {"GET"}),
    ],
)
def test_a_method_that_is_not_there_is_405_with_what_is(target: Target, path: str, allowed: set[str]) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "TRACE", "FOO", "get", "PROPFIND"):
        if method in allowed:
            continue
        answer = target.send(request(method, path, "Connection: close", body=b""))
        assert_refused(answer, 405)
        named = {name.strip() for name in answer.headers["allow"].split(",")}
        assert allowed <= named <= allowed | {"HEAD", "OPTIONS"}, (method, named)


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/sse/dashboard",
        "/api/v1/sse/status",
        "/api/v1/sse/BAD",
        "/healthz",
        "/nope",
        "/api/v1/auth/login",
    ],
)
def test_head_is_answered_at_once_and_without_a_body(target: Target, path: str) -> None:
    query = f"?token={target.stream_token}" if path.endswith("dashboard") else ""
    with target.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(request("HEAD", path + query, "Connection: close"))
        status = file.readline()
        assert re.match(rb"HTTP/1\.1 [24]\d\d ", status), status
        b"".join(iter(file.readline, b"\r\n"))
        assert file.read() == b""


# Errors, in their order


def test_errors_come_in_the_order_of_the_contract_for_streams(target: Target) -> None:
    narrow = target.server.stream_token("dashboard")
    sse = "/api/v1/sse"
    for method, path, status in (
        ("PUT", f"{sse}/BAD?token=x", 405),
        ("GET", f"{sse}/BAD?token=x", 400),
        ("GET", f"{sse}/dashboard?token=x&client_id=%0a", 400),
        ("GET", f"{sse}/dashboard?token=x&last_event_id=%0a", 400),
        ("GET", f"{sse}/dashboard?last_event_id=%0a", 400),
        ("GET", f"{sse}/{','.join(f'user.n{n}' for n in range(40))}", 400),
        ("GET", f"{sse}/nowhere?token=x", 401),
        ("GET", f"{sse}/nowhere", 401),
        ("GET", f"{sse}/alerts?token=x", 401),
        ("GET", f"{sse}/alerts?token={target.access}", 401),
        ("GET", f"{sse}/nowhere?token={narrow}", 403),
        ("GET", f"{sse}/alerts?token={narrow}", 403),
        ("GET", f"{sse}/dashboard,alerts?token={narrow}", 403),
        ("GET", f"{sse}/dashboard,nowhere?token={narrow}", 403),
        ("GET", f"{sse}/nowhere?token={target.stream_token}", 404),
        ("GET", f"{sse}/dashboard,nowhere?token={target.stream_token}", 404),
    ):
        assert_refused(target.send(request(method, path, "Connection: close")), status)


def test_errors_come_in_the_order_of_the_contract_for_publishers(target: Target) -> None:
    narrow = f"Authorization: Bearer {target.server.access_token(publish='dashboard')}"
    bad = "Authorization: Bearer x"
    sse = "/api/v1/sse"
    good = b'{"event":"e","data":{}}'
    for method, path, token, body, status in (
        ("PUT", f"{sse}/BAD", bad, b"{", 405),
        ("POST", f"{sse}/BAD", bad, b"{", 400),
        ("POST", f"{sse}/nowhere", bad, good, 401),
        ("POST", f"{sse}/dashboard", bad, good, 401),
        ("POST", f"{sse}/nowhere", narrow, good, 403),
        ("POST", f"{sse}/alerts", narrow, good, 403),
        ("POST", f"{sse}/nowhere", target.bearer, good, 404),
        ("POST", sse, bad, b'{"events":[]}', 401),
    ):
        answer = target.send(request(method, path, "Connection: close", token, body=body))
        assert_refused(answer, status)


# Headers


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer  ",
        b"Basic YW5uOnBhc3N3b3Jk",
        b"Token",
        b"Bearer a b",
        b"Bearer ,",
        b"Bearer =",
        b"Bearer .",
        b"Bearer ..",
        b"Bearer ...",
        b"Bearer \xff\xfe",
        b"Bearer \xe2\x82\xac.\xe2\x82\xac.\xe2\x82\xac",
        b"Bearer " + b"a" * 7_000,
        b"Bearer " + b"a." * 3_500,
        b"Bearer null",
        b"Digest username=x",
        b"Bearer\x09x",
        b'Bearer "',
        b"\xff",
    ],
    ids=lambda value: repr(value[:30]),
)
def test_a_strange_authorization_is_401(target: Target, authorization: bytes) -> None:
    header = b"Authorization: " + authorization
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse", "/api/v1/auth/stream-token"):
        assert_refused(target.post(path, {"event": "e", "data": {}}, header, bearer=False), 401)
    for path in ("/api/v1/sse/dashboard/history", "/api/v1/auth/me"):
        assert_refused(target.get(path, header), 401)


def test_the_scheme_of_authorization_is_read_in_any_case(target: Target) -> None:
    for scheme in ("bearer", "BEARER", "BeArEr"):
        header = f"Authorization: {scheme} {target.access}"
        assert target.get("/api/v1/sse/dashboard/history", header).status == 200


def test_two_authorizations_are_none(target: Target) -> None:
    both = (target.bearer, "Authorization: Bearer x")
    assert_refused(target.get("/api/v1/sse/dashboard/history", *both), 400, 401)
    assert_refused(target.get("/api/v1/sse/dashboard/history", *reversed(both)), 400, 401)


def test_a_token_given_twice_in_the_query_is_401(target: Target) -> None:
    for other in ("x", ""):
        assert_refused(target.open("dashboard", f"&token={other}"), 400, 401)
