"""What a new user does: start the demo, copy the curl line, open the page, log in, press Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage

from tests.support.ports import reserve_port
from tests.support.programs import require
from tests.support.server_process import ROOT


class Demo:
    """The market demo, started as ``make run`` starts it."""

    def __init__(self, state: Path) -> None:
        port = reserve_port(self)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.market"],
            cwd=ROOT,
            env={**os.environ, "SSE_APP_PORT": str(port), "SSE_APP_STATE_DIR": str(state)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.banner = ""
        assert self.process.stdout is not None
        while "Ctrl-C ends" not in self.banner:
            line = self.process.stdout.readline()
            assert line, self.banner
            self.banner += line

    def said(self, name: str) -> str:
        """Return what the banner says after a name."""
        found = re.search(rf"{name}\s+(\S+)", self.banner)
        assert found, self.banner
        return found[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo") / "state")
    yield demo
    demo.process.send_signal(signal.SIGINT)
    output, _ = demo.process.communicate(timeout=60)
    assert demo.process.returncode == 0, output
    assert "Traceback" not in output


def test_the_curl_line_of_the_banner_works_as_it_stands(demo: Demo) -> None:
    require("curl")
    line = next(line for line in demo.banner.splitlines() if line.strip().startswith("curl -N"))
    with subprocess.Popen([*shlex.split(line), "--silent"], stdout=subprocess.PIPE, text=True) as curl:
        try:
            assert curl.stdout is not None
            said = ""
            for part in curl.stdout:
                said += part
                if "event: dashboard_update" in said:
                    break
        finally:
            curl.kill()
    assert "event: connected" in said
    assert "event: dashboard_update" in said


@pytest.mark.browser
def test_all_four_panels_show_live_numbers_within_20_seconds_of_the_start(
    demo: Demo, chromium: Browser
) -> None:
    with chromium.new_context() as context:
        page = context.new_page()
        trouble: list[str] = []

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                trouble.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto(demo.said("Page"))
        page.fill("input[name=username]", demo.said("User"))
        page.fill("input[name=password]", demo.said("Password"))
        page.keyboard.press("Enter")
        page.wait_for_selector('#connection[data-state="live"]', timeout=30_000)
        for panel, sign in (
            ("portfolio", "$"),
            ("alerts", "limit"),
            ("training", "Epoch"),
            ("backtest", "%"),
        ):
            page.wait_for_selector(f"[aria-labelledby={panel}-title]:has-text('{sign}')", timeout=60_000)
        assert trouble == []


def test_a_taken_port_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "examples.market"],
            cwd=ROOT,
            env={**os.environ, "SSE_APP_PORT": str(port), "SSE_APP_STATE_DIR": str(tmp_path / "s")},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert len((done.stdout + done.stderr).strip().splitlines()) == 1
    assert str(port) in done.stdout + done.stderr
