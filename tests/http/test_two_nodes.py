"""Two servers, each with its own state, on one log in PostgreSQL: they are one to their clients."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.support.room import first, listen, numbers, receive, take
from tests.support.server_process import ServerProcess, clean_environment, run_program, running, starting
from tests.support.waiting import until


@pytest.fixture
def nodes(tmp_path: Path, database_url: str) -> Iterator[list[ServerProcess]]:
    """Two servers with the same keys and accounts of their own."""

    def make(number: int) -> ServerProcess:
        # The second one reads the keys that the first one has made.
        keys: dict[str, Any] = {"AUTH__KEYS_DIR": str(tmp_path / "node1/keys")} if number > 1 else {}
        return ServerProcess(
            state_dir=tmp_path / f"node{number}",
            EVENT_LOG=database_url,
            NODE=f"node{number}",
            expected=("node_silent",),  # on a busy machine
            **keys,
        )

    start: Callable[..., ServerProcess]
    for start in starting(make):
        yield [start(number=1), start(number=2)]


def publish(http: httpx.Client, number: int, **headers: str) -> str:
    answer = http.post("/api/v1/sse/dashboard", json={"event": "e", "data": {"n": number}}, headers=headers)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.mark.slow
def test_what_is_published_at_one_node_comes_at_both_and_a_client_goes_on_at_the_other(
    nodes: list[ServerProcess],
) -> None:
    one, other = nodes
    token = one.stream_token("dashboard")
    authorized = {"Authorization": f"Bearer {one.access_token()}"}
    with (
        one.publisher() as http,
        httpx.Client(base_url=other.url, headers=authorized, timeout=30) as http_of_other,
        listen(one.stream_url("dashboard", token)) as here,
        listen(other.stream_url("dashboard", token)) as there,
    ):
        assert first(here).id == first(there).id
        ids = [publish((http, http_of_other)[number % 2], number) for number in range(20)]
        seen = [take(frames, 20) for frames in (here, there)]
        assert seen[0] == seen[1]
        assert [frame.id for frame in seen[0]] == ids
        assert numbers(seen[0]) == list(range(20))
        # Whatever node a request is repeated at, it is answered as the first time.
        again = {publish(client, 20, **{"Idempotency-Key": "k"}) for client in (http, http_of_other)}
        assert len(again) == 1
        with listen(other.stream_url("dashboard", token), after=ids[4]) as resumed:
            connected = first(resumed)
            assert (connected.id, connected.data["recovered"]) == (ids[4], True)
            assert numbers(take(resumed, 16)) == list(range(5, 21))
        history = http_of_other.get("/api/v1/sse/dashboard/history", params={"after": ids[17]}).json()
        assert [event["id"] for event in history["events"]] == [*ids[18:], *again]


def test_a_channel_that_ends_at_one_node_has_ended_at_both(nodes: list[ServerProcess]) -> None:
    one, other = nodes
    token = one.stream_token("dashboard")

    def end(http: httpx.Client, text: str, final: str) -> str:
        path = f"/api/v1/sse/dashboard?event=e&final={final}"
        answer = http.post(path, content=text.encode(), headers={"Content-Type": "text/plain"})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    with (
        one.publisher() as http,
        receive(one.stream_url("dashboard", token)) as here,
        receive(other.stream_url("dashboard", token)) as there,
    ):
        assert next(here).id == next(there).id
        first_id, last_id = end(http, "a\r\nb", "false"), end(http, "", "true")
        for stream in (here, there):
            *events, closing = stream
            assert [(event.id, event.data) for event in events] == [(first_id, "a\nb"), (last_id, "")]
            assert closing.data == '{"reason":"ended","retry":null}'
        for node in nodes:
            assert httpx.get(node.stream_url("dashboard", token), timeout=30).status_code == 204
        for node in nodes:
            with receive(node.stream_url("dashboard", token, last="1")) as stream:
                assert [event.type for event in stream] == ["connected", "e", "closing"]
        again = end(http, "c", "false")
        for node in nodes:  # also that which has not heard of it yet
            with receive(node.stream_url("dashboard", token), after=last_id) as stream:
                assert [next(stream).id, next(stream).id] == [last_id, again]


def test_a_node_that_was_away_has_what_was_published_meanwhile(nodes: list[ServerProcess]) -> None:
    one, other = nodes
    with one.publisher() as http:
        before = publish(http, 0)
        assert other.stop() == 0
        during = publish(http, 1)
        other.start()
        with listen(other.stream_url("dashboard", one.stream_token("dashboard")), after=before) as frames:
            assert first(frames).data["recovered"] is True
            assert [frame.id for frame in take(frames, 1)] == [during]


def test_a_node_reloads_its_settings_but_for_where_its_log_is(tmp_path: Path, database_url: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'event_log = "{database_url}"\n')
    with running(state_dir=tmp_path / "state", CONFIG=str(file)) as server:
        file.write_text('event_log = "sqlite:"\nnode = "other"\n[postgres]\nconnections = 8\n')
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)

        def reloaded() -> list[object]:
            return [line["needs_restart"] for line in server.log_lines() if line["event"] == "reloaded"]

        until(reloaded, "the settings are read again")
        assert reloaded() == ["event_log,postgres,node"]
        with server.publisher() as http:
            publish(http, 0)


def test_a_log_that_was_replaced_ends_the_streams_and_their_clients_are_told(
    tmp_path: Path, database_url: str
) -> None:
    with (
        running(state_dir=tmp_path / "state", EVENT_LOG=database_url, expected=("log_replaced",)) as server,
        server.publisher() as http,
    ):
        url = server.stream_url("dashboard", server.stream_token("dashboard"))
        before = publish(http, 0)
        with listen(url) as frames:
            assert first(frames).id == before
            with psycopg.connect(database_url, autocommit=True) as connection:
                connection.execute(  # as after a restore elsewhere, in a server that has started since
                    "UPDATE sse_app.log SET system = system + 1, started = started - interval '1 day'"
                )
            assert [frame.type for frame in take(frames, 1)] == ["closing"]
        with listen(url, after=before) as frames:
            connected, reset = take(frames, 2)
            assert connected.data["recovered"] is False
            assert (reset.type, reset.data["reason"]) == ("reset", "log_replaced")
            during = publish(http, 1)
            assert during.partition("-")[0] != before.partition("-")[0]
            assert [frame.id for frame in take(frames, 1)] == [during]


@pytest.mark.parametrize("host", ["127.0.0.1:1", "127.0.0.1"])
def test_a_start_without_its_database_ends_soon_with_one_line_and_no_password(
    tmp_path: Path, host: str, database_url: str
) -> None:
    url = f"postgresql://me:secret@{host}/events"
    if host == "127.0.0.1":  # a server that is there, with no such database
        url = database_url.replace("app@", "app:secret@") + "_missing"
    begun = time.monotonic()
    environment = clean_environment(
        SSE_APP_EVENT_LOG=url, SSE_APP_STATE_DIR=str(tmp_path / "state"), SSE_APP_PORT="0"
    )
    done = run_program("serve", environment=environment)
    assert time.monotonic() - begun < 30
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("sse-app: cannot use the database ")
    checked = run_program("check-config", environment=environment)
    assert "secret" not in done.stderr + checked.stdout + checked.stderr
    assert checked.returncode == 1
    assert "sse-app: cannot use the database " in checked.stderr
