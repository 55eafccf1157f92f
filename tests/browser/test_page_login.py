"""The login of the pages in a real Chromium: it outlasts a lost refresh, and stays the same user's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from tests.support.browser import PATIENCE, Start
from tests.support.server_process import ServerProcess
from tests.support.visitors import PASSWORD, live, people, visitor
from tests.support.waiting import until

pytestmark = pytest.mark.browser


def start(start_server: Start) -> ServerProcess:
    server = start_server(STREAM__RETRY=200, DEMO=True)
    people(server)
    return server


def test_a_refresh_whose_answer_was_lost_logs_no_page_out(chromium: Browser, start_server: Start) -> None:
    server = start(start_server)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        (cookie,) = ann.context.cookies()
        spent = {"Cookie": f"{cookie.get('name')}={cookie.get('value')}"}
        httpx.post(f"{server.url}/api/v1/auth/refresh", headers=spent, timeout=30).raise_for_status()
        page.reload()
        live(page)
        assert page.inner_text("#who") == "ann"


@pytest.mark.ci
def test_a_page_asks_for_its_refresh_again_when_no_answer_comes(
    chromium: Browser, start_server: Start
) -> None:
    server = start(start_server)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        page.context.route("**/auth/refresh", lambda route: route.abort(), times=1)
        page.reload()
        live(page)


def cookie_of(server: ServerProcess, name: str) -> str:
    """Log in without a browser, and return the refresh token as its cookie has it."""
    login = {"username": name, "password": PASSWORD}
    answer = httpx.post(f"{server.url}/api/v1/auth/login", json=login, timeout=30)
    return answer.headers["set-cookie"].partition(";")[0].partition("=")[2]


@pytest.mark.slow
def test_a_page_does_not_become_another_users_in_silence(chromium: Browser, start_server: Start) -> None:
    server = start(start_server)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        (cookie,) = ann.context.cookies()
        theirs = {**cookie, "value": cookie_of(server, "admin")}
        ann.context.add_cookies([theirs])  # type: ignore[list-item]
        page.reload()
        page.wait_for_selector("body[data-view=login]")
        assert "now logged in as admin, no longer as ann" in page.inner_text("#login-problem")
        page.fill("#username", "ann")
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        live(page)
        page.reload()
        live(page)
        assert page.inner_text("#who") == "ann"


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/", "/api/v1/auth"])
@pytest.mark.parametrize("name", ["sse_app_refresh", "__Host-sse_app_refresh"])
def test_a_sibling_that_sets_the_cookie_for_the_parent_domain_changes_nothing(
    chromium: Browser, start_server: Start, name: str, path: str
) -> None:
    server = start(start_server)
    stolen = cookie_of(server, "admin")
    with visitor(chromium, server) as ann, sibling(f"{name}={stolen}", path) as port:
        page = ann.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"http://app.desk.localhost:{server.port}/")
        page.fill("#username", "ann")
        page.fill("#password", PASSWORD)
        page.keyboard.press("Enter")
        live(page)
        evil = ann.context.new_page()
        evil.goto(f"http://evil.desk.localhost:{port}/")
        tossed = [cookie for cookie in ann.context.cookies() if cookie.get("value") == stolen]
        assert len(tossed) == (
            name == "sse_app_refresh"
        )  # the browser refuses the prefix for a parent domain
        page.reload()
        live(page)
        assert page.inner_text("#who") == "ann"
        page.click("#logout")
        page.wait_for_selector("body[data-view=login]")
        until(
            lambda: all(cookie.get("value") == stolen for cookie in ann.context.cookies()),
            "the server has dropped the cookie",
        )


@contextmanager
def sibling(cookie: str, path: str) -> Iterator[int]:
    """Serve on a free port a page that sets a cookie for its parent domain."""

    class Tossing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Set-Cookie", f"{cookie}; Domain=desk.localhost; Path={path}; Secure")
            self.end_headers()
            self.wfile.write(b"<link rel=icon href=data:,>")

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Tossing) as pages:
        threading.Thread(target=pages.serve_forever, args=(0.02,)).start()
        try:
            yield pages.server_port
        finally:
            pages.shutdown()
