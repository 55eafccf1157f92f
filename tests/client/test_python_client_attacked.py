"""Ways to break the Python client that were tried, against real servers; each has to leave it whole."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from sse_app.client import Connected, Event, Publisher, Reset, Stream, StreamEnded, Waiting
from sse_app.client.renewal import renew
from sse_app.client.tokens import StreamTokens
from tests.support.databases import back_up
from tests.support.python_client import CHANNEL, QUICK, logged_in, run, take
from tests.support.server_process import ROOT, ServerProcess
from tests.support.waiting import until, until_async

Start = Callable[..., ServerProcess]


@pytest.mark.slow
def test_a_gap_is_told_and_never_skipped(start_server: Start) -> None:
    server = start_server(HISTORY__SIZE=10, STREAM__RETRY=100)
    token = server.stream_token("user.**")

    async def test() -> None:
        async with Publisher(server.url, server.access_token(), backoff=QUICK) as publisher:
            start = await publisher.publish(CHANNEL, "e", {})
            other = await publisher.publish("user.quiet", "e", {})
            for _ in range(50):
                await publisher.publish(CHANNEL, "e", {})
            async with Stream(
                server.url, [CHANNEL, "user.quiet"], token, after=start, backoff=QUICK
            ) as stream:
                items = [await anext(stream) for _ in range(2)]
                assert isinstance(items[0], Reset)
                assert items[0].channel == CHANNEL
                assert isinstance(items[1], Event)
                assert items[1].id == other
                await publisher.publish(CHANNEL, "e", {})
                await take(stream, 1)
                # A backup from before is restored: ids that were seen come again, for other events.
                await asyncio.to_thread(server.stop)
                backup = server.state_dir.with_suffix(".backup")
                back_up(server.state_dir, backup)
                await asyncio.to_thread(server.start)
                ids = [await publisher.publish(CHANNEL, "e", {}) for _ in range(5)]
                assert [event.id for event in await take(stream, 5)] == ids
                await asyncio.to_thread(server.stop)
                shutil.rmtree(server.state_dir)
                back_up(backup, server.state_dir)
                await asyncio.to_thread(server.start)
                told = {(await anext(stream)).channel for _ in range(2)}
                assert told == {CHANNEL, "user.quiet"}
                again = await publisher.publish(CHANNEL, "e", {"again": True})
                assert again == ids[0]
                assert (await take(stream, 1))[0].data["again"]
                assert stream.last_event_id == again

    run(test())


def test_cancelling_an_iteration_loses_nothing_and_keeps_the_connection(start_server: Start) -> None:
    server = start_server()

    async def test() -> None:
        states: list[Connected | Waiting] = []
        async with (
            Publisher(server.url, server.access_token()) as publisher,
            Stream(server.url, CHANNEL, server.stream_token(CHANNEL), on_state=states.append) as stream,
        ):
            await stream.opened()
            publishing = asyncio.create_task(
                publisher.publish_batch([{"channel": CHANNEL, "event": "e", "data": {}}] * 500)
            )
            seen: list[str] = []
            while len(seen) < 500:
                try:
                    async with asyncio.timeout(0.001):
                        while True:
                            seen += [event.id for event in await take(stream, 1)]
                            await asyncio.sleep(0)
                except TimeoutError:
                    pass
            assert seen == await publishing
            assert len(states) == 1

    run(test())


@pytest.mark.slow
def test_a_caller_that_is_too_slow_is_cut_off_and_misses_nothing(start_server: Start) -> None:
    server = start_server(LIMITS__BACKLOG_BYTES=65_536, KEEPALIVE__PING_INTERVAL=0.5, STREAM__RETRY=100)

    async def test() -> None:
        cut = asyncio.Event()
        ids: list[str] = []
        async with (
            Publisher(server.url, server.access_token()) as publisher,
            Stream(server.url, CHANNEL, server.stream_token(CHANNEL), backoff=QUICK) as stream,
        ):
            await stream.opened()
            for _ in range(100):
                events = [{"channel": CHANNEL, "event": "e", "data": {"text": "x" * 9000}}] * 8
                ids += await publisher.publish_batch(events)
            stream._on_state = lambda state: cut.set()
            assert [event.id for event in await take(stream, 800)] == ids
            assert cut.is_set()

    run(test())


def test_it_ends_cleanly_in_every_state(start_server: Start) -> None:
    server = start_server(STREAM__RETRY=5000)
    assert server.process is not None

    async def tokens() -> str:
        return server.stream_token(CHANNEL, ttl=3)

    def nobody_listens() -> bool:
        return bool(httpx.get(f"{server.url}/api/v1/sse/status").json()["total_connections"] == 0)

    async def test() -> None:
        async with Publisher(server.url, server.access_token()) as publisher:
            for ending in ("idle", "full", "renewing", "waiting", "opening"):
                stream = Stream(server.url, CHANNEL, tokens, backoff=QUICK)
                async with stream:
                    if ending == "opening":
                        break
                    await stream.opened()
                    if ending == "full":  # its reader waits for the caller, with more unread behind it
                        await publisher.publish_batch([{"channel": CHANNEL, "event": "e", "data": {}}] * 300)
                        await take(stream, 1)
                    if ending == "renewing":
                        await asyncio.sleep(2)
                    if ending == "waiting":
                        await asyncio.to_thread(server.kill)
                        await asyncio.to_thread(server.start)
                    waiter = asyncio.create_task(anext(stream, None))
                    await asyncio.sleep(0)
                await waiter
                assert [item async for item in stream] == []
                assert len(asyncio.all_tasks()) == 1
                await asyncio.to_thread(until, nobody_listens, "the server has noticed")

    run(test())


@pytest.mark.parametrize("heard", [True, False])
def test_who_is_kicked_stays_away_also_where_it_did_not_hear_of_the_kick(
    start_server: Start, heard: bool
) -> None:
    server = start_server(STREAM__RETRY=100)
    admin = server.access_token(subject="root", admin=True)

    async def test() -> None:
        async with (
            httpx.AsyncClient(headers={"Authorization": f"Bearer {admin}"}, base_url=server.url) as http,
            logged_in(server) as session,
            Stream(server.url, CHANNEL, session, backoff=QUICK) as stream,
        ):
            await stream.opened()
            found = (await http.get("/api/v1/admin/connections")).json()["connections"]
            if heard:
                kicked = await http.post(f"/api/v1/admin/connections/{found[0]['connection']}/kick")
                kicked.raise_for_status()
            else:
                async with httpx.AsyncClient() as other:
                    token = await session.stream_token([CHANNEL])
                    url = server.stream_url(CHANNEL, token, client_id="other")
                    async with other.stream("GET", url) as answer:
                        pieces = answer.aiter_bytes()  # kept: it closes the stream when it is collected
                        await anext(pieces)
                        listed = await http.get("/api/v1/admin/connections?search=other&field=client_id")
                        number = listed.json()["connections"][0]["connection"]
                        kicked = await http.post(f"/api/v1/admin/connections/{number}/kick")
                        kicked.raise_for_status()
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            with pytest.raises(StreamEnded, match="kicked"):
                await anext(stream)

    run(test())


def test_no_log_of_the_client_has_a_token(start_server: Start, caplog: pytest.LogCaptureFixture) -> None:
    server = start_server(STREAM__RETRY=100)
    caplog.set_level(logging.DEBUG)

    async def test() -> None:
        async with logged_in(server) as session, Publisher(server.url, session) as publisher:
            async with Stream(server.url, CHANNEL, session, backoff=QUICK) as stream:
                await stream.opened()
                await publisher.publish(CHANNEL, "e", {})
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                await publisher.publish(CHANNEL, "e", {})
                await take(stream, 2)
            assert "password" not in repr(session)

    run(test())
    assert "GET " + server.url in caplog.text
    assert "eyJ" not in caplog.text


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        (
            "import sys, sse_app.client; print(sorted({'tornado', 'msgspec', 'jwt'} & sys.modules.keys()))",
            "[]\n",
        ),
        (
            "import sys; sys.modules['httpx'] = None; from sse_app.cli.main import main; main(['listen', 'alerts'])",
            "sse-app: listen: sse_app.client needs the extra 'client': "
            "pip install '.[client]' in a checkout, or pip install httpx\n",
        ),
        *(
            (
                f"import sys; sys.modules['httpx'] = None\ntry: import {module}\n"
                "except ImportError as error: print(error, error.__suppress_context__)",
                "sse_app.client needs the extra 'client': "
                "pip install '.[client]' in a checkout, or pip install httpx True\n",
            )
            for module in ("sse_app.client", "sse_app.client.sync", "sse_app.client.testing")
        ),
    ],
)
def test_the_client_needs_nothing_of_the_server_and_says_what_it_needs(program: str, printed: str) -> None:
    done: Any = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == printed


@pytest.mark.slow
def test_the_lines_of_the_readme_run_as_they_stand(start_server: Start) -> None:
    server = start_server()
    server.add_user("ann", "correct horse battery", subscribe="dashboard,alerts", publish="alerts")
    readme = (ROOT / "README.md").read_text()
    block = readme[readme.index("    import asyncio\n    from sse_app.client") :]
    program = textwrap.dedent(block[: block.index("asyncio.run(main())") + len("asyncio.run(main())")])
    program = program.replace("http://localhost:8000", server.url).replace("…", "correct horse battery")
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.kill()
    assert re.match(r"[\w-]+ risk_alert {'severity': 'low', 'channel': 'alerts', 'timestamp': ", line)


@pytest.mark.slow
def test_the_synchronous_lines_of_the_readme_run_as_they_stand(start_server: Start) -> None:
    server = start_server()
    server.add_user("ann", "correct horse battery", subscribe="dashboard,alerts", publish="alerts")
    readme = (ROOT / "README.md").read_text()
    block = readme[readme.index("    from sse_app.client.sync") :].partition("\n\n#")[0]
    program = textwrap.dedent(block).replace("http://localhost:8000", server.url)
    program = program.replace("…", "correct horse battery")
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=ROOT, check=True, timeout=60)
    with server.publisher() as http:
        (event,) = http.get("/api/v1/sse/alerts/history").json()["events"]
    assert (event["event"], event["data"]["severity"]) == ("risk_alert", "low")


def test_a_server_whose_tokens_last_no_time_is_not_asked_for_renewal_without_a_pause() -> None:
    asked: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readline()).strip():
            pass
        asked.append(time.monotonic())
        body = b'{"renewed": 1, "expires_in": 0}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, httpx.AsyncClient() as http:
            tokens = StreamTokens("token", ("news",))
            task = asyncio.create_task(
                renew(http, f"http://127.0.0.1:{port}/", tokens, 0, lambda reason: None, lambda error: None)
            )
            await asyncio.sleep(2)  # the property is how often it asks in that time
            await until_async(lambda: asked, "it asks at all")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(test())
    assert 1 <= len(asked) <= 4
