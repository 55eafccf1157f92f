"""The admin dashboard of several workers in a real Chromium: one server, and who of them has what."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from tests.support.fleet import Fleet
from tests.support.visitors import live, people, stream_paths, visitor, wait_for_chart
from tests.support.waiting import until
from tests.support.worker_processes import WorkerProcess, worker_processes

pytestmark = pytest.mark.browser


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[list[WorkerProcess]]:
    with worker_processes(3, tmp_path / "state", expected=("worker_silent", "login_refused")) as workers:
        people(workers[0])
        yield workers


def tables(page: Page) -> str:
    return page.inner_text("table.counts:has(caption:text-is('Workers'))")


def picture(page: Page, name: str) -> None:
    """Keep a picture where the one who runs the tests asks for it."""
    if folder := os.environ.get("PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.slow
def test_the_dashboard_shows_all_workers_kicks_on_any_and_names_one_that_hangs(
    chromium: Browser, workers: list[WorkerProcess]
) -> None:
    with ExitStack() as stack:
        fleets = []
        for worker, count in zip(workers, (2, 5, 9), strict=True):
            fleet = Fleet(worker.port)
            stack.callback(fleet.close)
            paths = stream_paths(worker, count, users=count)
            fleet.open(count, paths.__getitem__)
            fleets.append(fleet)
        boss = stack.enter_context(visitor(chromium, workers[0]))
        page = boss.open("/admin")
        live(page)
        wait_for_chart(page, "streams", 3)
        page.wait_for_selector("[data-number=Streams]:text-is('17')")
        rows = page.locator("table.counts:has(caption:text-is('Workers')) tbody tr")
        assert [row.split()[:2] for row in rows.all_inner_texts()] == [["1", "3"], ["2", "5"], ["3", "9"]]
        page.wait_for_selector("[data-number=Users]:text-is('10')")
        page.wait_for_selector("[data-connection]")
        # The list was asked for before the last streams may have come.
        page.click("button:has-text('Refresh')")
        page.wait_for_selector("[data-found]:has-text('17 open')")
        picture(page, "workers")
        page.click("a[title='Who is on it']:text-is('alerts')")
        page.wait_for_selector("[data-present=alerts]:has-text('9 users, 16 streams')")
        page.select_option("select[name=field]", "worker")
        page.fill("input[name=search]", "3")
        page.wait_for_selector("[data-found]:has-text('9 found')")
        page.click("button[aria-label='Kick desk-00004 of user-04']")
        page.wait_for_selector("dialog[open]")
        page.click("dialog[open] button:has-text('Kick')")
        page.wait_for_selector("[data-said]:has-text('Kicked: 1 stream ended.')")
        page.wait_for_selector("[data-found]:has-text('8 found')")
        page.select_option("select[name=field]", "")
        page.fill("input[name=search]", "")
        process = workers[1].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            page.wait_for_selector(".pill:has-text('Worker 2 does not answer')")
            page.wait_for_selector(
                "[role=alert]:has-text('Worker 2 does not answer: what is connected')", timeout=20_000
            )
            assert "no answer" in tables(page)
            page.wait_for_selector("[role=alert]:has-text('Worker 2 does not answer: who is connected')")
            picture(page, "workers-silent")
        finally:
            process.send_signal(signal.SIGCONT)
        page.wait_for_selector(".pill:has-text('Worker 2 does not answer')", state="detached")
        page.set_viewport_size({"width": 390, "height": 844})
        # The charts are fitted to their new width in one of the frames that follow.
        fits = "document.documentElement.scrollWidth <= innerWidth"
        until(lambda: page.evaluate(fits), "the page fits into its window")
        picture(page, "workers-narrow")
