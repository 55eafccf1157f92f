"""Renewal: a stream lives past its first expiry on the same connection, and only its own owner renews it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.people import Site, assert_ended, assert_go_on, claims_of, site
from tests.support.waiting import until


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("renewal") / "state", users=("ann",)) as served:
        yield served


@pytest.fixture(autouse=True)
def nobody_stays(desk: Site) -> Iterator[None]:
    yield
    desk.leave_all()


def test_a_renewed_stream_lives_past_its_first_expiry_on_the_same_connection(desk: Site) -> None:
    first = desk.mint(TokenKind.STREAM, "ann", "s1", ttl=6)
    ear, left_alone = desk.hear(first, client_id="tab"), desk.hear(first, client_id="other")
    answer = desk.renew(desk.mint(TokenKind.STREAM, "ann", "s1", ttl=20), "tab")
    assert answer.status_code == 200
    assert answer.json()["renewed"] == 1
    assert 14 <= answer.json()["expires_in"] <= 20
    until(lambda: not left_alone.open, "the stream that was not renewed ends")
    assert left_alone.farewell == "token_expired"
    assert desk.stream_status(first) == 401
    assert_go_on(desk, [ear])
    assert desk.renew(desk.mint(TokenKind.STREAM, "ann", "s1", ttl=6), "tab").status_code == 200
    until(lambda: not ear.open, "the renewed stream ends at last")
    assert ear.farewell == "token_expired"
    assert len([type for type, _ in ear.events if type == "connected"]) == 1


def test_all_streams_of_a_client_id_are_renewed_at_once(desk: Site) -> None:
    first = desk.mint(TokenKind.STREAM, "ann", "s2", ttl=6)
    ears = [desk.hear(first, client_id="tabs") for _ in range(3)]
    answer = desk.renew(desk.mint(TokenKind.STREAM, "ann", "s2", ttl=60), "tabs")
    assert answer.json()["renewed"] == 3
    until(lambda: time.time() > claims_of(first)["exp"] + 0.6, "the first expiry has passed")
    assert_go_on(desk, ears)


def test_nobody_renews_a_stream_but_its_own_subject_and_session_with_all_its_channels(desk: Site) -> None:
    session = desk.log_in("ann")
    ear = desk.hear(session.stream, "dashboard,alerts", client_id="mine")
    access = session.access
    narrow = desk.stream_token(access, "dashboard").json()["stream_token"]
    wrong = {
        "another subject of the same session": (desk.mint(TokenKind.STREAM, "eve", session.id), 404),
        "another session of the same subject": (desk.log_in("ann").stream, 404),
        "another in everything": (desk.mint(TokenKind.STREAM, "eve"), 404),
        "one channel of the two": (narrow, 403),
        "an access token": (access, 401),
        "an expired token": (desk.mint(TokenKind.STREAM, "ann", session.id, ttl=-5), 401),
        "no token": ("x", 401),
    }
    before = _expiry(desk, "mine")
    for name, (token, status) in wrong.items():
        assert desk.renew(token, "mine").status_code == status, name
        assert _expiry(desk, "mine") == before, name
    in_query = desk.http.post("/api/v1/sse/connections/mine/renew", params={"token": session.stream})
    assert in_query.status_code == 401
    assert desk.renew(session.stream, "min").status_code == 404
    assert desk.renew(session.stream, "mine").status_code == 200
    assert_go_on(desk, [ear])


def test_where_one_of_several_streams_may_not_go_on_none_is_renewed(desk: Site) -> None:
    session = desk.log_in("ann")
    desk.hear(session.stream, "dashboard", client_id="both")
    desk.hear(session.stream, "alerts", client_id="both")
    before = _expiry(desk, "both")
    narrow = desk.stream_token(session.access, "dashboard").json()["stream_token"]
    assert desk.renew(narrow, "both").status_code == 403
    assert _expiry(desk, "both") == before


def _expiry(desk: Site, client_id: str) -> list[str]:
    listed = desk.http.get("/api/v1/admin/connections?limit=1000", headers=desk.admin).json()["connections"]
    return [line["expires_at"] for line in listed if line["client_id"] == client_id]


@pytest.mark.parametrize("which", ["first", "second", "latest"])
def test_a_renewed_stream_ends_when_any_token_it_has_lived_on_is_revoked(desk: Site, which: str) -> None:
    session = desk.log_in("ann")
    tokens = [session.stream]
    ear = desk.hear(session.stream, client_id="renewed")
    for _ in range(2):
        tokens.append(desk.stream_token(session.access).json()["stream_token"])
        assert desk.renew(tokens[-1], "renewed").status_code == 200
    rest = desk.hear(tokens[0] if which == "latest" else tokens[-1], client_id="rest")
    token = tokens[("first", "second", "latest").index(which)]
    desk.revoke(token_id=claims_of(token)["jti"])
    assert_ended([ear], time.monotonic(), "revoked")
    assert_go_on(desk, [rest])
    assert desk.renew(tokens[-1], "renewed").status_code in (401, 404)


def test_a_kick_of_a_renewed_stream_leaves_none_of_its_tokens_to_come_back_with(desk: Site) -> None:
    """A native client comes back with the URL it began with."""
    session = desk.log_in("ann")
    ear = desk.hear(session.stream, client_id="kicked")
    fresh = desk.stream_token(session.access).json()["stream_token"]
    assert desk.renew(fresh, "kicked").status_code == 200
    listed = desk.http.get("/api/v1/admin/connections?limit=1000", headers=desk.admin).json()["connections"]
    (number,) = [line["connection"] for line in listed if line["client_id"] == "kicked"]
    answer = desk.http.post(f"/api/v1/admin/connections/{number}/kick", headers=desk.admin)
    assert answer.status_code == 200
    assert_ended([ear], time.monotonic(), "kicked")
    assert desk.stream_status(fresh) == 401
    assert desk.stream_status(session.stream) == 401
