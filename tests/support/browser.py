"""A real Chromium for tests of the browser client: pages on an origin of their own, and what their clients noted."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import quote

import httpx
from playwright.sync_api import BrowserContext, Page

from tests.support.server_process import ROOT, ServerProcess
from tests.support.waiting import until

CHANNEL = "user.tester"
PATIENCE = 60_000
"""Milliseconds to wait for what must happen: the machine may be busy."""

Start = Callable[..., ServerProcess]

_waits = count()


class _Pages(SimpleHTTPRequestHandler):
    """The test pages at /, the client's source at /static/, the package at /client/."""

    def translate_path(self, path: str) -> str:
        path = path.partition("?")[0]
        for prefix, folder in (
            ("/static/", "sse_app/static"),
            ("/client/", "client"),
            ("/", "tests/browser/pages"),
        ):
            if path.startswith(prefix):
                return str(ROOT / folder / path.removeprefix(prefix))
        raise AssertionError(path)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serve_pages() -> Iterator[str]:
    """Serve the pages on a free port, and yield their origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as pages:
        threading.Thread(target=pages.serve_forever, args=(0.02,)).start()
        try:
            yield f"http://localhost:{pages.server_port}"
        finally:
            pages.shutdown()


class ClientPage:
    """A tab with one client.

    Args:
        page: the tab.
        origin: where the pages are.
        given: what the page is told, see ``pages/client.html``.
    """

    def __init__(self, page: Page, origin: str, **given: Any) -> None:
        self.page = page
        page.goto(f"{origin}/{given.pop('file', 'client.html')}#{quote(json.dumps(given))}")

    def run(self, script: str) -> Any:
        """Run JavaScript in the page."""
        return self.page.evaluate(script)

    def wait(self, condition: str, timeout: float = PATIENCE) -> None:
        """Wait until an expression is true in the page, or resolves to what is true."""
        # Playwright takes a promise itself for true.
        settled = """() => {
            const found = %s;
            if (!found?.then) return found;
            const name = "awaited %d";
            found.then((value) => (window[name] = value), () => {});
            return window[name];
        }"""
        try:
            self.page.wait_for_function(settled % (condition, next(_waits)), timeout=timeout, polling=20)
        except Exception as error:
            raise AssertionError(f"{condition}: not in time; {self.run('log.slice(-20)')}") from error

    def opened(self, times: int = 1) -> None:
        """Wait until the client has opened so often."""
        self.wait(f"log.filter((e) => e.kind === 'open').length >= {times}")

    def noted(self, kind: str) -> list[dict[str, Any]]:
        """Return what the client noted of a kind."""
        return [entry for entry in self.run("log") if entry["kind"] == kind]

    def ids(self) -> list[str]:
        """Return the ids of the events, in the order in which they came."""
        return [str(event["id"]) for event in self.noted("event")]

    def has(self, id: str) -> None:
        """Wait until the event has come."""
        self.wait(f"log.some((e) => e.id === '{id}')")


class Chrome:
    """One browser profile, whose tabs can find each other; ``trouble`` has the errors of its pages."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self.context = context
        self.origin = origin
        self.trouble: list[str] = []
        context.on("weberror", lambda error: self.trouble.append(str(error.error)))

    def open(self, server: ServerProcess | str, **given: Any) -> ClientPage:
        """Open a tab with a client of a server; without ``tokens`` it gets its own as user ``tester``."""
        if isinstance(server, ServerProcess):
            if "tokens" not in given and "access" not in given:
                given["access"] = [server.access_token()]
            server = server.url.replace("127.0.0.1", "localhost")
        given = {"server": server, "channels": CHANNEL, **given}
        return ClientPage(self.context.new_page(), self.origin, **given)


def open_vue(chrome: Chrome, server: ServerProcess) -> ClientPage:
    """Open a tab with the Vue composables, on the package as it is built."""
    tab = chrome.open(server, file="vue.html")
    tab.wait("window.ready")
    return tab


def publish(client: httpx.Client, count: int = 1, channel: str = CHANNEL, event: str = "tick") -> list[str]:
    """Publish events as one batch, and return their ids."""
    batch = [{"channel": channel, "event": event, "data": {"n": n}} for n in range(count)]
    answer = client.post("/api/v1/sse", json={"events": batch})
    assert answer.status_code == 201, answer.text
    return list(answer.json()["ids"])


@contextmanager
def publishing(server: ServerProcess) -> Iterator[list[str]]:
    """Publish an event every 40 ms meanwhile, and at the end a last one; the list has their ids."""
    ids: list[str] = []
    over = threading.Event()

    def run() -> None:
        with server.publisher() as publisher:
            while not over.wait(0.04):
                ids.extend(publish(publisher))
            ids.extend(publish(publisher))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ids
    finally:
        over.set()
        thread.join()


def log_of(client: httpx.Client, channel: str = CHANNEL) -> list[str]:
    """Return the ids of all events of a channel that the server's log has."""
    url = f"/api/v1/sse/{channel}/history?limit=1000"
    ids: list[str] = []
    page = [event["id"] for event in client.get(url).json()["events"]]
    if len(page) == 1000:  # these are the last ones: begin at the beginning
        page = [f"{page[0].rpartition('-')[0]}-0"]
    while page:
        ids += page
        page = [event["id"] for event in client.get(f"{url}&after={page[-1]}").json()["events"]]
    return [id for id in ids if not id.endswith("-0")]


def connections(server: ServerProcess) -> int:
    """Return how many streams the server has."""
    return int(httpx.get(f"{server.url}/api/v1/sse/status").json()["total_connections"])


def wait_for_connections(server: ServerProcess, count: int) -> None:
    """Wait until the server has so many streams."""
    until(lambda: connections(server) == count, f"the server has {count} streams")
