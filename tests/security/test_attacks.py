"""Ways to break in, or to break the door, that were tried and taught something."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import PASSWORD, Site, bearer, site
from tests.support.waiting import DEADLINE, until


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("attacks") / "state"
    expected = ("keys_refused", "accounts_unavailable")
    with site(state_dir, users=("ann",), expected=expected) as served:
        yield served


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/ADMIN/audit",
        "/api/v1/admin/audit/",
        "/api/v1/admin/%61udit",
        "//api/v1/admin/audit",
        "/api/v1/auth/../admin/audit",
        "/api/v1/admin/audit;x",
        "/api/v1/admin/audit%00",
    ],
)
def test_no_other_way_of_writing_a_path_gets_around_its_guard(desk: Site, path: str) -> None:
    connection = HTTPConnection("127.0.0.1", desk.server.port, timeout=30)
    token = desk.log_in("ann").access
    for headers in ({}, bearer(token)):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (400, 401, 403, 404)
    connection.close()


def test_a_method_that_claims_to_be_another_is_what_it_is(desk: Site) -> None:
    headers = {**bearer(desk.log_in("ann").access), "X-HTTP-Method-Override": "GET"}
    assert desk.http.post("/api/v1/auth/me", headers=headers).status_code == 405


def test_a_token_in_a_form_is_none(desk: Site) -> None:
    token = desk.mint(TokenKind.ACCESS, "ann")
    for name in ("access_token", "token"):
        assert desk.http.post("/api/v1/sse/dashboard", data={name: token}).status_code == 401


def test_a_member_named_twice_or_made_up_gives_nobody_more(desk: Site) -> None:
    login = b'{"username": "ann", "password": "%s", "username": "root", "admin": true}' % PASSWORD.encode()
    assert desk.http.post("/api/v1/auth/login", content=login).status_code == 422
    twice = b'{"username": "root", "username": "ann", "password": "%s", "cookie": false}' % PASSWORD.encode()
    answer = desk.http.post("/api/v1/auth/login", content=twice)
    if answer.status_code == 200:
        assert (
            desk.http.get("/api/v1/auth/me", headers=bearer(answer.json()["access_token"])).json()["subject"]
            == "ann"
        )


@pytest.mark.parametrize("where", ["subject", "username"])
def test_half_a_character_in_a_name_is_no_crash(desk: Site, where: str) -> None:
    for text in (b"\\ud800", b"\\udfff" + b"1" * 30):
        if where == "subject":
            body = b'{"subject": "%s"}' % text
            answer = desk.http.post("/api/v1/admin/revocations", content=body, headers=desk.admin)
        else:
            body = b'{"username": "%s", "password": "x"}' % text
            answer = desk.http.post("/api/v1/auth/login", content=body)
        assert 400 <= answer.status_code < 500


def test_a_session_that_was_only_minted_ends_with_a_logout_too(desk: Site) -> None:
    access, stream = (desk.mint(kind, "cli", "s-cli") for kind in (TokenKind.ACCESS, TokenKind.STREAM))
    ear = desk.hear(stream)
    assert desk.http.post("/api/v1/auth/logout", headers=bearer(access)).status_code == 204
    until(lambda: not ear.open, "the stream ends")
    assert desk.stream_status(stream) == 401


def test_without_the_directory_of_its_keys_a_server_goes_on_and_says_so_once(desk: Site) -> None:
    session = desk.log_in("ann")
    keys, aside = desk.server.state_dir / "keys", desk.server.state_dir / "aside"
    shutil.move(keys, aside)
    until(lambda: "keys_refused" in desk.server.log_path.read_text(), "it is told")
    assert desk.me(session.access) == 200
    desk.http.post("/api/v1/auth/logout", headers=bearer(session.access))
    entries = desk.http.get("/api/v1/sse/status")
    assert entries.status_code == 200
    assert not keys.exists()
    shutil.move(aside, keys)
    until(lambda: desk.me(desk.mint(TokenKind.ACCESS, "ann")) == 200, "the keys are back")
    assert desk.server.log_path.read_text().count("keys_refused") == 1


@pytest.mark.long
def test_a_database_that_somebody_locks_holds_up_logins_and_nothing_else(desk: Site) -> None:
    token = desk.mint(TokenKind.STREAM, "ann")
    locker = sqlite3.connect(desk.server.state_dir / "accounts.db", isolation_level=None, timeout=30)
    locker.execute("BEGIN IMMEDIATE")
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(desk.try_login("ann")))
    thread.start()
    while thread.is_alive():
        begun = time.monotonic()
        assert desk.stream_status(token) == 200
        assert time.monotonic() - begun < 2
        time.sleep(0.1)
    locker.execute("ROLLBACK")
    locker.close()
    assert answers[0].status_code == 503
    assert int(answers[0].headers["retry-after"]) > 0
    assert desk.log_in("ann")


@pytest.mark.long
def test_a_server_that_is_asked_to_end_amid_logins_ends_without_a_trace(desk: Site) -> None:
    stopped = threading.Event()

    def ask(path: str, body: dict[str, object]) -> None:
        while not stopped.is_set():
            try:
                httpx.post(f"{desk.server.url}/api/v1/auth/{path}", json=body, timeout=DEADLINE)
            except httpx.TransportError:
                return

    wanted: list[tuple[str, dict[str, object]]] = [
        ("login", {"username": "ann", "password": PASSWORD, "cookie": False}),
        ("refresh", {"refresh_token": "x" * 43}),
    ]
    threads = [threading.Thread(target=ask, args=each) for each in wanted * 4]
    for thread in threads:
        thread.start()
    before = desk.server.log_path.read_text().count('"login"')
    until(lambda: desk.server.log_path.read_text().count('"login"') > before + 3, "logins are under way")
    assert desk.server.stop() == 0
    stopped.set()
    for thread in threads:
        thread.join()
    assert "Traceback" not in desk.server.log_path.read_text()
    desk.server.start()
