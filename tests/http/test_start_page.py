"""The page at /: the server's own, which tells strangers no more than the public status, or that of the market demo."""

from __future__ import annotations

import re
from collections.abc import Callable

import httpx

from sse_app.handlers.site.pages import DOCUMENTS, STATIC
from sse_app.version import VERSION
from tests.support.server_process import ServerProcess


def text_of(url: str) -> str:
    answer = httpx.get(url, timeout=30).raise_for_status()
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    return answer.text


def test_the_page_is_the_servers_own_and_every_link_on_it_leads_somewhere(server: ServerProcess) -> None:
    page = text_of(f"{server.url}/")
    assert "<title>sse_app</title>" in page
    assert not re.search("market|portfolio|demo", page, re.IGNORECASE)
    links = set(re.findall(r'(?:href|src)="(/[^"]*)"', page))
    assert {
        "/admin",
        "/openapi.json",
        "/healthz",
        "/metrics",
        "/api/v1/sse/status",
        "/static/sse-client.js",
        *(f"/docs/{path.name}" for path in DOCUMENTS.glob("*.md")),
    } <= links
    for link in links:
        assert httpx.get(f"{server.url}{link}", timeout=30).status_code == 200, link


def test_the_page_itself_holds_no_figures(server: ServerProcess) -> None:
    page = text_of(f"{server.url}/")
    assert VERSION not in page
    assert str(server.state_dir) not in page
    assert page == text_of(f"{server.url}/")


def test_the_documents_are_readable_as_they_are_written_and_nothing_beside_them(
    server: ServerProcess,
) -> None:
    for path in DOCUMENTS.glob("*.md"):
        answer = httpx.get(f"{server.url}/docs/{path.name}", timeout=30)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert answer.text == path.read_text()
    for name in (
        "nothing.md",
        "images/page-light.png",
        "..%2fREADME.md",
        "",
        "clients.md%00",
        "CLIENTS.MD",
    ):
        answer = httpx.get(f"{server.url}/docs/{name}", timeout=30)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found"), name


def test_the_demo_has_its_page_there_as_soon_as_it_is_switched_on(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server(DEMO=True)
    assert text_of(f"{server.url}/") == (STATIC / "market.html").read_text()
    assert httpx.head(f"{server.url}/", timeout=30).status_code == 200
