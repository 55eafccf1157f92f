"""Public channels: whoever asks may read them without a token, and nothing else."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.minting import mint
from tests.support.node_processes import node_processes
from tests.support.people import bearer, once_all_answer
from tests.support.room import Room, first, listen, numbers, take
from tests.support.server_process import ServerProcess, running
from tests.support.waiting import until
from tests.support.worker_processes import worker_processes

CHANNELS: list[object] = [
    "desk",
    {"pattern": "news.secret"},
    {"pattern": "news.*", "public": True},
    {"pattern": "open", "public": True},
    {"pattern": "wide.**", "public": True},
]
ORIGIN = "https://page.example"


@pytest.fixture
def room(start_room: Callable[..., Room]) -> Room:
    """A server with public channels, and some that are not."""
    return start_room(CHANNELS=CHANNELS, CORS_ORIGINS=[ORIGIN], KEEPALIVE__PING_INTERVAL=0.5)


def status(server: ServerProcess, channels: str, query: str = "", **headers: str) -> int:
    """Return how a stream is answered."""
    url = f"{server.url}/api/v1/sse/{channels}?{query}"
    with httpx.stream("GET", url, headers=headers, timeout=30) as answer:
        return answer.status_code


def open_url(server: ServerProcess, channels: str, **query: str) -> str:
    return str(httpx.URL(f"{server.url}/api/v1/sse/{channels}", params=query))


@pytest.mark.parametrize(
    "channels",
    [
        "open",
        "news.a",
        pytest.param("open,news.a", marks=pytest.mark.slow),
        "wide.**",
        pytest.param("wide.*.x,open", marks=pytest.mark.slow),
        pytest.param("wide", marks=pytest.mark.slow),
    ],
)
def test_a_stream_of_public_channels_needs_no_token(room: Room, channels: str) -> None:
    with listen(open_url(room.server, channels)) as frames:
        connected = first(frames)
        assert connected.data["expires_in"] is None
        assert connected.data["channels"] == channels.split(",")
        name = channels.partition(",")[0].replace("**", "b").replace("*", "b")
        id = room.publish(name, 1)
        assert [frame.id for frame in take(frames, 1)] == [id]
    assert httpx.head(open_url(room.server, channels)).status_code == 200


@pytest.mark.parametrize(
    "channels",
    [
        "desk",
        "open,desk",
        pytest.param("news.secret", marks=pytest.mark.slow),
        "news.*",  # one of its channels is not public
        pytest.param("news.**", marks=pytest.mark.slow),
        pytest.param("**", marks=pytest.mark.slow),
        pytest.param("*", marks=pytest.mark.slow),
        pytest.param("nowhere", marks=pytest.mark.slow),
        "sse_app.admin",
        pytest.param("sse_app.*", marks=pytest.mark.slow),
        pytest.param("open,sse_app.admin", marks=pytest.mark.slow),
        pytest.param("user.ann.x", marks=pytest.mark.slow),
    ],
)
def test_any_other_channel_takes_a_token(room: Room, channels: str) -> None:
    url = open_url(room.server, channels)
    for answer in (httpx.get(url), httpx.head(url)):
        assert answer.status_code == 401
        assert "Bearer" in answer.headers["WWW-Authenticate"]


def test_a_bad_token_is_refused_also_for_public_channels(room: Room) -> None:
    server = room.server
    expired = server.stream_token("open", ttl=-5)
    for query in ("token=", "token=x", f"token={expired}", f"token={room.access}", f"token={room.token}x"):
        assert status(server, "open", query) == 401, query
    assert status(server, "open", f"token={room.token}&token={room.token}") == 401
    assert status(server, "open", Authorization="Bearer x") == 401
    history = f"{server.url}/api/v1/sse/open/history"
    for header in ("Bearer x", "bearer", f"Bearer {room.token}"):
        assert httpx.get(history, headers={"Authorization": header}).status_code == 401, header
    assert httpx.get(history, headers={"Authorization": "Basic eDp5"}).status_code == 200  # it is a proxy's
    assert status(server, "open", Authorization="Basic eDp5") == 200
    assert status(server, "desk", Authorization="Basic eDp5") == 401


def test_a_token_need_not_grant_public_channels_and_its_user_counts(start_room: Callable[..., Room]) -> None:
    room = start_room(CHANNELS=CHANNELS, LIMITS__STREAMS_PER_USER=2)
    token = room.server.stream_token("desk", subject="ann")
    url = room.server.stream_url("open,desk,news.a", token)
    with listen(url) as frames, listen(url) as others:
        assert first(frames).data["expires_in"] > 0
        first(others)
        assert status(room.server, "open", f"token={token}") == 429
        with listen(open_url(room.server, "open")) as more, listen(open_url(room.server, "open")) as most:
            first(more)
            first(most)
            with listen(open_url(room.server, "open")) as still:
                first(still)  # they have no user
    assert status(room.server, "open,news.secret", f"token={token}") == 403


def test_the_limit_of_an_address_holds(start_room: Callable[..., Room]) -> None:
    room = start_room(CHANNELS=CHANNELS, LIMITS__STREAMS_PER_ADDRESS=2)
    with listen(open_url(room.server, "open")) as frames, listen(open_url(room.server, "open")) as others:
        first(frames)
        first(others)
        answer = httpx.get(open_url(room.server, "open"))
        assert answer.status_code == 429
        assert "Retry-After" in answer.headers


def test_the_history_of_public_channels_needs_no_token(room: Room) -> None:
    ids = [room.publish("open", n) for n in range(3)]
    room.publish("desk", 9)
    http = httpx.Client(base_url=room.server.url)
    with http:
        history = http.get("/api/v1/sse/open/history", params={"after": ids[0]}).json()
        assert [event["id"] for event in history["events"]] == ids[1:]
        wide = [room.publish(name, 1) for name in ("wide.a", "wide.b.c")]
        history = http.get("/api/v1/sse/wide.**/history").json()
        assert [event["id"] for event in history["events"]] == wide
        for channel in ("desk", "news.secret", "nowhere", "sse_app.admin", "news.*", "**", "*"):
            assert http.get(f"/api/v1/sse/{channel}/history").status_code == 401, channel
        reader = bearer(room.server.access_token(subscribe="desk"))
        assert http.get("/api/v1/sse/open/history", headers=reader).is_success
        assert http.get("/api/v1/sse/news.secret/history", headers=reader).status_code == 403
        assert http.post("/api/v1/sse/open", json={"event": "e", "data": {}}).status_code == 401


def test_pages_elsewhere_may_read_them_as_configured(room: Room) -> None:
    url = f"{room.server.url}/api/v1/sse/open/history"
    for origin, allowed in ((ORIGIN, True), ("https://other.example", False)):
        answer = httpx.get(url, headers={"Origin": origin})
        assert (answer.headers.get("Access-Control-Allow-Origin") == origin) is allowed
    with httpx.stream("GET", open_url(room.server, "open"), headers={"Origin": ORIGIN}) as stream:
        assert stream.headers["Access-Control-Allow-Origin"] == ORIGIN


def test_a_stream_without_a_token_resumes_and_begins_in_the_past_as_any(room: Room) -> None:
    ids = [room.publish("open", n) for n in range(5)]
    with listen(open_url(room.server, "open"), after=ids[1]) as frames:
        assert first(frames).data["recovered"]
        assert numbers(take(frames, 3)) == [2, 3, 4]


def test_login_and_stream_tokens_know_public_channels(room: Room) -> None:
    room.server.add_user("ann", "correct horse battery", subscribe="desk")
    body = {"username": "ann", "password": "correct horse battery", "cookie": False}
    login = httpx.post(f"{room.server.url}/api/v1/auth/login", json=body).json()
    assert login["channels"] == ["desk", "open"]
    header = bearer(login["access_token"])

    def narrow(*channels: str) -> httpx.Response:
        url = f"{room.server.url}/api/v1/auth/stream-token"
        return httpx.post(url, json={"channels": channels}, headers=header)

    token = narrow("desk", "open").json()["stream_token"]
    assert status(room.server, "desk,open", f"token={token}") == 200
    assert narrow("desk", "news.secret").status_code == 403
    only_public = narrow("open").json()["stream_token"]
    assert status(room.server, "open", f"token={only_public}") == 200
    assert status(room.server, "desk", f"token={only_public}") == 403


def test_renewal_is_for_streams_with_a_token(room: Room) -> None:
    token = room.server.stream_token("desk", subject="ann", session="s1", ttl=60)
    fresh = bearer(room.server.stream_token("desk", subject="ann", session="s1"))
    with (
        listen(open_url(room.server, "open", client_id="without")) as frames,
        listen(room.server.stream_url("desk,open", token, client_id="with")) as others,
    ):
        first(frames)
        first(others)
        url = f"{room.server.url}/api/v1/sse/connections"
        assert httpx.post(f"{url}/without/renew", headers=fresh).status_code == 404
        assert httpx.post(f"{url}/with/renew", headers=fresh).json()["renewed"] == 1


def connections(server: ServerProcess) -> list[dict[str, Any]]:
    admin = bearer(server.access_token(admin=True, subject="root"))
    answer = httpx.get(f"{server.url}/api/v1/admin/connections", headers=admin, timeout=30)
    rows: list[dict[str, Any]] = answer.raise_for_status().json()["connections"]
    return rows


def kick(server: ServerProcess, row: dict[str, Any], **body: object) -> int:
    admin = bearer(server.access_token(admin=True, subject="root"))
    url = f"{server.url}/api/v1/admin/connections/{row['connection']}/kick"
    assert once_all_answer(lambda: httpx.get(url, headers=admin, timeout=30)).json()["streams"] == 1
    answer = once_all_answer(lambda: httpx.post(url, json=body, headers=admin, timeout=30))
    return int(answer.raise_for_status().json()["kicked"])


def test_an_administrator_sees_them_and_can_end_one(room: Room) -> None:
    with (
        listen(open_url(room.server, "open", client_id="one")) as frames,
        listen(open_url(room.server, "open", client_id="two")) as others,
    ):
        first(frames)
        first(others)
        rows = {row["client_id"]: row for row in connections(room.server)}
        for row in rows.values():
            assert [row[name] for name in ("subject", "session", "token_id", "expires_at")] == [None] * 4
        assert room.metric("sse_app_anonymous_streams") == 2
        grants = Grants.of(["sse_app.admin"], admin=True)
        token = mint(room.server.state_dir, TokenKind.STREAM, grants, subject="root")
        with listen(room.server.stream_url("sse_app.admin", token)) as figures:
            counted = next(frame.data for frame in figures if frame.data.get("streams") == 3)
        assert counted["users"] == 1
        assert kick(room.server, rows["one"], **{"for": 60}) == 1
        (closing,) = take(frames, 1)
        assert (closing.type, closing.data) == ("closing", {"reason": "kicked", "retry": 60_000})
        assert next(frames, None) is None
        room.publish("open", 1)
        assert numbers(take(others, 1)) == [1]
    until(lambda: room.metric("sse_app_anonymous_streams") == 0, "both are gone")
    assert room.metric('sse_app_stream_ends_total{reason="kicked"}') == 1


def test_revoking_everything_is_about_tokens(room: Room) -> None:
    admin = bearer(room.server.access_token(admin=True, subject="root"))
    with (
        listen(open_url(room.server, "open")) as frames,
        listen(room.server.stream_url("open", room.token)) as others,
    ):
        first(frames)
        first(others)
        url = f"{room.server.url}/api/v1/admin/revocations"
        assert httpx.post(url, json={"all": True}, headers=admin).json()["streams"] == 1
        assert take(others, 1)[0].data["reason"] == "revoked"
        assert next(frame.type for frame in itertools.islice(frames, 1)) == "ping"


def test_a_kick_finds_one_at_another_worker(tmp_path: Path) -> None:
    with (
        worker_processes(2, tmp_path / "state", CHANNELS=CHANNELS) as (one, other),
        listen(open_url(other, "open", client_id="there")) as frames,
    ):
        first(frames)
        rows: list[dict[str, Any]] = []

        def are_listed() -> bool:
            rows[:] = connections(one)
            return bool(rows)

        until(are_listed, "the other worker answers in time")
        (row,) = rows
        assert row["client_id"] == "there"
        assert kick(one, row) == 1
        assert take(frames, 1)[0].data == {"reason": "kicked", "retry": 300_000}


@pytest.mark.slow
def test_streams_without_a_token_are_there_on_all_machines(tmp_path: Path, database_url: str) -> None:
    with node_processes(
        tmp_path, database_url, CHANNELS=["dashboard", *CHANNELS], expected=("node_silent", "worker_silent")
    ) as nodes:
        one, _, alone = nodes
        with listen(open_url(alone, "open")) as frames, one.publisher() as http:
            first(frames)
            assert http.post("/api/v1/sse/open", json={"event": "e", "data": {"n": 1}}).is_success
            assert numbers(take(frames, 1)) == [1]
            (row,) = [row for row in connections(one) if row["token_id"] is None]
            assert row["node"] == "web10"


# -- settings that change, restarts ---------------------------------------------------------------------------


def configure(file: Path, *channels: object) -> None:
    """Write the settings file."""
    tables = []
    for channel in channels:
        table = channel if isinstance(channel, dict) else {"pattern": channel}
        members = "\n".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
        tables.append(f"[[channels]]\n{members}\n")
    file.write_text("\n".join(tables))


PUBLIC = {"pattern": "open.*", "public": True}


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[tuple[ServerProcess, Path]]:
    """A server whose settings file may be changed, and that file."""
    file = tmp_path / "settings.toml"
    configure(file, PUBLIC, "desk")
    with running(state_dir=tmp_path / "state", CONFIG=str(file)) as server:
        yield server, file


def test_streams_on_channels_that_are_public_no_more_end_with_a_reload(
    configured: tuple[ServerProcess, Path],
) -> None:
    server, file = configured
    with (
        listen(open_url(server, "open.a")) as frames,
        listen(open_url(server, "open.*")) as pattern,
        listen(open_url(server, "open.b")) as others,
        listen(server.stream_url("open.a", server.stream_token("open.a"))) as with_token,
        listen(server.stream_url("open.a,desk", server.stream_token("desk"))) as with_another_token,
        server.publisher() as http,
    ):
        for each in (frames, pattern, others, with_token, with_another_token):
            first(each)
        configure(file, "open.a", PUBLIC, "desk")
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        for each in (frames, pattern, with_another_token):
            (closing,) = take(each, 1)
            assert closing.data == {"reason": "revoked", "retry": None}
        for channel, each in (("open.a", with_token), ("open.b", others)):
            assert http.post(f"/api/v1/sse/{channel}", json={"event": "e", "data": {"n": 1}}).is_success
            assert numbers(take(each, 1)) == [1]
        assert status(server, "open.a") == 401


def test_a_renewed_stream_ends_with_a_reload_unless_its_last_token_grants_all_that_is_not_public(
    configured: tuple[ServerProcess, Path],
) -> None:
    server, file = configured
    less, more = (server.stream_token(channels, session="s") for channels in ("desk", "desk,open.*"))
    with (
        listen(server.stream_url("open.a,desk", less, client_id="granted")) as granted,
        listen(server.stream_url("open.a,desk", more, client_id="taken-away")) as taken_away,
    ):
        for frames, client_id, token in ((granted, "granted", more), (taken_away, "taken-away", less)):
            first(frames)
            renewed = httpx.post(
                f"{server.url}/api/v1/sse/connections/{client_id}/renew",
                headers={"Authorization": f"Bearer {token}"},
            )
            assert renewed.json()["renewed"] == 1, renewed.text
        configure(file, "open.a", PUBLIC, "desk")
        assert server.process is not None
        server.process.send_signal(signal.SIGHUP)
        assert take(taken_away, 1)[0].data == {"reason": "revoked", "retry": None}
        with server.publisher() as http:
            assert http.post("/api/v1/sse/open.a", json={"event": "e", "data": {"n": 1}}).is_success
        assert numbers(take(granted, 1)) == [1]


def test_a_warm_restart_keeps_them_and_ends_those_that_need_a_token_now(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    configure(file, PUBLIC, "desk")
    with (
        worker_processes(2, tmp_path / "state", CONFIG=str(file)) as (server, _),
        listen(open_url(server, "open.a", client_id="a")) as frames,
        listen(open_url(server, "open.b", client_id="b")) as others,
        listen(server.stream_url("open.a,desk", server.stream_token("desk"))) as with_another_token,
    ):
        for each in (frames, others, with_another_token):
            first(each)
        configure(file, "open.a", PUBLIC, "desk")
        server.upgrade()
        for each in (frames, with_another_token):
            (closing,) = take(each, 1)
            assert closing.data == {"reason": "revoked", "retry": None}
        (row,) = connections(server)
        assert (row["client_id"], row["adopted"]) == ("b", True)
        assert (row["token_id"], row["expires_at"]) == (None, None)
        with server.publisher() as http:
            assert http.post("/api/v1/sse/open.b", json={"event": "e", "data": {"n": 1}}).is_success
        assert numbers(take(others, 1)) == [1]
        assert kick(server, row, **{"for": 0}) == 1
        assert take(others, 1)[0].data["reason"] == "kicked"
