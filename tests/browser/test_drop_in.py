"""A front end that was written for a server without logins, on another origin: it changes its imports and nothing else.

Its four views are in ``drop_in``, with composables in the way of that time, and are built by Vite. In the second build
the views import ours, and the application logs in. What is published is numbered, and each view keeps an account of
what it was told.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.browser import wait_for_connections
from tests.support.browser_logins import PASSWORD
from tests.support.cable import cable_to
from tests.support.chromium import FLAGS
from tests.support.firefox import firefox
from tests.support.npm import CLIENT, installed_for, npm
from tests.support.programs import family, require, saying
from tests.support.server_process import ROOT
from tests.support.waiting import until
from tests.support.wall_clock import HOUR, ClockedServer, WallClock
from tests.support.wall_clock import clock_library as clock_library
from tests.support.wall_clock import start as start
from tests.support.wall_clock import wall_clock as wall_clock

pytestmark = [pytest.mark.browser, pytest.mark.node, pytest.mark.slow]

FRONT_END = ROOT / "tests/browser/drop_in"
THEIRS, OURS = "@/composables/useSSE", "@sse-app/client/vue"
VIEWS = ("dashboard", "alerts", "training", "backtest")


def numbered(view: str, n: int) -> tuple[str, dict[str, Any]]:
    """Return the type and the data of an event for a view."""
    events: dict[str, tuple[str, dict[str, Any]]] = {
        "dashboard": ("dashboard_update", {"update_type": "metrics", "data": {"total_value": n}}),
        "alerts": ("risk_alert", {"severity": "high", "message": n}),
        "training": ("training_progress", {"task_id": "t1", "progress": n, "metrics": {"loss": n}}),
        "backtest": (
            "backtest_progress",
            {"backtest_id": "b1", "progress": n, "results": {"sharpe_ratio": n}},
        ),
    }
    return events[view]


class Publisher:
    """Publishes numbered events for all views, each until it is acknowledged, and each once."""

    def __init__(self, server: ClockedServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.count = 0
        """How many each view is to be told of."""

    def _run(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=30) as client:
            while not self._over.wait(0.02):
                for view in VIEWS:
                    self._publish(client, view, self.count)
                self.count += 1

    def _publish(self, client: httpx.Client, view: str, n: int) -> None:
        event, data = numbered(view, n)
        while True:
            token = self._server.minted(TokenKind.ACCESS)
            headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": f"{view}-{n}"}
            body = {"event": event, "data": {**data, "n": n}}
            try:
                answer = client.post(f"/api/v1/sse/{view}", json=body, headers=headers)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code == 201:
                return
            assert answer.status_code in (401, 503), answer.text  # the clock was set, or the server comes up

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def build(folder: Path, entry: str = "") -> Path:
    """Build the front end in a folder, and return where it is."""
    folder.mkdir()
    for name in ("src", "index.html", "vite.config.js", "package.json"):
        source = FRONT_END / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    modules = folder / "node_modules"
    modules.mkdir()
    for module in (FRONT_END / "node_modules").iterdir():
        (modules / module.name).symlink_to(module)
    (modules / "@sse-app").mkdir()
    (modules / "@sse-app/client").symlink_to(CLIENT)
    if entry:
        for view in (folder / "src/views").iterdir():
            before = view.read_text()
            assert before.count(THEIRS) == 1, view
            view.write_text(before.replace(THEIRS, OURS))
        shutil.rmtree(folder / "src/composables")
        shutil.copy(folder / "src" / entry, folder / "src/main.js")
    npm("run", "build", folder=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, built: str) -> Path:
    """The front end as it was."""
    installed_for(FRONT_END)
    return build(tmp_path_factory.mktemp("original") / "app")


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory, built: str) -> Path:
    """The front end whose views import ours."""
    installed_for(FRONT_END)
    return build(tmp_path_factory.mktemp("replaced") / "app", "main.session.js")


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port, and yield its origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as pages:
        threading.Thread(target=pages.serve_forever, args=(0.02,)).start()
        try:
            yield f"http://localhost:{pages.server_port}"
        finally:
            pages.shutdown()


class Laptop(Protocol):
    """A browser that runs alone on a machine."""

    process: subprocess.Popen[bytes]

    def open(self, url: str) -> None: ...
    def run(self, script: str) -> Any: ...
    def set_offline(self, offline: bool) -> None: ...


class Chromium:
    """A Chromium with one tab."""

    def __init__(self, process: subprocess.Popen[bytes], context: BrowserContext) -> None:
        self.process = process
        self._context = context
        self._page: Page = context.new_page()

    def open(self, url: str) -> None:
        self._page.goto(url)

    def run(self, script: str) -> Any:
        return self._page.evaluate(script)

    def set_offline(self, offline: bool) -> None:
        self._context.set_offline(offline)


@contextmanager
def own_chromium(chromium: Browser, folder: Path, environment: dict[str, str]) -> Iterator[Chromium]:
    """Run a Chromium beside the one that tests share, for it is to be stopped."""
    program = shutil.which("chromium-headless-shell") or require("chromium")
    profile = f"--user-data-dir={folder / 'chromium'}"
    command = [program, *FLAGS, "--headless", "--remote-debugging-port=0", profile, "about:blank"]
    with saying(command, folder, environment) as (process, said):
        address = said("DevTools listening on ")
        with chromium.browser_type.connect_over_cdp(address) as browser:
            yield Chromium(process, browser.contexts[0])


@contextmanager
def asleep(laptop: Laptop) -> Iterator[None]:
    """Stop all processes of the browser meanwhile, so that nothing of it runs, as on a machine that sleeps."""
    pids = family(laptop.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(params=["Chromium", pytest.param("Firefox", marks=pytest.mark.long)])
def laptop(
    request: pytest.FixtureRequest, chromium: Browser, tmp_path: Path, wall_clock: WallClock
) -> Iterator[Laptop]:
    """A browser of its own, by the clock of the server."""
    environment = dict(os.environ) | wall_clock.environment
    if request.param == "Firefox":
        with firefox(tmp_path, environment) as browser:
            yield browser
    else:
        with own_chromium(chromium, tmp_path, environment) as other:
            yield other


def look(laptop: Laptop, condition: str, seconds: float = 60) -> None:
    """Wait until an expression is true in the page."""
    until(lambda: laptop.run(condition), condition, seconds, pause=0.05)


def told(laptop: Laptop) -> dict[str, list[int]]:
    """Return the numbers of what each view was told."""
    return dict(laptop.run("seen"))


def keeps_up(laptop: Laptop, publisher: Publisher, seconds: float = 60) -> None:
    """Wait until all views were told of what is published from now on."""
    count = publisher.count + 2
    look(laptop, f"Object.values(seen).every((numbers) => numbers.includes({count}))", seconds)


Starts = Callable[..., ClockedServer]


@pytest.mark.long
def test_the_original_moves_and_loses_what_comes_while_the_server_is_away(
    original: Path, start: Starts, chromium: Browser
) -> None:
    channels = [{"pattern": view, "public": True} for view in VIEWS]
    with served(original) as origin, chromium.new_context() as context:
        server = start(CORS_ORIGINS=[origin], CHANNELS=channels)
        page = context.new_page()
        page.goto(f"{origin}/?server={quote(server.url)}")
        wait_for_connections(server, 4)
        with Publisher(server) as publisher:
            page.wait_for_function("Object.values(seen).every((numbers) => numbers.length)")
            server.kill()
            server.start()
            count = publisher.count + 2
            page.wait_for_function(
                f"Object.values(seen).every((numbers) => numbers.some((n) => n >= {count}))", timeout=60_000
            )
        numbers = page.evaluate("seen.dashboard")
    assert numbers != list(range(numbers[0], numbers[-1] + 1))


ENDS = [
    pytest.param(False, id="whose connections end"),
    # Requests on connections that the browser keeps are lost too, and wait 15 s each for an answer.
    pytest.param(True, id="whose connections are lost in silence", marks=pytest.mark.long),
]


@pytest.mark.long
@pytest.mark.parametrize("silent", ENDS)
def test_its_views_with_our_import_miss_nothing_and_are_told_nothing_twice(
    silent: bool, replaced: Path, start: Starts, laptop: Laptop, wall_clock: WallClock
) -> None:
    with served(replaced) as origin, ExitStack() as stack:
        server = start(
            CORS_ORIGINS=[origin], STREAM__RETRY=200, AUTH__ACCESS_LIFETIME=4, AUTH__STREAM_LIFETIME=2
        )
        server.add_user("ann", PASSWORD, subscribe=",".join(VIEWS))
        cable = stack.enter_context(cable_to(server.port))
        laptop.open(f"{origin}/?server={quote(f'http://localhost:{cable.port}')}")
        laptop.run(f"login('ann', '{PASSWORD}')")
        wait_for_connections(server, 1)
        with Publisher(server) as publisher:
            keeps_up(laptop, publisher)

            server.kill()
            server.start()
            keeps_up(laptop, publisher)

            laptop.set_offline(True)
            look(laptop, "!document.body.textContent.includes('live')")
            time.sleep(0.5)
            laptop.set_offline(False)
            keeps_up(laptop, publisher)

            time.sleep(5)  # each token has run out by then
            keeps_up(laptop, publisher)

            with asleep(laptop):
                wall_clock.set(HOUR)
                if silent:
                    cable.lose()
                time.sleep(1.5)
            assert laptop.run("Date.now()") / 1000 - time.time() > HOUR - 60
            keeps_up(laptop, publisher, 240 if silent else 60)
        last = publisher.count - 1
        look(laptop, f"Object.values(seen).every((numbers) => numbers.at(-1) === {last})")
        for view, numbers in told(laptop).items():
            assert numbers == list(range(numbers[0], last + 1)), view
        shown = "[...document.querySelectorAll('output')].map(({ value }) => Number(value))"
        assert laptop.run(shown) == [last] * 4
        look(laptop, "document.body.textContent.match(/live/g)?.length === 4")  # it may just be replaced
        wait_for_connections(server, 1)
        assert laptop.run("over") == []  # neither the login nor a stream, and nothing was said to be lost

        laptop.run("session.logout()")
        look(laptop, "over.length > 1")
        assert laptop.run("over[0]") == "logout"
        wait_for_connections(server, 0)
