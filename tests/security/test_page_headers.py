"""What a browser is told to keep pages from doing, and from having done to them."""

from __future__ import annotations

import httpx
import pytest

from sse_app.handlers.site.pages import STATIC
from tests.support.server_process import ServerProcess


@pytest.mark.parametrize(
    "path", ["/", "/admin", "/static/main.js", "/static/vendor/vue.js", "/docs/clients.md"]
)
def test_a_page_loads_only_what_is_ours_and_nobody_frames_it(server: ServerProcess, path: str) -> None:
    answer = httpx.get(f"{server.url}{path}").raise_for_status()
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/api/v1/sse/status", "/api/v1/auth/me", "/nowhere"])
def test_an_answer_of_the_api_is_kept_nowhere_and_names_no_referrer(server: ServerProcess, path: str) -> None:
    headers = httpx.get(f"{server.url}{path}").headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"


def test_each_file_of_the_pages_comes_with_its_type(server: ServerProcess) -> None:
    types = {
        ".css": "text/css",
        ".html": "text/html",
        ".js": "text/javascript",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".ts": "application/typescript",
        ".LICENSE": "application/octet-stream",
    }
    for path in STATIC.rglob("*.*"):
        answer = httpx.get(f"{server.url}/static/{path.relative_to(STATIC)}").raise_for_status()
        assert answer.headers["Content-Type"] == types[path.suffix]
