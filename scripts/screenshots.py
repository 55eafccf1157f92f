"""Takes the pictures of the pages in docs/images: light and dark, wide and narrow, with the market demo running.

Usage: .venv/bin/python scripts/screenshots.py [FOLDER]. It starts the demo, and a server without it, on free ports and
state directories of their own, lets them run for a while so that there is something to see, and needs Chromium on the
PATH.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.error import URLError
from urllib.request import Request, urlopen

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"": (1440, 900), "-narrow": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
LOOKING = 45_000
"""Milliseconds that the demo runs before the pictures are taken."""

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]

PEOPLE: dict[str, dict[str, object]] = {
    "anna.berg": {"subscribe": ["dashboard", "alerts"], "presence": ["alerts"]},
    "backtest-runner": {"publish": ["backtest", "training"]},
    "ben@risk": {"subscribe": ["alerts", "backtest"], "publish": ["alerts"]},
    "carla": {"subscribe": ["dashboard", "alerts", "training", "backtest"], "admin": True},
    "dmitri": {"subscribe": ["training"]},
    "night-desk": {"subscribe": ["dashboard", "alerts", "quotes"]},
    "wall-screen": {"subscribe": ["dashboard", "quotes"]},
}
"""Accounts for the picture of the users; one of them is disabled."""
DISABLED = "dmitri"

Login = tuple[str, str]


def main(folder: Path) -> None:
    """Start the servers and take the pictures."""
    with (
        tempfile.TemporaryDirectory() as state,
        running_server(Path(state) / "server") as server,
        sync_playwright() as playwright,
    ):
        demo, banner = start_demo(Path(state) / "demo")
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            url = said(banner, "Page").rstrip("/")
            viewer = said(banner, "User"), said(banner, "Password")
            admin = said(banner, "as"), said(banner, "with")
            add_people(url, admin)
            pages = {
                (name, scheme, suffix): open_page(browser, address, login, scheme, size)
                for name, address, login in (
                    ("page", f"{url}/", viewer),
                    ("admin", f"{url}/admin", admin),
                    ("users", f"{url}/admin#users", admin),
                    ("start", server, None),
                )
                for scheme in SCHEMES
                for suffix, size in SIZES.items()
            }
            next(iter(pages.values())).wait_for_timeout(LOOKING)
            for (name, scheme, suffix), page in pages.items():
                page.screenshot(path=folder / f"{name}-{scheme}{suffix}.png")
            browser.close()
        finally:
            demo.send_signal(signal.SIGINT)
            demo.communicate(timeout=30)


def free_port() -> int:
    """Return a port that is free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(port: int, state: Path) -> dict[str, str]:
    """Return the environment of a server on this port and state directory, without the settings of this shell."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")}
    return {**others, "SSE_APP_PORT": str(port), "SSE_APP_STATE_DIR": str(state)}


@contextmanager
def running_server(state: Path) -> Iterator[str]:
    """Run a server without the demo, and yield its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    process = subprocess.Popen(
        [sys.executable, "main.py", "serve"],
        cwd=ROOT,
        env=clean_environment(port, state),
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            try:
                urlopen(f"{url}readyz").close()
                break
            except URLError:
                time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def start_demo(state: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the demo, and return it with what it says of how to look at it."""
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.market"],
        cwd=ROOT,
        env=clean_environment(free_port(), state),
        stdout=subprocess.PIPE,
        text=True,
    )
    banner = ""
    assert demo.stdout is not None
    while "Ctrl-C ends" not in banner:
        line = demo.stdout.readline()
        if not line:
            raise SystemExit(f"the demo did not start: {banner}")
        banner += line
    return demo, banner


def said(banner: str, name: str) -> str:
    """Return what the banner says after a name."""
    found = re.search(rf"^ *{name} +(\S+)", banner, re.MULTILINE)
    if not found:
        raise SystemExit(f"there is no {name} in: {banner}")
    return found[1]


def add_people(url: str, admin: Login) -> None:
    """Make the accounts for the picture of the users."""

    def ask(method: str, path: str, body: object, token: str = "") -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        request = Request(f"{url}/api/v1/{path}", json.dumps(body).encode(), headers, method=method)
        with urlopen(request) as answer:
            document: dict[str, str] = json.load(answer)
            return document

    login = {"username": admin[0], "password": admin[1], "cookie": False}
    token = ask("POST", "auth/login", login)["access_token"]
    for name, grants in PEOPLE.items():
        account = {"name": name, "password": secrets.token_urlsafe(), "grants": grants}
        ask("POST", "admin/users", account, token)
    ask("PATCH", f"admin/users/{DISABLED}", {"disabled": True}, token)


def open_page(
    browser: Browser,
    url: str,
    login: Login | None,
    scheme: Literal["light", "dark"],
    size: tuple[int, int],
) -> Page:
    """Open a page in a profile of its own, and log in where it takes that."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.on("console", lambda message: print(url, message.type, message.text, file=sys.stderr))
    page.on("pageerror", lambda error: print(url, error, file=sys.stderr))
    page.goto(url)
    if login is not None:
        page.fill("input[name=username]", login[0])
        page.fill("input[name=password]", login[1])
        page.keyboard.press("Enter")
        page.wait_for_selector('#connection[data-state="live"]', timeout=60_000)
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images")
