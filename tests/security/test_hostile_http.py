"""Bodies too large, and what is hardly HTTP."""

from __future__ import annotations

import re
import socket
import struct
import time
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support.hostility import MIB, Answer, Stream, Target, assert_refused, body_of, request
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("the_log_stays_quiet_and_the_server_alive")


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


@pytest.mark.parametrize(
    "path", ["/api/v1/sse/dashboard", "/api/v1/sse", "/api/v1/auth/login", "/api/v1/auth/stream-token"]
)
def test_a_body_over_1_mib_is_413_by_its_length_and_by_its_chunks(target: Target, path: str) -> None:
    assert_refused(target.post(path, body_of(MIB + 1)), 413)
    head = ("Connection: close", target.bearer)
    pieces = [b"a" * 65536] * 17
    data = request("POST", path, *head, "Transfer-Encoding: chunked", body=chunked(*pieces))
    assert_refused(target.send(data), 413)


def test_a_client_that_sends_a_body_and_a_half_sees_the_413_and_no_reset(target: Target) -> None:
    for _ in range(5):
        for body, framing in (
            (body_of(MIB * 3 // 2), f"Content-Length: {MIB * 3 // 2}"),
            (chunked(*[b"a" * 65536] * 24), "Transfer-Encoding: chunked"),
        ):
            with target.connect() as connection:
                connection.sendall(
                    request("POST", "/api/v1/sse/dashboard", target.bearer, framing, body=body)
                )
                time.sleep(0.05)  # A slow client: a reset in this time would take the answer with it.
                with closing(HTTPResponse(connection)) as response:
                    response.begin()
                    answer = Answer(
                        response.status,
                        {name.lower(): value for name, value in response.getheaders()},
                        response.read(),
                    )
            assert_refused(answer, 413)


def test_a_large_body_where_none_belongs_is_a_4xx_and_no_reset(target: Target) -> None:
    body = b"a" * (MIB * 3 // 2)
    for method, path in (
        ("POST", "/nope"),
        ("PUT", "/api/v1/sse/dashboard"),
        ("POST", "/api/v1/sse/BAD"),
        ("POST", "/api/v1/sse/status"),
        ("GET", "/api/v1/sse/dashboard"),
    ):
        answer = target.send(request(method, path, "Connection: close", body=body))
        assert_refused(answer, 400, 401, 404, 405, 413)
    for path in ("/api/v1/sse/dashboard", "/api/v1/sse"):
        answer = target.post(path, body, "Authorization: Bearer nonsense", bearer=False)
        assert_refused(answer, 401, 413)


@pytest.mark.parametrize("framing", ["Content-Length: {size}", "Transfer-Encoding: chunked"])
def test_a_request_whose_body_is_too_large_has_its_413_and_no_stream_behind_it(
    target: Target, framing: str
) -> None:
    body = b"a" * (MIB * 3 // 2)
    header = framing.format(size=len(body))
    sent = body if "Length" in header else chunked(body)
    with target.connect() as connection:
        connection.sendall(
            request("GET", f"/api/v1/sse/dashboard?token={target.stream_token}", header, body=sent)
        )
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, answered = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert f"\r\nContent-Length: {len(answered)}\r\n".encode() in head + b"\r\n"


def test_a_request_whose_body_is_too_large_does_nothing(target: Target) -> None:
    target.server.add_user("large", "correct horse battery", subscribe="dashboard")
    login = target.post(
        "/api/v1/auth/login", {"username": "large", "password": "correct horse battery"}, bearer=False
    )
    cookie = "Cookie: " + login.headers["set-cookie"].partition(";")[0]
    large = b"a" * (MIB * 3 // 2)
    for path in ("/api/v1/auth/refresh", "/api/v1/auth/logout"):
        assert_refused(target.post(path, large, cookie, bearer=False), 413)
    assert target.post("/api/v1/auth/refresh", b"", cookie, bearer=False).status == 200


def test_a_chunked_body_of_9_mib_is_413_too(target: Target) -> None:
    head = request("POST", "/api/v1/sse/dashboard", target.bearer, "Transfer-Encoding: chunked")
    with target.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(head + chunked(*[b"a" * 65536] * 144))
        with closing(HTTPResponse(connection)) as response:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            assert_refused(Answer(response.status, headers, response.read()), 413)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/api/v1/sse/dashboard", ["Authorization: Bearer nonsense", "Transfer-Encoding: chunked"], 401),
        ("/api/v1/sse", ["Transfer-Encoding: chunked"], 401),
        ("/api/v1/sse/dashboard", [f"Content-Length: {MIB}"], 401),
        ("/api/v1/sse/dashboard", [f"Content-Length: {MIB}", "Expect: 100-continue"], 401),
        ("/api/v1/auth/login", ["Origin: http://evil.example", "Content-Length: 9"], 403),
        ("/api/v1/auth/refresh", ["Origin: http://evil.example", "Transfer-Encoding: chunked"], 403),
    ],
)
def test_an_answer_before_the_body_has_come_says_that_the_connection_closes(
    target: Target, path: str, headers: list[str], status: int
) -> None:
    """What comes next on it is not read, and the client learns so from the answer (RFC 9112 §9.6)."""
    with target.connect(timeout=10) as connection:
        connection.sendall(request("POST", path, *headers))
        with closing(HTTPResponse(connection)) as response:
            response.begin()
            headers_back = {name.lower(): value for name, value in response.getheaders()}
            assert_refused(Answer(response.status, headers_back, response.read()), status)
        assert headers_back["connection"] == "close"
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "length", [str(MIB + 1), str(2 * MIB), str(200 * MIB), "9" * 18, "9" * 30, "9" * 5_000], ids=len
)
@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)], ids=["", "expect"])
def test_a_length_over_1_mib_is_413_before_any_of_the_body_is_sent(
    target: Target, length: str, more: tuple[str, ...]
) -> None:
    head = ("Connection: close", target.bearer, f"Content-Length: {length}", *more)
    assert_refused(target.send(request("POST", "/api/v1/sse/dashboard", *head)), 413)


def test_a_body_of_exactly_1_mib_is_published_delivered_live_and_replayed(target: Target) -> None:
    start = target.publish("user.large", {"event": "start", "data": {}}).json()["id"]
    with target.stream("user.large") as live:
        live.next("connected")
        answer = target.publish("user.large", body_of(MIB))
        assert answer.status == 201
        event = live.next()
        assert (event.type, event.id) == ("big", answer.json()["id"])
        assert len(event.json()["a"]) == MIB - 31
    with target.stream("user.large", f"&last_event_id={start}") as replay:
        assert [replay.next().type, replay.next().type] == ["connected", "big"]
        target.publish("user.large", {"event": "after", "data": {}})
        assert replay.next().type == "after"


@pytest.mark.parametrize(
    "framing",
    [b"zz\r\n", b"-1\r\n\r\n", b"ffffffffffffffffffff\r\n", b"5\r\nabc", b"3\r\nabcde\r\n0\r\n\r\n"],
)
def test_malformed_chunks_are_no_crash(target: Target, framing: bytes) -> None:
    head = request("POST", "/api/v1/sse/dashboard", target.bearer, "Transfer-Encoding: chunked")
    assert_4xx_or_nothing(target.raw(head + framing))


@pytest.mark.parametrize("length", ["-1", "+5", "abc", "5, 6", "1e3", "", "0x10", "5 5", "٣"])
def test_a_malformed_content_length_is_a_4xx(target: Target, length: str) -> None:
    head = request("POST", "/api/v1/sse/dashboard", target.bearer, f"Content-Length: {length}")
    assert_4xx_or_nothing(target.raw(head + b'{"event":"e","data":{}}'))


# HTTP itself


def assert_4xx_or_nothing(received: bytes) -> None:
    """Check an answer to what is hardly HTTP: a 4xx without a body will do, and so will a closed connection."""
    assert not received or re.match(rb"HTTP/1\.[01] 4\d\d ", received), received[:200]


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100 + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / FTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/v1/sse/dash board HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /nope HTTP/1.1\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: a/b?c\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: localhost\r\nNo colon\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: localhost\r\nX\xff: b\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /nope HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
        b"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde",
        b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET http://evil.example/nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET //[ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda data: repr(data[:50]),
)
def test_what_is_hardly_http_is_a_4xx_or_a_closed_connection(target: Target, data: bytes) -> None:
    assert_4xx_or_nothing(target.raw(data))


def test_clients_that_leave_in_the_middle_are_not_the_servers_trouble(target: Target) -> None:
    whole = request("POST", "/api/v1/sse/user.torn", target.bearer, body=b'{"event":"e","data":{}}')
    for cut in (1, 20, len(whole) // 2, len(whole) - 1):
        for abrupt in (True, False):
            with target.connect() as connection:
                connection.sendall(whole[:cut])
                if abrupt:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert target.stored("user.torn") == []
    stream = request("GET", f"/api/v1/sse/user.torn?token={target.stream_token}")
    for _ in range(10):
        with target.connect() as connection:
            connection.sendall(stream)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert target.publish("user.torn", {"event": "e", "data": {}}).status == 201


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTT",
        b"POST /nope HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n\r\n" + b"a" * 300_000,
    ],
)
def test_a_client_that_resets_its_connection_right_behind_a_part_of_a_request_leaves_nothing(
    target: Target, sent: bytes
) -> None:
    assert target.server.process is not None
    descriptors = Path(f"/proc/{target.server.process.pid}/fd")

    def count() -> int:
        return len(list(descriptors.iterdir()))

    before = count()
    for _ in range(30):
        with target.connect() as connection:
            connection.sendall(request("HEAD", "/healthz"))
            assert connection.recv(65536)
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: count() <= before, "all connections have ended", seconds=20)


def test_what_a_client_sends_behind_its_stream_request_does_not_disturb_the_stream(target: Target) -> None:
    first = request("GET", f"/api/v1/sse/user.piped?token={target.stream_token}")
    more = request("POST", "/api/v1/sse/user.piped", target.bearer, body=b'{"event":"smuggled","data":{}}')
    with target.connect() as connection:
        connection.sendall(first + more + b"\x00\xff rubbish \r\n\r\n" * 1_000)
        with closing(HTTPResponse(connection)) as response:
            response.begin()
            stream = Stream(response)
            assert stream.next().type == "connected"
            assert target.publish("user.piped", {"event": "e", "data": {}}).status == 201
            assert stream.next().type == "e"


def read_frame(file: BinaryIO) -> bytes:
    """Return the lines up to the next empty one; none at the end."""
    return b"".join(iter(file.readline, b"\n"))


def test_an_http_1_0_client_gets_the_same_bytes_unframed(target: Target) -> None:
    for headers in ((), ("Connection: keep-alive",), ("Connection: close",)):
        data = request("GET", f"/api/v1/sse/user.old?token={target.stream_token}", *headers, version="1.0")
        with target.connect() as connection, connection.makefile("rb") as file:
            connection.sendall(data)
            status = file.readline()
            assert re.match(rb"HTTP/1\.[01] 200 ", status)
            head = b"".join(iter(file.readline, b"\r\n")).lower()
            assert b"transfer-encoding" not in head
            assert b"content-length" not in head
            assert b"content-type: text/event-stream" in head
            assert re.fullmatch(rb"retry: ?\d+\n", file.readline())
            frames = iter(partial(read_frame, file), b"")
            assert b'"client_id"' in next(frames)
            made = target.publish("user.old", {"event": "e", "data": {"n": 1}}).json()["id"]
            lines = next(frame for frame in frames if b"event: ping" not in frame).decode().splitlines()
            assert {line.partition(":")[0] for line in lines} == {"id", "event", "data"}
            assert f"id: {made}" in lines


def test_an_http_1_0_client_gets_its_errors_too(target: Target) -> None:
    for path, status in (("/api/v1/sse/dashboard", 401), ("/api/v1/sse/BAD", 400), ("/nope", 404)):
        assert_refused(target.send(request("GET", path, version="1.0")), status)
    body = body_of(MIB * 3 // 2)
    answer = target.send(request("POST", "/api/v1/sse/dashboard", target.bearer, body=body, version="1.0"))
    assert_refused(answer, 413)


def test_a_stream_has_the_headers_of_the_contract(target: Target) -> None:
    with target.stream("dashboard") as stream:
        for name, value in {
            "content-type": "text/event-stream",
            "cache-control": "no-store, no-transform",
            "x-accel-buffering": "no",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }.items():
            assert stream.headers[name].partition(";")[0] == value
        assert "content-encoding" not in stream.headers
