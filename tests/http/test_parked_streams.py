"""A stream that has caught up is a socket and little more: no handler, no task, and little memory."""

from __future__ import annotations

import asyncio
import gc
import json
import select
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tornado.httpserver import HTTPServer as TornadoServer
from tornado.httputil import HTTPServerRequest
from tornado.testing import bind_unused_port
from tornado.web import RequestHandler

from sse_app import Settings, SSEApp
from sse_app.http.server import HTTPServer
from sse_app.streams.connection import StreamResponse, tune
from sse_app.streams.stream import Stream
from tests.support.fleet import Fleet
from tests.support.server_process import ServerProcess
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.waiting import until_async

WARM_UP, STREAMS = 500, 3000
"""Streams before memory is measured, and meanwhile."""

KIBIBYTE = 1024


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """Free only what no cycle holds."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@asynccontextmanager
async def serving(sse: SSEApp, settings: Settings, kind: str) -> AsyncIterator[int]:
    """Serve on a port, with our server or with Tornado's."""
    bound, port = bind_unused_port()
    if kind == "tornado":
        tornado_server = TornadoServer(sse.application())
        tornado_server.add_sockets([bound])
        try:
            yield port
        finally:
            tornado_server.stop()
            await tornado_server.close_all_connections()
    else:
        server = HTTPServer(sse.application(), tune=lambda sock: tune(sock, settings))
        server.add_sockets([bound])
        try:
            yield port
        finally:
            await server.close_all_connections()


class Client:
    """One stream, of which it reads only when told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._parser = EventStreamReader()
        self.writer = writer

    @classmethod
    async def opened(cls, sse: SSEApp, port: int, position: str = "") -> Client:
        """Open a stream of alerts over HTTP/1.0, whose body is not framed."""
        token = sse.token("ann", subscribe=["alerts"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        path = f"/api/v1/sse/alerts?token={token}{position and '&last_event_id=' + position}"
        writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        return cls(reader, writer)

    async def read(self, count: int) -> list[ReceivedEvent]:
        """Return so many events."""
        events: list[ReceivedEvent] = []
        while len(events) < count:
            piece = await asyncio.wait_for(self._reader.read(1 << 16), 30)
            assert piece, "the stream has ended"
            events += self._parser.feed(piece)
        return events

    def reset(self) -> None:
        """Reset the connection, which the server does not see before it uses it."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def ended(self) -> list[ReceivedEvent]:
        """Return the events up to the end."""
        return self._parser.feed(await asyncio.wait_for(self._reader.read(-1), 30))


def the_stream(sse: SSEApp) -> Stream:
    """Return the one stream there is."""
    (stream,) = sse.node.hub.streams
    return stream


def is_parked(sse: SSEApp) -> Callable[[], bool]:
    """Return a function that says whether the one stream has nothing waiting."""
    return lambda: len(sse.node.hub.streams) == 1 and not sse.node.hub.laggards


def of_requests() -> list[object]:
    """Return the handlers and requests that are in memory."""
    kinds = (RequestHandler, HTTPServerRequest, StreamResponse)
    return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]


async def until_reset(sse: SSEApp, count: int) -> None:
    """Wait until the kernel has told so many of the streams' sockets that their clients have reset them."""
    poll = select.poll()
    for stream in sse.node.hub.streams:
        assert stream.connection is not None
        poll.register(stream.connection.descriptor, 0)
    await until_async(lambda: len(poll.poll(0)) == count, "the connections are reset")


def tasks_besides(before: set[asyncio.Task[object]]) -> list[asyncio.Task[object]]:
    """Return the tasks that there were not before, other than those which are now and then begun for a moment."""
    found = asyncio.all_tasks() - before
    return [task for task in found if task.get_coro().__qualname__ != "PeriodicCallback._finish"]  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["ours", "tornado"])
@pytest.mark.parametrize("resumes", [False, True])
@pytest.mark.gen_test(timeout=60)
async def test_a_stream_that_has_caught_up_holds_neither_a_handler_nor_a_task(
    sse: SSEApp, settings: Settings, kind: str, resumes: bool, no_garbage_collection: None
) -> None:
    first = await sse.publish("alerts", "e", {"number": 0})
    await sse.publish("alerts", "e", {"number": 1})
    left = of_requests()  # what tests before this one in the same process have left
    async with serving(sse, settings, kind) as port:
        tasks = asyncio.all_tasks()
        client = await Client.opened(sse, port, str(first) if resumes else "")
        events = await client.read(2 if resumes else 1)
        assert [event.type for event in events] == (["connected", "e"] if resumes else ["connected"])
        await until_async(is_parked(sse), "the stream is parked")
        await until_async(lambda: len(of_requests()) <= len(left), "the request is forgotten")
        assert {id(thing) for thing in of_requests()} <= {id(thing) for thing in left}
        await until_async(lambda: not tasks_besides(tasks), "no task is left")

        await sse.publish("alerts", "e", {"number": 2})
        assert [json.loads(event.data)["number"] for event in await client.read(1)] == [2]
        the_stream(sse).end("shutdown", 1000)
        assert [event.type for event in await client.ended()] == ["closing"]
        await until_async(lambda: not sse.node.hub.streams, "the stream has ended")
        await until_async(lambda: not tasks_besides(tasks), "no task is left")
        client.writer.close()


@pytest.mark.gen_test(timeout=60)
async def test_a_parked_stream_that_falls_behind_is_written_by_a_task_until_it_has_caught_up(
    sse: SSEApp, settings: Settings
) -> None:
    async with serving(sse, settings, "ours") as port:
        client = await Client.opened(sse, port)
        await client.read(1)
        await until_async(is_parked(sse), "the stream is parked")
        tasks = asyncio.all_tasks()
        for turn in range(3):
            published = 0
            while not sse.node.hub.laggards or published < 20:
                await sse.publish("alerts", "e", {"number": published, "text": "a" * 20_000})
                published += 1
                await sse.node.hub.settled()
            assert len(tasks_besides(tasks)) == 1, turn
            events = await client.read(published)
            assert [json.loads(event.data)["number"] for event in events] == list(range(published))
            await until_async(is_parked(sse), "the stream is parked again")
            await until_async(lambda: not tasks_besides(tasks), "no task is left")
        client.writer.close()


@pytest.mark.parametrize("kind", ["ours", "tornado"])
@pytest.mark.gen_test(timeout=60)
async def test_a_parked_stream_whose_client_goes_is_forgotten_and_its_end_logged_once(
    sse: SSEApp, settings: Settings, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sse_app.streams")
    async with serving(sse, settings, kind) as port:
        client = await Client.opened(sse, port)
        await client.read(1)
        await until_async(is_parked(sse), "the stream is parked")
        client.writer.close()
        hub = sse.node.hub
        await until_async(lambda: not hub.streams, "the stream has ended")
        assert not hub.laggards
        assert hub.endings == {"client": 1}
        ends = [record for record in caplog.records if record.getMessage() == "stream_closed"]
        assert [record.__dict__["reason"] for record in ends] == ["client"]


@pytest.mark.parametrize("kind", ["ours", "tornado"])
@pytest.mark.gen_test(timeout=60)
async def test_a_reset_found_by_a_fan_out_ends_the_stream_as_one_found_by_reading(
    sse: SSEApp, settings: Settings, kind: str
) -> None:
    async with serving(sse, settings, kind) as port:
        client = await Client.opened(sse, port)
        await client.read(1)
        await until_async(is_parked(sse), "the stream is parked")
        hub = sse.node.hub
        hub.disconnects.suspend()  # so that only a write can find out
        client.reset()
        await until_reset(sse, 1)
        await sse.publish("alerts", "e", {})
        await until_async(lambda: not hub.streams, "the stream has ended")
        assert not hub.laggards
        assert hub.endings == {"client": 1}
        hub.disconnects.resume()


@pytest.mark.gen_test(timeout=60)
async def test_pings_to_clients_that_have_gone_end_their_streams_and_reach_the_others(
    sse: SSEApp, settings: Settings
) -> None:
    hub, keepalive = sse.node.hub, sse.node.keepalive
    async with serving(sse, settings, "ours") as port:
        clients = [await Client.opened(sse, port) for _ in range(6)]
        for client in clients:
            await client.read(1)
        await until_async(lambda: len(hub.streams) == 6 and not hub.laggards, "all are parked")
        keepalive.stop()
        for stream in hub.streams:  # all have their turn in the next step of the sweep
            keepalive.forget(stream)
            next_turns = keepalive._turns[(keepalive._step + 1) % keepalive._steps :: keepalive._steps]
            next(turn for turn in next_turns if turn.framing is stream.framing).add(stream)
        hub.disconnects.suspend()
        for client in clients[::2]:
            client.reset()
        await until_reset(sse, 3)
        await keepalive.sweep()
        await until_async(lambda: len(hub.streams) == 3, "three streams are left")
        for client in clients[1::2]:
            assert [event.type for event in await client.read(1)] == ["ping"]
            client.writer.close()
        hub.disconnects.resume()


@pytest.mark.slow
def test_an_idle_stream_takes_little_memory(start_server: Callable[..., ServerProcess]) -> None:
    every = WARM_UP + STREAMS
    limits = {f"LIMITS__{name}": 2 * every for name in ("STREAMS_PER_USER", "STREAMS_PER_ADDRESS")}
    server = start_server(LOG__LEVEL="info", **limits)
    tokens = [server.stream_token("alerts", subject=f"user{number}") for number in range(every)]
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/statm")

    def resident() -> int:
        return int(status.read_text().split()[1]) * 4096

    fleet = Fleet(server.port)
    try:
        fleet.open(WARM_UP, lambda number: f"/api/v1/sse/alerts?token={tokens[number]}")
        before = resident()
        fleet.open(STREAMS, lambda number: f"/api/v1/sse/alerts?token={tokens[WARM_UP + number]}")
        each = (resident() - before) / STREAMS / KIBIBYTE
        print(f"{each:.2f} KiB a stream")
        assert each < 2.6  # with what is remembered of its token
    finally:
        fleet.close()
