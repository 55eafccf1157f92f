"""A revocation is kept as long as any token it speaks of could be accepted, whatever the settings were or become."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import Session, Site, bearer, claims_of, site
from tests.support.waiting import until

BRIEF = {"AUTH__ACCESS_LIFETIME": 3, "AUTH__STREAM_LIFETIME": 3}


def log_out(desk: Site, session: Session) -> None:
    body = {"refresh_token": session.refresh}  # an access token of three seconds may expire on its way
    assert desk.http.post("/api/v1/auth/logout", json=body).status_code == 204


def after_its_last_token(desk: Site, session: Session) -> None:
    """Wait until no token that the server itself issued is valid, and have what is spent swept."""
    until(lambda: time.time() > claims_of(session.access)["iat"] + 3.5, "the tokens of the session expire")
    log_out(desk, desk.log_in("bob"))


def reuse(desk: Site, session: Session) -> None:
    desk.refresh(desk.refresh(session.refresh).refresh)
    assert desk.try_refresh(session.refresh).status_code == 401


ENDS: dict[str, Callable[[Site, Session], object]] = {
    "logout": log_out,
    "reused refresh token": lambda desk, session: reuse(desk, session),
    "session": lambda desk, session: desk.revoke(session=session.id),
    "subject": lambda desk, session: desk.revoke(subject="ann"),
    "passwd": lambda desk, session: desk.server.command(
        "user", "passwd", "ann", "--password-stdin", input="another good password\n"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_no_end_of_a_session_is_forgotten_while_a_token_minted_for_it_could_live(
    tmp_path: Path, end: str
) -> None:
    with site(tmp_path / "state", users=("ann", "bob"), expected=("refresh_reused",), **BRIEF) as desk:
        session = desk.log_in("ann")
        long = desk.server.command(
            "token", "--kind", "stream", "--subject", "ann", "--session", session.id,
            "--subscribe", "dashboard", "--ttl", "86400",
        )  # fmt: skip
        assert desk.stream_status(long) == 200
        session = desk.refresh(session.refresh)  # the command may outlast its first token
        ENDS[end](desk, session)
        until(lambda: desk.stream_status(long) == 401, "the session has ended")
        after_its_last_token(desk, session)
        assert desk.stream_status(long) == 401
        desk.restart()
        log_out(desk, desk.log_in("bob"))
        assert desk.stream_status(long) == 401


@pytest.mark.slow
@pytest.mark.parametrize("by", ["reload", "restart"])
@pytest.mark.parametrize("what", ["session", "subject", "token_id", "all"])
def test_a_revocation_under_a_short_longest_lifetime_holds_when_that_is_raised_again(
    tmp_path: Path, what: str, by: str
) -> None:
    config = tmp_path / "sse_app.toml"
    config.write_text("[auth]\nlongest_lifetime = 86400\naccess_lifetime = 1\nstream_lifetime = 1\n")
    with site(tmp_path / "state", CONFIG=str(config)) as desk:

        def put(longest: int, in_force: Callable[[], bool]) -> None:
            config.write_text(config.read_text().replace(*longests(config.read_text(), longest)))
            if by == "restart":
                desk.restart()
            else:
                assert desk.server.process is not None
                desk.server.process.send_signal(signal.SIGHUP)
            until(in_force, f"longest_lifetime = {longest} is in force")

        token = desk.mint(TokenKind.STREAM, "ann", "a-session", ttl=3600)
        other = desk.mint(TokenKind.STREAM, "ben", "another", ttl=3600)
        assert desk.stream_status(token) == 200
        put(2, lambda: desk.stream_status(other) == 401)
        value = {"session": "a-session", "subject": "ann", "token_id": claims_of(token)["jti"], "all": True}[
            what
        ]
        revoke(desk, {what: value})
        time.sleep(2.5)  # the property is that this time does not matter
        revoke(desk, {"token_id": "x"})  # which sweeps
        fresh = desk.mint(TokenKind.STREAM, "carl", "third", ttl=3600)
        put(86400, lambda: desk.stream_status(fresh) == 200)
        for _ in range(20):
            assert desk.stream_status(token) == 401
            time.sleep(0.02)
        assert desk.stream_status(other) == (401 if what == "all" else 200)


def revoke(desk: Site, body: dict[str, object]) -> None:
    """Revoke something, with a token as short as all are for now: on a busy machine one may expire on its way."""

    def revoked() -> bool:
        admin = bearer(desk.mint(TokenKind.ACCESS, "root", ttl=2))
        answer = desk.http.post("/api/v1/admin/revocations", json=body, headers=admin)
        assert answer.status_code == 201 or "expired" in answer.text, answer.text
        return answer.status_code == 201

    until(revoked, f"{body} is revoked")


def longests(text: str, longest: int) -> tuple[str, str]:
    line = text.split("\n")[1]
    return line, f"longest_lifetime = {longest}"


def test_the_database_keeps_an_end_for_the_longest_lifetime_that_any_setting_allows(tmp_path: Path) -> None:
    with site(tmp_path / "state", users=("ann", "bob"), **BRIEF) as desk:
        log_out(desk, desk.log_in("ann"))
        with sqlite3.connect(desk.server.state_dir / "accounts.db") as database:
            (until_then,) = database.execute("SELECT forget_at FROM revocations").fetchone()
        database.close()
        assert until_then == pytest.approx(time.time() + 366 * 86_400, abs=60)
