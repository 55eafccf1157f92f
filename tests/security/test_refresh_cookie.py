"""The refresh cookie: its attributes, who may have it sent, and that a real browser keeps and drops it."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser

from tests.support.people import PASSWORD, Site, bearer, refresh_cookie, refresh_cookies, session_of, site

ORIGIN = "http://desk.example:3020"
LOGIN = {"username": "ann", "password": PASSWORD}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    state_dir = tmp_path_factory.mktemp("cookie") / "state"
    with site(
        state_dir, users=("ann",), expected=("refresh_reused", "proxy_not_trusted"), CORS_ORIGINS=[ORIGIN]
    ) as served:
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
    assert cookie["path"] == "/"
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
    assert dropped["path"] == "/"
    assert "expires" in dropped or dropped.get("max-age") == "0"


def test_a_client_without_cookies_gets_none(desk: Site) -> None:
    answer = post(desk, "login", json={**LOGIN, "cookie": False})
    assert "set-cookie" not in answer.headers
    refreshed = post(desk, "refresh", json={"refresh_token": answer.json()["refresh_token"]})
    assert "set-cookie" not in refreshed.headers
    assert refreshed.json()["refresh_token"]


def test_a_refresh_cookie_that_is_no_good_is_dropped(desk: Site) -> None:
    answer = post(desk, "refresh", "x" * 44)
    assert answer.status_code == 401
    assert dropped_at(answer) == [("sse_app_refresh", "/")]


def dropped_at(answer: httpx.Response) -> list[tuple[str, str]]:
    """Return name and path of each refresh cookie that an answer drops."""
    found = []
    for cookie in refresh_cookies(answer):
        named = attributes(cookie)
        name = next(iter(named))
        if not named[name]:
            assert (named["max-age"], named["samesite"]) == ("0", "Strict")
            assert {"secure", "httponly", "expires"} <= named.keys()
            found.append((name, named["path"]))
    return found


PREFIXED = "__host-sse_app_refresh"


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({}, "sse_app_refresh"),
        ({"Host": "localhost:8000"}, "sse_app_refresh"),
        ({"Host": "LOCALHOST"}, "sse_app_refresh"),
        ({"Host": "[::1]:8000"}, "sse_app_refresh"),
        ({"Origin": "http://localhost:3020", "Sec-Fetch-Site": "same-origin"}, "sse_app_refresh"),
        ({"X-Forwarded-Proto": "http"}, "sse_app_refresh"),
        ({"X-Forwarded-Proto": "https"}, PREFIXED),
        ({"X-Forwarded-Proto": "http, HTTPS"}, PREFIXED),
        ({"Host": "app.desk.localhost:8000"}, PREFIXED),
        ({"Host": "10.0.0.7"}, PREFIXED),
        ({"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"}, "sse_app_refresh"),
        ({"Origin": "https://localhost", "Sec-Fetch-Site": "same-origin"}, PREFIXED),
        ({"Origin": "https://desk.example", "Sec-Fetch-Site": "same-origin"}, PREFIXED),
        ({"Origin": "http://[", "Sec-Fetch-Site": "same-origin"}, "sse_app_refresh"),
    ],
    ids=str,
)
def test_the_cookie_has_the_prefix_except_over_plain_http_on_loopback(
    desk: Site, headers: dict[str, str], name: str
) -> None:
    url = f"{desk.server.url}/api/v1/auth"
    answer = httpx.post(f"{url}/login", json=LOGIN, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    cookie = refresh_cookie(answer)
    named = attributes(cookie)
    assert next(iter(named)) == name
    assert (named["path"], named["samesite"]) == ("/", "Strict")
    assert {"secure", "httponly"} <= named.keys()
    assert "domain" not in named
    pair = {"Cookie": f"theme=dark; {cookie.partition(';')[0]}; a=b"}
    again = httpx.post(f"{url}/refresh", headers=headers | pair, timeout=30)
    assert again.status_code == 200
    assert next(iter(attributes(refresh_cookie(again)))) == name
    pair = {"Cookie": refresh_cookie(again).partition(";")[0]}
    out = httpx.post(f"{url}/logout", headers=headers | pair, timeout=30)
    assert (out.status_code, dropped_at(out)) == (204, [(name, "/")])


BEHIND_TLS = {"X-Forwarded-Proto": "https"}


def test_behind_tls_a_cookie_that_a_sibling_can_set_counts_for_nothing(desk: Site) -> None:
    ann, eve = desk.log_in("ann"), desk.log_in("ann")
    mine = f"__Host-sse_app_refresh={ann.refresh}"
    for theirs in (eve.refresh, "junk", "", "x" * 43):
        tossed = f"sse_app_refresh={theirs}"
        for cookie in (f"{tossed}; {mine}", f"{mine}; {tossed}", f"{tossed}; {tossed}; {mine}"):
            answer = httpx.post(
                f"{desk.server.url}/api/v1/auth/refresh", headers=BEHIND_TLS | {"Cookie": cookie}, timeout=30
            )
            assert answer.status_code == 200, answer.text
            assert session_of(answer).id == ann.id
            fresh = next(each for each in refresh_cookies(answer) if attributes(each).get("max-age") != "0")
            assert fresh.startswith("__Host-sse_app_refresh=")
            mine = fresh.partition(";")[0]
    alone = BEHIND_TLS | {"Cookie": f"sse_app_refresh={eve.refresh}"}
    for path in ("refresh", "logout"):
        assert httpx.post(f"{desk.server.url}/api/v1/auth/{path}", headers=alone).status_code == 401
    assert desk.me(eve.access) == 200


@pytest.mark.parametrize("prefix", ["", "__Host-"])
@pytest.mark.parametrize("lines", [1, 2])
def test_several_cookies_of_the_name_are_refused_and_each_is_dropped(
    desk: Site, prefix: str, lines: int
) -> None:
    ann, eve = desk.log_in("ann"), desk.log_in("ann")
    pairs = [f"{prefix}sse_app_refresh={each.refresh}" for each in (ann, eve)]
    headers = [("Cookie", pair) for pair in pairs] if lines == 2 else [("Cookie", "; ".join(pairs))]
    dropped = {"/", "/api", "/api/", "/api/v1", "/api/v1/", "/api/v1/auth", "/api/v1/auth/"}
    for path in ("refresh", "logout"):
        answer = httpx.post(f"{desk.server.url}/api/v1/auth/{path}", headers=headers, timeout=30)
        assert answer.status_code == 401, answer.text
        wanted = {"/"} if prefix else dropped
        assert dropped_at(answer) == [(f"{prefix}sse_app_refresh".lower(), at) for at in sorted(wanted)]
    for each in (ann, eve):  # nothing was spent or ended
        assert desk.me(each.access) == 200
        assert desk.refresh(each.refresh).id == each.id
    out = httpx.post(
        f"{desk.server.url}/api/v1/auth/logout", headers=[*headers, *bearer(ann.access).items()], timeout=30
    )
    assert out.status_code == 204
    assert {at for _, at in dropped_at(out)} == wanted
    assert (desk.me(ann.access), desk.me(eve.access)) == (401, 200)


def test_a_cookie_of_an_earlier_version_goes_on_over_plain_http_and_is_replaced(desk: Site) -> None:
    session = desk.log_in("ann")
    earlier = "e" * 43
    with sqlite3.connect(desk.server.state_dir / "accounts.db", timeout=30) as database:
        digest = hashlib.sha256(earlier.encode()).digest()
        database.execute("INSERT INTO refresh_tokens (digest, session) VALUES (?, ?)", (digest, session.id))
    database.close()
    answer = post(desk, "refresh", earlier)
    assert answer.status_code == 200
    fresh, dropped = refresh_cookies(answer)
    assert attributes(fresh)["path"] == "/"
    assert dropped_at(answer) == [("sse_app_refresh", "/api/v1/auth")]
    assert attributes(dropped)["path"] == "/api/v1/auth"
    again = post(desk, "refresh", attributes(fresh)["sse_app_refresh"])
    assert again.status_code == 200
    assert len(refresh_cookies(again)) == 1
    # A login, too, leaves no two of them.
    login = post(desk, "login", earlier, json=LOGIN)
    assert dropped_at(login) == [("sse_app_refresh", "/api/v1/auth")]


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


@pytest.mark.long
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
        assert first.get("path") == "/"
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
