"""The synchronous client: many threads, forks, Ctrl-C and the end of a program, against a real server."""

from __future__ import annotations

import asyncio
import inspect
import json
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

import sse_app.client
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.client import Connected, Event, Forbidden, StreamEnded, Unauthorized, Unavailable, Waiting
from sse_app.client.sync import Listening, Publisher, Session, listen, presence
from sse_app.core.errors import InvalidChannel
from tests.support.minting import mint
from tests.support.python_client import QUICK
from tests.support.server_process import ROOT, ServerProcess, running
from tests.support.stream_script import Script, connected, event, stream
from tests.support.waiting import until
from tests.support.wire import Wire

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all of these tests."""
    state = tmp_path_factory.mktemp("sync") / "state"
    with running(state_dir=state, STREAM__RETRY=100, expected=("login_refused",)) as started:
        for name in ("ann", "threads", "fork", "multiprocessing"):
            started.add_user(name, PASSWORD, subscribe="user.**", publish="user.**")
        yield started


@pytest.fixture
def session(server: ServerProcess) -> Iterator[Session]:
    with Session(server.url, "ann", PASSWORD) as session:
        yield session


def streams(server: ServerProcess) -> int:
    return int(httpx.get(f"{server.url}/api/v1/sse/status").json()["total_connections"])


def actions(server: ServerProcess, user: str) -> list[str]:
    """Return what the audit trail has of a user."""
    entries = map(json.loads, server.command("audit", "--limit", "1000").splitlines())
    return [entry["action"] for entry in entries if entry["subject"] == user]


def test_many_threads_share_a_session_a_publisher_and_a_stream(server: ServerProcess) -> None:
    with (
        Session(server.url, "threads", PASSWORD) as session,
        Publisher(server.url, session) as publisher,
        listen(server.url, "user.threads", session) as items,
    ):
        items.opened()
        with ThreadPoolExecutor(4) as takers, ThreadPoolExecutor(8) as publishers:
            taken = [takers.submit(next, items) for _ in range(40)]
            ids = [*publishers.map(lambda n: publisher.publish("user.threads", "e", {"n": n}), range(40))]
            events = [future.result() for future in taken]
        assert sorted(event.id for event in events if isinstance(event, Event)) == sorted(ids)
        assert items.last_event_id in ids
    until(lambda: actions(server, "threads").count("login") == 1, "one login is in the audit trail")


def test_events_of_one_thread_come_in_order_and_the_stream_ends_with_the_channel(
    server: ServerProcess, session: Session
) -> None:
    with Publisher(server.url, session) as publisher, listen(server.url, "user.end", session) as items:
        items.opened()
        ids = [publisher.publish("user.end", "e", {"n": 1}), publisher.publish("user.end", "text", "two")]
        batch = [{"channel": "user.end", "event": "e", "data": None, "final": True}]
        ids += publisher.publish_batch(batch)
        assert [item.id for item in items if isinstance(item, Event)] == ids
        assert [*items] == []
    again = listen(server.url, "user.end", session, begin="earliest", types=["text"])
    assert [item.data for item in again if isinstance(item, Event)] == ["two"]
    until(lambda: streams(server) == 0, "nothing listens")


def test_a_stream_that_was_left_tells_the_id_to_resume_after(server: ServerProcess, session: Session) -> None:
    with Publisher(server.url, session) as publisher:
        with listen(server.url, "user.left", session) as items:
            items.opened()
            ids = [publisher.publish("user.left", "e", {"n": n}) for n in range(3)]
            for _ in range(2):
                next(items)
        assert items.last_event_id == ids[1]
        with listen(server.url, "user.left", session, after=items.last_event_id) as rest:
            assert [item.id for item in [next(rest)] if isinstance(item, Event)] == [ids[2]]
    never_begun = listen(server.url, "user.left", session, after=ids[0])
    never_begun.close()
    assert never_begun.last_event_id == ids[0]


def test_a_stream_that_was_kicked_tells_the_id_to_resume_after() -> None:
    def take(items: Listening) -> list[str]:
        ids = [item.id for item in [next(items), next(items)] if isinstance(item, Event)]
        with pytest.raises(StreamEnded, match="kicked"):
            next(items)
        return ids

    async def test() -> None:
        told = [event("tick", {"n": n}, f"e-{n}") for n in (2, 3)]
        kicked = event("closing", {"reason": "kicked", "retry": None})
        async with Script({"/sse/news": [stream(connected(), *told, kicked)]}) as script:
            items = listen(script.url, "news", lambda: "token")
            assert await asyncio.to_thread(take, items) == ["e-2", "e-3"]
            assert items.last_event_id == "e-3"

    asyncio.run(test())


def test_a_publisher_keeps_its_connection(server: ServerProcess) -> None:
    async def test() -> None:
        async with Wire(server.port) as wire:
            with Publisher(wire.url, server.access_token()) as publisher:
                for n in range(10):
                    await asyncio.to_thread(publisher.publish, "user.kept", "e", {"n": n})
            assert len(wire.requests) == 1

    asyncio.run(test())


def test_a_token_function_may_block_and_may_fail(server: ServerProcess) -> None:
    calls: list[str] = []

    def token() -> str:
        calls.append(threading.current_thread().name)
        if len(calls) == 1:
            httpx.get(f"{server.url}/nowhere").raise_for_status()  # 404: it passes
        return server.stream_token("user.**")

    states: list[Connected | Waiting] = []
    with listen(server.url, "user.function", token, backoff=QUICK, on_state=states.append) as items:
        items.opened()
    assert [type(state) for state in states] == [Waiting, Connected]
    assert len(calls) == 2
    numbers = iter(())
    with (
        Publisher(server.url, lambda: next(numbers)) as publisher,
        pytest.raises(RuntimeError, match="StopIteration"),
    ):
        publisher.publish("user.function", "e", {})


def test_what_is_refused_is_raised_and_ends_the_iteration(server: ServerProcess, session: Session) -> None:
    items = listen(server.url, "alerts", session)
    with pytest.raises(Forbidden):
        next(items)
    assert [*items] == []
    with Session(server.url, "ann", "wrong") as wrong, pytest.raises(Unauthorized, match="login as ann"):
        wrong.access_token()
    with Publisher(server.url, "nonsense") as publisher, pytest.raises(Unauthorized):
        publisher.publish("user.refused", "e", {})
    assert session.stream_token(["user.a"]) != session.stream_token(["user.a"])
    session.logout()
    assert PASSWORD not in repr(session)


def test_what_cannot_be_is_told_at_once(server: ServerProcess) -> None:
    token: Any = sse_app.client.Session(server.url, "ann", PASSWORD)
    for make in (lambda: Publisher(server.url, token), lambda: listen(server.url, "user.a", token)):
        with pytest.raises(TypeError, match=r"Session of sse_app\.client\.sync"):
            make()
    for nothing in (Publisher, sse_app.client.Publisher):
        with pytest.raises(TypeError, match="token must be a text"):
            nothing(server.url, None)  # type: ignore[arg-type]
    for wrong in (object(), 1, b"token"):
        with pytest.raises(TypeError, match="token must be a text"):
            sse_app.client.Stream(server.url, "user.a", wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="address"):
        Session("localhost", "ann", PASSWORD)
    with pytest.raises(ValueError, match="patience"):
        Publisher(server.url, "token", patience=0)
    assert inspect.signature(Publisher).parameters["patience"].default == 60
    with pytest.raises(InvalidChannel):
        listen(server.url, "No Channel", "token")


def test_a_closed_one_says_so_and_can_be_closed_again(server: ServerProcess) -> None:
    publisher = Publisher(server.url, server.access_token())
    publisher.publish("user.closed", "e", {})
    publisher.close()
    publisher.close()
    with pytest.raises(RuntimeError, match="this Publisher is closed"):
        publisher.publish("user.closed", "e", {})
    Publisher(server.url, "token").close()


def test_a_callback_that_calls_the_client_is_told_that_it_may_not(server: ServerProcess) -> None:
    publisher = Publisher(server.url, server.access_token())
    items = listen(
        *(server.url, "user.callback", server.stream_token("user.**")),
        on_state=lambda state: print(publisher.publish("user.callback", "e", {})),
    )
    with publisher, items, pytest.raises(RuntimeError, match="may not call"):
        next(items)


def test_certificates_and_headers_of_ones_own_come_with_an_http_client(server: ServerProcess) -> None:
    made: list[httpx.AsyncClient] = []

    def http() -> httpx.AsyncClient:
        made.append(httpx.AsyncClient(headers={"X-Mine": "1"}))
        return made[-1]

    token = server.access_token()
    with Publisher(server.url, token, http=http) as publisher:
        publisher.publish("user.http", "e", {})
    asked = mint(server.state_dir, TokenKind.ACCESS, Grants.of(presence=["user.**"]))
    assert presence(server.url, "user.http", asked, http=http).count == 0
    assert [client.is_closed for client in made] == [True, True]
    assert presence(server.url, "user.http", asked).users == ()


def test_patience_holds_for_a_server_that_does_not_answer() -> None:
    async def test() -> None:
        async with Script({"/sse/news": [[None]]}) as script:
            with Publisher(script.url, "token", patience=0.5) as publisher, pytest.raises(Unavailable):
                await asyncio.to_thread(publisher.publish, "news", "e", {})

    asyncio.run(test())


def test_a_stream_that_is_let_out_of_hand_is_closed(server: ServerProcess) -> None:
    items = listen(server.url, "user.lost", server.stream_token("user.**"))
    items.opened()
    assert streams(server) == 1
    del items
    until(lambda: streams(server) == 0, "nothing listens")


@contextmanager
def program(server: ServerProcess, code: str, user: str = "ann") -> Iterator[subprocess.Popen[str]]:
    """Run a program for the server, with all of Python's warnings as errors; it must complain of nothing, and end."""
    head = f"""
        import os, signal, sys, threading, time
        from sse_app.client.sync import Publisher, Session, listen
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs the tests may have it ignored
        url, stream, access = {server.url!r}, {server.stream_token("user.**")!r}, {server.access_token()!r}
        session = Session(url, {user!r}, {PASSWORD!r})
    """
    words = [
        sys.executable,
        "-W",
        "error",
        "-u",
        "-c",
        textwrap.dedent(head) + textwrap.dedent(code),
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, text=True, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
            _, complained = process.communicate(timeout=60)
        except BaseException:
            process.kill()
            print(process.communicate()[1])
            raise
        assert (process.returncode, complained) == (0, ""), complained


@pytest.mark.slow
def test_ctrl_c_in_a_stream_leaves_nothing_behind(server: ServerProcess) -> None:
    code = """
        try:
            for item in listen(url, "user.interrupted", session, on_state=print):
                pass
        except KeyboardInterrupt:
            print("interrupted")
        def hang():
            print("asked")
            time.sleep(3600)
        publisher = Publisher(url, hang)
        try:
            publisher.publish("user.interrupted", "e", {})
        except KeyboardInterrupt:
            print("interrupted")
        sys.stdin.read()
    """
    with program(server, code) as process:
        assert process.stdout is not None
        assert "Connected" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        until(lambda: streams(server) == 0, "nothing listens, and the program still runs")
        assert process.stdout.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"


@pytest.mark.slow
def test_a_program_ends_whatever_is_open(server: ServerProcess) -> None:
    code = """
        items = listen(url, "user.open", session)
        items.opened()
        publisher = Publisher(url, session)
        publisher.publish("user.open", "e", {})
        next(items)
        def hang():
            time.sleep(3600)
        threading.Thread(target=lambda: Publisher(url, hang).publish("user.open", "e", {}), daemon=True).start()
        threading.Thread(target=lambda: [*items], daemon=True).start()
        unused = Publisher(url, session)
    """
    with program(server, code):
        pass
    until(lambda: streams(server) == 0, "nothing listens")


@pytest.mark.long
@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
def test_what_was_made_before_a_fork_works_after_it(server: ServerProcess, how: str) -> None:
    forks = {
        "fork": """
            for n in range(4):
                if os.fork() == 0:
                    work(n)
                    sys.exit()
            for n in range(4):
                assert os.wait()[1] == 0
        """,
        "multiprocessing": """
            import multiprocessing
            with multiprocessing.get_context("fork").Pool(4) as pool:
                pool.map(work, range(4))
                pool.close()
                pool.join()
        """,
    }
    code = """
        publisher, unused = Publisher(url, session), Publisher(url, session)
        begun, later = listen(url, "user.forked", session), listen(url, "user.forked", session, begin="earliest")
        begun.opened()
        publisher.publish("user.forked", "e", {"n": -1})
        def work(n):
            publisher.publish("user.forked", "e", {"n": n})
            unused.publish("user.forked", "e", {"n": n + 10})
            try:
                next(begun)
            except RuntimeError as error:
                assert "call listen() in the new process" in str(error), error
            assert next(later).data["n"] == -1
    """
    end = """
        ids = [next(begun).id for _ in range(9)]
        print(len(set(ids)))
        publisher.publish("user.forked", "e", {"n": 99})
        assert next(begun).data["n"] == 99
        publisher.publish("user.forked", "e", {}, final=True)
        assert [item.data for item in begun] != []
    """
    whole = "".join(map(textwrap.dedent, (code, forks[how], end))).replace("user.forked", f"user.{how}")
    with program(server, whole, user=how) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "9\n"
    until(lambda: actions(server, how).count("login") == 5, "each process has logged in once")
    assert not any(action.startswith("refresh_") for action in actions(server, how))
