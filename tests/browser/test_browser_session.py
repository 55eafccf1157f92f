"""A login in the browser: it lasts as long as the server says, is one for all tabs of a user, and ends once."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Request, Route

from tests.support.browser import PATIENCE, Chrome, ClientPage, Start, publish, wait_for_connections
from tests.support.browser_logins import PASSWORD, log_in, open_tab, reasons, start
from tests.support.programs import require
from tests.support.server_process import ROOT
from tests.support.waiting import DEADLINE, until

pytestmark = pytest.mark.browser

mostly_with_a_cookie = pytest.mark.parametrize(
    "host", ["localhost", pytest.param("127.0.0.1", marks=pytest.mark.long)]
)


class Refreshes:
    """What the pages of a browser have sent to refresh their logins."""

    def __init__(self, chrome: Chrome) -> None:
        self.tokens: list[str] = []
        self.most = 0
        self._under_way = 0
        chrome.context.on("request", self._begun)
        for end in ("requestfinished", "requestfailed"):
            chrome.context.on(end, self._ended)

    def _begun(self, request: Request) -> None:
        if self._is_one(request):
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            self.tokens.append(json.loads(request.post_data or "{}").get("refresh_token", ""))

    def _ended(self, request: Request) -> None:
        self._under_way -= self._is_one(request)

    def _is_one(self, request: Request) -> bool:
        return request.method == "POST" and request.url.endswith("/auth/refresh")


@pytest.mark.slow
@mostly_with_a_cookie
def test_tabs_that_want_tokens_at_once_refresh_one_at_a_time_and_use_no_refresh_token_twice(
    host: str, chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=8)  # a request that outlasts its token is sent anew twice
    tabs = [open_tab(chrome, server, host, "ann")]
    for _ in range(2):
        tabs.append(open_tab(chrome, server, host))
        if host == "localhost":
            assert tabs[-1].run("session.resume()")
        else:
            assert not tabs[-1].run("session.resume()")
            log_in(tabs[-1], "ann")
    refreshes = Refreshes(chrome)
    for tab in tabs:
        tab.run("""window.tokens = [];
            const ask = () => session.streamToken(["alerts"]).then((token) => tokens.push(token));
            let asked; // requests that wait for each other would outlast their tokens
            window.asking = setInterval(() => {
              asked ??= Promise.all([1, 2, 3, 4, 5].map(ask)).finally(() => asked = undefined);
            }, 300);""")
    deadline = time.monotonic() + DEADLINE
    while len(refreshes.tokens) < 2 * len(tabs) and time.monotonic() < deadline:
        tabs[0].page.wait_for_timeout(500)
    for tab in tabs:
        tab.run("clearInterval(asking)")
        assert tab.run("session.fetch('/api/v1/auth/me').then(({ subject }) => subject)") == "ann"
        assert tab.run("tokens.length") > 10
        assert reasons(tab) == []
    assert len(refreshes.tokens) >= 2 * len(tabs)
    if host == "localhost":
        assert refreshes.most == 1
    else:
        assert len(set(refreshes.tokens)) == len(refreshes.tokens)
    assert {line["event"] for line in server.log_lines()} & {"refresh_reused", "refresh_refused"} == set()


@mostly_with_a_cookie
def test_a_refresh_whose_answer_is_lost_is_asked_for_again_and_ends_nothing(
    host: str, chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=4)
    tab = open_tab(chrome, server, host, "ann")
    lost = []

    def lose(route: Route) -> None:
        lost.append(route.fetch().status)
        route.abort()

    for _ in range(2):
        tab.page.wait_for_timeout(3000)
        chrome.context.route("**/auth/refresh", lose, times=1)
        assert tab.run("session.streamToken(['alerts'])")
    assert lost == [200, 200]
    assert reasons(tab) == []


def answered_with(answer: dict[str, Any]) -> Callable[[Route], None]:
    """Return what answers a request so."""
    return lambda route: route.fulfill(**answer)


@mostly_with_a_cookie
def test_no_failure_of_the_network_or_the_server_ends_a_session(
    host: str, chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=4)
    tab = open_tab(chrome, server, host, "ann")
    tab.page.wait_for_timeout(4100)
    headers = {"Access-Control-Allow-Origin": chrome.origin, "Access-Control-Allow-Credentials": "true"}
    failures: list[tuple[int, dict[str, Any]]] = [
        (status, {"status": status, "headers": headers | {"Retry-After": "7"}, "body": "{}"})
        for status in (429, 500, 503)
    ]
    portal = {
        "status": 200,
        "headers": headers,
        "content_type": "text/html",
        "body": "<p>Welcome to the hotel",
    }
    failures += [(0, portal), (502, {"status": 502, "headers": headers})]
    for status, answer in failures:
        chrome.context.route("**/auth/refresh", answered_with(answer))
        told = tab.run("failed(session.streamToken(['alerts']))")
        assert (told["name"], told["status"]) == ("SessionError", status)
        chrome.context.unroute("**/auth/refresh")
    chrome.context.route("**/auth/**", lambda route: route.abort())
    assert tab.run("failed(session.streamToken(['alerts']))")["status"] == 0
    chrome.context.unroute("**/auth/**")
    assert tab.run("session.streamToken(['alerts'])")
    assert reasons(tab) == []


def test_a_refresh_that_was_answered_503_is_soon_repeated_for_it_may_have_been_done(
    chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=60)
    tab = open_tab(chrome, server, "localhost", "ann")
    tab.run("window.setTimeout = ((set) => (act, ms) => set(act, ms / 20))(setTimeout)")
    tab.run("performance.now = ((now) => () => now.call(performance) + 40_000)(performance.now)")
    headers = {"Access-Control-Allow-Origin": chrome.origin, "Access-Control-Allow-Credentials": "true"}
    done: list[int] = []

    def answer_late(route: Route) -> None:
        done.append(route.fetch().status)
        route.fulfill(status=503, headers=headers)

    refreshes = Refreshes(chrome)
    chrome.context.route("**/auth/refresh", answer_late, times=2)
    assert tab.run("session.streamToken(['alerts'])")
    until(
        lambda: bool(tab.run("true")) and len(refreshes.tokens) == 3, "it is asked for until it is answered"
    )
    assert done == [200, 200]
    assert tab.run("session.streamToken(['alerts'])")
    assert len(refreshes.tokens) == 3
    assert reasons(tab) == []


def test_refreshes_that_are_answered_503_are_repeated_at_one_pace_however_often_the_page_asks(
    chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=60)
    tab = open_tab(chrome, server, "localhost", "ann")
    tab.run("window.setTimeout = ((set) => (act, ms) => set(act, ms / 20))(setTimeout)")
    tab.run("performance.now = ((now) => () => now.call(performance) + 70_000)(performance.now)")
    headers = {"Access-Control-Allow-Origin": chrome.origin, "Access-Control-Allow-Credentials": "true"}
    refreshes = Refreshes(chrome)
    chrome.context.route("**/auth/refresh", lambda route: route.fulfill(status=503, headers=headers))
    for _ in range(8):
        assert tab.run("failed(session.streamToken(['alerts']))")["status"] == 503
    asked = len(refreshes.tokens)
    tab.page.wait_for_timeout(1500)  # three of its waits, each shortened to half a second
    assert len(refreshes.tokens) - asked <= 4
    until(lambda: bool(tab.run("true")) and len(refreshes.tokens) > asked, "it is asked for again")
    chrome.context.unroute("**/auth/refresh")
    assert tab.run("session.streamToken(['alerts'])")
    asked = len(refreshes.tokens)
    tab.page.wait_for_timeout(1500)
    assert len(refreshes.tokens) == asked


def test_while_the_server_refreshes_none_the_token_that_there_is_serves_to_its_end(
    chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=60)
    tab = open_tab(chrome, server, "localhost", "ann")
    chrome.context.route("**/auth/refresh", lambda route: route.fulfill(status=503))
    refreshes = Refreshes(chrome)
    tab.run("performance.now = ((now) => () => now.call(performance) + 40_000)(performance.now)")
    for _ in range(3):
        assert tab.run("session.streamToken(['alerts'])")
    assert len(refreshes.tokens) == 1


@pytest.mark.parametrize("host", [pytest.param("127.0.0.1", marks=pytest.mark.slow), "localhost"])
def test_a_logout_ends_the_users_other_tabs_once_each_and_their_streams(
    host: str, chrome: Chrome, serve: Start
) -> None:
    server = start(serve)
    tabs = [open_tab(chrome, server, host, "ann")]
    for _ in range(2):
        tabs.append(open_tab(chrome, server, host))
        if not tabs[-1].run("session.resume()"):
            log_in(tabs[-1], "ann")
    for tab in tabs:
        tab.run("listen()")
        tab.opened()
    held: list[Route] = []  # else the server's word that the streams end may come before the other tab's
    chrome.context.route("**/auth/logout", lambda route: held.append(route), times=1)
    tabs[1].run("void (window.told = session.logout())")
    for tab in tabs:
        tab.wait("log.some((entry) => entry.kind === 'ended')")
    held[0].continue_()
    tabs[1].run("told")
    wait_for_connections(server, 0)
    for tab in tabs:
        tab.wait("log.some((entry) => entry.kind === 'close')")
        assert reasons(tab) == ["logout"]
        assert [entry["reason"] for entry in tab.noted("close")] == ["token"]
        told = tab.run("failed(session.streamToken(['alerts']))")
        assert (told["status"], told["code"]) == (401, "logged_out")
        assert tab.run("session.logout()") is None
        assert not tab.run("session.resume()")
        assert reasons(tab) == ["logout"]
    cookies = chrome.context.cookies(f"http://{host}:{server.port}/api/v1/auth")
    assert cookies == []


@pytest.mark.parametrize("host", [pytest.param("127.0.0.1", marks=pytest.mark.slow), "localhost"])
def test_a_session_that_the_server_has_ended_says_so_once(host: str, chrome: Chrome, serve: Start) -> None:
    server = start(serve, expected=("login_refused",))
    tab = open_tab(chrome, server, host, "ann")
    tab.run("listen()")
    tab.opened()
    server.command("user", "disable", "ann")
    tab.wait("log.some((entry) => entry.kind === 'close')")
    assert reasons(tab) == ["expired"]
    assert tab.run("failed(session.streamToken(['alerts']))")["status"] == 401
    told = tab.run(f"failed(session.login('ann', '{PASSWORD}'))")
    assert (told["status"], told["code"]) == (401, "invalid_credentials")
    assert reasons(tab) == ["expired"]


def test_grants_that_change_leave_the_session_as_it_is(chrome: Chrome, serve: Start) -> None:
    server = start(serve)
    tab = open_tab(chrome, server, "127.0.0.1", "ann")
    server.command("user", "grants", "ann", "--subscribe", "alerts,training")
    tab.wait("session.streamToken(['alerts', 'training']).then(Boolean, () => false)")
    assert "training" in tab.run("session.grants.subscribe"), tab.run("session.grants")
    assert tab.run("failed(session.streamToken(['dashboard']))")["status"] == 403
    assert reasons(tab) == []


@pytest.mark.slow
def test_a_page_that_is_loaded_anew_resumes_where_the_login_is_a_cookie(chrome: Chrome, serve: Start) -> None:
    server = start(serve)
    tab = open_tab(chrome, server, "localhost")
    assert not tab.run("session.resume()")
    log_in(tab, "ann")
    other = open_tab(chrome, server, "localhost")
    assert other.run("Promise.all([session.resume(), session.resume()])") == [True, True]
    assert (other.run("session.username"), other.run("session.channels")) == ("ann", ["alerts"])
    server.kill()
    other.page.reload()
    other.wait("window.ready")
    assert other.run("failed(session.resume())")["status"] == 0
    server.start()
    assert other.run("session.resume()")
    server.command("revoke", "--subject", "ann")
    other.page.reload()
    other.wait("window.ready")
    assert not other.run("session.resume()")
    assert reasons(other) == ["expired"]
    assert not other.run("session.resume()")
    assert reasons(other) == ["expired"]


@pytest.mark.parametrize("host", [pytest.param("127.0.0.1", marks=pytest.mark.slow), "localhost"])
def test_a_login_of_another_user_ends_the_former_ones_where_they_share_the_cookie(
    host: str, chrome: Chrome, serve: Start
) -> None:
    server = start(serve)
    ann = open_tab(chrome, server, host, "ann")
    bob = open_tab(chrome, server, host, "bob")
    if host == "localhost":
        ann.wait("log.some((entry) => entry.kind === 'ended')")
        assert [(e["reason"], e["username"], e["successor"]) for e in ann.noted("ended")] == [
            ("user", "ann", "bob")
        ]
        assert ann.run("failed(session.streamToken(['alerts']))")["status"] == 401
    else:
        assert ann.run("session.streamToken(['user.ann'])")
        assert reasons(ann) == []
    assert bob.run("session.streamToken(['user.bob'])")
    assert reasons(bob) == []


@mostly_with_a_cookie
def test_another_login_in_a_tab_ends_the_one_before_it_with_its_streams(
    host: str, chrome: Chrome, serve: Start
) -> None:
    server = start(serve)
    tab = open_tab(chrome, server, host, "ann")
    tab.run("listen(['alerts'], { share: false })")
    tab.opened()
    log_in(tab, "bob")
    tab.opened(2)
    assert reasons(tab) == []
    with server.publisher() as publisher:
        ids = publish(publisher, 1, channel="alerts")
    tab.has(ids[-1])
    active = [line["event"] for line in server.log_lines() if line["event"] == "logout"]
    assert active == ["logout"]
    assert tab.run("session.streamToken(['user.bob'])")  # the cookie is the new login's
    tab.page.evaluate("performance.now = ((now) => () => now.call(performance) + 3e6)(performance.now)")
    assert tab.run("session.fetch('/api/v1/auth/me').then(({ subject }) => subject)") == "bob"


def test_what_the_session_sends_goes_to_the_server_alone(chrome: Chrome, serve: Start) -> None:
    server = start(serve)
    tab = open_tab(chrome, server, "127.0.0.1", "ann")
    for path in ("@evil.example/", "https://evil.example/", "", ":1/"):
        told = tab.run(f"session.fetch('{path}').catch(({{ name }}) => name)")
        assert told == "TypeError", path
    published = "{ body: { event: 'tick', data: { n: 1 } } }"
    assert tab.run(f"session.fetch('/api/v1/sse/user.ann', {published})")["id"]
    text = "{ body: 'a text', query: { event: 'note' } }"
    assert tab.run(f"session.fetch('/api/v1/sse/user.ann', {text})")["id"]
    history = "session.fetch('/api/v1/sse/user.ann/history', { query: { limit: 5 } })"
    assert [event["data"] for event in tab.run(history)["events"]][-1] == "a text"
    assert tab.run("failed(session.fetch('/api/v1/sse/user.bob/history'))")["status"] == 403
    stop = "{ signal: AbortSignal.abort() }"
    assert tab.run(f"session.fetch('/healthz', {stop}).catch(({{ name }}) => name)") == "AbortError"


def test_a_login_whose_cookie_the_page_is_no_longer_told_of_is_found_out_before_it_is_used(
    chrome: Chrome, serve: Start
) -> None:
    """As where a page elsewhere on the site, whose messages do not come here, has logged in another user."""
    server = start(serve)
    ann = open_tab(chrome, server, "localhost", "ann")
    bob = open_tab(chrome, server, "127.0.0.1")
    bob.run(f"""fetch("http://localhost:{server.port}/api/v1/auth/login", {{
        method: "POST", credentials: "include", body: JSON.stringify({{ username: "bob", password: "{PASSWORD}" }}),
    }})""")
    ann.run("performance.now = ((now) => () => now.call(performance) + 3e6)(performance.now)")
    assert ann.run("failed(session.streamToken(['alerts']))")["status"] == 401
    assert [(entry["reason"], entry["successor"]) for entry in ann.noted("ended")] == [("user", "bob")]


@pytest.mark.parametrize(
    ("page", "host", "cookie"),
    [
        ("app.desk.localhost", "events.desk.localhost", True),
        pytest.param("app.desk.localhost", "desk.localhost", True, marks=pytest.mark.slow),
        pytest.param("app.desk.localhost", "app.market.localhost", False, marks=pytest.mark.slow),
        pytest.param("127.0.0.1", "127.0.0.1", True, marks=pytest.mark.slow),
        ("127.0.0.1", "localhost", False),
    ],
)
def test_the_login_is_a_cookie_where_page_and_server_are_of_one_site(
    page: str, host: str, cookie: bool, chrome: Chrome, start_server: Start
) -> None:
    origin = chrome.origin.replace("localhost", page)
    server = start_server(CORS_ORIGINS=[origin])
    server.add_user("ann", PASSWORD, subscribe="alerts")
    with tab_at(chrome, origin, f"http://{host}:{server.port}") as tab:
        log_in(tab, "ann")
        kept = [entry for entry in chrome.context.cookies() if "refresh" in str(entry.get("name"))]
        assert len(kept) == cookie
        assert [entry.get("name") for entry in chrome.context.cookies() if entry not in kept] == []
        tab.run("performance.now = ((now) => () => now.call(performance) + 3e6)(performance.now)")
        assert tab.run("session.streamToken(['alerts'])")
        assert reasons(tab) == []


@contextmanager
def tab_at(chrome: Chrome, origin: str, server: str) -> Iterator[ClientPage]:
    """Open a tab of another origin that has the pages."""
    page = chrome.context.new_page()
    yield ClientPage(page, origin, file="session.html", server=server, channels=["alerts"])
    page.close()


@pytest.mark.slow
@pytest.mark.node
def test_it_runs_without_a_window_and_lets_the_program_end(serve: Start) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=2)
    program = f"""
    import {{ Session }} from "{(ROOT / "sse_app/static/sse-session.js").as_uri()}";
    const session = new Session("{server.url}", {{ onEnded: (detail) => console.log(JSON.stringify(detail)) }});
    console.log(await session.resume());
    await session.login("ann", "{PASSWORD}");
    for (let n = 0; n < 3; n++) {{
      await new Promise((resolve) => setTimeout(resolve, 700));
      await session.streamToken(["alerts"]);
    }}
    console.log(session.username);
    if (process.argv[1] === "stay") await session.logout();
    """
    for then, last in (("leave", "ann"), ("stay", '{"reason":"logout","username":"ann"}')):
        done = subprocess.run(
            [require("node"), "--input-type=module", "-e", program, then],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert re.split(r"\s+", done.stdout.strip())[-1] == last


@pytest.mark.long
def test_in_a_frame_of_another_site_where_no_cookie_is_kept_the_login_lasts_all_the_same(
    chrome: Chrome, serve: Start
) -> None:
    server = start(serve)
    outer = chrome.context.new_page()
    outer.goto(f"{chrome.origin.replace('localhost', '127.0.0.1')}/plain.html")
    given = quote(json.dumps({"server": f"http://localhost:{server.port}", "channels": ["alerts"]}))
    outer.evaluate(f"""new Promise((resolve) => {{
        const frame = document.createElement("iframe");
        frame.src = "{chrome.origin}/session.html#{given}";
        frame.onload = resolve;
        document.body.append(frame);
    }})""")
    frame = outer.frames[-1]
    frame.wait_for_function("window.ready", timeout=PATIENCE)
    frame.evaluate(f"session.login('ann', '{PASSWORD}')")
    assert [entry.get("name") for entry in chrome.context.cookies()] == []
    frame.evaluate("performance.now = ((now) => () => now.call(performance) + 3e6)(performance.now)")
    assert frame.evaluate("session.fetch('/api/v1/auth/me').then(({ subject }) => subject)") == "ann"
    assert frame.evaluate("log") == []
    assert [line["event"] for line in server.log_lines()].count("logout") == 1  # of the login with the cookie
