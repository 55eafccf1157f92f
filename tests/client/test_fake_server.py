"""The server for tests of applications: what it does on demand, and that it answers as the real one does."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import httpx
import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from sse_app.client import (
    Connected,
    Event,
    Forbidden,
    Publisher,
    Reset,
    Session,
    Stream,
    StreamEnded,
    Unauthorized,
    Unavailable,
    Waiting,
    presence,
    sync,
)
from sse_app.client.loop_thread import loop_thread
from sse_app.client.testing import FakeServer
from sse_app.core.errors import InvalidInput
from tests.support.minting import mint
from tests.support.python_client import QUICK, run, take
from tests.support.server_process import ROOT, ServerProcess

Start = Callable[..., ServerProcess]


def test_a_stream_goes_on_when_it_is_dropped_and_when_its_token_expires() -> None:
    async def test() -> None:
        states: list[Connected | Waiting] = []
        with FakeServer(users={"ann": "secret"}) as server:
            async with (
                Session(server.url, "ann", "secret") as session,
                Stream(server.url, "alerts,user.*", session, backoff=QUICK, on_state=states.append) as stream,
            ):
                await stream.opened()
                ids = [server.emit("alerts", "a", {"n": 1}), server.emit("user.ann", "b", "text\nof lines")]
                events = await take(stream, 2)
                assert [event.id for event in events] == ids
                assert (events[0].data["n"], events[0].channel, events[1].data) == (
                    1,
                    "alerts",
                    "text\nof lines",
                )
                for interruption in (server.drop, server.expire, lambda: server.end("shutdown", 20)):
                    interruption()
                    ids.append(server.emit("alerts", "a", {"n": 2}))
                    assert [event.id for event in await take(stream, 1)] == ids[-1:]
                    await server.until(lambda server: len(server.streams) == 1)
                assert [type(state) for state in states].count(Connected) == 4
                assert server.streams[0].last_event_id == ids[-2]
                assert server.streams[0].channels == ("alerts", "user.*")
                assert (server.asked["login"], server.asked["refresh"]) == (1, 1)
                server.reset("alerts")
                assert await anext(stream) == Reset("alerts", "history_trimmed")
            await server.until(lambda server: server.streams == [])

    run(test())


def test_what_is_refused_on_demand_is_what_the_clients_raise() -> None:
    async def test() -> None:
        with FakeServer({"ann": "secret"}) as server:
            async with Session(server.url, "ann", "wrong") as session:
                with pytest.raises(Unauthorized, match="invalid_credentials"):
                    await session.access_token()
            async with Publisher(server.url, "token", backoff=QUICK) as publisher:
                server.refuse("publish", 503, times=2)
                server.refuse("publish", 0)
                server.lose_answers("publish")
                id = await publisher.publish("alerts", "a", {"n": 1}, key="mine")
                (published,) = server.published
                assert (published.id, published.data, published.key) == (id, {"n": 1}, "mine")
                assert server.asked["publish"] == 5
                server.refuse("publish", 403, "forbidden")
                with pytest.raises(Forbidden):
                    await publisher.publish("alerts", "a", {})
                server.refuse("publish", 429, retry_after=30)
                hasty = Publisher(server.url, "token", patience=20)
                with pytest.raises(Unavailable, match="429"):
                    await hasty.publish("alerts", "a", {})
                await hasty.aclose()
                server.expire()
                with pytest.raises(Unauthorized, match="expired"):
                    await publisher.publish("alerts", "a", {})
            server.refuse("stream", 403, "kicked")
            async with Stream(server.url, "alerts", "token-2") as stream:
                with pytest.raises(StreamEnded, match="kicked"):
                    await anext(stream)
            async with Stream(server.url, "alerts", "token-2") as stream:
                await stream.opened()
                server.end("kicked")
                with pytest.raises(StreamEnded, match="kicked"):
                    await anext(stream)
            with pytest.raises(InvalidInput, match="reserved"):
                server.emit("alerts", "ping", {})
            with pytest.raises(TimeoutError, match="FakeServer"):
                await server.until(lambda server: False, within=0.05)

    run(test())


def test_a_token_is_renewed_and_presence_is_told() -> None:
    async def test() -> None:
        with FakeServer(lifetime=1) as server:
            async with (
                Session(server.url, "ann", "any") as session,
                Stream(server.url, "alerts", session) as stream,
                Stream(server.url, "alerts") as anonymous,
            ):
                await stream.opened()
                await server.until(lambda server: any(each.token for each in server.streams))
                first = next(each.token for each in server.streams if each.token)
                await anonymous.opened()
                await server.until(lambda server: first not in [each.token for each in server.streams])
                assert server.asked["renewal"] >= 1
                there = await presence(server.url, "alerts", session)
                assert [(user.sub, user.streams) for user in there.users] == [("ann", 1)]
                assert (there.count, there.anonymous) == (1, 1)
                await session.logout()

    run(test())


def test_a_token_may_have_a_line_s_end_and_what_is_none_is_told() -> None:
    async def test() -> None:
        states: list[Connected | Waiting] = []
        tokens: list[Any] = [None, {"stream_token": "x"}, " a-token\r\n"]

        async def fetch() -> str:
            return tokens.pop(0)  # type: ignore[no-any-return]

        with FakeServer() as server:
            async with (
                Stream(server.url, "alerts", fetch, backoff=QUICK, on_state=states.append) as stream,
                Publisher(server.url, "mine\n") as publisher,
            ):
                await stream.opened()
                await publisher.publish("alerts", "a", {})
            assert (server.published[0].token, server.asked) == ("mine", {"stream": 1, "publish": 1})
            for wrong in ("two\nlines", "\x7f"):
                async with Publisher(server.url, wrong) as publisher:
                    with pytest.raises(Unauthorized, match="no header can carry"):
                        await publisher.publish("alerts", "a", {})
                async with Stream(server.url, "alerts", wrong) as stream:
                    with pytest.raises(Unauthorized, match="no header can carry"):
                        await stream.opened()
        reasons = [state.reason for state in states if isinstance(state, Waiting)]
        assert ["no text, but NoneType" in reasons[0], "no text, but dict" in reasons[1]] == [True, True]

    run(test())


def test_whatever_is_sent_to_it_it_goes_on() -> None:
    head = b"POST /api/v1/sse/x HTTP/1.1\r\nAuthorization: Bearer x\r\nContent-Length: "
    junk = [b"\0" * 100, b"GET\r\n\r\n", b"A" * 200_000, head + b"abc\r\n\r\n", head + b"-5\r\n\r\n"]
    junk += [head + b"200000\r\n\r\n" + b"[" * 200_000, head + b"100\r\n\r\n{", head + b"2\r\n\r\n\xff\xff"]
    junk += [b"GET /api/v1/sse/x?last=abc HTTP/1.1\r\n\r\n", b"GET /api/v1/sse/x?since=then HTTP/1.1\r\n\r\n"]
    with FakeServer() as server:
        address = "127.0.0.1", int(server.url.rpartition(":")[2])
        for piece in junk:
            with socket.create_connection(address) as connection, suppress(OSError):
                connection.sendall(piece)
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1000)
        with sync.Publisher(server.url, "token") as publisher:
            assert publisher.publish("x", "e", {})


def test_the_synchronous_client_runs_against_it_and_nothing_is_left() -> None:
    before = set(threading.enumerate())
    with sync.Session("http://localhost:1", "warm", "up"):  # the client's own thread stays for the next use
        loop_thread()
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with (
            FakeServer() as server,
            sync.Session(server.url, "ann", "any") as session,
            sync.Publisher(server.url, session) as publisher,
            sync.listen(server.url, "alerts", session, begin="earliest") as items,
        ):
            ids = [publisher.publish("alerts", "a", {"n": n}, final=n == 2) for n in range(3)]
            assert [item.id for item in items if isinstance(item, Event)] == ids
            server.wait_for(lambda server: server.streams == [])
    assert {thread.name for thread in set(threading.enumerate()) - before} <= {"sse_app.client.sync"}
    assert len(os.listdir("/proc/self/fd")) <= files
    with pytest.raises(RuntimeError, match="'with'"):
        server.emit("alerts", "a", {})


def answers_of(url: str, access: str, stream: str) -> list[Any]:
    """Return what a server answers to many requests, right and wrong."""
    told: list[Any] = []
    with httpx.Client(timeout=30) as http:

        def post(path: str, token: str = access, **request: Any) -> None:
            headers = {"Authorization": f"Bearer {token}", **request.pop("headers", {})}
            answer = http.post(f"{url}/api/v1/sse{path}", headers=headers if token else {}, **request)
            body = answer.json()
            told.append((answer.status_code, body.get("error", {}).get("code"), sorted(body)))
            if "ids" in body:
                told.append([id is None for id in body["ids"]])

        def listen(channels: str, token: str = stream, **query: Any) -> None:
            with http.stream(
                "GET",
                f"{url}/api/v1/sse/{channels}",
                params=query,
                headers={"Authorization": f"Bearer {token}"},
            ) as answer:
                if answer.status_code != 200:
                    answer.read()
                    told.append(
                        (answer.status_code, answer.json()["error"]["code"] if answer.content else "")
                    )
                    return
                text = ""
                for piece in answer.iter_text():
                    text += piece
                    if "event: closing" in text:
                        break
            text = re.sub(r"id: \w+-(\d+)", lambda match: f"id: {int(match[1]) - first}", text)
            text = re.sub(
                r"retry: \d+\n",
                "",
                re.sub(r'"(client_id|timestamp|retry|expires_in)":[^,}]*', r'"\1":0', text),
            )
            told.append([frame for frame in text.split("\n\n") if "ping" not in frame])

        post("/user.one", json={"event": "a", "data": {"n": 1}})
        answer = http.post(
            f"{url}/api/v1/sse/user.one",
            json={"event": "a", "data": 0},
            headers={"Authorization": f"Bearer {access}"},
        )
        first = int(answer.json()["id"].rpartition("-")[2])
        for data in ("a\nb\r\n", [1, None], None, {"channel": "else", "timestamp": "mine"}):
            post("/user.one", json={"event": "b", "data": data})
        post("/user.one?event=text&retry=1500", content="<p>\n", headers={"Content-Type": "text/plain"})
        post("/user.two", json={"event": "a", "data": {}, "final": True})
        post("/cursors", json={"event": "a", "data": {}})
        batch: list[dict[str, Any]] = [
            {"channel": channel, "event": "c", "data": {}} for channel in ("user.one", "cursors", "user.two")
        ]
        post("", json={"events": batch})
        post("", json={"events": [*batch, {"channel": "user.one", "event": "ping", "data": 1}]})
        for key, n in (("k", 1), ("k", 1), ("k", 2)):
            post("/user.one", json={"event": "k", "data": n}, headers={"Idempotency-Key": key})
        post("/user.one", json={"event": "a b", "data": 1})
        post("/user.one", json={"event": "a"})
        post("/user.one", content="{")
        post("/user.one", json={"event": "a", "data": 1, "retry": -1})
        post("/No", json={"event": "a", "data": 1})
        post("/user.one", token="", json={"event": "a", "data": 1})
        post("/user.one", token=stream, json={"event": "a", "data": 1})
        post("/user.two", json={"event": "end", "data": {}, "final": True})
        post("/user.one", json={"event": "end", "data": "end", "final": True})
        post("/connections/nobody/renew", token=stream)
        listen("user.one,user.two", **{"from": "earliest"})
        listen("user.two", **{"from": "earliest"})
        listen("user.one", last=2)
        listen("user.one,user.two", last=1)
        listen("user.one,user.two", last=2, types="a,b,c")
        listen("user.one,user.two", last=1, types="text")
        listen("user.two", last=1, types="none")
        listen("user.one", since="-3600", types="b,text")
        listen("user.one", since="2020-01-01T00:00:00Z", types="k")
        listen("user.one", last_event_id="other-1")
        listen("user.one", last_event_id=answer.json()["id"], types="end")
        listen("user.one", last_event_id=f"{answer.json()['id'].partition('-')[0]}-{10**6}")
        listen("user.one")
        listen("No")
        listen("user.one", token=access)
    return told


def test_it_answers_as_the_server_does(start_server: Start) -> None:
    channels = [{"pattern": "user.**"}, {"pattern": "cursors", "stored": False}]
    real = start_server(CHANNELS=channels)
    access = mint(real.state_dir, TokenKind.ACCESS, Grants.of(publish=["**"]))
    wanted = answers_of(real.url, access, real.stream_token("**"))
    with FakeServer(unstored=["cursors"]) as fake:
        login = httpx.post(f"{fake.url}/api/v1/auth/login", json={"username": "ann", "password": "x"}).json()
        got = answers_of(fake.url, login["access_token"], login["stream_token"])
    differences = [(ours, theirs) for ours, theirs in zip_longest(got, wanted) if ours != theirs]
    assert not differences, "\n".join(f"\nfake: {ours}\nreal: {theirs}" for ours, theirs in differences)


@pytest.mark.slow
def test_the_lines_of_the_documents_run_as_they_stand(tmp_path: Any) -> None:
    page = (ROOT / "docs/clients.md").read_text()
    section = page.partition("## Tests of your application\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / "test_application.py").write_text(code)
    words = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [*words, str(tmp_path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert re.search(r"^\d passed", done.stdout, re.MULTILINE), done.stdout + done.stderr


def test_it_needs_the_client_s_extra_alone() -> None:
    program = """
        import sys, sse_app.client.testing
        print(sorted({"tornado", "msgspec", "jwt", "pytest", "argon2", "prometheus_client"} & sys.modules.keys()))
    """
    words = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
