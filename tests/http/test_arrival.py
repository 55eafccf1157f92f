"""How streams come in: the same answers as on Tornado's own server, and sockets with the same options."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from sse_app import Settings, SSEApp
from sse_app.http.server import HTTPServer as OurServer
from sse_app.streams.connection import tune
from tests.support.waiting import until_async

linux = pytest.mark.skipif(sys.platform != "linux", reason="the options are Linux's")


@pytest.fixture
def app(sse: SSEApp) -> web.Application:
    """An application around the streams, which compresses what it can."""
    return web.Application([*sse.routes()], compress_response=True)


def open_server(sse: SSEApp, settings: Settings, *, inherited: bool = False) -> tuple[OurServer, int]:
    """Serve the application on a port of its own."""
    bound, port = bind_unused_port()
    if inherited:  # as systemd passes it: nothing but a file descriptor
        descriptor = os.dup(bound.fileno())
        bound.close()
        bound = socket.socket(fileno=descriptor)
        bound.setblocking(False)
    server = OurServer(sse.application(), tune=lambda sock: tune(sock, settings))
    server.add_sockets([bound])
    return server, port


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):  # it was reset
            await writer.wait_closed()


def request(sse: SSEApp, *, version: str = "1.1", more: str = "") -> bytes:
    """Return a request for a stream of alerts."""
    token = sse.token("ann", subscribe=["alerts"])
    return f"GET /api/v1/sse/alerts?token={token} HTTP/{version}\r\nHost: localhost\r\n{more}\r\n".encode()


async def settled_stream(sse: SSEApp, reader: asyncio.StreamReader) -> socket.SocketType:
    """Return our socket of the one stream there is, once it is open."""
    await asyncio.wait_for(reader.readuntil(b"event: connected"), 20)
    (stream,) = sse.node.hub.streams
    assert stream.connection is not None
    return stream.connection._socket


def assert_tuned(sock: socket.SocketType, settings: Settings) -> None:
    """The kernel looks for dead clients and holds little for slow ones (DESIGN, section 5)."""
    options = settings.socket
    tcp = socket.IPPROTO_TCP
    assert sock.getsockopt(tcp, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == options.keepalive_idle
    assert sock.getsockopt(tcp, socket.TCP_KEEPINTVL) == options.keepalive_interval
    assert sock.getsockopt(tcp, socket.TCP_KEEPCNT) == options.keepalive_count
    given_up_after = options.user_timeout + 4 * settings.keepalive.ping_interval
    assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 1000 * given_up_after
    assert sock.getsockopt(tcp, getattr(socket, "TCP_NOTSENT_LOWAT", 25)) == options.notsent_lowat


@linux
@pytest.mark.parametrize("inherited", [False, True])
@pytest.mark.parametrize("way", ["at once", "in pieces", "after another request"])
@pytest.mark.gen_test
async def test_a_streams_socket_has_its_options_whichever_way_it_came(
    sse: SSEApp, settings: Settings, inherited: bool, way: str
) -> None:
    server, port = open_server(sse, settings, inherited=inherited)
    async with connected(port) as (reader, writer):
        if way == "after another request":
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
        wanted = request(sse)
        if way == "in pieces":
            writer.write(wanted[:20])
            await asyncio.sleep(0.05)
            wanted = wanted[20:]
        writer.write(wanted)
        assert_tuned(await settled_stream(sse, reader), settings)
    await server.close_all_connections()


@linux
@pytest.mark.gen_test
async def test_a_streams_socket_has_its_options_in_an_application_around_us(
    http_server: HTTPServer, http_port: int, sse: SSEApp, settings: Settings
) -> None:
    async with connected(http_port) as (reader, writer):
        writer.write(request(sse))
        assert_tuned(await settled_stream(sse, reader), settings)


@pytest.mark.gen_test
async def test_a_stream_is_not_compressed_by_an_application_around_us(
    http_server: HTTPServer, http_port: int, sse: SSEApp
) -> None:
    async with connected(http_port) as (reader, writer):
        writer.write(request(sse, more="Accept-Encoding: gzip\r\n"))
        assert b"Content-Encoding" not in await reader.readuntil(b"event: connected")


HEADS = {
    "plain": lambda good: good,
    "HTTP/1.0": lambda good: good.replace(b"/1.1\r", b"/1.0\r"),
    "HTTP/1.0, to be kept": lambda good: good.replace(b"/1.1\r", b"/1.0\r").replace(
        b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"
    ),
    "HTTP/2.0": lambda good: good.replace(b"/1.1\r", b"/2.0\r"),
    "empty line first": lambda good: b"\r\n" + good,
    "lines end in LF": lambda good: good.replace(b"\r\n", b"\n"),
    "one line ends in LF": lambda good: good.replace(b"localhost\r\n", b"localhost\n"),
    "LF LF before the end": lambda good: good.replace(b"localhost\r\n", b"localhost\n\nX: y\r\n"),
    "no Host": lambda good: good.replace(b"Host: localhost\r\n", b""),
    "two Hosts": lambda good: good.replace(b"Host: localhost\r\n", b"Host: localhost\r\nHost: there\r\n"),
    "bad Host": lambda good: good.replace(b"localhost", b"local host"),
    "folded header": lambda good: good.replace(b"\r\n\r\n", b"\r\nX: a\r\n b\r\n\r\n"),
    "no colon": lambda good: good.replace(b"\r\n\r\n", b"\r\nX\r\n\r\n"),
    "space before the colon": lambda good: good.replace(b"Host:", b"Host :"),
    "NUL in a header": lambda good: good.replace(b"\r\n\r\n", b"\r\nX: \0\r\n\r\n"),
    "CR in a header": lambda good: good.replace(b"\r\n\r\n", b"\r\nX: a\rb\r\n\r\n"),
    "Latin-1 in a header": lambda good: good.replace(b"\r\n\r\n", b"\r\nX: \xe4\r\n\r\n"),
    "NUL in the line": lambda good: good.replace(b"?token", b"?a=\0&token"),
    "tab in the line": lambda good: good.replace(b"?token", b"?a=\t&token"),
    "CR in the line": lambda good: good.replace(b"?token", b"?a=\r&token"),
    "bytes beyond ASCII in the line": lambda good: good.replace(b"?token", b"?a=\xe4&token"),
    "two spaces": lambda good: good.replace(b" HTTP", b"  HTTP"),
    "too many fields": lambda good: good.replace(b"?token", b"?" + b"a&" * 2000 + b"token"),
    "a long head": lambda good: good.replace(b"\r\n\r\n", b"\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"),
    "a body": lambda good: good.replace(b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{}"),
    "an empty body": lambda good: good.replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\n\r\n"),
    "a bad length": lambda good: good.replace(b"\r\n\r\n", b"\r\nContent-Length: x\r\n\r\n"),
    "a chunked body": lambda good: good.replace(
        b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "another encoding": lambda good: good.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: gzip\r\n\r\n"),
    "a request behind it": lambda good: good + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "wants to continue": lambda good: good.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"),
    "another method": lambda good: good.replace(b"GET", b"HEAD"),
    "lower case": lambda good: good.replace(b"GET", b"get"),
    "forged": lambda good: good.replace(b"token=", b"token=x"),
    "unknown channel": lambda good: good.replace(b"alerts", b"nowhere"),
    "malformed channel": lambda good: good.replace(b"alerts", b"A%20B"),
    "status": lambda good: good.replace(b"alerts", b"status"),
    "history": lambda good: good.replace(b"alerts", b"alerts/history"),
    "absolute": lambda good: good.replace(b"/api", b"http://localhost/api"),
    "a bad position": lambda good: good.replace(
        b"\r\n\r\n", b"\r\nLast-Event-ID: " + b"9" * 200 + b"\r\n\r\n"
    ),
    "a known position": lambda good: good.replace(b"\r\n\r\n", b"\r\nLast-Event-ID: abc-0\r\n\r\n"),
}
OTHERWISE = {
    "lines end in LF": 400,  # RFC 9112 §2.2 allows to take LF for CRLF; a proxy that does not would see another request
    "one line ends in LF": 400,
    "LF LF before the end": 400,
    "bytes beyond ASCII in the line": 400,  # no URI has any (RFC 3986 §2)
    "absolute": 200,  # must be accepted (RFC 9112 §3.2.2)
    "wants to continue": 200,  # there is no body to continue with (RFC 9110 §10.1.1)
}
"""What is answered otherwise than by Tornado, and with which status."""
_VARYING = re.compile(rb"(?m)^(?:Date|Connection):.*\r\n")
_LENGTH = re.compile(rb"Content-Length: .*")  # of the status, whose uptime has more or fewer digits


async def answer(port: int, sent: bytes) -> tuple[bytes, set[bytes], bytes]:
    """Return the status line, the header lines that do not vary, and how the body begins."""
    async with connected(port) as (reader, writer):
        writer.write(sent)
        received = b""
        end = rb"\r\n\r\n" if sent.startswith(b"HEAD") else rb"event: [a-z]+|}$|\(Continue\)|Bad Request"
        while not re.search(end, received):
            try:
                piece = await asyncio.wait_for(reader.read(65_536), 20)
            except (TimeoutError, ConnectionResetError):
                break
            if not piece:
                break
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    line, _, headers = (head + b"\r\n").partition(b"\r\n")
    return line, set(_VARYING.sub(b"", headers).split(b"\r\n")), re.split(rb"[0-9]", body)[0][:40]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.expects_logs("Malformed HTTP", "Invalid")
@pytest.mark.gen_test(timeout=30)
async def test_a_request_is_answered_as_on_tornados_way(sse: SSEApp, settings: Settings, name: str) -> None:
    ours, port = open_server(sse, settings)
    bound, tornados_port = bind_unused_port()
    tornados = HTTPServer(sse.application())
    tornados.add_sockets([bound])
    sent = HEADS[name](request(sse))
    (line, headers, body), (their_line, their_headers, their_body) = (
        await answer(port, sent),
        await answer(tornados_port, sent),
    )
    if name == "status":
        headers, their_headers = (
            {h for h in each if not _LENGTH.match(h)} for each in (headers, their_headers)
        )
    if name in OTHERWISE:
        assert line.startswith(b"HTTP/1.1 %d " % OTHERWISE[name])
        assert line != their_line
    elif their_line == b"HTTP/1.1 400 Bad Request" and not their_body:
        assert line == their_line
        assert body == b'{"error":{"code":"bad_request","message"'  # theirs says nothing
    else:
        assert (line, headers, body) == (their_line, their_headers, their_body)
    await ours.close_all_connections()
    tornados.stop()
    await tornados.close_all_connections()


@pytest.mark.gen_test
async def test_a_client_that_is_silent_for_a_while_is_answered_all_the_same(
    sse: SSEApp, settings: Settings
) -> None:
    server, port = open_server(sse, settings)
    async with connected(port) as (first, writer), connected(port) as (second, another):
        await asyncio.sleep(0.1)
        for _ in range(2):
            another.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await second.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            await second.readexactly(len(b'{"status":"ok"}'))
        writer.write(request(sse))
        await settled_stream(sse, first)
    await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_client_that_is_silent_is_cut_off_at_the_end(sse: SSEApp, settings: Settings) -> None:
    server, port = open_server(sse, settings)
    async with connected(port) as (reader, _):
        await asyncio.sleep(0.05)
        await server.close_all_connections()
        assert await asyncio.wait_for(reader.read(), 20) == b""


@pytest.mark.gen_test
async def test_a_client_that_comes_and_goes_without_a_word_leaves_nothing(
    sse: SSEApp, settings: Settings
) -> None:
    server, port = open_server(sse, settings)
    for _ in range(3):
        async with connected(port):
            pass
    await asyncio.sleep(0.05)
    await until_async(lambda: list(server.idle()) == [], "nothing is left")
    await asyncio.wait_for(server.close_all_connections(), 5)
