"""What docs/migrating.md shows of the way from the old service runs as it stands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.browser import Chrome, Start, open_vue, wait_for_connections
from tests.support.ports import reserve_port
from tests.support.server_process import ROOT, clean_environment
from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import until

PASSWORD = "correct horse battery"
CHANNELS = "dashboard,alerts,training,backtest"
SEND = """
import asyncio
from sse_app.client import Session

async def main():
    async with (
        Session("{url}", "backend", "correct horse battery") as session,
        Publisher(session.url, session) as publisher,
    ):
        sent = Broadcaster(publisher)
        await sent.send_training_progress("t1", 40, "running", "epoch 4", {{"loss": 0.1}})
        await sent.send_backtest_progress("b1", 50.0, "running", "half", "2026-01-31")
        await sent.send_risk_alert(alert_type="var_exceeded", severity="high", message="over the limit")
        await sent.send_dashboard_update("metrics", {{"value": 7}})

asyncio.run(main())
"""


def example(heading: str) -> str:
    """Return the code below a heading."""
    page = (ROOT / "docs/migrating.md").read_text()
    section = page.partition(f"### {heading}\n")[2].partition("\n### ")[0]
    (code,) = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)
    return str(code)


@pytest.fixture
def old_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A server that was started by the lines of the page, in a directory of its own."""
    port = reserve_port(request.node)
    *users, serve = (
        line.replace("venv/bin/sse-app", "$PROGRAM") for line in example("1. Start the server").splitlines()
    )
    environment = clean_environment(
        PROGRAM=f"{sys.executable} {ROOT / 'main.py'}",
        SSE_APP_PORT=str(port),
        SSE_APP_CONFIG=str(ROOT / "config/sse_app.toml"),
        SSE_APP_STATE_DIR=str(tmp_path / "var"),
    )
    for line in users:
        command = ["sh", "-ec", f"{line} --password-stdin"]
        subprocess.run(
            command, env=environment, cwd=tmp_path, input=PASSWORD, text=True, check=True, timeout=60
        )
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["sh", "-ec", serve.replace("$PROGRAM", "exec $PROGRAM")],
            env=environment,
            cwd=tmp_path,
            stderr=log,
        )
        try:
            until(lambda: is_ready(url), f"{url} is ready")
            yield url
        finally:
            process.terminate()
            assert process.wait(60) == 0, (tmp_path / "log").read_text()


def is_ready(url: str) -> bool:
    """Return whether a server answers."""
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def send(url: str) -> None:
    """Have the broadcaster of the page send one event of each type."""
    program = example("2. Publish from the API") + SEND.format(url=url)
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


@pytest.mark.long
def test_what_the_old_service_sent_comes_on_one_stream_without_a_layer_of_data(old_service: str) -> None:
    login = {"username": "ann", "password": PASSWORD, "cookie": False}
    tokens = httpx.post(f"{old_service}/api/v1/auth/login", json=login).json()
    origin = {"Origin": "http://localhost:3020"}
    url = f"{old_service}/api/v1/sse/{CHANNELS}"
    with httpx.stream("GET", url, params={"token": tokens["stream_token"]}, headers=origin) as stream:
        assert stream.headers["Access-Control-Allow-Origin"] == "http://localhost:3020"
        reader, events = EventStreamReader(), []
        pieces = stream.iter_bytes()
        events += reader.feed(next(pieces))
        send(old_service)
        while len(events) < 5:
            events += reader.feed(next(pieces))
    sent = {event.type: json.loads(event.data) for event in events[1:]}
    assert sent["training_progress"]["task_id"] == "t1"
    assert sent["backtest_progress"]["current_date"] == "2026-01-31"
    assert sent["risk_alert"]["severity"] == "high"
    assert sent["dashboard_update"]["data"] == {"value": 7}
    assert {data["channel"] for data in sent.values()} == set(CHANNELS.split(","))


@pytest.mark.long
@pytest.mark.browser
@pytest.mark.node
def test_a_view_of_the_old_front_end_moves(chrome: Chrome, serve: Start, built: str) -> None:
    server = serve()
    server.add_user("ann", PASSWORD, subscribe=CHANNELS)
    server.add_user("backend", PASSWORD, publish=CHANNELS)
    tab = open_vue(chrome, server)
    code = example("3. The front end").replace("http://localhost:8000", server.url)
    shown = "window.view = { isConnected, metrics, updateType };"
    names = "const show = (...all) => log.push({ kind: 'shown', all });"
    tab.page.add_script_tag(content=f"{code}\n{names}\n{shown}", type="module")
    wait_for_connections(server, 1)
    tab.wait("window.view?.isConnected.value")
    send(server.url)
    tab.wait("window.view.metrics.value.value === 7")
    assert tab.run("window.view.updateType.value") == "metrics"
