"""Revocation: in force within a second on open streams, on those concerned and on no others, and kept."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator

import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import Ear, Session, Site, assert_ended, assert_go_on, claims_of, site
from tests.support.waiting import until

USERS = ("ann", "bob")
LONGEST = 3600


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("revocation") / "state"
    with site(state_dir, users=USERS, AUTH__LONGEST_LIFETIME=LONGEST) as served:
        yield served


@pytest.fixture(autouse=True)
def nobody_stays(desk: Site) -> Iterator[None]:
    yield
    desk.leave_all()


class Case:
    """Two sessions of ann's and one of bob's, with two streams each; the first of ann's is what is revoked."""

    def __init__(self, desk: Site) -> None:
        self.one, self.two, self.other = desk.log_in("ann"), desk.log_in("ann"), desk.log_in("bob")
        self.more = desk.stream_token(self.one.access, "dashboard").json()["stream_token"]
        self.ears = {
            name: desk.hear(token)
            for name, token in {
                "one": self.one.stream,
                "one again": self.one.stream,
                "more of one": self.more,
                "two": self.two.stream,
                "other": self.other.stream,
            }.items()
        }

    def split(self, ended: str) -> tuple[list[Ear], list[Ear]]:
        names = ended.split(", ")
        assert set(names) <= set(self.ears)
        return [self.ears[n] for n in names], [ear for n, ear in self.ears.items() if n not in names]


SCOPES: dict[str, tuple[str, Callable[[Session], str], str]] = {
    "token_id": ("--token-id", lambda session: str(claims_of(session.stream)["jti"]), "one, one again"),
    "session": ("--session", lambda session: session.id, "one, one again, more of one"),
    "subject": ("--subject", lambda session: "ann", "one, one again, more of one, two"),
    "all": ("--all", lambda session: "", "one, one again, more of one, two, other"),
}


@pytest.mark.parametrize(
    ("scope", "by"),
    [
        # Each scope is tried in one of the ways.
        pytest.param(
            scope, by, marks=[] if (by == "API") is (scope in ("session", "all")) else pytest.mark.slow
        )
        for scope in SCOPES
        for by in ("API", "command")
    ],
)
def test_a_revocation_ends_every_stream_concerned_within_a_second_and_none_other(
    desk: Site, scope: str, by: str
) -> None:
    case = Case(desk)
    flag, value, concerned = SCOPES[scope]
    ended, others = case.split(concerned)
    if by == "API":
        answer = desk.revoke(**{scope: value(case.one) or True})
        assert answer["streams"] == len(ended)
    else:
        desk.server.command("revoke", *filter(None, (flag, value(case.one))))
    assert_ended(ended, time.monotonic(), "revoked")
    assert_go_on(desk, others)
    dead = (
        [case.one.stream]
        + [case.more] * (scope != "token_id")
        + [case.two.stream] * (scope in ("subject", "all"))
    )
    for _ in range(2):
        for token in dead:
            assert desk.stream_status(token) == 401
        assert desk.me(case.one.access) == (200 if scope == "token_id" else 401)
        assert desk.stream_status(case.other.stream) == (401 if scope == "all" else 200)
        if by == "command":
            return
        desk.restart()
    assert desk.log_in("ann")


@pytest.mark.parametrize("by", ["API", "command"])
@pytest.mark.parametrize("scope", ["session", "subject", "all"])
def test_a_refresh_token_from_before_a_revocation_brings_nobody_back(desk: Site, scope: str, by: str) -> None:
    session, other = desk.log_in("ann"), desk.log_in("bob")
    flag, value, _ = SCOPES[scope]
    if by == "API":
        desk.revoke(**{scope: value(session) or True})
    else:
        desk.server.command("revoke", *filter(None, (flag, value(session))))
    assert desk.try_refresh(session.refresh).status_code == 401
    assert desk.try_refresh(other.refresh).status_code == (401 if scope == "all" else 200)
    assert desk.me(desk.log_in("ann").access) == 200


def test_a_kick_ends_the_streams_of_one_token_and_that_token(desk: Site) -> None:
    case = Case(desk)
    listed = desk.http.get("/api/v1/admin/connections", headers=desk.admin).json()["connections"]
    jti = claims_of(case.one.stream)["jti"]
    numbers = [line["connection"] for line in listed if line["token_id"] == jti]
    assert len(numbers) == 2
    path = f"/api/v1/admin/connections/{numbers[0]}/kick"
    assert desk.http.post(path, headers=desk.admin).json() == {"kicked": 2}
    ended, others = case.split("one, one again")
    assert_ended(ended, time.monotonic(), "kicked")
    assert_go_on(desk, others)
    assert all(data["retry"] is None for ear in ended for type, data in ear.events if type == "closing")
    assert desk.http.post(path, headers=desk.admin).status_code == 404
    assert desk.stream_status(case.one.stream) == 401
    desk.restart()
    assert desk.stream_status(case.one.stream) == 401
    assert desk.stream_status(case.more) == 403
    assert desk.stream_status(case.two.stream) == 200


def test_an_access_token_is_revoked_like_any_other(desk: Site) -> None:
    session = desk.log_in("ann")
    desk.revoke(token_id=claims_of(session.access)["jti"])
    assert desk.me(session.access) == 401
    assert desk.stream_token(session.access).status_code == 401
    assert desk.stream_status(session.stream) == 200


def test_a_token_pasted_in_place_of_its_id_is_refused_and_not_kept(desk: Site) -> None:
    token = desk.log_in("ann").stream
    for what in ({"token_id": token}, {"session": token}, {"subject": token}):
        answer = desk.http.post("/api/v1/admin/revocations", json=what, headers=desk.admin)
        assert answer.status_code == 422, answer.text
    content = b"".join(file.read_bytes() for file in desk.server.state_dir.glob("accounts.db*"))
    assert token[:60].encode() not in content


@pytest.mark.parametrize(
    "what",
    [{}, {"all": False}, {"all": 1}, {"subject": ""}, {"subject": 5}, {"token_id": None}, {"session": ["a"]},
     {"subject": "a", "session": "b"}, {"jti": "x"}, {"subject": "x" * 1025}, [], "all"],
    ids=ascii,
)  # fmt: skip
def test_a_malformed_revocation_is_422_and_revokes_nothing(desk: Site, what: object) -> None:
    session = desk.log_in("bob")
    answer = desk.http.post("/api/v1/admin/revocations", json=what, headers=desk.admin)
    assert answer.status_code == 422
    assert desk.me(session.access) == 200


def test_only_administrators_revoke_and_kick_and_look(desk: Site) -> None:
    session = desk.log_in("bob")
    headers = {"Authorization": f"Bearer {session.access}"}
    for method, path in (
        ("POST", "revocations"),
        ("POST", "connections/1/kick"),
        ("GET", "connections"),
        ("GET", "audit"),
    ):
        assert desk.http.request(method, f"/api/v1/admin/{path}", headers=headers).status_code == 403
        assert desk.http.request(method, f"/api/v1/admin/{path}").status_code == 401


def test_a_subject_with_wildcards_or_quotes_is_taken_by_the_letter(desk: Site) -> None:
    session = desk.log_in("ann")
    for subject in ("*", "%", "**", "ANN", "ann ", "an_", "' OR 1=1 --", "ann\x00"):
        assert desk.revoke(subject=subject)["streams"] == 0
    assert desk.me(session.access) == 200


@pytest.mark.slow
def test_a_revocation_is_forgotten_when_its_last_token_has_expired_and_not_before(desk: Site) -> None:
    token = desk.mint(TokenKind.STREAM, "brief", ttl=8)
    desk.hear(token)
    (line,) = [
        line
        for line in desk.http.get("/api/v1/admin/connections", headers=desk.admin).json()["connections"]
        if line["subject"] == "brief"
    ]
    assert (
        desk.http.post(f"/api/v1/admin/connections/{line['connection']}/kick", headers=desk.admin).status_code
        == 200
    )

    def kept() -> bool:
        with sqlite3.connect(desk.server.state_dir / "accounts.db") as database:
            rows = database.execute(
                "SELECT 1 FROM revocations WHERE value = ?", (claims_of(token)["jti"],)
            ).fetchall()
        database.close()
        return bool(rows)

    assert kept()
    expiry = claims_of(token)["exp"]
    while time.time() < expiry - 0.5:
        assert desk.stream_status(token) == 401
    until(lambda: time.time() > expiry, "the token expires")
    desk.revoke(token_id="another")  # those that are spent leave with the next that comes
    assert not kept()
    assert desk.stream_status(token) == 401


@pytest.mark.long
def test_no_id_begins_like_a_flag_of_the_command_that_revokes_it(desk: Site) -> None:
    tokens = [claims_of(desk.mint(TokenKind.ACCESS, "ann")) for _ in range(400)]
    assert not [claims for claims in tokens if claims["jti"].startswith("-")]
    assert not [id for id in (desk.log_in("ann").id for _ in range(3)) if id.startswith("-")]
