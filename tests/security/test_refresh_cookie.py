"""The refresh cookie: its attributes, who may have it sent, and that a real browser keeps and drops it."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser

from tests.support.people import PASSWORD, Site, bearer, refresh_cookie, site

ORIGIN = "http://desk.example:3020"
LOGIN = {"username": "ann", "password": PASSWORD}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("cookie") / "state"
    with site(state_dir, users=("ann",), expected=("refresh_reused",), CORS_ORIGINS=[ORIGIN]) as served:
        yield served


def post(desk: Site, path: str, cookie: str = "", json: object = None, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if cookie:
        named["Cookie"] = f"sse_app_refresh={cookie}"
    return httpx.post(f"{desk.server.url}/api/v1/auth/{path}", json=json, headers=named, timeout=30)


def attributes(cookie: str) -> dict[str, str]:
    parts = [part.strip().partition("=") for part in cookie.split(";")]
    return {name.lower(): value for name, _, value in parts}


def test_the_cookie_is_only_for_these_paths_and_no_script(desk: Site) -> None:
    answer = post(desk, "login", json=LOGIN)
    cookie = attributes(refresh_cookie(answer))
    assert {"secure", "httponly"} <= set(cookie)
    assert cookie["samesite"] == "Strict"
    assert cookie["path"] == "/api/v1/auth"
    assert 0 < int(cookie["max-age"]) <= 7 * 86_400
    assert "domain" not in cookie
    assert cookie["sse_app_refresh"] not in answer.text
    assert "refresh_token" not in answer.json()
    refreshed = post(desk, "refresh", cookie["sse_app_refresh"])
    again = attributes(refresh_cookie(refreshed))
    assert refreshed.status_code == 200
    assert again["sse_app_refresh"] != cookie["sse_app_refresh"]
    assert {name: again[name] for name in again if name not in ("sse_app_refresh", "max-age")} == {
        name: cookie[name] for name in cookie if name not in ("sse_app_refresh", "max-age")
    }
    out = post(desk, "logout", again["sse_app_refresh"])
    dropped = attributes(refresh_cookie(out))
    assert dropped["sse_app_refresh"] in ("", '""')
    assert dropped["path"] == "/api/v1/auth"
    assert "expires" in dropped or dropped.get("max-age") == "0"


def test_of_two_cookies_of_one_name_the_more_specific_one_which_comes_first_counts(desk: Site) -> None:
    token = attributes(refresh_cookie(post(desk, "login", json=LOGIN)))["sse_app_refresh"]
    assert post(desk, "refresh", f"{'x' * 43}; sse_app_refresh={token}").status_code == 401
    assert post(desk, "refresh", f"{token}; sse_app_refresh={'x' * 43}").status_code == 200


def test_a_client_without_cookies_gets_none(desk: Site) -> None:
    answer = post(desk, "login", json={**LOGIN, "cookie": False})
    assert "set-cookie" not in answer.headers
    refreshed = post(desk, "refresh", json={"refresh_token": answer.json()["refresh_token"]})
    assert "set-cookie" not in refreshed.headers
    assert refreshed.json()["refresh_token"]


def test_a_refresh_cookie_that_is_no_good_is_dropped(desk: Site) -> None:
    answer = post(desk, "refresh", "x" * 43)
    assert answer.status_code == 401
    assert "expires" in attributes(refresh_cookie(answer))


FOREIGN: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": ORIGIN + ".evil.example"},
    {"Origin": ORIGIN.replace("http:", "https:")},
    {"Origin": ORIGIN + "/"},
    {"Origin": ""},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Origin": "http://evil.example"},
    {"Sec_Fetch_Site": "same-site", "Origin": "http://localhost:1"},
    {"Sec_Fetch_Site": "cross-site", "Origin": "null"},
    {"Sec_Fetch_Site": "nonsense"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("path", ["login", "refresh", "logout"])
def test_a_page_of_another_origin_is_refused_and_changes_nothing(
    desk: Site, path: str, headers: dict[str, str]
) -> None:
    session = desk.log_in("ann")
    answer = post(desk, path, session.refresh, json=LOGIN if path == "login" else None, **headers)
    assert answer.status_code == 403, answer.text
    assert "set-cookie" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    assert desk.me(session.access) == 200
    assert desk.try_refresh(session.refresh).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "cross-site", "Origin": ORIGIN},
        {"Origin": ORIGIN},
    ],
    ids=str,
)
def test_pages_of_its_own_and_of_configured_origins_may_refresh(desk: Site, headers: dict[str, str]) -> None:
    session = desk.log_in("ann")
    answer = post(desk, "refresh", session.refresh, **headers)
    assert answer.status_code == 200
    if headers.get("Origin") == ORIGIN:
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["access-control-allow-credentials"] == "true"
        assert "Origin" in answer.headers["vary"]


def test_a_get_neither_refreshes_nor_logs_out(desk: Site) -> None:
    session = desk.log_in("ann")
    cookie = {"Cookie": f"sse_app_refresh={session.refresh}"}
    for path in ("refresh", "logout", "login"):
        assert desk.http.get(f"/api/v1/auth/{path}", headers=cookie).status_code == 405
    assert desk.me(session.access) == 200


def test_the_cookie_opens_nothing_else(desk: Site) -> None:
    session = desk.log_in("ann")
    cookie = {
        "Cookie": f"sse_app_refresh={session.refresh}; token={session.stream}; access_token={session.access}"
    }
    for path in (
        "/api/v1/auth/me",
        "/api/v1/sse/dashboard",
        "/api/v1/sse/dashboard/history",
        "/api/v1/admin/audit",
    ):
        assert desk.http.get(path, headers=cookie).status_code == 401
    assert desk.http.post("/api/v1/auth/stream-token", headers=cookie).status_code == 401


@pytest.mark.browser
def test_a_real_browser_keeps_the_cookie_out_of_scripts_refreshes_with_it_and_drops_it(
    desk: Site, chromium: Browser
) -> None:
    ask = """async ([path, body]) => {
        const answer = await fetch(`/api/v1/auth/${path}`, {method: "POST", body, credentials: "include"});
        return [answer.status, await answer.text(), document.cookie];
    }"""
    with chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"http://localhost:{desk.server.port}/")
        body = f'{{"username": "ann", "password": "{PASSWORD}"}}'
        status, _, visible = page.evaluate(ask, ["login", body])
        assert (status, visible) == (200, "")
        (first,) = context.cookies()
        assert (first.get("httpOnly"), first.get("secure"), first.get("sameSite")) == (
            True,
            True,
            "Strict",
        )
        assert first.get("path") == "/api/v1/auth"
        status, text, _ = page.evaluate(ask, ["refresh", None])
        assert status == 200
        access = httpx.Response(200, text=text).json()["access_token"]
        assert desk.me(access) == 200
        (second,) = context.cookies()
        assert second.get("value") != first.get("value")
        other = context.new_page()  # another origin: another site, to a browser
        other.goto(f"http://127.0.0.1:{desk.server.port}/")
        status, _, _ = other.evaluate(ask, ["logout", None])
        assert status == 401
        assert desk.me(access) == 200
        status, _, _ = page.evaluate(ask, ["logout", None])
        assert status == 204
        assert context.cookies() == []
        assert desk.me(access) == 401
    assert desk.http.get("/api/v1/auth/me", headers=bearer("x")).status_code == 401
