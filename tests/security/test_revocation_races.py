"""Races: whatever is in flight when something is revoked, nothing of it survives."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import Ear, Session, Site, assert_ended, bearer, claims_of, session_of, site
from tests.support.waiting import until


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("races") / "state"
    settings: dict[str, Any] = {"LOG__LEVEL": "info", "LIMITS__STREAMS_PER_USER": 1000}
    with site(state_dir, users=("ann", "bob"), expected=("refresh_reused",), **settings) as served:
        yield served


@pytest.mark.parametrize("scope", ["token_id", "session", "subject"])
def test_a_stream_that_is_being_opened_while_its_token_is_revoked_does_not_stay(
    desk: Site, scope: str
) -> None:
    for round in range(4):
        subject, session = f"runner{round}", f"s-{scope}-{round}"
        token = desk.mint(TokenKind.STREAM, subject, session)
        ears: list[Ear] = []
        stopped = threading.Event()

        def open_streams(
            token: str = token, ears: list[Ear] = ears, stopped: threading.Event = stopped
        ) -> None:
            while not stopped.is_set():
                ear = Ear(desk.server, "dashboard", token)
                ears.append(ear)
                if ear.status == 401:
                    return

        threads = [threading.Thread(target=open_streams) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda ears=ears: len(ears) > 4, "streams open")  # type: ignore[misc]
        value = {"token_id": claims_of(token)["jti"], "session": session, "subject": subject}[scope]
        desk.revoke(**{scope: value})
        until(lambda threads=threads: not any(t.is_alive() for t in threads), "a 401 for each")  # type: ignore[misc]
        stopped.set()
        until(lambda ears=ears: not any(ear.open for ear in ears if ear.status == 200), "no stream stays")  # type: ignore[misc]
        reasons = {ear.farewell for ear in ears if ear.status == 200}
        assert reasons == {"revoked"}
        for ear in ears:
            ear.leave()


def refused_with(desk: Site, token: str) -> int:
    """Return the status of a refresh; it is asked again where very many tokens that are not known came in a second."""
    statuses: list[int] = []

    def answered() -> bool:
        statuses.append(desk.try_refresh(token).status_code)
        return statuses[-1] != 429

    until(answered, "the address may ask again", pause=0.1)
    return statuses[-1]


@pytest.mark.parametrize("end", ["logout", "session", "subject", "reuse"])
def test_a_refresh_in_flight_while_its_session_ends_leaves_no_token_that_lives(desk: Site, end: str) -> None:
    for round in range(2):
        session = desk.log_in("ann")
        first = desk.refresh(desk.refresh(session.refresh).refresh) if end == "reuse" else session
        made = [first]

        def refresh_on(made: list[Session] = made) -> None:
            while True:
                answer = httpx.post(
                    f"{desk.server.url}/api/v1/auth/refresh",
                    json={"refresh_token": made[-1].refresh},
                    timeout=30,
                )
                if answer.status_code != 200:
                    return
                made.append(session_of(answer))

        def exchange(made: list[Session] = made) -> None:
            while True:
                newest = made[-1]
                answer = httpx.post(
                    f"{desk.server.url}/api/v1/auth/stream-token", headers=bearer(newest.access), timeout=30
                )
                if answer.status_code != 200:
                    return
                token = answer.json()["stream_token"]
                made.append(Session(newest.access, token, newest.refresh, {}))

        thread = threading.Thread(target=exchange if round % 2 else refresh_on)
        thread.start()
        until(lambda made=made: len(made) > 2, "tokens are made")  # type: ignore[misc]
        if end == "logout":
            assert desk.http.post("/api/v1/auth/logout", headers=bearer(first.access)).status_code == 204
        elif end == "reuse":
            assert desk.try_refresh(session.refresh).status_code == 401
        else:
            desk.revoke(**{end: first.id if end == "session" else "ann"})
        thread.join()
        for one in [session, *made]:
            assert desk.me(one.access) == 401
            assert desk.stream_status(one.stream) == 401
            assert refused_with(desk, one.refresh) == 401


def test_a_login_in_flight_while_its_account_is_disabled_leaves_no_session(desk: Site) -> None:
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(desk.try_login("bob", address=f"127.0.3.{n}")))
        for n in range(1, 13)
    ]
    for thread in threads:
        thread.start()
    until(lambda: answers, "the first is in")
    desk.server.command("user", "disable", "bob")
    for thread in threads:
        thread.join()
    for answer in answers:
        assert answer.status_code in (200, 401, 503), answer.text
        if answer.status_code == 200:
            session = session_of(answer)
            until(lambda session=session: desk.me(session.access) == 401, "the running server has looked")  # type: ignore[misc]
            assert desk.try_refresh(session.refresh).status_code == 401
    desk.server.command("user", "enable", "bob")


def test_a_renewal_right_after_a_revocation_on_the_command_line_saves_no_stream(desk: Site) -> None:
    """The running server learns of it a moment later: the fresh token must not cover for the revoked one."""
    first = desk.mint(TokenKind.STREAM, "late", "s-late")
    ear = desk.hear(first, client_id="late")
    stopped = threading.Event()

    def renew_on() -> None:
        number = 0
        while not stopped.is_set() and number < 25:
            desk.renew(desk.mint(TokenKind.STREAM, "late", "s-late"), "late")
            number += 1
            stopped.wait(0.05)

    thread = threading.Thread(target=renew_on)
    thread.start()
    desk.server.command("revoke", "--token-id", claims_of(first)["jti"])
    until(lambda: not ear.open, "the stream ends")
    stopped.set()
    thread.join()
    assert ear.farewell == "revoked"


@pytest.mark.long
def test_a_command_is_heard_within_a_second_while_strangers_flood_the_server(desk: Site) -> None:
    ear = desk.hear(desk.mint(TokenKind.STREAM, "calm", "s-calm"))
    stopped = threading.Event()

    def flood(path: str, body: dict[str, str]) -> None:
        with httpx.Client(timeout=30) as http:
            while not stopped.is_set():
                http.post(f"{desk.server.url}/api/v1/auth/{path}", json=body)

    threads = [
        threading.Thread(target=flood, args=(path, body))
        for path, body in [
            ("refresh", {"refresh_token": "x" * 43}),
            ("login", {"username": "nobody", "password": "x" * 20}),
        ]
        * 3
    ]
    for thread in threads:
        thread.start()
    try:
        desk.server.command("revoke", "--session", "s-calm")
        assert_ended([ear], time.monotonic(), "revoked")
    finally:
        stopped.set()
        for thread in threads:
            thread.join()
