"""Our own `Application` answers publishes and streams as Tornado's does, without tasks, and lets others come in."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tornado import web
from tornado.testing import bind_unused_port

from sse_app import SSEApp
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.http.server import HTTPServer
from tests.support.waiting import until_async

EVENT = b'{"event":"tick","data":{"n":1}}'
_VARYING = re.compile(rb"(?i)\r\nDate: [^\r]*")
_CHUNK_SIZE = re.compile(rb"\r\n\r\n[0-9a-f]+\r\n")
_RETRY = re.compile(rb'retry: [0-9]+|"retry":[0-9]+|"expires_in":[0-9]+')
_TIMESTAMP = re.compile(rb'"timestamp":"[^"]*"')
_CLIENT_ID = re.compile(rb'"client_id":"[A-Za-z0-9_-]{12}"')
_ID = re.compile(rb'"[0-9a-zA-Z]+-[0-9]+"')


@asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[int]:
    """Serve an application on our server."""
    bound, port = bind_unused_port()
    server = HTTPServer(application)
    server.add_sockets([bound])
    try:
        yield port
    finally:
        await server.close_all_connections()


def token(sse: SSEApp) -> str:
    return sse.node.tokens.issue(TokenKind.ACCESS, "ann", "s1", Grants.of(publish=["alerts"]), 600)


def post(
    sse: SSEApp,
    body: bytes = EVENT,
    path: str = "/api/v1/sse/alerts",
    more: str = "",
    host: str = "localhost",
) -> bytes:
    """Return a publish."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token(sse)}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def answer(port: int, *pieces: bytes) -> bytes:
    """Return all that comes for a request, which asks for the connection's end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.01)
    writer.write_eof()
    received = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return _ID.sub(b'"ID"', _VARYING.sub(b"", received))


async def one_answer(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode()
    length = re.search(r"(?i)content-length: ([0-9]+)", head)
    assert length is not None
    return int(head.split(" ")[1]), json.loads(await reader.readexactly(int(length[1])))


REQUESTS = {
    "an event": lambda sse: [post(sse)],
    "a batch": lambda sse: [
        post(sse, b'{"events":[{"channel":"alerts","event":"a","data":{}}]}', "/api/v1/sse")
    ],
    "an empty query": lambda sse: [post(sse, path="/api/v1/sse/alerts?")],
    "a query": lambda sse: [post(sse, path="/api/v1/sse/alerts?a=1&b")],
    "an escaped channel": lambda sse: [post(sse, path="/api/v1/sse/%61lerts")],
    "bytes that are no UTF-8": lambda sse: [post(sse, path="/api/v1/sse/%ff")],
    "two channels": lambda sse: [post(sse, path="/api/v1/sse/alerts,dashboard")],
    "a channel without a grant": lambda sse: [post(sse, path="/api/v1/sse/dashboard")],
    "no body": lambda sse: [post(sse, b"")],
    "no JSON": lambda sse: [post(sse, b"{")],
    "a wrong type": lambda sse: [post(sse, b'{"event":"ping","data":{}}')],
    "no token": lambda sse: [b"POST /api/v1/sse/alerts HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    "two Authorization headers": lambda sse: [post(sse, more="Authorization: Bearer x\r\n")],
    "a wrong host": lambda sse: [post(sse, host="evil.example")],
    "a malformed host": lambda sse: [post(sse, host="a b")],
    "a host with a comma": lambda sse: [post(sse, host="a,b")],
    "a long host": lambda sse: [post(sse, host="a" * 300)],
    "a host with a port": lambda sse: [post(sse, host="LOCALHOST:80")],
    "a page of another site": lambda sse: [post(sse, more="Sec-Fetch-Site: cross-site\r\n")],
    "an origin": lambda sse: [post(sse, more="Origin: http://a.example\r\n")],
    "an origin that is none": lambda sse: [post(sse, more="Origin: http://[\r\n")],
    "HTTP/1.0": lambda sse: [post(sse).replace(b"HTTP/1.1\r\nHost: localhost", b"HTTP/1.0")],
    "another method": lambda sse: [post(sse).replace(b"POST", b"DELETE")],
    "an unknown method": lambda sse: [post(sse).replace(b"POST", b"BREW")],
    "an encoded body": lambda sse: [post(sse, more="Content-Encoding: gzip\r\n")],
    "a body over the limit": lambda sse: [post(sse, b"x" * (1024 * 1024 + 1))],
    "a body in pieces": lambda sse: [post(sse)[:-20], post(sse)[-20:-10], post(sse)[-10:]],
    "a body after a while": lambda sse: [post(sse)[: -len(EVENT)], EVENT],
    "a body in chunks": lambda sse: [
        post(sse, b"1f\r\n" + EVENT + b"\r\n0\r\n\r\n")
        .replace(b"Content-Length", b"X-Length")
        .replace(b"Host:", b"Transfer-Encoding: chunked\r\nHost:")
    ],
    "a body that is expected": lambda sse: [post(sse, more="Expect: 100-continue\r\n")[: -len(EVENT)], EVENT],
    "a bad key": lambda sse: [post(sse, more="Idempotency-Key: \xe4\r\n")],
}


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.gen_test(timeout=60)
async def test_a_publish_is_answered_as_on_tornados_application(sse: SSEApp, name: str) -> None:
    ours = sse.application()
    theirs = web.Application([*sse.routes()], cross_origin_protection=True)
    async with serving(ours) as our_port, serving(theirs) as their_port:
        pieces = REQUESTS[name](sse)
        for _ in range(2):  # the handler of a path is remembered
            assert await answer(our_port, *pieces) == await answer(their_port, *pieces)


STREAM_QUERIES = {
    "a token": "token={token}",
    "a client id and a position": "token={token}&client_id=tab-1&last_event_id=x-1",
    "escapes": "%74oken={token}&client_id=%74ab+1",
    "blanks": "&&token={token}&&client_id=&last_event_id=&",
    "fields without a value": "token={token}&client_id&last_event_id",
    "another question mark": "token={token}&client_id=a?b",
    "bytes that are no UTF-8": "token={token}&client_id=%ff",
    "a control character": "token={token}&last_event_id=%0a",
    "two positions": "token={token}&last_event_id=a-1&last_event_id=a-2",
    "two tokens": "token={token}&token={token}",
    "no token": "a=1",
    "an empty query": "",
    "a forged token": "token={token}A",
    "an access token": "token={access}",
    "a hundred fields": "token={token}" + "&a=1" * 100,
    "too many fields": "token={token}" + "&a=1" * 1200,
}


@pytest.mark.parametrize(
    "channel",
    [
        "alerts",
        pytest.param("dashboard", marks=pytest.mark.slow),
        pytest.param("alerts,nowhere", marks=pytest.mark.slow),
        "a%20b",
    ],
)
@pytest.mark.parametrize("name", STREAM_QUERIES)
@pytest.mark.gen_test(timeout=60)
async def test_a_stream_is_answered_as_on_tornados_application(sse: SSEApp, name: str, channel: str) -> None:
    ours = sse.application()
    theirs = web.Application([*sse.routes()], cross_origin_protection=True)
    stream_token = sse.token("ann", subscribe=["alerts"])
    query = STREAM_QUERIES[name].format(token=stream_token, access=token(sse))
    request = f"GET /api/v1/sse/{channel}?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    async with serving(ours) as our_port, serving(theirs) as their_port:
        for _ in range(2):  # the handler of a path is remembered
            answers = [await beginning(port, request) for port in (our_port, their_port)]
            assert answers[0] == answers[1]
        await until_async(lambda: not sse.node.hub.streams, "the streams have ended")


async def beginning(port: int, request: bytes) -> bytes:
    """Return the response up to the first event of a stream, without what differs each time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    received = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    if b"text/event-stream" in received:
        received += await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)
    elif length := re.search(rb"(?i)content-length: ([0-9]+)", received):
        received += await reader.readexactly(int(length[1]))
    writer.close()
    for varying in (_VARYING, _CHUNK_SIZE, _RETRY, _TIMESTAMP, _CLIENT_ID):
        received = varying.sub(b"", received)
    return received


@pytest.mark.gen_test
async def test_a_stream_takes_no_task(sse: SSEApp) -> None:
    loop = asyncio.get_running_loop()
    tasks: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        tasks.append(work.__qualname__)
        return asyncio.Task(work, loop=loop, **options)

    position = await sse.publish("alerts", "e", {})
    await sse.publish("alerts", "e", {})
    query = f"token={sse.token('ann', subscribe=['alerts'])}&last_event_id={position}"
    async with serving(sse.application()) as port:
        loop.set_task_factory(make)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /api/v1/sse/alerts?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await asyncio.wait_for(reader.readuntil(b"event: e\n"), 20)  # it had to be replayed
            assert not [name for name in tasks if "_execute" in name or "Pump" in name]
        finally:
            loop.set_task_factory(None)
            writer.close()


@pytest.mark.gen_test
async def test_publishes_of_one_connection_are_answered_in_their_order(sse: SSEApp) -> None:
    async with serving(sse.application()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(post(sse, EVENT if n % 3 else b"{}") for n in range(30)))
        answers = [await one_answer(reader) for _ in range(30)]
        assert [status for status, _ in answers] == [201 if n % 3 else 422 for n in range(30)]
        numbers = [int(body["id"].partition("-")[2]) for status, body in answers if status == 201]
        assert numbers == sorted(set(numbers))
        writer.close()


@pytest.mark.gen_test
async def test_requests_that_are_answered_at_once_let_others_come_in_between(sse: SSEApp) -> None:
    async with serving(sse.application()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /api/v1/sse/alerts HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        assert (await one_answer(reader))[0] == 401
        begun = sse.node.metrics.requests.total()
        for _ in range(10):
            await asyncio.sleep(0)
        assert sse.node.metrics.requests.total() - begun < 100
        for _ in range(499):
            assert (await one_answer(reader))[0] == 401
        writer.close()


@pytest.mark.gen_test
async def test_a_publish_takes_no_task(sse: SSEApp) -> None:
    loop = asyncio.get_running_loop()
    tasks: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
        tasks.append(work.__qualname__)
        return asyncio.Task(work, loop=loop, **options)

    async with serving(sse.application()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop.set_task_factory(make)
        try:
            for _ in range(3):
                writer.write(post(sse))
                assert (await one_answer(reader))[0] == 201
            assert "RequestHandler._execute" not in tasks
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await one_answer(reader))[0] == 200
            assert "RequestHandler._execute" in tasks
        finally:
            loop.set_task_factory(None)
            writer.close()


@pytest.mark.gen_test
async def test_an_event_is_stored_whose_publisher_leaves_at_once(sse: SSEApp) -> None:
    async with serving(sse.application()) as port:
        before = sse.node.eventlog.head.seq
        for number in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(post(sse) if number % 2 else post(sse)[:-5])
            writer.close()
        await until_async(lambda: sse.node.eventlog.head.seq == before + 10, "the events are stored")
        assert sse.node.publisher.appending == 0


@pytest.mark.gen_test
async def test_rules_for_a_host_come_before_what_is_remembered(sse: SSEApp) -> None:
    class Other(web.RequestHandler):
        def post(self) -> None:
            self.finish({"other": True})

    application = sse.application()
    async with serving(application) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(post(sse))
            assert (await one_answer(reader))[0] == 201
        application.add_handlers(r"127\.0\.0\.1", [("/api/v1/sse/alerts", Other)])
        for _ in range(2):
            writer.write(post(sse, host="127.0.0.1"))
            assert await one_answer(reader) == (200, {"other": True})
            writer.write(post(sse))
            assert (await one_answer(reader))[0] == 201
        writer.close()
