"""What is revoked stays so, and who logs in again is let in, whatever the wall clock is set to."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import IN_FORCE, Ear, bearer, claims_of
from tests.support.waiting import until
from tests.support.wall_clock import HOUR, MINUTE, YEAR, ClockedServer, Hear
from tests.support.wall_clock import clock_library as clock_library
from tests.support.wall_clock import hear as hear
from tests.support.wall_clock import start as start
from tests.support.wall_clock import wall_clock as wall_clock

PASSWORD = "correct horse battery"
Start = Callable[..., ClockedServer]


def pings(ear: Ear) -> int:
    return sum(type == "ping" for type, _ in ear.events)


def log_in(server: ClockedServer) -> dict[str, Any]:
    answer = httpx.post(
        f"{server.url}/api/v1/auth/login",
        json={"username": "ann", "password": PASSWORD, "cookie": False},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    tokens: dict[str, Any] = answer.json()
    return tokens


def me(server: ClockedServer, token: str) -> int:
    return httpx.get(f"{server.url}/api/v1/auth/me", headers=bearer(token)).status_code


@pytest.mark.slow
def test_a_renewed_stream_lives_as_long_as_its_fresh_token_whatever_the_clock_does(
    start: Start, hear: Hear
) -> None:
    server = start()
    server.add_user("ann", PASSWORD, subscribe="dashboard")
    token = log_in(server)["access_token"]

    def brief() -> str:
        answer = httpx.post(f"{server.url}/api/v1/auth/stream-token", json={}, headers=bearer(token))
        return str(answer.json()["stream_token"])

    ear = hear(server, "dashboard", brief(), client_id="c")
    server.clock.set(-20)
    url = f"{server.url}/api/v1/sse/connections/c/renew"
    fresh = log_in(server)
    assert httpx.post(url, headers=bearer(fresh["stream_token"])).status_code == 404  # another session's
    server.clock.set(-10)
    server.clock.set(20)
    answer = httpx.post(url, headers=bearer(brief()))
    assert answer.status_code == 200
    assert 400 < answer.json()["expires_in"] <= 600
    before = pings(ear)
    until(lambda: pings(ear) > before, "pings")
    assert ear.farewell is None


# -- revocation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "step",
    [
        -20.0,
        pytest.param(-HOUR, marks=pytest.mark.slow),
        MINUTE,
        pytest.param(-2 * YEAR, marks=pytest.mark.slow),
    ],
)
def test_a_revocation_reaches_streams_and_tokens_of_before_the_clock_was_set(
    start: Start, hear: Hear, step: float
) -> None:
    server = start()
    server.add_user("ann", PASSWORD, subscribe="dashboard")
    tokens = log_in(server)
    ear = hear(server, "dashboard", tokens["stream_token"])
    server.clock.set(step)
    server.command("revoke", "--subject", "ann")
    until(lambda: ear.ended_at, "the stream ends", 10 * IN_FORCE)
    assert ear.farewell == "revoked"
    assert me(server, tokens["access_token"]) == 401
    server.clock.set(0)
    assert me(server, tokens["access_token"]) == 401
    assert hear(server, "dashboard", tokens["stream_token"]).status == 401


def test_a_revocation_reaches_a_token_that_says_nothing_but_its_issuing_time(
    start: Start, hear: Hear
) -> None:
    """As tokens of a provider do, and of earlier versions."""
    server = start()
    token = server.minted(TokenKind.STREAM, subject="ann")
    ear = hear(server, "dashboard", token)
    until(lambda: pings(ear) >= 2, "the server has begun, and has looked for new keys")
    assert hear(server, "dashboard", token).status == 200
    server.clock.set(-20)
    assert (
        hear(server, "dashboard", token).status == 200
    )  # its issuing time is ahead, but it was verified before
    server.command("revoke", "--subject", "ann")
    until(lambda: ear.ended_at, "the stream ends", 10 * IN_FORCE)
    for offset in (-20, 0, 20):
        server.clock.set(offset)
        assert hear(server, "dashboard", token).status == 401
    fresh = server.minted(TokenKind.STREAM, subject="ann")
    assert hear(server, "dashboard", fresh).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--subject ann", "--all"])
def test_a_login_after_a_revocation_works_although_the_clock_was_set_back(
    start: Start, hear: Hear, how: str
) -> None:
    server = start()
    server.add_user("ann", PASSWORD, subscribe="dashboard")
    before = log_in(server)
    server.command("revoke", *how.split())
    server.clock.set(-HOUR)
    after = log_in(server)
    assert me(server, after["access_token"]) == 200
    ear = hear(server, "dashboard", after["stream_token"])
    until(lambda: pings(ear) >= 2, "pings")
    narrowed = httpx.post(
        f"{server.url}/api/v1/auth/stream-token", json={}, headers=bearer(after["access_token"])
    ).json()["stream_token"]
    assert hear(server, "dashboard", narrowed).status == 200
    refreshed = httpx.post(
        f"{server.url}/api/v1/auth/refresh", json={"refresh_token": after["refresh_token"]}
    ).json()
    assert me(server, refreshed["access_token"]) == 200
    minted = server.command("token", "--kind", "access", "--subject", "ann", "--subscribe", "dashboard")
    assert me(server, minted) == 200
    for offset in (-HOUR, 0.0, MINUTE):
        server.clock.set(offset)
        assert me(server, before["access_token"]) == 401
    server.stop()
    server.start()
    assert me(server, before["access_token"]) == 401
    assert me(server, after["access_token"]) == 200 or claims_of(after["access_token"])["exp"] < time.time()


@pytest.mark.slow
def test_a_revocation_is_not_forgotten_while_the_clock_is_ahead(start: Start) -> None:
    server = start()
    server.add_user("ann", PASSWORD, subscribe="dashboard")
    tokens, others = log_in(server), log_in(server)
    url = f"{server.url}/api/v1/auth/logout"
    assert httpx.post(url, json={}, headers=bearer(tokens["access_token"])).status_code == 204
    server.clock.set(2 * YEAR)
    server.command("revoke", "--subject", "somebody else")
    until(lambda: len(revocations(server)) == 2, "it is written")
    until(lambda: server.log_path.stat().st_size, "the server has looked")
    time.sleep(1)  # the server looks four times a second
    server.clock.set(0)
    assert me(server, tokens["access_token"]) == 401
    assert me(server, others["access_token"]) == 200
    server.clock.set(2 * YEAR)
    server.stop()
    server.start()
    server.command("revoke", "--subject", "yet another")
    server.clock.set(0)
    assert me(server, tokens["access_token"]) == 401
    server.stop()
    server.start()
    assert me(server, tokens["access_token"]) == 401
    assert me(server, others["access_token"]) == 200


def revocations(server: ClockedServer) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.state_dir / "accounts.db")) as database:
        return database.execute("SELECT kind, value FROM revocations").fetchall()


# -- sessions -----------------------------------------------------------------------------------------------


def test_a_session_begun_while_the_clock_was_ahead_lasts_no_longer_than_others(start: Start) -> None:
    server = start()
    server.add_user("ann", PASSWORD, subscribe="dashboard")
    server.clock.set(2 * YEAR)
    ahead = log_in(server)
    server.clock.set(0)
    answer = httpx.post(f"{server.url}/api/v1/auth/refresh", json={"refresh_token": ahead["refresh_token"]})
    assert answer.status_code == 200, answer.text
    log_in(server)
    with closing(sqlite3.connect(server.state_dir / "accounts.db")) as database:
        rows = database.execute("SELECT used_at, expires_at FROM sessions").fetchall()
    assert len(rows) == 2
    now = time.time()
    assert all(used_at <= now and expires_at <= now + 31 * 86_400 for used_at, expires_at in rows)


# -- kicks --------------------------------------------------------------------------------------------------


def test_a_clock_set_back_neither_lengthens_a_kick_nor_brings_it_back(start: Start, hear: Hear) -> None:
    server = start()
    server.add_user("ann", PASSWORD, subscribe="dashboard")
    tokens = log_in(server)
    ear = hear(server, "dashboard", tokens["stream_token"])
    until(lambda: pings(ear) >= 2, "the server has begun, and has looked for new keys")

    def barred() -> bool:
        url = f"{server.url}/api/v1/auth/stream-token"
        answer = httpx.post(url, json={}, headers=bearer(tokens["access_token"]))
        return answer.status_code == 403

    admin = bearer(server.access_token(admin=True, ttl=60))
    listed = httpx.get(f"{server.url}/api/v1/admin/connections", headers=admin).json()["connections"]
    url = f"{server.url}/api/v1/admin/connections/{listed[0]['connection']}/kick"
    begun = time.monotonic()
    assert httpx.post(url, json={"for": 2}, headers=admin).json() == {"kicked": 1}
    assert barred() or time.monotonic() - begun > 1.9
    server.clock.set(-HOUR)
    until(lambda: not barred(), "the kick ends", 60)
    assert 1.5 < time.monotonic() - begun < 30
    server.clock.set(-2 * HOUR)
    time.sleep(1)  # the server looks four times a second
    assert not barred()
