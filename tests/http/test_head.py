"""HEAD: what GET would answer, without a body (RFC 9110 §9.3.2), wherever there is a GET (§9.1)."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from tornado import web

from sse_app import SSEApp
from tests.support.hostility import Target, request
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")

GOOD = (
    "/",
    "/admin",
    "/static/sse-client.js",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/.well-known/jwks.json",
    "/api/v1/sse/status",
    "/api/v1/sse/dashboard/history",
    "/api/v1/auth/me",
    "/api/v1/admin/connections",
    "/api/v1/admin/figures",
    "/api/v1/admin/audit",
)
REFUSED = {
    "/nope": 404,
    "/static/nope.js": 404,
    "/static/": 403,
    "/api/v1/sse/BAD/history": 400,
    "/api/v1/sse/nowhere/history": 404,
    "/api/v1/sse/dashboard/history?limit=x": 400,
}
VARYING = {"date", "content-length", "etag"}
"""Headers whose values differ from one request to the next where the body has the time in it."""


def whole(target: Target, method: str, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer, read to the end of the connection."""
    received = target.raw(request(method, path, "Connection: close", *headers))
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {name.lower(): value for name, value in fields.items()}, body


@pytest.mark.parametrize(("path", "status"), [*((path, 200) for path in GOOD), *REFUSED.items()])
def test_head_has_the_status_and_the_headers_of_get_and_no_body(
    target: Target, path: str, status: int
) -> None:
    token = f"Authorization: Bearer {target.server.access_token(admin=True)}"
    got, headers, body = whole(target, "GET", path, token)
    assert (got, bool(body)) == (status, True)
    told, their_headers, nothing = whole(target, "HEAD", path, token)
    assert (told, nothing) == (status, b"")
    assert headers.keys() == their_headers.keys()
    assert "content-length" in headers
    assert {name: value for name, value in headers.items() if name not in VARYING} == {
        name: value for name, value in their_headers.items() if name not in VARYING
    }
    if path in ("/", "/openapi.json", "/static/sse-client.js", *REFUSED):
        assert their_headers["content-length"] == str(len(body))


def test_head_is_told_what_get_is_where_a_token_is_missing(target: Target) -> None:
    for path in ("/api/v1/auth/me", "/api/v1/admin/audit", "/api/v1/sse/dashboard/history"):
        status, headers, body = whole(target, "HEAD", path)
        assert (status, body) == (401, b"")
        assert headers["www-authenticate"].startswith("Bearer")


def test_there_is_a_head_wherever_there_is_a_get_and_nowhere_else(sse: SSEApp) -> None:
    missing = web.RequestHandler._unimplemented_method
    handlers = [route.target for route in sse.application().wildcard_router.rules]
    assert len(handlers) > 20
    for handler in handlers:
        assert (handler.get is missing) == (handler.head is missing), handler


def test_several_heads_on_one_connection_are_answered_in_order(target: Target) -> None:
    paths = ["/healthz", "/nope", f"/api/v1/sse/dashboard?token={target.stream_token}", "/openapi.json"]
    received = target.raw(b"".join(request("HEAD", path) for path in paths) + request("GET", "/healthz"))
    assert re.findall(rb"HTTP/1\.1 (\d+) ", received) == [b"200", b"404", b"200", b"200", b"200"]
    assert received.endswith(b'\r\n\r\n{"status":"ok"}')


# Streams


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_head_of_a_stream_is_its_head_alone_and_takes_no_place(target: Target, version: str) -> None:
    before = target.get("/api/v1/sse/status").json()["total_connections"]
    path = f"/api/v1/sse/dashboard,alerts?token={target.stream_token}"
    received = target.raw(request("HEAD", path, "Connection: close", version=version))
    head, end, body = received.partition(b"\r\n\r\n")
    assert (end, body) == (b"\r\n\r\n", b"")
    with target.stream("dashboard,alerts") as stream:
        theirs = stream.headers
        for name in ("content-type", "cache-control", "x-accel-buffering", "referrer-policy"):
            assert f"{name}: {theirs[name]}".encode() in head.lower(), name
    assert b"content-length" not in head.lower()
    until(
        lambda: target.get("/api/v1/sse/status").json()["total_connections"] == before,
        "only the stream of this test had a place",
    )


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("dashboard", 401),
        ("dashboard?token=x", 401),
        ("BAD?token={token}", 400),
        ("dashboard?token={token}&client_id=%0a", 400),
        ("dashboard?token={token}&last_event_id=%0a", 400),
        ("nowhere?token={token}", 404),
        ("alerts?token={narrow}", 403),
        ("dashboard?token={access}", 401),
        ("dashboard?token={token}&last_event_id=gone-1", 200),
    ],
)
def test_head_of_a_stream_is_refused_as_get_is(target: Target, path: str, status: int) -> None:
    narrow = target.server.stream_token("dashboard")
    path = "/api/v1/sse/" + path.format(token=target.stream_token, narrow=narrow, access=target.access)
    told, headers, body = whole(target, "HEAD", path)
    assert (told, body) == (status, b"")
    if status != 200:  # a stream would not end
        got, their_headers, _ = whole(target, "GET", path)
        assert got == status
        assert headers.keys() == their_headers.keys()


def test_head_of_a_stream_over_a_limit_is_429_and_as_often_as_one_likes_else(
    start_server: Callable[..., ServerProcess],
) -> None:
    narrow = Target(start_server(LIMITS__STREAMS_PER_USER=1))
    path = f"/api/v1/sse/dashboard?token={narrow.stream_token}"
    for _ in range(3):
        assert whole(narrow, "HEAD", path)[0] == 200
    with narrow.stream("dashboard") as stream:
        assert stream.next().type == "connected"
        assert whole(narrow, "HEAD", path)[0] == 429
