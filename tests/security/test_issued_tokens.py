"""What is issued can be used: no token is larger than what is accepted, and none is dead when it arrives."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import MAX_ISSUED_LENGTH, MAX_URL_LENGTH, TokenKind
from sse_app.core.errors import TokenTooLarge
from tests.support.minting import mint
from tests.support.people import PASSWORD, Site, bearer, claims_of, site
from tests.support.server_process import ServerProcess

MANY = [f"segment-{number:03}.with-a-long-name.*" for number in range(225)]
LONG = [f"{'x' * 60}.{'y' * 60}.{'z' * 60}.{number:02}" for number in range(32)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {"CHANNELS": ["**"], "AUTH__ACCESS_LIFETIME": 2, "AUTH__STREAM_LIFETIME": 600}
    with site(tmp_path_factory.mktemp("issued") / "state", users=("ann",), **settings) as served:
        yield served


def refused(server: ServerProcess, *arguments: str, input: str | None = None) -> str:
    with pytest.raises(AssertionError) as error:
        server.command(*arguments, input=input)
    told = str(error.value).splitlines()[0]
    assert "Traceback" not in told
    return told


def test_grants_that_fit_into_no_token_are_refused_where_they_are_given(desk: Site) -> None:
    grants = ("--subscribe", ",".join(MANY))
    for command in (["user", "add", "bob", "--password-stdin"], ["user", "grants", "ann"], ["token"]):
        subject = ["--subject", "bob"] if command == ["token"] else []
        told = refused(desk.server, *command, *subject, *grants, input=PASSWORD)
        assert f"at most {MAX_ISSUED_LENGTH}" in told
        assert "patterns that cover more" in told
    assert desk.try_login("bob").status_code == 401
    assert desk.try_login("ann").status_code == 200


def test_a_subject_that_no_token_can_hold_is_refused(desk: Site) -> None:
    for subject in ("x" * 8000, "\udcff"):
        assert "token" in refused(desk.server, "token", "--subject", subject, "--subscribe", "dashboard")


def test_a_login_whose_grants_have_outgrown_a_token_says_so_and_leaves_no_session(tmp_path: Path) -> None:
    own = [f"{'own-' * 10}{number}.{{sub}}.**" for number in range(120)]
    settings = {"AUTH__OWN_CHANNELS": own, "CHANNELS": ["**"]}
    with site(tmp_path / "state", users=("ann",), **settings) as desk:
        answer = desk.try_login("ann")
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "token_too_large"
        with closing(sqlite3.connect(tmp_path / "state" / "accounts.db")) as database:
            assert database.execute("SELECT count(*) FROM sessions").fetchone() == (0,)


def test_a_stream_token_and_its_url_pass_through_a_proxy_or_are_not_issued(desk: Site) -> None:
    access = mint(desk.server.state_dir, TokenKind.ACCESS, Grants.of(subscribe=["**"]), subject="ann")
    answers = {count: desk.stream_token(access, *LONG[:count]) for count in (1, 8, 11, 16, 32)}
    assert answers[1].status_code == answers[8].status_code == 200
    assert answers[32].status_code == 422
    assert answers[32].json()["error"]["code"] == "token_too_large"
    assert "several streams" in answers[32].json()["error"]["message"] or "fewer" in answers[32].text
    for count, answer in answers.items():
        if answer.status_code == 200:
            token = answer.json()["stream_token"]
            names = ",".join(LONG[:count])
            assert len(token) + len(names) <= MAX_URL_LENGTH
            assert desk.stream_status(token, names) == 200
        else:
            assert answer.status_code == 422


def test_the_largest_tokens_that_are_issued_are_accepted_and_fit_into_8_kib(desk: Site) -> None:
    largest = ""
    for count in range(60, 225, 3):
        try:
            grants = Grants.of(subscribe=MANY[:count], publish=["alerts"])
            largest = mint(desk.server.state_dir, TokenKind.ACCESS, grants, subject="ann")
        except TokenTooLarge:
            break
    else:
        raise AssertionError("a token of any size is issued")
    assert MAX_ISSUED_LENGTH - 200 < len(largest) <= MAX_ISSUED_LENGTH
    assert len(f"Authorization: Bearer {largest}\r\n") < 8192
    assert desk.me(largest) == 200
    assert desk.stream_token(largest, "segment-001.with-a-long-name.a").status_code == 200


def test_a_token_that_is_too_long_is_refused_with_the_bound(desk: Site) -> None:
    answer = desk.http.get("/api/v1/auth/me", headers=bearer("x" * 9000))
    assert answer.status_code == 401
    assert "8192" in answer.text


def test_in_the_last_second_of_an_access_token_nothing_is_issued_that_is_dead(desk: Site) -> None:
    """Ask for stream tokens all through the life of an access token; each that is issued opens a stream."""
    refusals = 0
    for _ in range(2):
        access = desk.log_in("ann").access
        expires_at = claims_of(access)["exp"]
        answer: httpx.Response | None = None
        while time.time() < expires_at:
            asked = time.time()
            answer = desk.stream_token(access, "dashboard")
            now = time.time()
            if answer.status_code == 200:
                token, told = answer.json()["stream_token"], answer.json()["stream_expires_in"]
                exp = claims_of(token)["exp"]
                assert told >= 1
                assert told <= exp - asked
                assert exp <= expires_at
                assert now < exp or now - asked >= 1  # it is good for at least a second, on its way too
            else:
                assert answer.status_code == 401
                refusals += 1
            time.sleep(0.05)
    assert refusals > 0


def test_a_login_says_no_longer_lifetimes_than_its_tokens_have(desk: Site) -> None:
    for _ in range(10):
        session = desk.log_in("ann")
        for token, name in ((session.access, "expires_in"), (session.stream, "stream_expires_in")):
            assert 1 <= session.answer[name] <= claims_of(token)["exp"] - claims_of(token)["iat"]


def test_a_stream_is_not_renewed_with_a_token_that_is_about_to_expire(desk: Site) -> None:
    ear = desk.hear(desk.mint(TokenKind.STREAM, "ann", "one", ttl=60), client_id="mine")
    statuses = set()
    for _ in range(5):
        brief = desk.mint(TokenKind.STREAM, "ann", "one", ttl=1)
        if (answer := desk.renew(brief, "mine")).status_code == 200:
            assert answer.json()["expires_in"] >= 1
        statuses.add(answer.status_code)
        time.sleep(0.13)
    assert 401 in statuses
    assert ear.open
    desk.leave_all()


@pytest.mark.slow
def test_a_login_gives_no_tokens_that_live_longer_than_is_accepted(tmp_path: Path) -> None:
    with site(tmp_path / "state", users=("ann",), AUTH__LONGEST_LIFETIME=60) as desk:
        session = desk.log_in("ann")
        assert session.answer["expires_in"] <= 60
        assert desk.me(session.access) == 200
        assert desk.stream_status(session.stream) == 200
        session = desk.refresh(session.refresh)
        assert desk.me(session.access) == 200
        desk.restart()  # what was remembered of them is gone
        assert desk.me(session.access) == 200
        assert desk.stream_status(session.stream) == 200
