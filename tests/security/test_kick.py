"""A kick: it ends streams, and keeps their session from streams and stream tokens for a time, and nobody else."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import Site, assert_ended, assert_go_on, bearer, site
from tests.support.waiting import until


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("kick") / "state", users=("ann", "bob")) as served:
        yield served


@pytest.fixture(autouse=True)
def leaving(desk: Site) -> Iterator[None]:
    yield
    desk.leave_all()


def path_of(desk: Site, client_id: str) -> str:
    listed = desk.http.get(f"/api/v1/admin/connections?search={client_id}", headers=desk.admin).json()[
        "connections"
    ]
    return f"/api/v1/admin/connections/{listed[0]['connection']}/kick"


def kick(desk: Site, client_id: str, body: object = None) -> int:
    answer = desk.http.post(path_of(desk, client_id), json=body, headers=desk.admin)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["kicked"])


def opened(desk: Site, token: str) -> httpx.Response:
    """Return the answer to a stream that is refused, or the head of one that is not."""
    with desk.http.stream("GET", "/api/v1/sse/dashboard", params={"token": token}) as answer:
        if answer.status_code != 200:
            answer.read()
        return answer


def assert_kicked(answer: httpx.Response, seconds: int) -> None:
    assert answer.status_code == 403, answer.text
    assert answer.json()["error"]["code"] == "kicked"
    assert seconds - 30 <= int(answer.headers["retry-after"]) <= seconds


@pytest.mark.slow
def test_a_kicked_session_gets_no_stream_and_no_stream_token_for_five_minutes(desk: Site) -> None:
    session, again, other = desk.log_in("ann"), desk.log_in("ann"), desk.log_in("bob")
    second = desk.stream_token(session.access, "dashboard").json()["stream_token"]
    ears = [desk.hear(session.stream, client_id="put-out"), desk.hear(session.stream)]
    rest = [desk.hear(second, client_id="second"), desk.hear(again.stream), desk.hear(other.stream)]
    assert kick(desk, "put-out") == 2
    assert_ended(ears, time.monotonic(), "kicked")
    assert_go_on(desk, rest)
    for _ in range(2):
        assert_kicked(desk.stream_token(session.access), 300)
        assert_kicked(opened(desk, second), 300)
        assert desk.http.head("/api/v1/sse/dashboard", params={"token": second}).status_code == 403
        assert desk.stream_status(session.stream) == 401  # the kick has revoked it
        fresh = desk.refresh(session.refresh)  # it is no ban: all else goes on
        assert desk.me(fresh.access) == 200
        assert_kicked(opened(desk, fresh.stream), 300)
        session.refresh = fresh.refresh
        for one in (again, other, desk.log_in("ann")):
            assert desk.stream_status(one.stream) == 200
            assert desk.stream_token(one.access).status_code == 200
        desk.restart()


def test_a_kicked_session_cannot_renew_the_streams_it_still_has(desk: Site) -> None:
    session = desk.log_in("ann")
    second = desk.stream_token(session.access, "dashboard").json()["stream_token"]
    third = desk.stream_token(session.access, "dashboard").json()["stream_token"]
    desk.hear(session.stream, client_id="first-of-two")
    other = desk.hear(second, client_id="second-of-two")
    kick(desk, "first-of-two", {"for": 1000})
    assert_kicked(desk.renew(third, "second-of-two"), 1000)
    assert_go_on(desk, [other])


def test_a_kick_lasts_as_long_as_it_says_and_is_forgotten_then(desk: Site) -> None:
    session = desk.log_in("ann")
    desk.hear(session.stream, client_id="brief")
    begun = time.monotonic()
    kick(desk, "brief", {"for": 2})
    assert desk.stream_token(session.access).status_code == 403 or time.monotonic() - begun > 1.9
    until(lambda: desk.stream_token(session.access).status_code == 200, "the kick has passed")
    assert time.monotonic() - begun >= 1.9
    assert desk.stream_status(desk.stream_token(session.access).json()["stream_token"]) == 200


def test_a_kick_for_no_time_ends_the_streams_alone_and_takes_an_earlier_one_back(desk: Site) -> None:
    session = desk.log_in("ann")
    second = desk.stream_token(session.access, "dashboard").json()["stream_token"]
    ears = [desk.hear(session.stream, client_id="one-ear"), desk.hear(second, client_id="two-ear")]
    kick(desk, "one-ear", {"for": 3600})
    assert desk.stream_token(session.access).status_code == 403
    kick(desk, "two-ear", {"for": 0})
    assert_ended(ears, time.monotonic(), "kicked")
    assert desk.stream_token(session.access).status_code == 200
    assert desk.stream_status(session.stream) == 401


def test_of_several_kicks_the_last_one_counts_and_one_row_is_kept(desk: Site) -> None:
    session = desk.log_in("bob")
    tokens = [desk.stream_token(session.access, "dashboard").json()["stream_token"] for _ in range(3)]
    for number, token in enumerate(tokens):
        desk.hear(token, client_id=f"ear-{number}")
    for number, seconds in enumerate((5000, 100, 800)):
        kick(desk, f"ear-{number}", {"for": seconds})
        assert_kicked(desk.stream_token(session.access), seconds)
    with sqlite3.connect(desk.server.state_dir / "accounts.db") as database:
        (rows,) = database.execute(
            "SELECT count(*) FROM revocations WHERE kind = 'kick' AND value = ?", (session.id,)
        ).fetchone()
    database.close()
    assert rows == 1


def test_a_kick_that_another_process_has_written_is_in_force_here(desk: Site) -> None:
    session = desk.log_in("ann")
    assert desk.stream_token(session.access).status_code == 200
    now = time.time()
    with sqlite3.connect(desk.server.state_dir / "accounts.db") as database:
        database.execute(
            "INSERT INTO revocations (kind, value, issued_until, forget_at, made_at) VALUES ('kick', ?, ?, ?, ?)",
            (session.id, now + 300, now + 300, now),
        )
    database.close()
    until(lambda: desk.stream_token(session.access).status_code == 403, "the kick is known")
    assert desk.me(session.access) == 200


@pytest.mark.parametrize(
    "body",
    [{"for": -1}, {"for": 30 * 86_400 + 1}, {"for": "300"}, {"for": [300]}, {"for": True}, {"for": None},
     {"for": 10**30}, {"seconds": 300}, {"for": 1, "reason": "x"}, [], "for", 300],
    ids=ascii,
)  # fmt: skip
def test_a_malformed_kick_is_422_and_ends_nothing(desk: Site, body: object) -> None:
    ear = desk.hear(desk.log_in("ann").stream, client_id="stays")
    answer = desk.http.post(path_of(desk, "stays"), json=body, headers=desk.admin)
    assert answer.status_code == 422, answer.text
    assert_go_on(desk, [ear])


def test_how_many_streams_a_kick_would_end_is_told_before(desk: Site) -> None:
    session = desk.log_in("ann")
    ears = [desk.hear(session.stream, client_id="crowd" if not n else "") for n in range(30)]
    desk.hear(desk.stream_token(session.access).json()["stream_token"])
    desk.hear(desk.log_in("bob").stream)
    path = path_of(desk, "crowd")
    assert desk.http.get(path, headers=desk.admin).json() == {"streams": 30}
    assert desk.http.get(path, headers=bearer(session.access)).status_code == 403
    assert desk.http.get(path).status_code == 401
    assert_go_on(desk, ears)
    assert kick(desk, "crowd", {}) == 30
    assert desk.http.get(path, headers=desk.admin).status_code == 404


def test_a_minted_token_is_kicked_by_its_session_too(desk: Site) -> None:
    tokens = [desk.mint(TokenKind.STREAM, "backend", "job-7") for _ in range(2)]
    desk.hear(tokens[0], client_id="backend")
    kick(desk, "backend")
    assert_kicked(opened(desk, tokens[1]), 300)
    assert desk.stream_status(desk.mint(TokenKind.STREAM, "backend", "job-8")) == 200


def test_a_token_that_a_stream_is_renewed_with_during_its_kick_is_revoked_too(desk: Site) -> None:
    session = desk.log_in("ann")
    fresh = desk.stream_token(session.access).json()["stream_token"]
    ear = desk.hear(session.stream, client_id="renewed")
    path, admin = path_of(desk, "renewed"), desk.admin
    with (
        closing(sqlite3.connect(desk.server.state_dir / "accounts.db")) as database,
        ThreadPoolExecutor(1) as pool,
    ):
        database.execute("BEGIN IMMEDIATE")  # the kick has to wait until this is over
        kicking = pool.submit(desk.http.post, path, json={"for": 0}, headers=admin)
        time.sleep(0.5)
        assert desk.renew(fresh, "renewed").status_code == 200
        assert not kicking.done()
        database.rollback()
        assert kicking.result().json() == {"kicked": 1}
    assert_ended([ear], time.monotonic(), "kicked")
    assert desk.stream_status(session.stream) == desk.stream_status(fresh) == 401
