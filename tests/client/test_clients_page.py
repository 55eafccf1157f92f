"""What docs/clients.md shows runs as it stands."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
from playwright.sync_api import Page

from tests.support.browser import Chrome, Start, open_vue, wait_for_connections
from tests.support.server_process import ROOT, ServerProcess
from tests.support.waiting import until

NAMES = "const show = (...all) => log.push({ kind: 'shown', all });"


def example(heading: str, server: ServerProcess, host: str = "127.0.0.1") -> str:
    """Return the code below a heading, for this server by that name."""
    page = (ROOT / "docs/clients.md").read_text()
    section = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return str(code).replace("http://localhost:8000", f"http://{host}:{server.port}")


def add_ann(server: ServerProcess) -> ServerProcess:
    """Make the user whom the page speaks of."""
    server.add_user("ann", "correct horse battery", subscribe="dashboard,alerts", publish="alerts")
    return server


def alert(publisher: httpx.Client, number: int) -> None:
    """Publish a risk alert."""
    data = {"severity": "low", "number": number}
    answer = publisher.post("/api/v1/sse/alerts", json={"event": "risk_alert", "data": data})
    assert answer.status_code == 201, answer.text


@contextmanager
def running(command: list[str], server: ServerProcess, cwd: Path = ROOT) -> Iterator[IO[str]]:
    """Run a program beside the server, and yield what it prints."""
    path = os.pathsep.join([str(ROOT), server.environment.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=server.environment | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path},
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


HOSTS = [pytest.param("127.0.0.1", marks=pytest.mark.slow), "localhost"]
"""The server's names: to a page on ``localhost`` the first is another site, the second its own."""


def lifetimes(long: bool) -> dict[str, int]:
    """Return settings with which tokens expire while a test runs."""
    access, stream = (20, 8) if long else (4, 2)
    return {"AUTH__ACCESS_LIFETIME": access, "AUTH__STREAM_LIFETIME": stream}


def numbered_alerts(server: ServerProcess, seconds: float) -> int:
    """Publish a numbered alert every half second for so long, and return how many."""
    begun, number = time.monotonic(), 0
    headers = {"Authorization": f"Bearer {server.access_token(ttl=seconds + 300)}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=30) as publisher:
        while time.monotonic() - begun < seconds:
            number += 1
            alert(publisher, number)
            time.sleep(0.5)
    return number


def refreshes(server: ServerProcess) -> int:
    """Return how often a login was refreshed; a browser's is once at the login, to see whether it has the cookie."""
    return [line["event"] for line in server.log_lines()].count("refresh")


def assert_tokens_were_replaced(server: ServerProcess, seconds: float, before: int = 0) -> None:
    """Assert that the login was refreshed about as often as its access token came to its end.

    Args:
        server: its log has them.
        seconds: how long ago it was counted.
        before: how many there were then.
    """
    count = refreshes(server) - before
    print(f"{count} refreshes")
    assert count > seconds / lifetimes(seconds > 60)["AUTH__ACCESS_LIFETIME"] / 2


DURATIONS = [
    pytest.param(6, id="six seconds"),
    pytest.param(600, id="ten minutes", marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", DURATIONS)
@pytest.mark.parametrize(
    ("heading", "shell"), [("curl", True), ("Python", False), ("Python without asyncio", False)]
)
def test_the_lines_for_a_terminal_run_as_they_stand_and_outlive_their_tokens(
    heading: str, shell: bool, seconds: float, start_server: Start, tmp_path: Path
) -> None:
    server = add_ann(start_server(**lifetimes(seconds > 60)))
    code = example(heading, server)
    command = ["sh", "-c", code] if shell else [sys.executable, "-c", code]
    with running(command, server, cwd=tmp_path) as printed:
        wait_for_connections(server, 1)
        count = numbered_alerts(server, seconds)
        numbers: list[int] = []
        while numbers[-1:] != [count]:
            line = next(printed)
            numbers += map(int, re.findall(r"[\"']number[\"']: ?(\d+)", line))
        assert numbers == list(range(1, count + 1))
    assert_tokens_were_replaced(server, seconds)


@pytest.mark.slow
def test_the_lines_for_a_text_run_as_they_stand(start_server: Start) -> None:
    server = start_server()
    shell = ["/bin/bash", "-ec", example("Fragments, tokens, lines: any text", server)]
    shell[2] = shell[2].replace("venv/bin/sse-app", f"{sys.executable} main.py")
    subprocess.run(shell, cwd=ROOT, env=server.environment, check=True, stdout=subprocess.DEVNULL)
    with server.publisher() as http:
        events = http.get("/api/v1/sse/alerts/history").json()["events"]
    assert [(event["event"], event["data"]) for event in events] == [
        ("token", "Hello,"),
        ("token", " world"),
        ("token", "."),
    ]
    url = server.stream_url("alerts", server.stream_token("alerts"))
    assert httpx.get(url).status_code == 204


@pytest.mark.long
def test_the_lines_for_beginnings_and_presence_run_as_they_stand(start_server: Start) -> None:
    server = start_server()
    code = example("Where a stream begins, and what it carries", server) + example(
        "Who is on a channel", server
    )
    shell = ["/bin/bash", "-ec", code.replace("venv/bin/sse-app", f"{sys.executable} main.py")]
    done = subprocess.run(shell, cwd=ROOT, env=server.environment, check=True, capture_output=True, text=True)
    texts = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert ['"first"' in texts[0], '"any JSON"' in texts[1], '"last"' in texts[2]] == [True] * 3
    assert "data: # sse_app\ndata: \n" in done.stdout
    assert "event: closing\n" in done.stdout
    assert "the channels have ended" in done.stderr


@pytest.mark.slow
def test_the_commands_run_as_they_stand(start_server: Start) -> None:
    server = add_ann(start_server())
    listen, publish = example("The command line", server).splitlines()
    with running(
        ["sh", "-c", listen.replace("venv/bin/sse-app", f"exec {sys.executable} main.py")], server
    ) as printed:
        wait_for_connections(server, 1)
        subprocess.run(
            ["sh", "-c", publish.replace("venv/bin/sse-app", f"{sys.executable} main.py")],
            cwd=ROOT,
            env=server.environment,
            check=True,
            capture_output=True,
            timeout=60,
        )
        assert any("risk_alert" in line for line in printed)


SHOWN = "log.filter((entry) => entry.kind === 'shown').map((entry) => JSON.stringify(entry.all))"
"""What a page has shown."""


def numbers_shown(page: Page, count: int) -> list[int]:
    """Wait until a page has shown the last alert, and return the numbers of all that it has shown."""
    last = f'"number":{count}'
    page.wait_for_function(f"{SHOWN}.some((text) => /{last}\\b/.test(text))", timeout=60_000)
    return [int(number) for number in re.findall(r'"number":(\d+)', "".join(page.evaluate(SHOWN)))]


@pytest.mark.browser
@pytest.mark.parametrize("seconds", DURATIONS)
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("heading", ["A plain EventSource", "sse-client, the browser module"])
def test_the_lines_for_a_page_run_as_they_stand_and_outlive_their_tokens(
    heading: str, host: str, seconds: float, chrome: Chrome, serve: Start
) -> None:
    server = add_ann(serve(**lifetimes(seconds > 60)))
    page = chrome.context.new_page()
    page.goto(f"{chrome.origin}/plain.html")
    page.add_script_tag(content=f"{example(heading, server, host)}\n{NAMES}", type="module")
    wait_for_connections(server, 1)
    before = refreshes(server)
    count = numbered_alerts(server, seconds)
    assert numbers_shown(page, count) == list(range(1, count + 1))
    assert_tokens_were_replaced(server, seconds, before)
    kept = [
        cookie.get("httpOnly")
        for cookie in chrome.context.cookies(f"http://{host}:{server.port}/api/v1/auth")
    ]
    assert kept == ([True] if host == "localhost" else [])


@pytest.mark.browser
@pytest.mark.parametrize("host", HOSTS)
def test_the_lines_for_a_login_run_as_they_stand(host: str, chrome: Chrome, serve: Start) -> None:
    server = add_ann(serve())
    code = f"{NAMES}\n{example('The login of a page', server, host)}\nlog.push({{ kind: 'ready' }});"
    page = chrome.context.new_page()
    page.goto(f"{chrome.origin}/plain.html")
    logins = []
    page.on("request", lambda request: logins.append(request.url.endswith("/login")))
    for _ in range(2):
        page.add_script_tag(content=code, type="module")
        page.wait_for_function("log.some((entry) => entry.kind === 'ready')", timeout=60_000)
        assert "ann" in page.evaluate(SHOWN)[0]
        page.reload()
    assert logins.count(True) == (1 if host == "localhost" else 2)


@pytest.mark.ci
@pytest.mark.browser
@pytest.mark.parametrize(
    "heading", [pytest.param("A plain EventSource", marks=pytest.mark.slow), "sse-client, the browser module"]
)
def test_the_lines_for_a_page_say_that_a_session_has_ended(
    heading: str, chrome: Chrome, serve: Start
) -> None:
    server = add_ann(serve(**lifetimes(False)))
    page = chrome.context.new_page()
    page.goto(f"{chrome.origin}/plain.html")
    page.add_script_tag(content=f"{example(heading, server, 'localhost')}\n{NAMES}", type="module")
    wait_for_connections(server, 1)
    server.command("user", "disable", "ann")
    page.wait_for_function(f"{SHOWN}.some((text) => text.includes('log in again'))", timeout=60_000)
    page.wait_for_function(f"{SHOWN}.some((text) => text.includes('the stream is over'))", timeout=60_000)
    assert len([text for text in page.evaluate(SHOWN) if "log in again:" in text]) == 1


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.node
@pytest.mark.parametrize("seconds", DURATIONS)
@pytest.mark.parametrize("host", ["localhost", pytest.param("127.0.0.1", marks=pytest.mark.long)])
def test_the_lines_for_vue_run_as_they_stand_and_outlive_their_tokens(
    host: str, seconds: float, chrome: Chrome, serve: Start, built: str
) -> None:
    server = add_ann(serve(**lifetimes(seconds > 60)))
    tab = open_vue(chrome, server)
    code = f"{example('Vue 3', server, host)}\n{NAMES}\nlog.push({{ kind: 'ready', alerts }});"
    tab.page.add_script_tag(content=code, type="module")
    tab.wait("log.some((entry) => entry.kind === 'ready')")
    wait_for_connections(server, 1)
    before = refreshes(server)
    tab.wait("navigator.locks.query().then(({ held }) => held.length >= 3)")
    count = numbered_alerts(server, seconds)
    tab.wait(f"log.find((entry) => entry.kind === 'ready').alerts.value.length === {min(count, 50)}")
    newest = "log.find((entry) => entry.kind === 'ready').alerts.value.map(({ number }) => number)"
    assert sorted(tab.run(newest)) == list(range(max(0, count - 50) + 1, count + 1))
    assert_tokens_were_replaced(server, seconds, before)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.node
def test_all_streams_of_the_page_with_vue_end_as_kicked(chrome: Chrome, serve: Start, built: str) -> None:
    """One is told so as it ends; the other one is refused a token, and the page's own function must say why."""
    server = add_ann(serve())
    tab = open_vue(chrome, server)
    tab.page.add_script_tag(content=f"{example('Vue 3', server, 'localhost')}\n{NAMES}", type="module")
    wait_for_connections(server, 1)
    tab.wait("navigator.locks.query().then(({ held }) => held.length >= 3)")
    headers = {"Authorization": f"Bearer {server.access_token(admin=True)}"}
    listed: list[dict[str, Any]] = []

    def has_both() -> bool:
        listed[:] = httpx.get(f"{server.url}/api/v1/admin/connections", headers=headers).json()["connections"]
        return [len(one["channels"]) for one in listed] == [2]

    until(has_both, "one stream carries both channels")
    url = f"{server.url}/api/v1/admin/connections/{listed[0]['connection']}/kick"
    assert httpx.post(url, headers=headers).status_code == 200
    tab.wait(f"{SHOWN}.filter((text) => text.includes('kicked')).length === 2")
    assert not any('"token"' in text for text in tab.page.evaluate(SHOWN))
