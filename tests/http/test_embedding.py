"""The handlers mounted in somebody else's Tornado application, and the package installed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from tornado import web
from tornado.httpclient import AsyncHTTPClient
from tornado.ioloop import IOLoop

from sse_app import InvalidInput, Settings, SSEApp, StateError, UnknownChannel
from tests.support.server_process import ROOT
from tests.support.sse_reader import EventStreamReader


class Hello(web.RequestHandler):
    """Somebody's own page."""

    def get(self) -> None:
        self.write("hello")


@pytest.fixture
def app(sse: SSEApp) -> web.Application:
    """Somebody's own application around the streams."""
    return web.Application([*sse.routes(), ("/", Hello)])


@pytest.mark.gen_test
async def test_an_event_published_from_python_that_is_not_stored_has_no_id(tmp_path: Path) -> None:
    values: dict[str, Any] = {"channels": ["alerts", {"pattern": "cursors", "stored": False}]}
    sse = SSEApp(Settings(state_dir=tmp_path / "state", event_log="memory:", **values))
    await sse.start()
    try:
        assert await sse.publish("cursors", "move", {"x": 1}) is None
        events: list[dict[str, Any]] = [
            {"channel": name, "event": "e", "data": {}} for name in ("cursors", "alerts")
        ]
        nothing, id = await sse.publish_batch(events)
        assert nothing is None
        assert id is not None
    finally:
        await sse.stop()


@pytest.mark.gen_test
async def test_events_published_from_python_reach_a_stream_of_the_surrounding_application(
    http_client: AsyncHTTPClient, base_url: str, sse: SSEApp
) -> None:
    assert (await http_client.fetch(base_url + "/")).body == b"hello"
    token = sse.token("ann", subscribe=["alerts"], lifetime=60)
    first = await sse.publish("alerts", "risk_alert", MappingProxyType({"severity": "high"}))
    ids = await sse.publish_batch(
        [{"channel": "alerts", "event": "e", "data": MappingProxyType({"n": n})} for n in range(2)]
    )
    assert first is not None
    assert [id and id.seq for id in ids] == [first.seq + 1, first.seq + 2]

    async with httpx.AsyncClient() as client:
        url = f"{base_url}/api/v1/sse/alerts?token={token}&last_event_id={first.epoch}-0"
        async with client.stream("GET", url) as response:
            parser = EventStreamReader()
            events = []
            async for piece in response.aiter_bytes():
                events += parser.feed(piece)
                if len(events) == 4:
                    break
    assert [event.type for event in events] == ["connected", "risk_alert", "e", "e"]
    assert json.loads(events[1].data)["severity"] == "high"


@pytest.mark.gen_test
async def test_any_number_of_events_can_be_published_from_python_at_once(tmp_path: Path) -> None:
    limits: Any = {"connections": 8}  # those of others
    sse = SSEApp(Settings(state_dir=tmp_path / "state", limits=limits))
    await sse.start()
    try:
        ids = await asyncio.gather(*[sse.publish("alerts", "e", {"n": n}) for n in range(3000)])
        assert [id and id.seq for id in ids] == list(range(1, 3001))
    finally:
        await sse.stop()


@pytest.mark.gen_test
async def test_mistakes_from_python_are_told_by_name(sse: SSEApp) -> None:
    with pytest.raises(UnknownChannel, match="nowhere"):
        await sse.publish("nowhere", "e", {})
    with pytest.raises(InvalidInput, match="event"):
        await sse.publish("alerts", "bad\nevent", {})
    with pytest.raises(InvalidInput, match=r"events\[1\]\.data"):
        await sse.publish_batch(
            [{"channel": "alerts", "event": "e", "data": {}}, {"channel": "alerts", "event": "e"}]
        )
    assert sse.node.eventlog.head.seq == 0


def test_a_second_app_on_the_same_state_directory_is_refused(
    io_loop: IOLoop, sse: SSEApp, settings: Settings
) -> None:
    with pytest.raises(StateError, match="in use by another server"):
        SSEApp(settings)


@pytest.mark.long
def test_the_installed_package_serves_without_the_checkout(tmp_path: Path) -> None:
    copy = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "var", "bench", "*.egg-info", "build", "node_modules")
    shutil.copytree(ROOT, copy, ignore=ignored)
    venv.create(tmp_path / "venv", system_site_packages=False, with_pip=False)
    site = next((tmp_path / "venv/lib").glob("python*")) / "site-packages"
    own = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (site / "dependencies.pth").write_text(
        f"{own}\n"
    )  # the dependencies of this environment, nothing downloaded
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "--target",
            str(site),
            str(copy),
        ],
        check=True,
        timeout=120,
    )
    python = tmp_path / "venv/bin/python"
    process = subprocess.Popen(
        [
            python,
            "-m",
            "sse_app",
            "--port",
            "0",
            "--state-dir",
            str(tmp_path / "state"),
            "--set",
            "log.format=json",
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        url = json.loads(process.stderr.readline())["address"]
        page = httpx.get(url)
        assert page.status_code == 200
        assert httpx.get(f"{url}/static/main.js").status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert (site / "bin/sse-app").exists()
