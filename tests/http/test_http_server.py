"""The HTTP server, byte by byte over real sockets: framing, order, limits, timeouts, and its pauses."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import random
import re
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tornado import httputil, web
from tornado.httpserver import HTTPServer as TornadosServer
from tornado.iostream import StreamClosedError
from tornado.testing import bind_unused_port

from sse_app.core.counters import ConnectionCounts
from sse_app.http import connection as connection_module
from sse_app.http import server as server_module
from sse_app.http.connection import READ_AHEAD
from sse_app.http.deadlines import Deadlines
from sse_app.http.server import HTTPServer
from sse_app.process import tuning
from tests.support.waiting import until_async

GET = b"GET /echo?a=b HTTP/1.1\r\nHost: here\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: here\r\nContent-Length: 12\r\n\r\nhello\r\n\r\nyou"
CHUNKED = (
    b"PUT /echo HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;a=b;c="d"\r\nhello\r\n6\r\n\r\n\r\nyo\r\n0\r\nTrailer: x\r\n\r\n'
)
EMPTY_CHUNKED = b"PUT /echo HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
ABSOLUTE = b"GET http://there:81/echo?x HTTP/1.1\r\nHost: here\r\n\r\n"
LINES_FIRST = b"\r\n\r\n\r\n" + GET
HEAD = b"HEAD /echo HTTP/1.1\r\nHost: here\r\n\r\n"
LAST = b"GET /echo HTTP/1.0\r\n\r\n"


class Echo(web.RequestHandler):
    """Answers with what it was asked."""

    def prepare(self) -> None:
        self.set_header("Content-Type", "application/json")

    def get(self) -> None:
        request = self.request
        answer = {
            "method": request.method,
            "uri": request.uri,
            "host": request.host,
            "version": request.version,
            "body": request.body.decode("latin-1"),
            "x": request.headers.get_list("X"),
            "address": request.remote_ip,
        }
        self.write(json.dumps(answer))

    head = post = put = patch = delete = options = get


class Marking(web.RequestHandler):
    """Answers with the header X and the body that it was sent, and changes the headers of its request."""

    def post(self) -> None:
        headers = self.request.headers
        self.write(json.dumps([headers.get_list("X"), self.request.body.decode()]))
        headers.add("X", "of the handler")
        headers["Content-Length"] = "1"
        del headers["Host"]


@web.stream_request_body
class Slow(web.RequestHandler):
    """Answers when a test lets it, and takes its body as a test lets it."""

    begun: list[Slow]
    may_answer: asyncio.Event
    may_read: asyncio.Event

    def initialize(self) -> None:
        self.begun.append(self)
        self.received = 0
        self.gone = asyncio.Event()
        self.failed: BaseException | None = None
        connection: Any = self.request.connection
        connection.set_max_body_size(1 << 30)

    async def data_received(self, chunk: bytes) -> None:
        self.received += len(chunk)
        await self.may_read.wait()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self.gone.set()

    async def get(self) -> None:
        await self.may_answer.wait()
        self.write(f"{self.request.uri} {self.received}")

    post = get


class Early(Slow):
    """Answers before it has seen the body."""

    async def prepare(self) -> None:
        *_, how = self.request.path.split("/")
        self.set_status(int(how) if how.isdigit() else 403)
        if how == "pieces":
            self.write("n")
            await self.flush()
        self.finish(None if how.isdigit() else "no")


class Pieces(web.RequestHandler):
    """Answers in pieces of a length that is not told."""

    async def get(self) -> None:
        for piece in (b"one", b"two", b"three"):
            self.write(piece)
            await self.flush()


class Statuses(web.RequestHandler):
    """Answers with the status that is asked for."""

    def get(self, status: str) -> None:
        self.set_status(int(status))
        if status not in ("204", "304"):
            self.write("body")


class Closing(web.RequestHandler):
    """Wants the connection closed."""

    def get(self) -> None:
        self.set_header("Connection", "close")
        self.write("bye")


class Large(web.RequestHandler):
    """Answers with more than sockets hold."""

    SIZE = 16 * 1024 * 1024
    future: asyncio.Future[None]

    async def get(self) -> None:
        self.write(b"a" * self.SIZE)
        type(self).future = asyncio.ensure_future(self.flush())
        await type(self).future


@web.stream_request_body
class Detaching(web.RequestHandler):
    """Takes the socket once it has the body, as a stream does."""

    detached: list[socket.socket]

    def data_received(self, chunk: bytes) -> None:
        pass

    def post(self) -> None:
        connection: Any = self.request.connection
        self.detached.append(connection.detach())


class Wrong(web.RequestHandler):
    """Says one length and writes another."""

    async def get(self, length: str) -> None:
        self.set_header("Content-Length", length)
        self.write(b"abc")
        await self.flush()


@pytest.fixture
def slow(io_loop: object) -> type[Slow]:
    Slow.begun = []
    Slow.may_answer = asyncio.Event()
    Slow.may_read = asyncio.Event()
    Slow.may_read.set()
    return Slow


def application() -> web.Application:
    return web.Application(
        [
            ("/echo", Echo),
            ("/marking", Marking),
            ("/slow[0-9]?", Slow),
            ("/early.*", Early),
            ("/pieces", Pieces),
            ("/status/([0-9]+)", Statuses),
            ("/closing", Closing),
            ("/large", Large),
            ("/wrong/([0-9]+)", Wrong),
            ("/detaching", Detaching),
        ],
        log_function=lambda handler: None,
    )


@asynccontextmanager
async def serving(
    delegate: httputil.HTTPServerConnectionDelegate | None = None, **options: Any
) -> AsyncIterator[tuple[HTTPServer, int]]:
    bound, port = bind_unused_port()
    server = HTTPServer(delegate or application(), **options)
    server.add_sockets([bound])
    try:
        yield server, port
    finally:
        await server.close_all_connections()


class Response(NamedTuple):
    status: int
    headers: httputil.HTTPHeaders
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection to a server, whose answers it reads strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def response(self, method: str = "GET") -> Response:
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, _, rest = head.partition("\r\n")
            start_line = httputil.parse_response_start_line(line)
            assert start_line.version == "HTTP/1.1"
            headers = httputil.HTTPHeaders.parse(rest)
            if method == "HEAD" or start_line.code in (204, 304) or start_line.code < 200:
                body = b""
            elif headers.get("Transfer-Encoding") == "chunked":
                assert "Content-Length" not in headers
                body = b""
                while size := int((await self.reader.readuntil(b"\r\n"))[:-2], 16):
                    body += (await self.reader.readexactly(size + 2))[:-2]
                assert await self.reader.readexactly(2) == b"\r\n"
            elif "Content-Length" in headers:
                body = await self.reader.readexactly(int(headers["Content-Length"]))
            else:
                body = await self.reader.read()
        return Response(start_line.code, headers, body)

    async def is_closed(self, seconds: float = 5) -> bool:
        """Return whether the server closes now, with nothing more to say."""
        try:
            return await asyncio.wait_for(self.reader.read(1), seconds) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    async def is_open(self) -> bool:
        self.send(GET)
        return (await self.response()).status == 200


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):  # it was reset
            await writer.wait_closed()


async def a_few_turns() -> None:
    """Let the server read and handle what was sent: both are in this event loop."""
    for _ in range(12):
        await asyncio.sleep(0)


# -- requests in pieces -----------------------------------------------------------------------------------------


def echo(**expected: object) -> dict[str, object]:
    return {
        "method": "GET",
        "uri": "/echo?a=b",
        "host": "here",
        "version": "HTTP/1.1",
        "body": "",
        "x": [],
        "address": "127.0.0.1",
        **expected,
    }


ECHOES = {
    GET: echo(),
    POST: echo(method="POST", uri="/echo", body="hello\r\n\r\nyou"),
    CHUNKED: echo(method="PUT", uri="/echo", body="hello\r\n\r\nyo"),
    EMPTY_CHUNKED: echo(method="PUT", uri="/echo"),
    ABSOLUTE: echo(uri="/echo?x", host="there:81"),
    LINES_FIRST: echo(),
    LAST: echo(uri="/echo", host="127.0.0.1", version="HTTP/1.0"),
}
NAMES = ["get", "post", "chunked", "empty chunked", "absolute", "empty lines first", "1.0"]


@pytest.mark.parametrize(("request_", "expected"), ECHOES.items(), ids=NAMES)
@pytest.mark.gen_test
async def test_a_request_means_the_same_wherever_it_is_cut(
    request_: bytes, expected: dict[str, object]
) -> None:
    async with serving() as (_, port):
        for cut in range(1, len(request_)):
            async with connected(port) as client:
                client.send(request_[:cut])
                await a_few_turns()
                client.send(request_[cut:])
                answer = await client.response()
                assert (answer.status, answer.json()) == (200, expected), cut


@pytest.mark.gen_test
async def test_a_request_with_the_head_of_one_before_means_what_it_says_by_itself() -> None:
    def request(x: str, length: int = 3) -> bytes:
        return f"POST /marking HTTP/1.1\r\nHost: here\r\nX: {x}\r\nContent-Length: {length}\r\n\r\n".encode()

    one, two, long = "a" * 9, "b" * 9, "c" * 2 * connection_module.LONGEST_HEAD_REMEMBERED
    sent = [
        (one, "1st"),
        (one, "2nd"),
        (two, "3rd"),
        (two, "4th"),
        (one, "5th"),
        (long, "6th"),
        (long, "7th"),
    ]
    async with serving() as (_, port), connected(port) as client:
        for x, body in sent:
            client.send(request(x) + body.encode())
            assert (await client.response()).json() == [[x], body]
        client.send(request(long).replace(b"POST", b"PUT") + b"8th")
        assert (await client.response()).status == 405
        client.send(b"".join(request(x) + body.encode() for x, body in sent))
        for x, body in sent:
            assert (await client.response()).json() == [[x], body]
        client.send(request(long) + b"9th" + request(long, 4) + b"10th")
        assert (await client.response()).json() == [[long], "9th"]
        assert (await client.response()).json() == [[long], "10th"]
        client.send(request(long).replace(b"Host: here", b"Host : here") + b"not")
        assert (await client.response()).status == 400
        assert await client.is_closed()


PIPELINE = [GET, CHUNKED, POST, LINES_FIRST, EMPTY_CHUNKED, ABSOLUTE, GET, POST, LAST]


async def assert_pipeline_is_answered(client: Client) -> None:
    for request in PIPELINE:
        answer = await client.response()
        assert (answer.status, answer.json()) == (200, ECHOES[request])
    assert await client.is_closed()


@pytest.mark.gen_test
async def test_pipelined_requests_are_answered_in_order(io_loop: object) -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(b"".join(PIPELINE))
        await assert_pipeline_is_answered(client)


@pytest.mark.gen_test
async def test_pipelined_requests_may_come_byte_by_byte() -> None:
    async with serving() as (_, port), connected(port) as client:
        for byte in b"".join(PIPELINE):
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        await assert_pipeline_is_answered(client)


@pytest.mark.gen_test
async def test_pipelined_requests_may_come_in_any_pieces() -> None:
    sent = b"".join(PIPELINE)
    chance = random.Random(12)
    async with serving() as (_, port):
        for _ in range(60):
            cuts = sorted(chance.sample(range(1, len(sent)), chance.randint(1, 12)))
            async with connected(port) as client:
                for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
                    client.send(sent[start:end])
                    await asyncio.sleep(0)
                await assert_pipeline_is_answered(client)


@pytest.mark.gen_test
async def test_a_pipelined_request_waits_until_the_one_before_is_answered(slow: type[Slow]) -> None:
    async with serving() as (server, port), connected(port) as client:
        client.send(b"".join(b"GET /slow%d HTTP/1.1\r\nHost: here\r\n\r\n" % n for n in range(3)))
        await until_async(lambda: slow.begun, "the request is under way")
        await a_few_turns()
        assert len(slow.begun) == 1
        assert server.under_way == (1, 0)
        slow.may_answer.set()
        for n in range(3):
            assert (await client.response()).body == b"/slow%d 0" % n
        assert server.under_way == (0, 0)


@pytest.mark.slow
@pytest.mark.gen_test
async def test_many_pipelined_requests_that_nothing_answers_but_tornado_itself_do_not_exhaust_the_stack() -> (
    None
):
    async with (
        serving(web.Application(log_function=lambda handler: None)) as (_, port),
        connected(port) as client,
    ):
        client.send(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n" * 2000)
        for _ in range(2000):
            assert (await client.response()).status == 404


@pytest.mark.gen_test
async def test_many_empty_lines_are_read_over_in_little_time() -> None:
    async with serving() as (_, port), connected(port) as client:
        begun = time.thread_time()
        client.send(b"\r\n" * 2_000_000 + GET)
        assert (await client.response()).json() == echo()
        assert time.thread_time() - begun < 2  # longer if each costs a copy of the rest


@pytest.mark.gen_test
async def test_a_client_that_sends_ahead_is_read_only_so_far(slow: type[Slow]) -> None:
    async with serving() as (_, port):
        with closing(socket.create_connection(("127.0.0.1", port))) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sock.setblocking(False)
            sock.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
            await until_async(lambda: slow.begun, "the request is under way")
            assert await flood(sock, 64 * 1024 * 1024) < 16 * 1024 * 1024  # what sockets hold


async def flood(sock: socket.socket, most: int) -> int:
    """Send as long as the server reads, and return how much that was."""
    sent, stalled = 0, 0
    piece = b"a" * 65536
    while sent < most and stalled < 20:
        try:
            sent += sock.send(piece)
            stalled = 0
        except BlockingIOError:
            stalled += 1
            await asyncio.sleep(0.005)
    return sent


# -- what the connection is good for afterwards ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "connection", "path", "kept"),
    [
        ("1.1", None, "/echo", True),
        ("1.1", "keep-alive", "/echo", True),
        ("1.1", "close", "/echo", False),
        ("1.1", "Close", "/echo", False),
        ("1.1", "TE, close", "/echo", False),
        ("1.1", "Upgrade, HTTP2-Settings", "/echo", True),
        ("1.1", None, "/pieces", True),
        ("1.1", None, "/closing", False),
        ("1.1", None, "/status/204", True),
        ("1.1", None, "/status/304", True),
        ("1.1", None, "/status/404", True),
        ("1.0", None, "/echo", False),
        ("1.0", "close", "/echo", False),
        ("1.0", "keep-alive", "/echo", True),
        ("1.0", "Keep-Alive", "/echo", True),
        ("1.0", "keep-alive", "/pieces", False),
        ("1.0", "keep-alive", "/closing", False),
        ("1.0", "keep-alive", "/status/304", True),
    ],
)
@pytest.mark.gen_test
async def test_a_connection_is_kept_as_rfc_9112_says(
    version: str, connection: str | None, path: str, kept: bool
) -> None:
    header = f"Connection: {connection}\r\n" if connection else ""
    async with serving() as (_, port), connected(port) as client:
        client.send(f"GET {path} HTTP/{version}\r\nHost: here\r\n{header}\r\n".encode())
        answer = await client.response()
        said = answer.headers.get("Connection", "").lower()
        if path == "/pieces":
            assert answer.body == b"onetwothree"
            assert ("Transfer-Encoding" in answer.headers) == (version == "1.1")
        if kept:
            assert said == ("keep-alive" if version == "1.0" else "")
            assert await client.is_open()
        else:
            assert said == "close"
            assert await client.is_closed()


@pytest.mark.gen_test
async def test_a_head_request_is_answered_without_a_body() -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(HEAD + GET)
        answer = await client.response("HEAD")
        assert int(answer.headers["Content-Length"]) > 0
        assert (await client.response()).json() == echo()
        client.send(HEAD.replace(b"/echo", b"/pieces"))
        assert (await client.response("HEAD")).status == 405
        assert await client.is_open()


@pytest.mark.parametrize("end", ["before", "within", "after"])
@pytest.mark.gen_test
async def test_a_client_that_ends_its_side_is_answered_and_then_closed(slow: type[Slow], end: str) -> None:
    async with serving() as (_, port), connected(port) as client:
        sent = b"POST /slow HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc"
        if end == "after":
            client.send(sent)
            await until_async(lambda: slow.begun, "the request is under way")
            client.writer.write_eof()
        else:
            client.send(sent + (b"GET" if end == "within" else b""))
            client.writer.write_eof()
            await until_async(lambda: slow.begun, "the request is under way")
        await a_few_turns()
        slow.may_answer.set()
        assert (await client.response()).body == b"/slow 3"
        assert await client.is_closed()
        assert not slow.begun[0].gone.is_set()


@pytest.mark.gen_test
async def test_all_pipelined_requests_of_a_client_that_ends_its_side_are_answered() -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(GET * 20 + POST)
        client.writer.write_eof()
        for request in [GET] * 20 + [POST]:
            assert (await client.response()).json() == ECHOES[request]
        assert await client.is_closed()


@pytest.mark.parametrize("cut", [1, 30, -1])
@pytest.mark.gen_test
async def test_a_client_that_ends_within_a_request_is_closed(cut: int) -> None:
    async with serving() as (server, port), connected(port) as client:
        client.send(POST[:cut])
        client.writer.write_eof()
        assert await client.is_closed()
        assert list(server.idle()) == []
        assert server.under_way == (0, 0)


# -- bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_that_waits_for_100_gets_it() -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(POST[: POST.index(b"\r\n\r\n")] + b"\r\nExpect: 100-Continue\r\n\r\n")
        assert (await client.response()).status == 100
        client.send(b"hello\r\n\r\nyou")
        assert (await client.response()).json() == ECHOES[POST]
        assert await client.is_open()


@pytest.mark.gen_test
async def test_no_100_is_sent_where_the_body_has_come_or_the_version_is_1_0_or_the_answer_is_no(
    slow: type[Slow],
) -> None:
    head, _, body = POST.partition(b"\r\n\r\n")
    expecting = head + b"\r\nExpect: 100-continue\r\n\r\n"
    async with serving() as (_, port):
        for sent, status in (
            (expecting + body, 200),
            (expecting.replace(b"1.1", b"1.0") + body, 200),
            (expecting.replace(b"/echo", b"/early"), 403),
        ):
            async with connected(port) as client:
                client.send(sent)
                assert (await client.response()).status == status


@pytest.mark.gen_test
async def test_a_socket_is_given_away_only_after_its_100_is_sent() -> None:
    Detaching.detached = []
    most = 0
    async with serving() as (server, _):
        with closing(unread(server)) as client:
            while server.under_way == (0, 0):
                most += 1
                client.send(GET)
                await a_few_turns()
        await until_async(lambda: not list(server.idle()), "the connection has ended")
        with closing(unread(server)) as client:
            for _ in range(most - 1):
                client.send(GET)
                await a_few_turns()
            assert server.under_way == (0, 0)  # the socket has accepted all answers, and accepts no more
            head = b"POST /detaching HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n"
            client.send(head + b"Expect: 100-continue\r\n\r\n")
            await a_few_turns()
            client.send(b"abc")
            await a_few_turns()
            assert Detaching.detached == []
            received = client.recv(1 << 20)
            await until_async(lambda: Detaching.detached, "the socket is given away")
            received += client.recv(1 << 20)
            assert received.endswith(b"HTTP/1.1 100 Continue\r\n\r\n")
            Detaching.detached[0].close()


def unread(server: HTTPServer) -> socket.socket:
    """Return a client's socket whose other end is the server's, and holds little that is not read."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    theirs.setblocking(False)
    server.adopt(ours, b"")
    return theirs


@pytest.mark.gen_test
async def test_a_body_that_the_handler_does_not_wait_for_ends_the_connection(slow: type[Slow]) -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 300000\r\n\r\n")
        client.send(b"a" * 100_000)
        answer = await client.response()
        assert (answer.status, answer.body) == (403, b"no")
        assert answer.headers["Connection"] == "close"
        client.send(b"a" * 200_000 + GET)
        assert await client.is_closed()
        assert slow.begun[0].received == 0


@pytest.mark.parametrize("path", ["/early", "/early/204", "/early/pieces", "/early/304"])
@pytest.mark.parametrize("method", ["POST", "HEAD"])
@pytest.mark.parametrize(
    "body",
    [
        ("Content-Length: 5", b""),
        ("Content-Length: 5", b"ab"),
        ("Content-Length: 5", b"abcde"),
        ("Transfer-Encoding: chunked", b""),
        ("Transfer-Encoding: chunked", b"3\r\nab"),
        ("Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
    ],
)
@pytest.mark.gen_test
async def test_an_answer_to_a_request_whose_body_will_not_be_read_says_that_the_connection_closes(
    slow: type[Slow], body: tuple[str, bytes], method: str, path: str
) -> None:
    """RFC 9112 §9.6; but for one that is told in pieces: the body may be complete before the last of them."""
    framing, sent = body
    async with serving() as (_, port), connected(port) as client:
        client.send(f"{method} {path} HTTP/1.1\r\nHost: here\r\n{framing}\r\n\r\n".encode() + sent + GET)
        answer = await client.response(method)
        if path != "/early/pieces" or method == "HEAD":
            assert answer.headers.get_list("Connection") == ["close"]
        assert await client.is_closed()


@pytest.mark.gen_test
async def test_an_answer_to_a_request_without_a_body_does_not_say_so(slow: type[Slow]) -> None:
    async with serving() as (_, port), connected(port) as client:
        for framing in ("", "Content-Length: 0\r\n"):
            client.send(f"POST /early HTTP/1.1\r\nHost: here\r\n{framing}\r\n".encode())
            answer = await client.response()
            assert (answer.status, "Connection" in answer.headers) == (403, False)
        client.send(
            b"POST /early HTTP/1.0\r\nHost: here\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\n"
        )
        assert (await client.response()).headers.get_list("Connection") == ["close"]
        assert await client.is_closed()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.gen_test
async def test_a_body_is_read_no_faster_than_the_handler_takes_it(slow: type[Slow], chunked: bool) -> None:
    slow.may_read.clear()
    size = 64 * 1024 * 1024
    async with serving() as (_, port):
        with closing(socket.create_connection(("127.0.0.1", port))) as sock:
            sock.setblocking(False)
            framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
            sock.send(b"POST /slow HTTP/1.1\r\nHost: here\r\n%s\r\n\r\n" % framing)
            if chunked:
                sock.send(b"%x\r\n" % size)
            sent = await flood(sock, size)
            assert sent < 16 * 1024 * 1024  # what sockets hold
            (handler,) = slow.begun
            assert 0 < handler.received <= READ_AHEAD
            slow.may_read.set()
            sent += await flood(sock, size - sent) if sent < size else 0
            await until_async(lambda: handler.received >= sent - 8 * 1024 * 1024, "the body has been taken")
            assert sent >= size


@pytest.mark.gen_test
async def test_a_body_is_limited_by_the_server_where_the_handler_sets_no_limit() -> None:
    async with serving(max_body_size=10) as (_, port):
        for sent in (POST, CHUNKED):
            async with connected(port) as client:
                client.send(sent)
                assert_refused(await client.response(), 413, "too_large")
                assert await client.is_closed()
        async with connected(port) as client:
            client.send(POST.replace(b": 12", b": 10"))
            assert (await client.response()).status == 200


@pytest.mark.parametrize(
    ("query", "fields", "status"),
    [(128, 1, 200), (129, 1, 400), (1, 127, 200), (1, 128, 431), (1, 2400, 431)],
)
@pytest.mark.gen_test
async def test_a_head_has_at_most_128_fields_and_128_parameters(query: int, fields: int, status: int) -> None:
    """Beside these there is ``Host``."""
    async with serving() as (_, port), connected(port) as client:
        target = b"&".join(b"a%d=" % number for number in range(query))
        lines = b"".join(b"X-%d: a\r\n" % number for number in range(fields))
        client.send(b"GET /echo?%s HTTP/1.1\r\nHost: here\r\n%s\r\n" % (target, lines))
        assert (await client.response()).status == status


@pytest.mark.gen_test
async def test_a_client_that_goes_within_its_body_is_told_to_the_handler(slow: type[Slow]) -> None:
    async with serving() as (server, port):
        for abrupt in (False, True):
            async with connected(port) as client:
                client.send(b"POST /slow HTTP/1.1\r\nHost: here\r\nContent-Length: 30\r\n\r\nabc")
                await until_async(
                    lambda: slow.begun and slow.begun[-1].received == 3, "three bytes have been taken"
                )
                assert server.under_way == (0, 1)
                reset(client) if abrupt else client.writer.write_eof()
                async with asyncio.timeout(5):
                    await slow.begun[-1].gone.wait()
            assert server.under_way == (0, 0)
            slow.begun.clear()


def reset(client: Client) -> None:
    """Go without a word: the other side is told with a reset."""
    sock = client.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()


# -- responses ------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_that_goes_while_it_is_answered_is_told_to_the_handler(slow: type[Slow]) -> None:
    async with serving() as (server, port), connected(port) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        await until_async(lambda: slow.begun, "the request is under way")
        reset(client)
        async with asyncio.timeout(5):
            await slow.begun[0].gone.wait()
        (handler,) = slow.begun
        with pytest.raises(StreamClosedError):
            await handler.flush()
        assert server.under_way == (0, 0)
        slow.may_answer.set()
        await a_few_turns()


def test_a_client_that_resets_right_behind_its_request_keeps_no_connection(slow: type[Slow]) -> None:
    """On the event loop of a server, which tells of a reset but once."""
    with asyncio.Runner(loop_factory=tuning.loop_factory()) as runner:
        runner.run(reset_behind_a_request(slow))


async def reset_behind_a_request(slow: type[Slow]) -> None:
    """Have the reset be there when the request is read, and its handler not waited for if it has begun."""
    counts = ConnectionCounts()
    async with serving(counts=counts) as (server, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.setblocking(False)
            client.send(b"GET /echo HTTP/1.1\r\nHost: here\r\n\r\n")
            assert await asyncio.get_running_loop().sock_recv(client, 65536)
            assert counts.open == 1
            client.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await until_async(lambda: counts.open == 0, "the connection has ended")
        assert server.under_way == (0, 0)
        await a_few_turns()
        assert all(handler.gone.is_set() for handler in slow.begun)
        slow.may_answer.set()
        await a_few_turns()


@pytest.mark.gen_test
async def test_a_write_is_done_when_the_socket_has_taken_it() -> None:
    async with serving() as (server, port), connected(port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
        await until_async(lambda: hasattr(Large, "future"), "the answer is under way")
        await asyncio.sleep(0.05)
        assert not Large.future.done()
        assert server.under_way == (1, 0)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len((await client.response()).body) == Large.SIZE
        assert Large.future.done()
        assert await client.is_open()
    del Large.future


@pytest.mark.expects_logs("Uncaught", "Cannot send error response")
@pytest.mark.gen_test
async def test_a_write_fails_when_the_client_goes_in_the_middle_of_it() -> None:
    async with serving() as (_, port), connected(port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
        await until_async(lambda: hasattr(Large, "future"), "the answer is under way")
        await asyncio.sleep(0.05)
        reset(client)
        with pytest.raises(StreamClosedError):
            await asyncio.wait_for(asyncio.shield(Large.future), 5)
    del Large.future


@pytest.mark.expects_logs("Uncaught", "Cannot send error response")
@pytest.mark.gen_test
async def test_a_client_that_reads_nothing_is_cut_off_and_one_that_reads_slowly_is_not() -> None:
    async with serving(send_timeout=4, max_unread_bytes=3 * Large.SIZE) as (server, _):
        large = b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n"
        with closing(unread(server)) as none, closing(unread(server)) as slowly:
            none.send(large)
            slowly.send(large)
            for _ in range(100):  # for longer than that
                await asyncio.sleep(0.05)
                assert slowly.recv(4096)
            await until_async(lambda: server.under_way == (1, 0), "one is cut off")
            await asyncio.sleep(0.05)
            assert slowly.recv(4096)
    del Large.future


@pytest.mark.expects_logs("Uncaught", "Cannot send error response")
@pytest.mark.gen_test
async def test_where_responses_wait_for_too_many_clients_those_that_have_read_nothing_longest_are_cut_off() -> (
    None
):
    async with serving(max_unread_bytes=4 * Large.SIZE) as (server, _), AsyncExitStack() as stack:
        clients = [stack.enter_context(closing(unread(server))) for _ in range(5)]
        for number, client in enumerate(clients):
            client.send(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
            if (
                number == 3
            ):  # the first has been read from meanwhile, so that the second was cut off for the fourth
                await until_async(lambda: server.under_way == (3, 0), "one is cut off")
            if number == 2:
                await until_async(lambda: server.under_way == (3, 0), "three are answered")
                first = next(iter(server.sending))
                while next(iter(server.sending)) is first:
                    with suppress(BlockingIOError):
                        clients[0].recv(4096)
                    await a_few_turns()
        await until_async(lambda: server.under_way == (3, 0), "another is cut off")
        await a_few_turns()
        assert [ended(client) for client in clients] == [False, True, True, False, False]
    del Large.future


def ended(client: socket.socket) -> bool:
    """Read what the socket has; return whether the end of the connection comes then."""
    try:
        while client.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.expects_logs("Uncaught", "Cannot send error response")
@pytest.mark.gen_test
async def test_a_response_of_another_length_than_it_says_ends_the_connection(length: int) -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(b"GET /wrong/%d HTTP/1.1\r\nHost: here\r\n\r\n" % length + GET)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            await client.response()


class Raw(httputil.HTTPServerConnectionDelegate, httputil.HTTPMessageDelegate):
    """An application that does to the connection what a test says."""

    def __init__(self, act: Callable[[httputil.HTTPConnection], object]) -> None:
        self.act = act
        self.ended = 0

    def start_request(
        self, server_conn: object, request_conn: httputil.HTTPConnection
    ) -> httputil.HTTPMessageDelegate:
        self.connection = request_conn
        return self

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> Awaitable[None] | None:
        self.act(self.connection)
        return None

    def on_close(self, server_conn: object) -> None:
        self.ended += 1


OK = httputil.ResponseStartLine("", 200, "OK")


@pytest.mark.parametrize("value", ["a\r\nB: c", "a\nB: c", "a\rb"])
@pytest.mark.expects_logs("uncaught")
@pytest.mark.gen_test
async def test_a_header_that_would_forge_others_is_refused(value: str) -> None:
    def act(connection: httputil.HTTPConnection) -> None:
        headers = httputil.HTTPHeaders()
        headers["A"] = value
        with pytest.raises(ValueError, match="CR or LF"):
            connection.write_headers(OK, headers)
        raise RuntimeError("then there is no answer")

    delegate = Raw(act)
    async with serving(delegate) as (_, port), connected(port) as client:
        client.send(GET)
        assert await client.is_closed()
    assert delegate.ended == 1


@pytest.mark.gen_test
async def test_a_response_that_is_finished_without_a_head_ends_the_connection() -> None:
    def act(connection: httputil.HTTPConnection) -> None:
        with suppress(ValueError):  # as Tornado's handlers do, which finish in any case
            connection.write_headers(OK, httputil.HTTPHeaders({"Price": "1 €"}))
        connection.finish()

    delegate = Raw(act)
    async with serving(delegate) as (_, port), connected(port) as client:
        client.send(GET)
        assert await client.is_closed()
    assert delegate.ended == 1


@pytest.mark.gen_test
async def test_nothing_can_be_written_to_a_response_that_is_complete() -> None:
    kept = []

    def act(connection: httputil.HTTPConnection) -> None:
        kept.append(connection)
        connection.write_headers(OK, httputil.HTTPHeaders({"Content-Length": "2"}), b"ok")
        connection.finish()

    async with serving(Raw(act)) as (_, port), connected(port) as client:
        client.send(GET)
        assert (await client.response()).body == b"ok"
        with pytest.raises(StreamClosedError):
            await kept[0].write(b"forged")
        with pytest.raises(StreamClosedError):
            await kept[0].write_headers(OK, httputil.HTTPHeaders())
        kept[0].finish()
        client.send(GET)
        assert (await client.response()).body == b"ok"


@pytest.mark.gen_test
async def test_a_socket_can_be_taken_over_and_the_server_forgets_it() -> None:
    taken = []
    delegate = Raw(lambda connection: taken.append(connection.detach()))  # type: ignore[attr-defined]
    async with serving(delegate) as (server, port), connected(port) as client:
        client.send(GET + b"more")
        await until_async(lambda: taken, "the connection is taken over")
        (sock,) = taken
        assert delegate.ended == 1
        await server.close_all_connections()
        client.send(b"and more")
        await until_async(lambda: has_bytes(sock), "the bytes have arrived")
        assert sock.recv(100) == b"and more"
        sock.send(b"hello")
        assert await client.reader.readexactly(5) == b"hello"
        sock.close()
        assert await client.is_closed()


def has_bytes(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


# -- what is hardly HTTP ------------------------------------------------------------------------------------------


def assert_refused(answer: Response, status: int, code: str) -> None:
    assert answer.status == status, answer
    assert answer.json()["error"]["code"] == code
    assert set(answer.json()["error"]) == {"code", "message"}
    for name, value in {
        "Content-Type": "application/json",
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Connection": "close",
    }.items():
        assert answer.headers[name] == value
    assert "Date" in answer.headers
    assert "Server" not in answer.headers


def with_header(line: bytes, request: bytes = GET) -> bytes:
    return request.replace(b"Host: here\r\n", b"Host: here\r\n" + line + b"\r\n")


MALFORMED = {
    "no spaces": b"GET\r\n\r\n",
    "empty lines in LF first": b"\n" + GET,
    "empty lines in CR LF and LF first": b"\r\n\n" + GET,
    "empty lines in CR first": b"\r\n\r\r\n" + GET,
    "no version": GET.replace(b" HTTP/1.1", b""),
    "another version": GET.replace(b"1.1", b"1.2"),
    "HTTP/2": GET.replace(b"1.1", b"2.0"),
    "HTTP/0.9": GET.replace(b"1.1", b"0.9"),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": GET.replace(b"HTTP", b"RTSP"),
    "two spaces before": GET.replace(b"GET ", b"GET  "),
    "two spaces behind": GET.replace(b" HTTP", b"  HTTP"),
    "space first": b" " + GET,
    "tab": GET.replace(b" /", b"\t/"),
    "no method": GET.replace(b"GET", b""),
    "no token as method": GET.replace(b"GET", b"G:T"),
    "control character": GET.replace(b"?a", b"?\x01"),
    "beyond ASCII": GET.replace(b"?a", b"?\xe4"),
    "relative target": GET.replace(b"/echo", b"echo"),
    "absolute without a host": GET.replace(b"/echo", b"http:///echo"),
    "absolute with a user": GET.replace(b"/echo", b"http://me@here/echo"),
    "absolute with a bad host": GET.replace(b"/echo", b"http://[/echo"),
    "absolute of another scheme": GET.replace(b"/echo", b"ftp://here/echo"),
    "no host": GET.replace(b"Host: here\r\n", b""),
    "no host, absolute": ABSOLUTE.replace(b"Host: here\r\n", b""),
    "two hosts": with_header(b"Host: here"),
    "two hosts in one": GET.replace(b"here", b"here,there"),
    "a port that is none": GET.replace(b"here", b"here:100000"),
    "a port that no number holds": GET.replace(b"here", b"here:" + b"9" * 5000),
    "absolute with a port that is none": ABSOLUTE.replace(b":81", b":" + b"9" * 5000),
    "bad host": GET.replace(b"here", b"he/re"),
    "bare LF everywhere": GET.replace(b"\r\n", b"\n"),
    "bare LF once": GET.replace(b"here\r\n", b"here\n"),
    "bare LF in a header": with_header(b"X: a\nY: b"),
    "bare LF, and another request": GET.replace(b"here\r\n", b"here\n\n") + GET,
    "bare CR": with_header(b"X: a\rY: b"),
    "folded": with_header(b"X: a\r\n b"),
    "folded first": GET.replace(b"Host", b" Host"),
    "no colon": with_header(b"X"),
    "empty name": with_header(b": a"),
    "space before the colon": with_header(b"X : a"),
    "NUL": with_header(b"X: a\0b"),
    "DEL": with_header(b"X: \x7f"),
    "beyond ASCII in a name": with_header(b"X\xff: a"),
    "length and chunks": with_header(b"Content-Length: 5", CHUNKED),
    "chunks and length": with_header(b"Transfer-Encoding: chunked", POST),
    "two lengths": with_header(b"Content-Length: 13", POST),
    "two lengths in one": POST.replace(b": 12", b": 12, 13"),
    "signed length": POST.replace(b": 12", b": +12"),
    "negative length": POST.replace(b": 12", b": -1"),
    "hexadecimal length": POST.replace(b": 12", b": 0xc"),
    "length of other digits": POST.replace(b": 12", ": ١٢".encode()),
    "length with a space in it": POST.replace(b": 12", b": 1 2"),
    "no length": POST.replace(b": 12", b":"),
    "another encoding": CHUNKED.replace(b": chunked", b": gzip"),
    "two encodings": CHUNKED.replace(b": chunked", b": gzip, chunked"),
    "chunked twice": with_header(b"Transfer-Encoding: chunked", CHUNKED),
    "chunked by another name": CHUNKED.replace(b": chunked", b": xchunked"),
    "no encoding": CHUNKED.replace(b": chunked", b":"),
    "encoding in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "chunk size": CHUNKED.replace(b"\r\n5;", b"\r\nz;"),
    "signed chunk size": CHUNKED.replace(b"\r\n5;", b"\r\n+5;"),
    "space before the chunk size": CHUNKED.replace(b"\r\n5;", b"\r\n 5;"),
    "chunk size of 0x": CHUNKED.replace(b"\r\n5;", b"\r\n0x5;"),
    "chunk too short": CHUNKED.replace(b"hello", b"hell"),
    "chunk too long": CHUNKED.replace(b"hello", b"helloo"),
    "chunk ends in LF": CHUNKED.replace(b"hello\r\n", b"hello\n"),
    "chunk size ends in LF": CHUNKED.replace(b'"d"\r\n', b'"d"\n'),
    "body ends in LF": EMPTY_CHUNKED.replace(b"0\r\n\r\n", b"0\r\n\n\r\n\r\n"),
    "last chunk ends in LF": EMPTY_CHUNKED.replace(b"0\r\n\r\n", b"0\n\r\n\r\n"),
    "trailer ends in LF": CHUNKED.replace(b"Trailer: x\r\n", b"Trailer: x\n") + b"\r\n\r\n",
    "folded trailer": CHUNKED.replace(b"Trailer: x\r\n", b"Trailer: x\r\n y\r\n"),
    "huge chunk": CHUNKED.replace(b"\r\n5;", b"\r\n" + b"f" * 20 + b";"),
    "endless extension": CHUNKED.replace(b"a=b", b"a=" + b"b" * 200_000),
    "endless trailer": CHUNKED.replace(b"Trailer: x", b"Trailer: " + b"x" * 200_000),
    "endless trailers": CHUNKED.replace(b"Trailer: x\r\n", b"Trailer: x\r\n" * 20_000),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.gen_test
async def test_what_breaks_a_rule_is_answered_400_and_nothing_behind_it_is_read(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as (server, port), connected(port) as client:
        client.send(GET)
        assert (await client.response()).status == 200
        before = len(caplog.records)
        client.send(MALFORMED[name] + GET)
        assert_refused(await client.response(), 400, "bad_request")
        client.writer.write_eof()
        assert await client.is_closed()
        await until_async(lambda: not server.under_way[0], "nothing is under way")
    (line,) = [record for record in caplog.records[before:] if record.name.startswith("sse_app")]
    assert line.levelno == logging.INFO
    assert line.getMessage() == "malformed_request"
    sent = {"detail": line.__dict__["detail"], "address": line.__dict__["address"]}
    assert sent["address"] == "127.0.0.1"
    assert "here" not in sent["detail"]


@pytest.mark.parametrize(
    "sent",
    [
        with_header(b"X: " + b"a" * 40_000),
        with_header(b"X: a\r\n" * 8000 + b"Y: b"),
        GET.replace(b"/echo", b"/" + b"a" * 40_000),
        with_header(b"X: " + b"a" * 40_000)[:39_000],
        b"a" * 40_000,
    ],
    ids=["one header", "many headers", "target", "incomplete", "no line"],
)
@pytest.mark.gen_test
async def test_a_head_of_more_than_32_kib_is_answered_431(sent: bytes) -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(sent)
        assert_refused(await client.response(), 431, "headers_too_large")
        client.writer.write_eof()
        assert await client.is_closed()


@pytest.mark.gen_test
async def test_a_head_of_just_32_kib_is_read() -> None:
    async with serving() as (_, port), connected(port) as client:
        longest = 32 * 1024 - len(with_header(b"X: "))
        client.send(with_header(b"X: " + b"a" * longest))
        assert (await client.response()).json()["x"] == ["a" * longest]
        client.send(with_header(b"X: " + b"a" * (longest + 1)))
        assert (await client.response()).status == 431


@pytest.mark.parametrize("digit", [b"9", b"0"])
@pytest.mark.parametrize("digits", [19, 20, 30, 5000])
@pytest.mark.gen_test
async def test_a_length_that_no_number_holds_is_too_large(digits: int, digit: bytes) -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(POST.replace(b": 12", b": " + digit * digits + b"12"))
        assert_refused(await client.response(), 413, "too_large")


WELL_FORMED = {
    "no space after the colon": (with_header(b"X:a"), echo(x=["a"])),
    "spaces around a value": (with_header(b"X: \t a b \t "), echo(x=["a b"])),
    "empty value": (with_header(b"X:"), echo(x=[""])),
    "several values": (with_header(b"X: a\r\nx: b"), echo(x=["a", "b"])),
    "Latin-1 in a value": (with_header(b"X: \xe4"), echo(x=["ä"])),
    "scheme in upper case": (ABSOLUTE.replace(b"http:", b"HTTP:"), ECHOES[ABSOLUTE]),
    "https": (ABSOLUTE.replace(b"http:", b"https:"), ECHOES[ABSOLUTE]),
    "absolute of an IPv6 address": (
        ABSOLUTE.replace(b"there:81", b"[::1]:81"),
        echo(uri="/echo?x", host="[::1]:81"),
    ),
    "upgrade to HTTP/2 with a body": (
        with_header(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA", POST),
        ECHOES[POST],
    ),
    "upgrade to HTTP/2 with chunks": (
        with_header(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA", CHUNKED),
        ECHOES[CHUNKED],
    ),
    "length with zeros": (POST.replace(b": 12", b": 0012"), ECHOES[POST]),
    "length with spaces around": (POST.replace(b": 12", b":  12 "), ECHOES[POST]),
    "encoding in upper case": (CHUNKED.replace(b": chunked", b": Chunked"), ECHOES[CHUNKED]),
    "a get with a body": (POST.replace(b"POST", b"GET"), echo(uri="/echo", body="hello\r\n\r\nyou")),
}


@pytest.mark.parametrize("name", WELL_FORMED)
@pytest.mark.gen_test
async def test_what_is_unusual_and_allowed_is_understood(name: str) -> None:
    sent, expected = WELL_FORMED[name]
    async with serving() as (_, port), connected(port) as client:
        client.send(sent + GET)
        assert (await client.response()).json() == expected
        assert (await client.response()).json() == echo()


@pytest.mark.parametrize("method", ["BREW", "get", "PLAY", "SOURCE", "PRI", "PROPFIND", "TRACE", "M-SEARCH"])
@pytest.mark.gen_test
async def test_a_method_that_the_application_lacks_is_answered_by_the_application(method: str) -> None:
    async with serving() as (_, port), connected(port) as client:
        client.send(GET.replace(b"GET", method.encode()))
        assert (await client.response()).status == 405
        assert await client.is_open()


@pytest.mark.gen_test
async def test_connect_and_an_asterisk_are_no_paths() -> None:
    async with serving() as (_, port):
        for line in (b"CONNECT there:443", b"OPTIONS *"):
            async with connected(port) as client:
                client.send(line + b" HTTP/1.1\r\nHost: here\r\n\r\n")
                assert (await client.response()).status in (404, 405)
                assert await client.is_open()


AS_TORNADO = [
    GET,
    POST,
    CHUNKED.replace(b'5;a=b;c="d"', b"5").replace(b"Trailer: x\r\n", b""),
    EMPTY_CHUNKED,
    LAST,
    LAST.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"),
    GET.replace(b"/echo", b"/nowhere"),
    GET.replace(b"/echo", b"/pieces"),
    GET.replace(b"/echo", b"/status/204"),
    GET.replace(b"/echo", b"/status/304"),
    GET.replace(b"/echo", b"/status/503"),
    GET.replace(b"GET", b"DELETE"),
    GET.replace(b"GET", b"BREW"),
    POST.replace(b"/echo", b"/pieces"),
    with_header(b"Connection: close"),
    with_header(b"X: a\r\nX: b"),
    GET.replace(b"?a=b", b"?%00%ff+&;=#"),
]


@pytest.mark.parametrize("sent", AS_TORNADO, ids=lambda sent: repr(sent[:60]))
@pytest.mark.gen_test
async def test_the_answer_is_that_of_tornados_own_server(sent: bytes) -> None:
    bound, tornados_port = bind_unused_port()
    tornados = TornadosServer(application())
    tornados.add_sockets([bound])
    answers = []
    async with serving() as (_, port):
        for one in (port, tornados_port):
            async with connected(one) as client:
                client.send(sent)
                answer = await client.response()
                headers = {
                    (name, value)
                    for name, value in answer.headers.get_all()
                    if name not in ("Date", "Connection")
                }
                answers.append((answer.status, headers, answer.body))
    tornados.stop()
    await tornados.close_all_connections()
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.gen_test(timeout=60)
async def test_whatever_is_changed_in_requests_is_answered_or_refused_and_no_error_of_ours() -> None:
    chance = random.Random(9112)
    requests = [
        *PIPELINE,
        HEAD,
        with_header(b"Connection: close"),
        with_header(b"Expect: 100-continue", POST),
    ]
    pieces = [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b":",
        b"\0",
        b"0\r\n\r\n",
        b"Content-Length: 1\r\n",
        b"chunked",
        b"\xff",
        b"9",
    ]
    async with serving() as (server, port):
        for _ in range(400):
            sent = bytearray(b"".join(chance.choices(requests, k=chance.randint(1, 3))))
            for _ in range(chance.randint(1, 3)):
                at = chance.randrange(len(sent))
                sent[at : at + chance.choice([0, 0, 1, 2])] = chance.choice(pieces)
            async with connected(port) as client:
                cut = chance.randrange(len(sent))
                client.send(bytes(sent[:cut]))
                await asyncio.sleep(0)
                client.send(bytes(sent[cut:]))
                client.writer.write_eof()
                answer = await asyncio.wait_for(client.reader.read(), 5)
            statuses = set(re.findall(rb"(?:^|[}\n])HTTP/1\.1 ([0-9]+) ", answer))
            assert statuses <= {b"100", b"200", b"400", b"404", b"405", b"413"}, (bytes(sent), answer)
        await until_async(lambda: not list(server.idle()), "no connection is left")
        assert server.under_way == (0, 0)


# -- the last response is read ----------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_client_that_goes_on_sending_sees_the_last_answer_and_no_reset(
    slow: type[Slow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LINGER_TIMEOUT", 60.0)  # this client goes on within it
    async with serving() as (_, port):
        for head, status in (
            (b"rubbish\r\n\r\n", 400),
            (b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 9000000\r\n\r\n", 403),
        ):
            async with connected(port) as client:
                client.send(head + b"a" * 3_000_000)
                await client.writer.drain()
                await asyncio.sleep(0.05)
                client.send(b"a" * 1_000_000)
                assert (await client.response()).status == status
                client.writer.write_eof()
                assert await client.is_closed()


@pytest.mark.gen_test
async def test_a_client_that_goes_on_sending_for_ever_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "LINGER_BYTES", 1_000_000)
    async with serving() as (_, port):
        with closing(socket.create_connection(("127.0.0.1", port))) as sock:
            sock.setblocking(False)
            sock.send(b"rubbish\r\n\r\n")
            with pytest.raises(ConnectionError):
                assert await flood(sock, 1 << 30)


@pytest.mark.gen_test
async def test_a_client_that_does_not_end_after_the_last_answer_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "LINGER_TIMEOUT", 0.05)
    async with serving() as (_, port), connected(port) as client:
        client.send(b"rubbish\r\n\r\n")
        assert (await client.response()).status == 400
        assert await client.reader.read() == b""  # the server's side is ended at once
        await asyncio.sleep(0.2)
        client.send(b"a")
        await asyncio.sleep(0.05)
        client.send(b"a")
        await until_async(client.writer.transport.is_closing, "the connection is closed")


# -- timeouts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\r\n", GET[:20]], ids=["nothing", "an empty line", "half a head"])
@pytest.mark.parametrize("first", [b"", GET], ids=["at first", "after a response"])
@pytest.mark.gen_test
async def test_a_head_must_come_in_time(sent: bytes, first: bytes) -> None:
    loop = asyncio.get_running_loop()
    async with serving(idle_timeout=0.5) as (_, port):
        begun = loop.time()  # the server's time begins later
        async with connected(port) as client:
            if first:
                begun = loop.time()
                client.send(first)
                await client.response()
            await asyncio.sleep(0.05)
            client.send(sent)  # which does not prolong the time
            assert await client.is_closed()
            assert loop.time() - begun > 0.3


@pytest.mark.parametrize("sent", [POST[:-1], CHUNKED[:-1]], ids=["length", "chunks"])
@pytest.mark.gen_test
async def test_a_body_must_come_in_time(sent: bytes) -> None:
    async with serving(body_timeout=0.1) as (_, port), connected(port) as client:
        client.send(sent)
        assert await client.is_closed()


@pytest.mark.gen_test
async def test_an_answer_takes_as_long_as_it_takes(slow: type[Slow]) -> None:
    timeout = 0.05
    while not await answers_after(timeout, slow):  # the request came too late
        timeout *= 2


async def answers_after(seconds: float, slow: type[Slow]) -> bool:
    """Return whether a request came in time; then its answer comes, which takes longer than the timeouts."""

    def is_complete() -> bool:
        return bool(slow.begun) and slow.begun[-1].received == len("abc")

    async with serving(idle_timeout=seconds, body_timeout=seconds) as (_, port), connected(port) as client:
        client.send(b"POST /slow HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc")
        await until_async(
            lambda: is_complete() or client.reader.at_eof() or client.reader.exception(),
            "it is under way, or refused",
        )
        if not is_complete():
            return False
        await asyncio.sleep(4 * seconds)
        slow.may_answer.set()
        assert (await client.response()).body == b"/slow 3"
        return True


@pytest.mark.gen_test
async def test_deadlines_are_those_of_each_and_in_order() -> None:
    seconds = 0.5
    while not await are_in_order(seconds):  # this process was paused for as long
        seconds *= 2


async def are_in_order(seconds: float) -> bool:
    """Try deadlines, and return whether they were started anew and stopped in time."""
    expired: list[str] = []
    deadlines = Deadlines[str](seconds, expired.append)
    deadlines.start("a")
    deadlines.start("b")
    deadlines.start("c")
    await asyncio.sleep(0.05)
    if expired:
        return False
    deadlines.start("a")
    deadlines.stop("b")
    await until_async(lambda: expired, "it has expired")
    assert expired[0] == "c"
    await until_async(lambda: len(expired) == 2, "both have expired")
    assert expired == ["c", "a"]
    deadlines.start("d")
    deadlines.close()
    await asyncio.sleep(seconds + 0.1)
    assert expired == ["c", "a"]
    return True


# -- pauses and handovers -----------------------------------------------------------------------------------------


def take_idle(server: HTTPServer) -> list[tuple[socket.socket, bytes]]:
    """Return what a handover sends of the idle connections, with sockets of their own."""
    return [(socket.socket(fileno=os.dup(descriptor)), read) for descriptor, read in server.idle()]


@pytest.mark.parametrize(
    "request_", [GET, POST, CHUNKED, LINES_FIRST], ids=["get", "post", "chunked", "lines"]
)
@pytest.mark.gen_test
async def test_a_connection_goes_on_at_another_server_wherever_its_request_is_cut(request_: bytes) -> None:
    head = request_.index(b"\r\n\r\n", 10) + 4
    for cut in range(head):
        async with serving() as (first, port), serving() as (second, _), connected(port) as client:
            client.send(request_[:cut])
            await a_few_turns()
            first.pause()
            ((sock, read),) = take_idle(first)
            await first.close_all_connections()
            second.adopt(sock, read)
            client.send(request_[cut:])
            assert (await client.response()).json() == ECHOES[request_], cut
            assert await client.is_open()


@pytest.mark.gen_test
async def test_requests_behind_the_one_under_way_go_on_at_another_server(slow: type[Slow]) -> None:
    async with serving() as (first, port), serving() as (second, _), connected(port) as client:
        client.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n" + GET + POST[:-5])
        await until_async(lambda: slow.begun, "the request is under way")
        first.pause()
        assert list(first.idle()) == []
        assert first.under_way == (1, 0)
        slow.may_answer.set()
        assert (await client.response()).body == b"/slow 0"
        await a_few_turns()
        assert first.under_way == (0, 0)
        ((sock, read),) = take_idle(first)
        assert GET + POST[:-5] == read
        await first.close_all_connections()
        second.adopt(sock, read)
        assert (await client.response()).json() == ECHOES[GET]
        client.send(POST[-5:])
        assert (await client.response()).json() == ECHOES[POST]


@pytest.mark.gen_test
async def test_a_client_that_ended_its_side_during_a_pause_is_answered_by_the_next_server() -> None:
    async with serving() as (first, port), serving() as (second, _), connected(port) as client:
        await until_async(lambda: list(first.idle()), "the connection is idle")
        first.pause()
        client.send(GET + GET)
        client.writer.write_eof()
        await a_few_turns()
        ((sock, read),) = take_idle(first)
        assert read == b""
        await first.close_all_connections()
        second.adopt(sock, read)
        for _ in range(2):
            assert (await client.response()).json() == echo()
        assert await client.is_closed()


@pytest.mark.gen_test
async def test_a_paused_server_begins_nothing_and_goes_on_afterwards(slow: type[Slow]) -> None:
    slow.may_answer.set()
    async with (
        serving() as (server, port),
        connected(port) as idle,
        connected(port) as half,
        connected(port) as arriving,
    ):
        half.send(GET[:10])
        arriving.send(b"POST /slow HTTP/1.1\r\nHost: here\r\nContent-Length: 6\r\n\r\nabc")
        await until_async(lambda: slow.begun and slow.begun[0].received, "a part of the body has been taken")
        server.pause()
        assert server.under_way == (0, 1)
        arriving.send(b"def" + GET)
        assert (await arriving.response()).body == b"/slow 6"  # it was under way
        idle.send(GET)
        half.send(GET[10:])
        async with connected(port) as late:
            late.send(GET)
            await asyncio.sleep(0.05)
            assert server.under_way == (0, 0)
            assert sorted(read for _, read in server.idle()) in (
                [b"", b"", GET[:10]],
                [b"", GET[:10], GET],
            )
            server.resume()
            for client in (idle, half, arriving, late):
                assert (await client.response()).json() == echo()
                assert await client.is_open()


@pytest.mark.gen_test
async def test_connections_are_refused_when_the_listening_sockets_are_closed() -> None:
    async with serving() as (server, port), connected(port) as client:
        assert await client.is_open()
        (listening,) = server.listening
        assert listening.getsockname()[1] == port
        server.pause()
        assert server.listening == [listening]
        server.close_listening()
        assert server.listening == []
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        server.resume()
        assert await client.is_open()


@pytest.mark.gen_test
async def test_the_end_cuts_all_off(slow: type[Slow]) -> None:
    async with serving() as (server, port), connected(port) as idle, connected(port) as busy:
        busy.send(b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n")
        await until_async(lambda: slow.begun, "the request is under way")
        await server.close_all_connections()
        assert await idle.is_closed()
        assert await busy.is_closed()
        assert slow.begun[0].gone.is_set()
        assert server.under_way == (0, 0)


@pytest.mark.gen_test
async def test_an_adopted_connection_that_has_ended_leaves_nothing() -> None:
    async with serving() as (server, _):
        ours, theirs = socket.socketpair()
        theirs.close()
        server.adopt(ours, b"")
        await until_async(lambda: not list(server.idle()), "no connection is idle")
        assert ours.fileno() == -1
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)), closing(socket.socket()) as never:
            server.adopt(never, b"")


# -- accepting ------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_options_are_those_of_the_listening_socket() -> None:
    tuned: list[socket.socket] = []
    async with serving(tune=tuned.append) as (server, _):
        assert tuned == server.listening


@pytest.mark.gen_test
async def test_a_unix_socket_is_served_and_has_no_address(tmp_path: Path) -> None:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    listening.listen()
    listening.setblocking(False)
    async with serving(tune=lambda sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)) as (
        server,
        _,
    ):
        server.add_sockets([listening])
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "socket"))
        client = Client(reader, writer)
        client.send(GET)
        assert (await client.response()).json() == echo(address="0.0.0.0")
        writer.close()


@pytest.mark.expects_logs("accept_failed")
@pytest.mark.gen_test
async def test_without_descriptors_accepting_pauses_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE", 0.03)
    attempts = []
    accept = HTTPServer._accept

    def counted(server: HTTPServer, sock: socket.socket) -> None:
        attempts.append(sock)
        accept(server, sock)

    monkeypatch.setattr(HTTPServer, "_accept", counted)
    async with serving() as (_, port):
        with closing(socket.create_connection(("127.0.0.1", port))) as sock:
            sock.settimeout(5)
            sock.send(GET)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            lowest = os.dup(sock.fileno())
            os.close(lowest)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
            try:
                await asyncio.sleep(0.2)
                await until_async(lambda: len(attempts) >= 2, "it tries again")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert 2 <= len(attempts) <= 8
            answer = await asyncio.to_thread(sock.recv, 65536)
            assert answer.startswith(b"HTTP/1.1 200")
    assert [record.getMessage() for record in caplog.records].count("accept_failed") == 1


@pytest.mark.gen_test
async def test_connections_that_wait_when_the_server_stops_listening_are_answered() -> None:
    async with serving() as (server, port):
        server.pause()  # so that they wait
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        for client in waiting:
            client.sendall(GET)
            client.setblocking(False)
        server.resume()
        server.close_listening()  # before the event loop has looked at the listening socket
        for client in waiting:
            answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 4096), 10)
            assert answer.startswith(b"HTTP/1.1 200 OK")
            client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
