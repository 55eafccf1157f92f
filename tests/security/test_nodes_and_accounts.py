"""Two servers on one database in PostgreSQL have one set of accounts, sessions, revocations and keys between them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import PASSWORD, Ear, Session, Site, assert_ended, assert_go_on, serving
from tests.support.postgres import Postgres
from tests.support.server_process import clean_environment, run_program
from tests.support.waiting import until


class Desk(Site):
    """A server whose accounts and keys are in the database: what Site does with files, the commands do."""

    def add_user(self, name: str, admin: bool = False) -> None:
        grants = ("--subscribe", "dashboard,alerts,desk.*", "--publish", "alerts")
        self.server.command("user", "add", name, *grants, "--password-stdin", input=PASSWORD)

    def mint(self, kind: TokenKind, subject: str, session: str = "", ttl: float = 600) -> str:
        words = ["--kind", "access" if kind is TokenKind.ACCESS else "stream", "--subscribe", "**"]
        words += ["--publish", "**", "--admin"] if kind is TokenKind.ACCESS else []
        words += ["--session", session] if session else []
        return self.server.command("token", *words, "--subject", subject, "--ttl", str(int(ttl)))

    def listed(self) -> list[list[str]]:
        return [line.split() for line in self.server.command("keys", "list").splitlines()]


def new_seal(directory: Path, name: str = "seal") -> Path:
    seal = directory / name
    seal.write_bytes(os.urandom(32))
    seal.chmod(0o600)
    return seal


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    return postgres.new_database()


@pytest.fixture(scope="module")
def desks(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[list[Desk]]:
    expected = ("refresh_reused", "accounts_unavailable", "event_log_unavailable", "node_silent")
    directory = tmp_path_factory.mktemp("nodes")
    settings: dict[str, Any] = {"EVENT_LOG": database, "AUTH__KEYS_SEAL": str(new_seal(directory))}
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                serving(Desk, directory / name / "state", expected=expected, NODE=name, **settings)
            )
            for name in ("one", "other")
        ]


@pytest.fixture
def people(desks: list[Desk]) -> Iterator[Callable[[], str]]:
    """A function that makes an account, and returns its name."""
    made: list[str] = []

    def make() -> str:
        made.append(f"user-{time.monotonic_ns()}")
        desks[len(made) % 2].add_user(made[-1])
        return made[-1]

    yield make
    for desk in desks:
        desk.leave_all()


def kid_of(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


@pytest.mark.slow
def test_a_session_begun_at_one_node_goes_on_and_ends_at_the_other(
    desks: list[Desk], people: Callable[[], str]
) -> None:
    one, other = desks
    admin = one.admin
    session = one.log_in(people())
    assert other.me(session.access) == one.me(session.access) == 200
    refreshed = other.refresh(session.refresh)
    assert refreshed.id == session.id
    again = one.refresh(refreshed.refresh)
    ear = one.hear(again.stream)
    assert other.http.post("/api/v1/auth/logout", json={"refresh_token": again.refresh}).status_code == 204
    assert_ended([ear], time.monotonic(), "revoked", admin)
    assert one.try_refresh(again.refresh).status_code == 401
    until(lambda: one.me(again.access) == 401, "it has learned of it")


def test_a_refresh_token_that_comes_back_at_the_other_node_ends_the_session_on_all(
    desks: list[Desk], people: Callable[[], str]
) -> None:
    one, other = desks
    admin = one.admin
    session = one.log_in(people())
    second = other.refresh(session.refresh)
    third = one.refresh(second.refresh)
    ears = [desk.hear(third.stream) for desk in desks]
    assert other.try_refresh(session.refresh).status_code == 401
    assert_ended(ears, time.monotonic(), "revoked", admin)
    assert one.try_refresh(third.refresh).status_code == 401


def of_subject(desk: Desk, name: str, session: Session, ear: Ear) -> str:
    desk.revoke(subject=name)
    return "revoked"


def by_command(desk: Desk, name: str, session: Session, ear: Ear) -> str:
    desk.server.command("revoke", "--session", session.id)
    return "revoked"


def disable(desk: Desk, name: str, session: Session, ear: Ear) -> str:
    desk.server.command("user", "disable", name)
    return "revoked"


def over_http(desk: Desk, name: str, session: Session, ear: Ear) -> str:
    path = f"/api/v1/admin/users/{name}"
    answer = desk.http.patch(path, json={"disabled": True}, headers=desk.admin)
    assert answer.status_code == 200, answer.text
    return "revoked"


def kick(desk: Desk, name: str, session: Session, ear: Ear) -> str:
    headers = desk.admin

    def rows() -> list[dict[str, Any]]:
        answer = desk.http.get("/api/v1/admin/connections", params={"search": name}, headers=headers)
        return [row for row in answer.json()["connections"] if row["subject"] == name]

    until(rows, "the node of the stream answers")
    answer = desk.http.post(f"/api/v1/admin/connections/{rows()[0]['connection']}/kick", headers=headers)
    assert answer.status_code == 200, answer.text
    return "kicked"


TAKE_BACK = (of_subject, by_command, disable, over_http, kick)


@pytest.mark.parametrize(
    ("take_back", "cut"),
    [
        *(
            (how, False) if how in (by_command, kick) else pytest.param(how, False, marks=pytest.mark.slow)
            for how in TAKE_BACK
        ),
        pytest.param(of_subject, True, marks=pytest.mark.slow),
        *(pytest.param(how, True, marks=pytest.mark.long) for how in TAKE_BACK[1:]),
    ],
)
def test_what_is_taken_back_at_one_node_ends_streams_of_the_other_within_a_second(
    desks: list[Desk],
    people: Callable[[], str],
    database: str,
    take_back: Callable[[Desk, str, Session, Ear], str],
    cut: bool,
) -> None:
    one, other = desks
    admin = one.admin
    name, bystander = people(), people()
    session = one.log_in(name)
    ear = other.hear(session.stream)
    quiet = [other.hear(other.log_in(bystander).stream)]
    assert other.me(session.access) == 200
    if cut:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    reason = take_back(one, name, session, ear)
    assert_ended([ear], time.monotonic(), reason, admin)
    assert other.stream_status(session.stream) in (401, 403)
    assert_go_on(other, quiet)


@pytest.mark.parametrize("name", ["a\\u0000b", "\\u001b0", "\\ud800", "x" * 5000, "'; --"])
def test_what_a_database_cannot_keep_or_takes_for_its_own_is_no_error(desks: list[Desk], name: str) -> None:
    """A NUL, half a character, a text too long for an index: each is answered as on SQLite."""
    one, other = desks
    login = f'{{"username": "{name}", "password": "correct horse battery", "cookie": false}}'
    headers = {"Content-Type": "application/json"}
    answer = one.http.post("/api/v1/auth/login", content=login, headers=headers)
    assert answer.status_code in (400, 401, 422, 429), answer.text
    revoked = one.http.post(
        "/api/v1/admin/revocations", content=f'{{"subject": "{name}"}}', headers=headers | other.admin
    )
    assert revoked.status_code in (201, 400, 422), revoked.text
    assert one.http.get("/readyz").status_code == 200


def test_a_reload_leaves_the_keys_in_the_database_in_use(
    desks: list[Desk], people: Callable[[], str]
) -> None:
    one, other = desks
    session = one.log_in(people())
    assert one.server.process is not None
    before = one.server.log_path.read_text().count('"reload')
    one.server.process.send_signal(signal.SIGHUP)
    until(lambda: one.server.log_path.read_text().count('"reload') > before, "it has read its settings again")
    assert one.me(session.access) == 200
    assert other.me(one.refresh(session.refresh).access) == 200


@pytest.mark.slow
def test_a_new_key_is_known_to_all_nodes_before_one_signs_with_it(
    desks: list[Desk], people: Callable[[], str]
) -> None:
    one, other = desks
    session = one.log_in(people())
    for algorithm in ("EdDSA", "HS256"):
        kid = one.server.command("keys", "rotate", "--algorithm", algorithm)
        assert other.listed()[0][:2] == [kid, algorithm]
        for desk, shown_to in ((one, other), (other, one)):

            def signs(desk: Desk = desk, shown_to: Desk = shown_to, kid: str = kid) -> bool:
                nonlocal session
                session = desk.refresh(session.refresh)
                assert shown_to.me(session.access) == 200
                return kid_of(session.access) == kid

            until(signs, "the new key signs")
        assert other.listed()[0] == [kid, algorithm, "signs"]
        minted = other.mint(TokenKind.ACCESS, "ann")
        assert (kid_of(minted), one.me(minted)) == (kid, 200)


@pytest.mark.slow
def test_a_key_that_is_removed_verifies_on_no_node(desks: list[Desk], people: Callable[[], str]) -> None:
    one, other = desks
    session = one.log_in(people())
    old = kid_of(session.access)
    refused = run_program("keys", "remove", old, environment=one.server.environment)
    assert (refused.returncode, "signs; make another one first" in refused.stderr) == (1, True)
    one.server.command("keys", "rotate")
    until(lambda: one.listed()[0][2] == "signs", "the new key signs")
    one.server.command("keys", "remove", old)
    for desk in desks:
        until(lambda desk=desk: desk.me(session.access) == 401, "the old key is gone")  # type: ignore[misc]
    assert other.me(one.refresh(session.refresh).access) == 200
    assert old not in [line[0] for line in other.listed()]


def test_the_database_holds_no_key_that_is_not_sealed(desks: list[Desk], database: str) -> None:
    desks[0].server.command("keys", "rotate", "--algorithm", "ES256")
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT kind, sealed FROM sse_app.keys").fetchall()
        dumped = connection.execute("SELECT string_agg(k::text, '') FROM sse_app.keys k").fetchone()
    assert {kind for kind, _ in rows} == {"hs256", "pem"}
    assert all(len(sealed) > 40 and sealed[:1] == b"\x01" and b"PRIVATE" not in sealed for _, sealed in rows)
    assert dumped is not None
    assert "PRIVATE" not in dumped[0]
    assert not [desk for desk in desks if (desk.server.state_dir / "keys").exists()]


# -- beginning, and what was lost --------------------------------------------------------------------------------


def environment(url: str, state_dir: Path, **settings: str) -> dict[str, str]:
    named = {f"SSE_APP_{name}": value for name, value in settings.items()}
    return (
        clean_environment(SSE_APP_EVENT_LOG=url, SSE_APP_STATE_DIR=str(state_dir), SSE_APP_PORT="0") | named
    )


def run(words: str, environment: dict[str, str], input: str = PASSWORD) -> subprocess.CompletedProcess[str]:
    return run_program(*words.split(), environment=environment, input=input)


@pytest.mark.slow
def test_commands_need_no_state_directory_and_begin_nothing_unless_told_to(
    database_url: str, tmp_path: Path
) -> None:
    there = environment(database_url, tmp_path / "none")
    for words in ("user list", "user add ann --password-stdin", "audit", "revoke --all", "token"):
        refused = run(words, there)
        assert refused.returncode == 1, words
        assert refused.stderr.count("\n") == 1
        assert "there is nothing of sse_app in the database" in refused.stderr
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT FROM pg_namespace WHERE nspname = 'sse_app'").fetchall() == []
    assert run("user add ann --init --password-stdin --subscribe alerts", there).returncode == 0
    elsewhere = environment(database_url, tmp_path / "another")
    assert run("user list", elsewhere).stdout == "ann subscribe=alerts\n"
    assert run("user disable ann", elsewhere).returncode == 0
    assert run("revoke --subject ann", elsewhere).returncode == 0
    noted = run("audit", elsewhere).stdout
    assert [action in noted for action in ("user_added", "user_disabled", "revocation")] == [True] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_accounts_in_another_database_than_before_are_not_begun_in_silence(
    postgres: Postgres, database_url: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    with serving(Desk, state, EVENT_LOG=database_url, AUTH__KEYS_SEAL=str(new_seal(tmp_path))) as desk:
        desk.add_user("ann")
        seal = desk.server.environment["SSE_APP_AUTH__KEYS_SEAL"]
    emptied = postgres.new_database()
    there = environment(emptied, state, AUTH__KEYS_SEAL=seal)
    for _ in range(2):
        refused = run("serve", there)
        assert refused.returncode == 1
        assert "are not those that the state directory" in refused.stderr
        assert "user add NAME --init" in refused.stderr
    assert run("user add ben --init --password-stdin", there).returncode == 0
    for directory in (state, tmp_path / "fresh"):
        with serving(Desk, directory, EVENT_LOG=emptied, AUTH__KEYS_SEAL=seal) as desk:
            desk.log_in("ben")
    # One that is in use is not taken for one that was lost.
    refused = run("user add cid --init --password-stdin", environment(database_url, state))
    assert refused.returncode == 1
    assert "are not those that the state directory" in refused.stderr


def test_a_server_that_was_on_sqlite_does_not_leave_its_accounts_behind_in_silence(
    database_url: str, tmp_path: Path
) -> None:
    with serving(Site, tmp_path / "state", users=("ann",)):
        pass
    refused = run("serve", environment(database_url, tmp_path / "state"))
    assert refused.returncode == 1
    assert "copy the accounts" in refused.stderr


# -- the seal ----------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_wrong_or_unusable_seal_stops_the_start_in_one_line(database_url: str, tmp_path: Path) -> None:
    first = new_seal(tmp_path)
    with serving(Desk, tmp_path / "state", EVENT_LOG=database_url, AUTH__KEYS_SEAL=str(first)):
        pass
    weak, dull, open_to_all = (tmp_path / name for name in ("weak", "dull", "open"))
    weak.write_bytes(os.urandom(31))
    dull.write_bytes(b"secret" * 10)
    open_to_all.write_bytes(os.urandom(32))
    for file in (weak, dull):
        file.chmod(0o600)
    open_to_all.chmod(0o644)
    for seal, reason in {
        new_seal(tmp_path, "other"): "it was sealed with another secret, or changed since",
        tmp_path / "absent": "No such file",
        weak: "at least 32 random bytes",
        dull: "at least 32 random bytes",
        open_to_all: "can be read by other users",
    }.items():
        there = environment(database_url, tmp_path / "state", AUTH__KEYS_SEAL=str(seal))
        unsealed = "sealed with another" in reason  # which a dry run does not try
        for words in ("serve", "keys list", "keys rotate", "token", *([] if unsealed else ["check-config"])):
            refused = run(words, there)
            assert refused.returncode == 1, words
            assert str(seal) in refused.stderr
            assert reason in refused.stderr
            assert "Traceback" not in refused.stderr
            assert sum("sse-app" in line for line in refused.stderr.splitlines()) <= 1, refused.stderr
    assert (
        len(run("keys", environment(database_url, tmp_path, AUTH__KEYS_SEAL=str(first))).stdout.split("\n"))
        == 2
    )


def test_a_sealed_key_cannot_be_passed_off_as_another(database_url: str, tmp_path: Path) -> None:
    seal = new_seal(tmp_path)
    there = environment(database_url, tmp_path / "state", AUTH__KEYS_SEAL=str(seal))
    with serving(Desk, tmp_path / "state", EVENT_LOG=database_url, AUTH__KEYS_SEAL=str(seal)) as desk:
        desk.server.command("keys", "rotate")
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE sse_app.keys SET id = 'mine' WHERE number = 1")
        assert "changed since" in run("keys", there).stderr
        connection.execute(
            "UPDATE sse_app.keys SET id = 'x', sealed = (SELECT sealed FROM sse_app.keys WHERE number = 2) "
            "WHERE number = 1"
        )
        assert "changed since" in run("keys", there).stderr


@pytest.mark.slow
def test_keys_in_files_are_taken_in_and_their_tokens_stay_valid(database_url: str, tmp_path: Path) -> None:
    with serving(Site, tmp_path / "before", users=("ann",)) as site:
        site.server.command("keys", "rotate", "--algorithm", "EdDSA")
        minted = site.server.command("token", "--subject", "ann", "--subscribe", "alerts")
        listed = site.server.command("keys", "list")
    seal = new_seal(tmp_path)
    with serving(Desk, tmp_path / "state", EVENT_LOG=database_url, AUTH__KEYS_SEAL=str(seal)) as desk:
        assert desk.me(minted) == 401
        own = desk.listed()
        for taken in (2, 0):
            done = desk.server.command("keys", "import", str(tmp_path / "before" / "keys"))
            assert len(done.splitlines()) == taken
        until(lambda: desk.me(minted) == 200, "it is known")
        until(lambda: desk.listed()[0][2] == "signs", "it signs")
        assert [each[0] for each in desk.listed()[:2]] == [line.split()[0] for line in listed.splitlines()]
        assert desk.listed()[2][0] == own[0][0]
        assert "EdDSA" in desk.http.get("/.well-known/jwks.json").text


@pytest.mark.slow
def test_a_public_half_alone_is_taken_in_beside_keys_that_sign(database_url: str, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    encodings = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (theirs / "backend.pem").write_bytes(key.public_key().public_bytes(*encodings))
    seal = str(new_seal(tmp_path))
    with serving(Desk, tmp_path / "state", EVENT_LOG=database_url, AUTH__KEYS_SEAL=seal) as desk:
        assert desk.server.command("keys", "import", str(theirs)) == "backend"
        assert [each[2] for each in desk.listed() if each[0] != "backend"] == ["signs"]
        desk.server.command("keys", "rotate")
        assert "backend" in {each[0] for each in desk.listed()}


def test_a_seal_without_a_database_is_refused(tmp_path: Path) -> None:
    there = environment("sqlite:", tmp_path / "state", AUTH__KEYS_SEAL=str(new_seal(tmp_path)))
    for words in ("serve", "check-config", "user add ann --init --password-stdin"):
        refused = run(words, there)
        assert refused.returncode == 1, words
        assert "auth.keys_seal is for keys in PostgreSQL" in refused.stderr
    both = there | {"SSE_APP_AUTH__KEYS_DIR": str(tmp_path)}
    assert "keys are either in keys_dir" in run("serve", both).stderr
