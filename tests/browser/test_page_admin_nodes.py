"""The admin dashboard of several machines in a real Chromium: one server, and which node has what."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from sse_app.auth.accounts.passwords import hash_password
from sse_app.auth.factory import make_auth_store
from sse_app.auth.records import Account
from sse_app.auth.tokens.grants import Grants
from sse_app.storage.postgres.database import Database
from sse_app.storage.state_dir import StateDirectory
from tests.support.fleet import Fleet
from tests.support.node_processes import node_processes
from tests.support.server_process import ServerProcess
from tests.support.visitors import CHANNELS, PASSWORD, live, stream_paths, visitor, wait_for_chart
from tests.support.waiting import until

pytestmark = pytest.mark.browser


@pytest.fixture
def nodes(tmp_path: Path, database_url: str) -> Iterator[Sequence[ServerProcess]]:
    with node_processes(tmp_path, database_url, expected=("node_silent", "login_refused")) as nodes:
        with ThreadPoolExecutor(1) as thread:  # the one of the browser has an event loop
            thread.submit(asyncio.run, _add_admin(nodes[0].state_dir, database_url)).result()
        yield nodes


async def _add_admin(state_dir: Path, url: str) -> None:
    store = make_auth_store(StateDirectory(state_dir), Database(url))
    await store.open()
    try:
        grants = Grants.of(CHANNELS.split(","), [], admin=True)
        assert await store.add_account(Account("admin", grants, disabled=False), hash_password(PASSWORD))
    finally:
        await store.close()


def picture(page: Page, name: str) -> None:
    """Keep a picture where the one who runs the tests asks for it."""
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.long
def test_the_dashboard_shows_the_nodes_of_all_machines_kicks_on_any_and_names_one_that_hangs(
    chromium: Browser, nodes: Sequence[ServerProcess]
) -> None:
    with ExitStack() as stack:
        for node, count in zip(nodes, (2, 5, 9), strict=True):
            fleet = Fleet(node.port)
            stack.callback(fleet.close)
            fleet.open(count, stream_paths(node, count, users=count).__getitem__)
        boss = stack.enter_context(visitor(chromium, nodes[0]))
        page = boss.open("/admin")
        live(page)
        wait_for_chart(page, "streams", 3)
        page.wait_for_selector("[data-number=Streams]:text-is('17')")
        rows = page.locator("table.counts:has(caption:text-is('Nodes')) tbody tr")
        found = [row.split()[:2] for row in rows.all_inner_texts()]
        assert found == [["web2.1", "3"], ["web2.2", "5"], ["web10", "9"]]
        page.click("button:has-text('Refresh')")
        page.wait_for_selector("[data-found]:has-text('17 open')")
        page.click("th button:text-is('Node')")
        page.wait_for_selector("tr[data-connection]:first-child td:has-text('web2.1')")
        picture(page, "nodes")
        page.click("a[title='Who is on it']:text-is('alerts')")
        page.wait_for_selector("[data-present=alerts]:has-text('9 users, 16 streams')")
        page.select_option("select[name=field]", "node")
        page.fill("input[name=search]", "web10")
        page.wait_for_selector("[data-found]:has-text('9 found')")
        page.click("button[aria-label='Kick desk-00004 of user-04']")
        page.wait_for_selector("dialog[open]")
        page.click("dialog[open] button:has-text('Kick')")
        page.wait_for_selector("[data-said]:has-text('Kicked: 1 stream ended.')")
        page.wait_for_selector("[data-found]:has-text('8 found')")
        page.select_option("select[name=field]", "")
        page.fill("input[name=search]", "")
        process = nodes[2].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            page.wait_for_selector(".pill:has-text('Node web10 does not answer')")
            page.wait_for_selector(
                "[role=alert]:has-text('Node web10 does not answer: what is connected')", timeout=20_000
            )
            assert "no answer" in page.inner_text("table.counts:has(caption:text-is('Nodes'))")
            picture(page, "nodes-silent")
        finally:
            process.send_signal(signal.SIGCONT)
        page.wait_for_selector(".pill:has-text('Node web10 does not answer')", state="detached")
        page.set_viewport_size({"width": 390, "height": 844})
        fits = "document.documentElement.scrollWidth <= innerWidth"
        until(lambda: page.evaluate(fits), "the page fits into its window")
        picture(page, "nodes-narrow")
