"""Limits on connections that are no streams: which are closed to make room, which never, and which take too long."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest
from tornado.testing import bind_unused_port

from sse_app.app import SSEApp
from sse_app.core.counters import ConnectionCounts
from sse_app.core.repeated_event import RepeatedEvent
from sse_app.http import server as server_module
from sse_app.http.open_connections import ConnectionLimits
from sse_app.http.server import BUSY_PAUSE, HTTPServer
from sse_app.node import FEWEST_CONNECTIONS, connection_limits
from sse_app.settings.model import Limits, Settings
from sse_app.settings.types import Network
from tests.http.test_http_server import GET, Client, Slow, a_few_turns, connected, serving, unread
from tests.http.test_http_server import slow as slow
from tests.support.waiting import until_async

pytestmark = pytest.mark.expects_logs("connections_shed", "accept_failed")

SLOW = b"GET /slow HTTP/1.1\r\nHost: here\r\n\r\n"
BODY = b"POST /slow HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\n"
LARGE = b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n"


def limits(total: int, per_address: int = 1000) -> ConnectionLimits:
    return ConnectionLimits(total, per_address, lambda address: address == "127.0.0.1")


@asynccontextmanager
async def connected_from(port: int, address: str) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def held(server: HTTPServer, count: int) -> None:
    await until_async(lambda: len(server._connections) == count, f"{count} connections are held")


@pytest.mark.gen_test
async def test_room_is_made_by_who_is_missed_least(slow: type[Slow]) -> None:
    counts = ConnectionCounts()
    async with AsyncExitStack() as stack:
        server, port = await stack.enter_async_context(serving(limits=limits(5), counts=counts))

        async def one(sent: bytes) -> Client:
            before = counts.open
            client = await stack.enter_async_context(connected(port))
            await until_async(lambda: counts.open > before or counts.shed, "it is accepted")
            client.send(sent)
            await a_few_turns()
            return client

        busy = await one(SLOW)
        await until_async(lambda: slow.begun, "the request is under way")
        idle = await one(GET)
        assert (await idle.response()).status == 200
        half_behind = await one(GET)
        assert (await half_behind.response()).status == 200
        half = await one(GET[:20])
        silent = await one(b"")
        await held(server, 5)
        half_behind.send(GET[:20])  # from here on it is like one that has sent nothing else
        await a_few_turns()
        served = []
        for ended in (half, silent, half_behind):
            served.append(await one(GET))
            assert (await served[-1].response()).status == 200
            assert await ended.is_closed()
        assert counts.shed == {"silent": 3}
        served.append(await one(GET))  # now only such are there that have been served, and the busy one
        assert (await served[-1].response()).status == 200
        assert await idle.is_closed()
        assert counts.shed == {"silent": 3, "idle": 1}
        slow.may_answer.set()
        assert (await busy.response()).body == b"/slow 0"
        for client in served:
            assert await client.is_open()
        assert counts.open == 5


@pytest.mark.gen_test
async def test_where_all_are_busy_the_next_waits_for_its_turn(slow: type[Slow]) -> None:
    counts = ConnectionCounts()
    async with (
        serving(limits=limits(2), counts=counts) as (_, port),
        connected(port) as one,
        connected(port) as two,
    ):
        one.send(SLOW)
        two.send(SLOW)
        await until_async(lambda: len(slow.begun) == 2, "the requests are under way")
        async with connected(port) as over:
            over.send(SLOW)
            await until_async(lambda: len(slow.begun) == 3, "the limit is exceeded by one")
            async with connected(port) as next_:
                next_.send(SLOW)
                await asyncio.sleep(4 * BUSY_PAUSE)
                assert len(slow.begun) == counts.open == 3
                slow.may_answer.set()
                for client in (one, two, over, next_):
                    assert (await client.response()).status == 200
    assert counts.shed.keys() <= {"idle"}


@pytest.mark.gen_test
async def test_a_burst_of_requests_is_served_without_a_word(
    slow: type[Slow], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "BUSY_PAUSE", 60.0)  # the burst takes less, also on a busy machine
    counts = ConnectionCounts()
    async with AsyncExitStack() as stack:
        _, port = await stack.enter_async_context(serving(limits=limits(2), counts=counts))
        clients = []
        for number in range(1, 4):
            clients.append(await stack.enter_async_context(connected(port)))
            clients[-1].send(SLOW)
            await until_async(lambda number=number: len(slow.begun) == number, "it is under way")
        slow.may_answer.set()
        for client in clients:
            assert (await client.response()).status == 200
    assert counts.accept_failures == 0
    assert "accept_failed" not in [record.getMessage() for record in caplog.records]


@pytest.mark.gen_test
async def test_an_address_has_its_share_and_shuts_out_nobody_else(slow: type[Slow]) -> None:
    counts = ConnectionCounts()
    async with AsyncExitStack() as stack:
        server, port = await stack.enter_async_context(serving(limits=limits(100, 3), counts=counts))

        async def one(address: str, sent: bytes) -> Client:
            client = await stack.enter_async_context(connected_from(port, address))
            client.send(sent)
            await a_few_turns()
            return client

        other = await one("127.0.0.3", b"")
        silent = [await one("127.0.0.2", b"") for _ in range(3)]
        await held(server, 4)
        served = await one("127.0.0.2", GET)
        assert (await served.response()).status == 200
        assert await silent[0].is_closed()
        shared = [await one("127.0.0.1", b"") for _ in range(10)]  # as those of a proxy
        await held(server, 14)
        for client in [*silent[1:], served]:
            client.send(SLOW)
        await until_async(lambda: len(slow.begun) == 3, "the requests are under way")
        assert await (await one("127.0.0.2", GET)).is_closed()
        assert counts.shed == {"silent": 1, "address": 1}
        for client in [other, *shared]:
            assert await client.is_open()
        slow.may_answer.set()
        for client in [*silent[1:], served]:
            assert (await client.response()).status == 200


@pytest.mark.parametrize("grace", [1000.0, 0.0])
@pytest.mark.expects_logs("Uncaught", "Cannot send error response")
@pytest.mark.gen_test
async def test_slow_senders_and_readers_make_room_last_and_only_after_a_while(
    slow: type[Slow], monkeypatch: pytest.MonkeyPatch, grace: float
) -> None:
    monkeypatch.setattr(server_module, "SLOW_AFTER", grace)
    counts = ConnectionCounts()
    async with serving(limits=limits(2), counts=counts) as (server, port), connected(port) as sender:
        sender.send(BODY)
        await until_async(lambda: slow.begun, "the body is coming")
        with closing(unread(server)) as reader:
            reader.send(LARGE)
            await until_async(lambda: list(server.sending), "the answer waits to be read")
            async with connected(port) as busy:
                busy.send(SLOW)
                await until_async(lambda: len(slow.begun) == 2, "it is served")
                if grace:
                    assert counts.open == 3  # one too many for a while
                    assert counts.shed == {}
                    return
                assert await sender.is_closed()
                async with connected(port) as late:
                    late.send(GET)
                    assert (await late.response()).status == 200
                    assert counts.shed == {"slow_body": 1, "unread": 1}
                    slow.may_answer.set()
                    assert (await busy.response()).status == 200


@pytest.mark.parametrize("which", [limits(8), limits(100, 8)], ids=["in all", "of an address"])
@pytest.mark.gen_test
async def test_so_many_slow_senders_that_they_have_more_than_their_share_make_room_at_once(
    slow: type[Slow], monkeypatch: pytest.MonkeyPatch, which: ConnectionLimits
) -> None:
    monkeypatch.setattr(server_module, "SLOW_AFTER", 1000.0)
    counts = ConnectionCounts()
    async with AsyncExitStack() as stack:
        _, port = await stack.enter_async_context(serving(limits=which, counts=counts))

        async def one(sent: bytes) -> Client:
            client = await stack.enter_async_context(connected_from(port, "127.0.0.2"))
            client.send(sent)
            return client

        senders = []
        for number in range(8):
            senders.append(await one(BODY))
            await until_async(lambda number=number: len(slow.begun) > number, "the body is coming")
        for _ in range(20):
            served = await one(GET)
            assert (await served.response()).status == 200
        assert counts.accept_failures == 0
        assert counts.shed["slow_body"] == 1  # from then on those that were served made room
        for number in range(20):
            await one(BODY)
            await until_async(lambda number=number: len(slow.begun) > 8 + number, "the body is coming")
        assert counts.accept_failures == 0
        assert counts.open == 8


@pytest.mark.gen_test
async def test_what_is_closed_is_told_once_an_interval_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = ConnectionCounts()
    with caplog.at_level(logging.INFO):
        async with AsyncExitStack() as stack:
            _, port = await stack.enter_async_context(serving(limits=limits(3), counts=counts))
            for _ in range(20):
                await stack.enter_async_context(connected(port))
            await until_async(lambda: counts.shed["silent"] == 17, "the others are closed")
            assert counts.open == 3
    lines = [record for record in caplog.records if record.getMessage() == "connections_shed"]
    assert [(vars(line)["count"], vars(line)["detail"]) for line in lines] == [(1, "silent")]


@pytest.mark.gen_test
async def test_a_repeated_event_is_logged_at_once_and_then_with_how_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    event = RepeatedEvent(logging.getLogger("test"), logging.ERROR, "accept_failed", 0.05)
    for kind in ("a", "a", "b", "a"):
        event.add(kind)
    await until_async(lambda: len(caplog.records) == 2, "the interval is over")
    await asyncio.sleep(0.1)
    event.add("c")
    told = [(vars(record)["count"], vars(record)["detail"]) for record in caplog.records]
    assert told == [(1, "a"), (3, "a: 2, b: 1"), (1, "c")]


# -- progress that prolongs nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", GET], ids=["at first", "after a response"])
@pytest.mark.gen_test
async def test_a_head_that_trickles_must_be_complete_in_time(first: bytes) -> None:
    async with serving(idle_timeout=0.3) as (_, port), connected(port) as client:
        if first:
            client.send(first)
            await client.response()
        begun = asyncio.get_running_loop().time()
        for byte in GET[:-4] * 10:
            client.send(bytes([byte]))
            await asyncio.sleep(0.02)
            if client.reader.at_eof():
                break
        assert client.reader.at_eof()
        assert asyncio.get_running_loop().time() - begun < 5


@pytest.mark.gen_test
async def test_a_body_that_trickles_must_be_complete_in_time(slow: type[Slow]) -> None:
    async with serving(body_timeout=0.3) as (_, port), connected(port) as client:
        client.send(BODY.replace(b"9", b"900"))
        for _ in range(300):
            client.send(b"a")
            await asyncio.sleep(0.02)
            if client.reader.at_eof():
                break
        assert client.reader.at_eof()


@pytest.mark.expects_logs("Uncaught", "Cannot send error response")
@pytest.mark.gen_test
async def test_a_response_that_is_read_byte_by_byte_is_cut_off() -> None:
    async with serving(send_timeout=0.5) as (server, _):
        with closing(unread(server)) as client:
            client.send(LARGE)
            await until_async(lambda: list(server.sending), "the answer waits to be read")
            for _ in range(500):
                client.recv(16)
                await asyncio.sleep(0.02)
                if not list(server.sending):
                    break
            assert not list(server.sending)


@pytest.mark.expects_logs("uncaught")
@pytest.mark.gen_test
async def test_an_error_in_what_the_event_loop_calls_ends_the_connection_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (server, port), connected(port) as client:
        await held(server, 1)
        server.received = memoryview(b"cannot be written to")
        client.send(GET)
        assert await client.is_closed()
        await asyncio.sleep(0.05)
        await until_async(lambda: len(server._connections) == 0, "it is gone")
    assert [record.getMessage() for record in caplog.records].count("uncaught") == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\na",
        b"POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\na",
        b"POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na",
        b"POST /api/v1/auth/login HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nrubbish\r\n",
    ],
    ids=["length", "too large", "chunked", "malformed"],
)
@pytest.mark.expects_logs("malformed_request")
@pytest.mark.gen_test
async def test_a_request_whose_client_leaves_within_its_body_leaves_no_garbage(
    sent: bytes, tmp_path: Path
) -> None:
    """Cycles of long ago are hardly ever collected: a stranger's 12,000 requests once held 4.8 GB."""
    app = SSEApp(Settings(state_dir=tmp_path / "state"))
    await app.start()
    server = HTTPServer(app.application())
    sock, port = bind_unused_port()
    server.add_sockets([sock])

    async def cut_off() -> None:
        async with connected(port) as client:
            client.send(sent)
            await held(server, 1)
            await asyncio.sleep(0.05)
        await held(server, 0)
        await a_few_turns()

    try:
        await cut_off()  # what is loaded the first time is not counted
        gc.collect()
        gc.disable()
        for _ in range(3):
            await cut_off()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = {type(each).__name__ for each in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        await server.close_all_connections()
        await app.stop()
    assert not kinds & {"Connection", "Exchange", "HTTPServerRequest", "LoginHandler", "NotFoundHandler"}


# -- from settings to limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "total", "per_address"),
    [(65_536, 4096, 256), (1024, 160, 80), (300, 160, 80), (100, FEWEST_CONNECTIONS, 4), (-1, 4096, 256)],
)
def test_there_may_be_as_many_as_the_open_files_allow_beside_the_streams(
    files: int, total: int, per_address: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (files, files))
    found = connection_limits(Settings(state_dir=tmp_path))
    assert (found.total, found.per_address) == (total, per_address)


def test_the_connections_among_many_workers_take_no_files_from_streams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 1024))
    alone, many = (
        SSEApp(Settings(state_dir=tmp_path / str(n), event_log="memory:", workers=n)) for n in (1, 101)
    )
    capacities = [app.node.admission._capacity for app in (alone, many)]
    assert capacities == [1024 - 256, 1024 - 256 - 200]
    assert connection_limits(many.node.settings).total == connection_limits(alone.node.settings).total
    for app in (alone, many):
        app.node.state.unlock()


def test_workers_that_are_counted_are_as_many_as_there_are_cores_to_run_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (1024, 1024))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1, 2})
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    app = SSEApp(Settings(state_dir=tmp_path, event_log="memory:", workers="auto"))
    assert app.node.admission._capacity == 1024 - 256 - 2 * 2
    app.node.state.unlock()


def test_proxies_and_this_machine_have_no_limit_of_their_own(tmp_path: Path) -> None:
    settings = Settings(
        state_dir=tmp_path,
        trusted_proxies=(Network("10.0.0.0/8"), Network("2001:db8::/32")),
        limits=Limits(connections=10, connections_per_address=3),
    )
    found = connection_limits(settings)
    assert found[:2] == (10, 3)
    shared = ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "10.1.2.3", "::ffff:10.1.2.3"]
    assert all(map(found.is_shared, [*shared, "2001:db8::7"]))
    assert not any(map(found.is_shared, ["192.0.2.1", "2001:db9::7", "::ffff:192.0.2.1", "fe80::1%2"]))
