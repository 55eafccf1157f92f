"""Accounts over HTTP: administrators list, make and change them, by the rules of the command, and are noted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind
from tests.support.minting import EVERYTHING, mint
from tests.support.people import PASSWORD, Site, assert_ended, assert_go_on, bearer, site

USERS = "/api/v1/admin/users"
NEW_PASSWORD = "battery staple horse"
READS = {"subscribe": ["dashboard"], "publish": [], "presence": [], "admin": False}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("users") / "state", users=("ann", "bob")) as served:
        served.add_user("boss", admin=True)
        yield served


@pytest.fixture(autouse=True)
def leaving(desk: Site) -> Iterator[None]:
    yield
    desk.leave_all()


def add(desk: Site, name: str, **more: Any) -> httpx.Response:
    return desk.http.post(USERS, json={"name": name, "password": PASSWORD, **more}, headers=desk.admin)


def new(desk: Site, **grants: Any) -> str:
    """Make an account, and return its name."""
    name = f"user-{time.monotonic_ns()}"
    answer = add(desk, name, grants={"subscribe": ["dashboard"], **grants})
    assert answer.status_code == 201, answer.text
    return name


def change(desk: Site, user: str, headers: dict[str, str] | None = None, /, **what: Any) -> httpx.Response:
    return desk.http.patch(f"{USERS}/{user}", json=what, headers=headers or desk.admin)


def listed(desk: Site, **query: Any) -> dict[str, Any]:
    answer = desk.http.get(USERS, params=query, headers=desk.admin)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def trail(desk: Site, name: str) -> list[tuple[str, str, str]]:
    """Return what was done to an account, the oldest first: what, by whom, and the detail."""
    entries = desk.http.get("/api/v1/admin/audit?limit=1000", headers=desk.admin).json()["entries"]
    found = [
        (each["action"], each["subject"], each["detail"])
        for each in entries
        if each["target"] == name and each["action"] != "login_refused"
    ]
    return found[::-1]


def boss(desk: Site) -> dict[str, str]:
    return bearer(desk.log_in("boss").access)


def test_an_account_that_is_made_over_http_is_one_like_any_other(desk: Site) -> None:
    name = f"user-{time.monotonic_ns()}"
    grants = {"subscribe": ["dashboard", "desk.*", "dashbord"], "presence": ["dashboard"]}
    answer = add(desk, name, grants=grants)
    assert answer.status_code == 201
    whole = {"publish": [], "admin": False, **grants}
    assert answer.json() == {
        "name": name,
        "disabled": False,
        "grants": whole,
        "uncovered": ["desk.*", "dashbord"],
    }
    session = desk.log_in(name)
    assert_go_on(desk, [desk.hear(session.stream)])
    assert f"{name} subscribe=dashboard,desk.*,dashbord presence=dashboard" in desk.server.command(
        "user", "list"
    )
    again = add(desk, name)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "name_taken")
    assert trail(desk, name) == [
        ("user_added", "root", "subscribe=dashboard,desk.*,dashbord presence=dashboard")
    ]


def test_accounts_are_listed_by_name_searched_and_cut_into_pages(desk: Site) -> None:
    for number in range(5):
        assert add(desk, f"Page.{number}@desk-a").status_code == 201
    found = listed(desk, search="pAGE.")
    assert found["total"] == 5
    assert [user["name"] for user in found["users"]] == [f"Page.{number}@desk-a" for number in range(5)]
    part = listed(desk, search="page.", offset=3, limit=1)
    assert (part["total"], [user["name"] for user in part["users"]]) == (5, ["Page.3@desk-a"])
    assert listed(desk, search="page.", offset=7) == {"total": 5, "users": []}
    assert listed(desk, search="%")["total"] == listed(desk, search="page_")["total"] == 0
    every = listed(desk)
    assert every["total"] == len(every["users"]) >= 8
    (ann,) = listed(desk, search="ann")["users"]
    grants = {
        "subscribe": ["dashboard", "alerts", "desk.*"],
        "publish": ["alerts"],
        "presence": [],
        "admin": False,
    }
    assert ann == {"name": "ann", "disabled": False, "grants": grants}
    assert desk.http.get(f"{USERS}/ann", headers=desk.admin).json() == ann


def test_who_is_disabled_is_out_within_a_second_and_in_again_when_enabled(desk: Site) -> None:
    name = new(desk)
    session, other = desk.log_in(name), desk.log_in("bob")
    ears, rest = [desk.hear(session.stream), desk.hear(session.stream)], [desk.hear(other.stream)]
    answer = change(desk, name, disabled=True)
    ended = time.monotonic()
    assert (answer.status_code, answer.json()["disabled"]) == (200, True)
    assert_ended(ears, ended, "revoked")
    assert_go_on(desk, rest)
    assert desk.me(session.access) == desk.try_refresh(session.refresh).status_code == 401
    assert desk.try_login(name).status_code == 401
    assert change(desk, name, disabled=True).status_code == 200  # it is so already
    assert change(desk, name, disabled=False).json()["disabled"] is False
    assert desk.me(desk.log_in(name).access) == 200
    assert [action for action, _, _ in trail(desk, name)] == ["user_added", "user_disabled", "user_enabled"]


def test_a_new_password_ends_what_the_old_one_began(desk: Site) -> None:
    name = new(desk)
    session = desk.log_in(name)
    ear = desk.hear(session.stream)
    assert change(desk, name, password=NEW_PASSWORD).status_code == 200
    assert_ended([ear], time.monotonic(), "revoked")
    assert desk.try_login(name).status_code == 401
    assert desk.me(desk.log_in(name, NEW_PASSWORD).access) == 200


def test_other_grants_are_in_force_at_once_and_the_same_ones_end_nothing(desk: Site) -> None:
    name = new(desk)
    session = desk.log_in(name)
    ear = desk.hear(session.stream)
    assert change(desk, name, grants={"subscribe": ["dashboard"]}, disabled=False).status_code == 200
    assert_go_on(desk, [ear])
    assert change(desk, name, grants={"subscribe": ["alerts"], "admin": True}).status_code == 200
    assert_ended([ear], time.monotonic(), "revoked")
    fresh = desk.refresh(session.refresh)
    assert desk.stream_status(fresh.stream, "alerts") == 200
    assert desk.stream_status(fresh.stream) == 403
    assert desk.http.get(USERS, headers=bearer(fresh.access)).status_code == 200
    assert trail(desk, name)[1:] == [("grants_changed", "root", "subscribe=alerts admin")]


def test_several_changes_go_in_one_request_or_none_of_them(desk: Site) -> None:
    name = new(desk)
    assert change(desk, name, disabled=True).status_code == 200
    for bad in ({"password": "short"}, {"grants": {"subscribe": ["Not A Pattern"]}}):
        answer = change(desk, name, None, **{"disabled": False, "password": NEW_PASSWORD, **bad})
        assert answer.status_code == 422
    assert desk.try_login(name, NEW_PASSWORD).status_code == 401
    answer = change(desk, name, disabled=False, password=NEW_PASSWORD, grants={"subscribe": ["alerts"]})
    assert answer.json()["grants"] == {**READS, "subscribe": ["alerts"]}
    assert desk.stream_status(desk.log_in(name, NEW_PASSWORD).stream, "alerts") == 200
    done = ["user_added", "user_disabled", "password_changed", "grants_changed", "user_enabled"]
    assert [action for action, _, _ in trail(desk, name)] == done


def test_administrators_are_told_before_they_take_administration_from_themselves(desk: Site) -> None:
    for what, words in (
        ({"disabled": True}, "disable your own account"),
        ({"grants": READS}, "take administration from your own account"),
    ):
        answer = change(desk, "boss", boss(desk), **what)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "own_account")
        assert words in answer.json()["error"]["message"]
    admin = {**READS, "admin": True}
    assert change(desk, "boss", boss(desk), grants=admin, disabled=False).status_code == 200
    headers = boss(desk)
    assert change(desk, "boss", headers, disabled=True, own_account=True).status_code == 200
    assert desk.http.get(USERS, headers=headers).status_code == 401
    desk.server.command("user", "enable", "boss")
    assert change(desk, "boss", boss(desk), grants=READS, own_account=True).status_code == 200
    assert desk.http.get(USERS, headers=boss(desk)).status_code == 403
    desk.server.command("user", "grants", "boss", "--admin")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "name must be a text"),
        ({"name": "eve"}, "password must be a text"),
        ({"name": "eve", "password": "short"}, "a password has 8 to 1024 characters"),
        ({"name": "eve", "password": "x" * 1025}, "a password has 8 to 1024 characters"),
        ({"name": ".eve", "password": PASSWORD}, "a user name is"),
        ({"name": "e" * 65, "password": PASSWORD}, "a user name is"),
        ({"name": "eve\n", "password": PASSWORD}, "a user name is"),
        ({"name": "oidc:eve", "password": PASSWORD}, "a user name is"),
        ({"name": "ève", "password": PASSWORD}, "a user name is"),
        ({"name": "eve", "password": PASSWORD, "admin": True}, "unknown member admin"),
        ({"name": "eve", "password": PASSWORD, "grants": ["**"]}, "grants must be an object"),
        ({"name": "eve", "password": PASSWORD, "grants": {"read": []}}, "unknown member grants.read"),
        ({"name": "eve", "password": PASSWORD, "grants": {"publish": "**"}}, "grants.publish must be a list"),
        (
            {"name": "eve", "password": PASSWORD, "grants": {"presence": [1]}},
            "grants.presence must be a list",
        ),
        ({"name": "eve", "password": PASSWORD, "grants": {"admin": 1}}, "grants.admin must be true or false"),
        ({"name": "eve", "password": PASSWORD, "grants": {"subscribe": ["A"]}}, "not a channel pattern: 'A'"),
        (
            {"name": "eve", "password": PASSWORD, "grants": {"subscribe": [f"c{n}" for n in range(2000)]}},
            "token",
        ),
    ],
)
def test_what_the_command_refuses_is_refused_over_http(desk: Site, body: dict[str, Any], words: str) -> None:
    answer = desk.http.post(USERS, json=body, headers=desk.admin)
    assert answer.status_code == 422
    assert words in answer.json()["error"]["message"]
    assert listed(desk, search="eve")["total"] == 0


def test_a_change_of_nothing_of_nobody_or_of_the_wrong_form_is_refused(desk: Site) -> None:
    for what in ({}, {"own_account": 1}, {"disabled": 1}, {"password": None}, {"name": "other"}):
        answer = change(desk, "ann", **what)
        assert answer.status_code == 422, what
    for name in ("nobody", "ANN", "ann%00", "a" * 3000, "%C3%A8ve", "..%2Fann", ""):
        assert change(desk, name, disabled=True).status_code == 404, name
        assert desk.http.get(f"{USERS}/{name}", headers=desk.admin).status_code == 404, name
    for query in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"search": "x" * 256}):
        assert desk.http.get(USERS, params=query, headers=desk.admin).status_code == 400


def test_none_but_administrators_get_at_accounts(desk: Site) -> None:
    ann = desk.log_in("ann")
    stream = mint(desk.server.state_dir, TokenKind.STREAM, EVERYTHING, subject="root")
    for headers, status in (
        ({}, 401),
        (bearer(ann.access), 403),
        (bearer(ann.stream), 401),
        (bearer(stream), 401),
        ({"Authorization": f"Basic {ann.access}"}, 401),
        (bearer(mint(desk.server.state_dir, TokenKind.ACCESS, Grants.of(["**"], ["**"]))), 403),
    ):
        for method, path in (
            ("GET", ""),
            ("POST", ""),
            ("GET", "/ann"),
            ("PATCH", "/ann"),
            ("PATCH", "/nobody"),
        ):
            answer = desk.http.request(method, f"{USERS}{path}", headers=headers, json={"disabled": True})
            assert answer.status_code == status, (method, path)
    assert desk.me(ann.access) == 200


@pytest.mark.long
def test_no_password_and_no_hash_comes_back_or_is_noted_anywhere(desk: Site) -> None:
    secret = f"secret-{time.monotonic_ns()}"
    name = new(desk)
    answers = [
        add(desk, f"{name}-other", password=secret),
        add(desk, name, password=secret),
        add(desk, "no name", password=secret),
        change(desk, name, password=secret),
        change(desk, "nobody", password=secret),
        change(desk, name, password=secret, grants={"read": 1}),
        desk.http.get(USERS, params={"search": name}, headers=desk.admin),
        desk.http.get("/api/v1/admin/audit?limit=1000", headers=desk.admin),
        desk.http.get("/metrics"),
    ]
    for answer in answers:
        assert secret not in answer.text
        assert "argon2" not in answer.text
    assert secret not in str(desk.server.log_lines())
