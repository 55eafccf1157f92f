"""Takes the pictures of both pages in docs/images: light and dark, wide and narrow, with the market demo running.

Usage: .venv/bin/python scripts/screenshots.py [FOLDER]. It starts the demo on a free port and a state directory of
its own, lets it run for a while so that there is something to see, and needs Chromium on the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"": (1440, 900), "-narrow": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
LOOKING = 45_000
"""Milliseconds that the demo runs before the pictures are taken."""

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


def main(folder: Path) -> None:
    """Start the demo and take the pictures."""
    with tempfile.TemporaryDirectory() as state, sync_playwright() as playwright:
        demo, banner = start_demo(Path(state) / "state")
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            viewer = said(banner, "User"), said(banner, "Password")
            admin = said(banner, "as"), said(banner, "with")
            pages = {
                (name, scheme, suffix): open_page(browser, url, login, scheme, size)
                for name, url, login in (
                    ("page", said(banner, "Page"), viewer),
                    ("admin", said(banner, "Admin"), admin),
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


def start_demo(state: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the demo, and return it with what it says of how to look at it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo = subprocess.Popen(
        [sys.executable, "-m", "examples.market"],
        cwd=ROOT,
        env={**os.environ, "SSE_APP_PORT": str(port), "SSE_APP_STATE_DIR": str(state)},
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


def open_page(
    browser: Browser,
    url: str,
    login: tuple[str, str],
    scheme: Literal["light", "dark"],
    size: tuple[int, int],
) -> Page:
    """Log in on a page in a profile of its own."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, reduced_motion="reduce"
    )
    page = context.new_page()
    page.on("console", lambda message: print(url, message.type, message.text, file=sys.stderr))
    page.on("pageerror", lambda error: print(url, error, file=sys.stderr))
    page.goto(url)
    page.fill("input[name=username]", login[0])
    page.fill("input[name=password]", login[1])
    page.keyboard.press("Enter")
    page.wait_for_selector('#connection[data-state="live"]', timeout=60_000)
    return page


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images")
