"""What docs/clients.md shows runs as it stands."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import httpx
import pytest

from tests.support.browser import Chrome, Start, open_vue, wait_for_connections
from tests.support.server_process import ROOT, ServerProcess

NAMES = "const show = (...all) => log.push({ kind: 'shown', all });"


def example(heading: str, server: ServerProcess) -> str:
    """Return the code below a heading, for this server."""
    page = (ROOT / "docs/clients.md").read_text()
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return str(code).replace("http://localhost:8000", server.url)


def add_ann(server: ServerProcess) -> ServerProcess:
    """Make the user whom the page speaks of."""
    server.add_user("ann", "correct horse battery", subscribe="dashboard,alerts", publish="alerts")
    return server


def alert(publisher: httpx.Client) -> None:
    """Publish a risk alert."""
    answer = publisher.post("/api/v1/sse/alerts", json={"event": "risk_alert", "data": {"severity": "low"}})
    assert answer.status_code == 201, answer.text


@contextmanager
def running(command: list[str], server: ServerProcess) -> Iterator[IO[str]]:
    """Run a program beside the server, and yield what it prints."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=server.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        with process.stdout as printed:
            yield printed
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.parametrize(("heading", "shell"), [("curl", True), ("Python", False)])
def test_the_lines_for_a_terminal_run_as_they_stand(heading: str, shell: bool, start_server: Start) -> None:
    server = add_ann(start_server())
    code = example(heading, server)
    command = ["sh", "-c", code] if shell else [sys.executable, "-c", code]
    with running(command, server) as printed, server.publisher() as publisher:
        wait_for_connections(server, 1)
        alert(publisher)
        assert any("risk_alert" in line for line in printed)


def test_the_commands_run_as_they_stand(start_server: Start) -> None:
    server = add_ann(start_server())
    listen, publish = example("The command line", server).splitlines()
    with running(["sh", "-c", listen.replace("python ", f"exec {sys.executable} ")], server) as printed:
        wait_for_connections(server, 1)
        subprocess.run(
            ["sh", "-c", publish.replace("python ", f"{sys.executable} ")],
            cwd=ROOT,
            env=server.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert any("risk_alert" in line for line in printed)


@pytest.mark.browser
@pytest.mark.parametrize("heading", ["A plain EventSource", "sse-client, the browser module"])
def test_the_lines_for_a_page_run_as_they_stand(heading: str, chrome: Chrome, serve: Start) -> None:
    server = add_ann(serve())
    page = chrome.context.new_page()
    page.goto(f"{chrome.origin}/plain.html")
    page.add_script_tag(content=f"{example(heading, server)}\n{NAMES}", type="module")
    with server.publisher() as publisher:
        wait_for_connections(server, 1)
        alert(publisher)
        page.wait_for_function("log.length === 1")


@pytest.mark.browser
@pytest.mark.node
def test_the_lines_for_vue_run_as_they_stand(chrome: Chrome, serve: Start, built: str) -> None:
    server = add_ann(serve())
    tab = open_vue(chrome, server)
    code = f"{example('Vue 3', server)}\n{NAMES}\nlog.push({{ kind: 'ready', alerts }});"
    tab.page.add_script_tag(content=code, type="module")
    with server.publisher() as publisher:
        tab.wait("log.some((entry) => entry.kind === 'ready')")
        wait_for_connections(server, 1)
        tab.wait("navigator.locks.query().then(({ held }) => held.length >= 2)")
        alert(publisher)
        tab.wait("log.find((entry) => entry.kind === 'ready').alerts.value.length === 1")
