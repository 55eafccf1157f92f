"""What a new user does: start the demo, copy the curl line, open the page, log in, press Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage

from sse_app.storage.state_dir import StateDirectory
from tests.support.ports import reserve_port
from tests.support.programs import require
from tests.support.server_process import ROOT


class Demo:
    """The market demo, started as ``make run`` starts it."""

    def __init__(self, state: Path | None, checkout: Path = ROOT, **settings: str) -> None:
        self.state = state
        port = reserve_port(self)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.market"],
            cwd=checkout,
            env=clean
            | {"SSE_APP_PORT": str(port)}
            | {f"SSE_APP_{name}": value for name, value in settings.items()}
            | ({"SSE_APP_STATE_DIR": str(state)} if state is not None else {}),
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

    def end(self) -> None:
        """End it as Ctrl-C does, and look whether it is content."""
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, output
        assert "Traceback" not in output


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo") / "state")
    yield demo
    demo.end()


@pytest.mark.slow
def test_the_curl_line_of_the_banner_works_as_it_stands(demo: Demo) -> None:
    see_an_update(demo)


@pytest.mark.long
def test_it_runs_with_several_workers(tmp_path: Path) -> None:
    demo = Demo(tmp_path / "state", WORKERS="2")
    try:
        see_an_update(demo)
        assert set(StateDirectory(tmp_path / "state", create=False).running_workers()) == {1, 2}
        demo.end()
        assert not StateDirectory(tmp_path / "state", create=False).running_workers()
    finally:
        demo.process.kill()
        demo.process.wait()


def see_an_update(demo: Demo) -> None:
    """Copy the curl line, and wait until an update of the dashboard comes."""
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


@pytest.mark.slow
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
        page.reload()  # and opens with the whole table of quotes
        for symbol in ("SPX", "VOL", "FUND", "CASH"):
            page.wait_for_selector(f"#quotes [data-symbol={symbol}]:has-text('%')", timeout=30_000)
        assert trouble == []


def second_demo(state: Path | None, **variables: str) -> tuple[int, list[str]]:
    """Start the demo, which is to be refused, and return its status and what it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")}
    done = subprocess.run(
        [sys.executable, "-m", "examples.market"],
        cwd=ROOT,
        env=clean | ({"SSE_APP_STATE_DIR": str(state)} if state else {}) | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("port", ["the same", pytest.param("0", marks=pytest.mark.long)])
def test_a_second_demo_says_that_the_first_one_runs_and_changes_nothing(demo: Demo, port: str) -> None:
    url = demo.said("Page").rstrip("/")
    passwords = {name: demo.said(name) for name in ("Password", "with")}
    status, lines = second_demo(demo.state, SSE_APP_PORT=url.rpartition(":")[2] if port != "0" else "0")
    assert status == 1
    assert lines == [
        f"market demo: it runs already at {url}/ (process {demo.process.pid}); Ctrl-C there ends it"
    ]
    for user, password in (("demo", passwords["Password"]), ("admin", passwords["with"])):
        body = {"username": user, "password": password, "cookie": False}
        assert httpx.post(f"{url}/api/v1/auth/login", json=body, timeout=30).status_code == 200


@pytest.mark.slow
def test_the_demo_leaves_a_servers_state_alone(tmp_path: Path) -> None:
    state = tmp_path / "var"
    begin = ["user", "add", "admin", "--init", "--password-stdin", "--state-dir", str(state)]
    subprocess.run([sys.executable, "main.py", *begin], cwd=ROOT, input=b"correct horse\n", check=True)
    before = (state / "accounts.db").read_bytes()
    status, lines = second_demo(state, SSE_APP_PORT="0")
    assert (status, len(lines)) == (1, 1)
    assert str(state) in lines[0]
    assert (state / "accounts.db").read_bytes() == before
    assert not (state / "market-demo").exists()


@pytest.mark.long
def test_the_demo_has_a_state_directory_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "copied/examples")
    for name in ("main.py", "sse_app", "config"):
        (tmp_path / "copied" / name).symlink_to(ROOT / name)
    checkout = tmp_path / "copied"
    demo = Demo(None, checkout)
    try:
        assert stat.S_IMODE((checkout / "var").stat().st_mode) == 0o700
        assert [path.name for path in (checkout / "var").iterdir()] == ["demo"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SSE_APP_")}
        begin = [sys.executable, "main.py", "user", "add", "admin", "--init", "--password-stdin"]
        subprocess.run(begin, cwd=checkout, env=clean, input=b"correct horse\n", check=True)
    finally:
        demo.process.send_signal(signal.SIGINT)
        assert demo.process.communicate(timeout=60)[0].endswith("has ended.\n")


@pytest.mark.long
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
