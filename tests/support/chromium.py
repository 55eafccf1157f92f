"""One Chromium for all tests of a run, also in several of pytest's processes, and connections of test modules to it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.programs import require

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP *.test 127.0.0.1",  # names that are not this machine's by themselves: no secure context
]


@contextmanager
def chromium_server(folder: Path, program: str = "") -> Iterator[str]:
    """Run a Chromium, and yield the address that Playwright connects to.

    It runs in a process of its own: Playwright's event loop stays in the thread that uses it, in which no test
    could run another one.

    Args:
        folder: for its configuration.
        program: which one; by default the headless shell where it is installed: the same engine and network stack
            without the windows and menus that the whole browser draws for each context, which take more time than
            the pages. It keeps no pages in a back-forward cache.
    """
    configuration = folder / "chromium.json"
    configuration.write_text(
        json.dumps(
            {
                "executablePath": program or shutil.which("chromium-headless-shell") or require("chromium"),
                "args": FLAGS,
                "ignoreDefaultArgs": [
                    "--disable-back-forward-cache"
                ],  # people use it, so pages must stand it
                "headless": True,
            }
        )
    )
    command = ["launch-server", "--browser", "chromium", "--config", str(configuration)]
    with subprocess.Popen(
        [sys.executable, "-m", "playwright", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address.startswith("ws://"), address
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # the driver, a child of this process, ends the browser


@contextmanager
def shared_chromium(folder: Path) -> Iterator[str]:
    """Yield the address of the Chromium that pytest's processes share: the first one runs it until all are done.

    Args:
        folder: the same for all of them.
    """
    address = folder / "chromium.address"
    with ExitStack() as stack, (folder / "chromium.users").open("w") as users:
        with (folder / "chromium.start").open("w") as start:
            fcntl.flock(start, fcntl.LOCK_EX)  # closing the file unlocks it
            fcntl.flock(users, fcntl.LOCK_SH)
            runs_it = not address.exists()
            if runs_it:
                address.write_text(stack.enter_context(chromium_server(folder)))
        yield address.read_text()
        if runs_it:
            fcntl.flock(users, fcntl.LOCK_EX)
            address.unlink()


@contextmanager
def connection_to(address: str) -> Iterator[Browser]:
    """Connect to a Chromium that runs; contexts made over the connection end with it."""
    from playwright.sync_api import sync_playwright  # 0.2 s that most tests need not spend

    with sync_playwright() as playwright:
        browser = playwright.chromium.connect(address)
        try:
            yield browser
        finally:
            browser.close()
