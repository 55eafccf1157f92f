"""Sessions: refresh tokens that work once, their end by time, by logout and by what befalls the account."""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.people import (
    PASSWORD,
    Session,
    Site,
    assert_ended,
    assert_go_on,
    bearer,
    claims_of,
    session_of,
    site,
)
from tests.support.waiting import until

USERS = ("ann", "bob", "carl", "dora", "eve", "fay")
ORIGIN = "http://desk.example:3020"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("sessions") / "state"
    with site(state_dir, users=USERS, expected=("refresh_reused",)) as served:
        yield served


@pytest.fixture(autouse=True)
def nobody_stays(desk: Site) -> Iterator[None]:
    yield
    desk.leave_all()


def assert_dead(desk: Site, session: Session) -> None:
    """Check that nothing of a session is of any use."""
    assert desk.me(session.access) == 401
    assert desk.stream_token(session.access).status_code == 401
    assert desk.stream_status(session.stream) == 401
    if session.refresh:
        assert desk.try_refresh(session.refresh).status_code == 401


def assert_alive(desk: Site, session: Session) -> None:
    assert desk.me(session.access) == 200
    assert desk.stream_status(session.stream) == 200


def test_a_refresh_gives_fresh_tokens_of_the_same_session_and_the_old_ones_go_on(desk: Site) -> None:
    first = desk.log_in("ann")
    second = desk.refresh(first.refresh)
    third = desk.refresh(second.refresh)
    assert first.id == second.id == third.id
    assert len({first.refresh, second.refresh, third.refresh}) == 3
    assert (
        len({claims_of(token)["jti"] for one in (first, second) for token in (one.access, one.stream)}) == 4
    )
    assert_alive(desk, first)
    assert_alive(desk, third)


@pytest.mark.parametrize("age", [2, 5])
def test_a_spent_refresh_token_ends_its_whole_family_with_its_streams_and_no_other(
    desk: Site, age: int
) -> None:
    other, stolen = desk.log_in("ann"), desk.log_in("ann")
    family = [stolen]
    for _ in range(age):
        family.append(desk.refresh(family[-1].refresh))
    mine = [desk.hear(session.stream) for session in family]
    others = [desk.hear(other.stream), desk.hear(desk.log_in("bob").stream)]
    assert desk.try_refresh(stolen.refresh).status_code == 401
    assert_ended(mine, time.monotonic(), "revoked")
    for session in family:
        assert_dead(desk, session)
    assert_go_on(desk, others)
    assert_alive(desk, other)
    assert desk.refresh(other.refresh).id == other.id


def all_at_once(desk: Site, token: str, times: int) -> list[httpx.Response]:
    """Use a refresh token so often at the same moment, each time on a connection of its own."""
    answers: list[httpx.Response] = []
    gate = threading.Barrier(times)

    def use() -> None:
        gate.wait()
        answers.append(
            httpx.post(f"{desk.server.url}/api/v1/auth/refresh", json={"refresh_token": token}, timeout=30)
        )

    threads = [threading.Thread(target=use) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_of_twenty_uses_of_a_refresh_token_at_once_all_get_the_same_next_one(desk: Site) -> None:
    session = desk.log_in("bob")
    answers = [session_of(answer) for answer in all_at_once(desk, session.refresh, 20)]
    assert len({answer.refresh for answer in answers}) == 1
    assert {answer.id for answer in answers} == {session.id}
    for answer in answers:
        assert_alive(desk, answer)
    assert desk.refresh(answers[0].refresh).id == session.id


@pytest.mark.slow
def test_a_refresh_whose_answer_was_lost_can_be_repeated_also_after_a_restart(desk: Site) -> None:
    session, other = desk.log_in("ann"), desk.log_in("ann")
    ear = desk.hear(session.stream)
    for _ in range(3):
        lost = desk.refresh(session.refresh)
        again = desk.refresh(session.refresh)
        assert again.refresh == lost.refresh
        session = again
    assert_go_on(desk, [ear])
    assert desk.refresh(other.refresh).id == other.id
    lost = desk.refresh(session.refresh)
    desk.restart()
    assert desk.refresh(session.refresh).refresh == lost.refresh
    assert_alive(desk, desk.refresh(lost.refresh))


def test_a_refresh_token_is_spent_for_good_once_the_next_one_was_used(desk: Site) -> None:
    session = desk.log_in("ann")
    second = desk.refresh(session.refresh)
    third = desk.refresh(second.refresh)
    ear = desk.hear(third.stream)
    assert desk.try_refresh(session.refresh).status_code == 401
    assert_ended([ear], time.monotonic(), "revoked")
    for each in (session, second, third):
        assert_dead(desk, each)


# What lies ahead comes nearer while the test runs, so it is further off than half a minute.
@pytest.mark.parametrize("seconds", [30.5, 86_400, -60, -86_400], ids=lambda seconds: f"{seconds:+} s")
def test_a_refresh_token_is_spent_for_good_half_a_minute_later_whichever_way_the_clock_went(
    desk: Site, seconds: float
) -> None:
    session = desk.log_in("ann")
    fresh = desk.refresh(session.refresh)
    assert desk.refresh(session.refresh).refresh == fresh.refresh
    with sqlite3.connect(desk.server.state_dir / "accounts.db", timeout=30) as database:
        moved = database.execute(
            "UPDATE refresh_tokens SET spent_at = spent_at - ? WHERE session = ? AND spent",
            (seconds, session.id),
        )
        assert moved.rowcount == 1
    database.close()
    assert desk.try_refresh(session.refresh).status_code == 401
    assert_dead(desk, fresh)


def test_neither_the_database_nor_an_old_refresh_token_tells_the_next_one(desk: Site) -> None:
    session = desk.log_in("ann")
    chain = [session.refresh]
    for _ in range(3):
        chain.append(desk.refresh(chain[-1]).refresh)
    assert len(set(chain)) == 4
    with sqlite3.connect(desk.server.state_dir / "accounts.db", timeout=30) as database:
        rows = database.execute("SELECT * FROM refresh_tokens WHERE session = ?", (session.id,)).fetchall()
        seeds = database.execute(
            "SELECT count(seed) FROM refresh_tokens WHERE session = ?", (session.id,)
        ).fetchone()
    database.close()
    assert len(rows) == 4
    assert not [row for row in rows for token in chain if token.encode() in row or token in row]
    assert seeds == (1,)  # what the latest was made from; with an older token it makes nothing


@pytest.mark.parametrize(
    "junk",
    ["", "x", "\x00", "é" * 43, "A" * 43, "A" * 8192, 5, None, ["x"], {}, True],
    ids=lambda junk: ascii(junk)[:12],
)
def test_what_is_no_refresh_token_is_a_4xx_and_ends_nothing(desk: Site, junk: object) -> None:
    session = desk.log_in("carl")
    for path in ("refresh", "logout"):
        answer = desk.http.post(f"/api/v1/auth/{path}", json={"refresh_token": junk})
        assert answer.status_code in (401, 422), answer.text
    for content in (
        b'{"refresh_token": "\\ud800"}',
        b'{"refresh_token": "\\udc00' + b"1" * 30 + b'"}',
        b"\xff",
    ):
        for path in ("refresh", "logout"):
            answer = desk.http.post(f"/api/v1/auth/{path}", content=content)
            assert answer.status_code in (400, 401, 422), answer.text
    assert_alive(desk, session)


def test_an_access_or_stream_token_is_no_refresh_token_and_the_other_way_round(desk: Site) -> None:
    session = desk.log_in("carl")
    for token in (session.access, session.stream):
        assert desk.try_refresh(token).status_code == 401
    assert desk.me(session.refresh) == 401
    assert desk.stream_status(session.refresh) == 401
    assert desk.try_refresh(session.refresh[:-1]).status_code == 401
    assert desk.refresh(session.refresh).id == session.id


@pytest.mark.parametrize("by", ["access token", "refresh token", "spent refresh token", "cookie"])
def test_a_logout_ends_exactly_its_session_with_its_tokens_and_streams(desk: Site, by: str) -> None:
    others = [desk.log_in("dora"), desk.log_in("dora"), desk.log_in("eve")]
    session = desk.log_in("dora")
    fresh = desk.refresh(session.refresh)
    narrow = desk.stream_token(session.access, "dashboard").json()["stream_token"]
    mine = [desk.hear(token) for token in (session.stream, fresh.stream, narrow)]
    rest = [desk.hear(other.stream) for other in others]
    path = f"{desk.server.url}/api/v1/auth/logout"
    if by == "access token":
        answer = httpx.post(path, headers=bearer(session.access))
    elif by == "cookie":
        answer = httpx.post(path, headers={"Cookie": f"sse_app_refresh={fresh.refresh}"})
        assert "expires" in answer.headers["set-cookie"].lower()
    else:
        token = fresh.refresh if by == "refresh token" else session.refresh
        answer = httpx.post(path, json={"refresh_token": token})
    assert answer.status_code == 204
    assert_ended(mine, time.monotonic(), "revoked")
    assert_dead(desk, session)
    assert_dead(desk, fresh)
    assert desk.stream_status(narrow) == 401
    assert_go_on(desk, rest)
    for other in others:
        assert_alive(desk, other)
        assert desk.refresh(other.refresh).id == other.id


def test_a_stream_token_does_not_log_anybody_out(desk: Site) -> None:
    session = desk.log_in("dora")
    assert desk.http.post("/api/v1/auth/logout", headers=bearer(session.stream)).status_code == 401
    assert_alive(desk, session)


@pytest.mark.parametrize(
    "event",
    [
        pytest.param("passwd", marks=pytest.mark.slow),
        "disable",
        pytest.param("remove", marks=pytest.mark.slow),
    ],
)
def test_what_befalls_an_account_ends_its_sessions_and_streams_and_nobody_elses(
    desk: Site, event: str
) -> None:
    name = f"gus-{event}"
    for user in (name, f"{name}2"):
        desk.add_user(user)
    sessions, others = [desk.log_in(name) for _ in range(2)], [desk.log_in(f"{name}2"), desk.log_in("ann")]
    mine = [desk.hear(session.stream) for session in sessions]
    rest = [desk.hear(other.stream) for other in others]
    flags = ("--password-stdin",) if event == "passwd" else ()
    desk.server.command("user", event, name, *flags, input="another good password\n")
    done = time.monotonic()
    assert_ended(mine, done, "revoked")
    for session in sessions:
        assert_dead(desk, session)
    assert_go_on(desk, rest)
    assert desk.try_login(name).status_code == 401
    if event == "passwd":
        assert_alive(desk, desk.log_in(name, "another good password"))
    if event == "disable":
        desk.server.command("user", "enable", name)
    if event == "remove":
        desk.add_user(name)
    if event != "passwd":
        for session in sessions:  # what it had before does not come back with it
            assert_dead(desk, session)
        until(lambda: desk.try_login(name).status_code == 200, "the account works again")


def test_changed_grants_end_streams_and_a_refresh_brings_the_new_ones(desk: Site) -> None:
    desk.add_user("hal")
    session, other = desk.log_in("hal"), desk.hear(desk.log_in("ann").stream)
    ear = desk.hear(session.stream, "alerts")
    desk.server.command("user", "grants", "hal", "--subscribe", "dashboard")
    assert_ended([ear], time.monotonic(), "revoked")
    assert desk.me(session.access) == 401
    fresh = desk.refresh(session.refresh)
    assert fresh.id == session.id
    assert desk.stream_status(fresh.stream, "dashboard") == 200
    assert desk.stream_status(fresh.stream, "alerts") == 403
    assert desk.stream_token(fresh.access, "alerts").status_code == 403
    assert_go_on(desk, [other])


@pytest.mark.slow
@pytest.mark.parametrize("hard", [True, False], ids=["kill -9", "SIGTERM"])
def test_sessions_and_their_ends_outlast_a_restart(desk: Site, hard: bool) -> None:
    living, left, reused = (desk.log_in("fay") for _ in range(3))
    spent = desk.refresh(desk.refresh(living.refresh).refresh)
    assert desk.http.post("/api/v1/auth/logout", headers=bearer(left.access)).status_code == 204
    after_reuse = desk.refresh(desk.refresh(reused.refresh).refresh)
    assert desk.try_refresh(reused.refresh).status_code == 401
    desk.restart(hard)
    for session in (left, reused, after_reuse):
        assert_dead(desk, session)
    assert_alive(desk, spent)
    assert desk.refresh(spent.refresh).id == living.id
    ear = desk.hear(spent.stream)
    assert desk.try_refresh(living.refresh).status_code == 401  # spent before the restart
    assert_ended([ear], time.monotonic(), "revoked")


def test_refresh_tokens_are_long_random_and_not_in_the_database(desk: Site) -> None:
    tokens = [desk.log_in("ann").refresh for _ in range(3)]
    assert len(set(tokens)) == 3
    assert all(len(token) >= 43 for token in tokens)
    content = b"".join(file.read_bytes() for file in desk.server.state_dir.glob("accounts.db*"))
    assert not [token for token in tokens if token.encode() in content]
    assert secrets.token_urlsafe(8).encode() not in content
    assert PASSWORD.encode() not in content
