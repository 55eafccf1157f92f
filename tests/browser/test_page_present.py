"""The view of a channel in a real Chromium: who is on it, as it changes."""

from __future__ import annotations

import httpx
import pytest
from playwright.sync_api import Browser

from tests.support.browser import Start
from tests.support.people import Ear
from tests.support.visitors import live, people, tab_to, visitor

pytestmark = pytest.mark.browser


@pytest.mark.ci
def test_it_shows_who_is_on_a_channel_as_they_come_and_leave(chromium: Browser, start_server: Start) -> None:
    channels = ["dashboard", "alerts", {"pattern": "ticker", "public": True}, "desk.*"]
    server = start_server(CHANNELS=channels)
    people(server)

    def enter(subject: str, channels: str = "alerts") -> Ear:
        return Ear(server, channels, server.stream_token("**", subject=subject))

    ears = [enter("ann"), enter("ann"), enter("bob", "alerts,ticker")]
    with (
        httpx.stream("GET", f"{server.url}/api/v1/sse/ticker", timeout=60) as stream,
        visitor(chromium, server) as boss,
    ):
        page = boss.open("/admin")
        live(page)
        page.click("a[title='Who is on it']:text-is('alerts')")
        page.wait_for_selector("[data-present=alerts]:has-text('alerts: 2 users, 3 streams')")
        rows = [row.split()[:2] for row in page.locator("tr[data-user]").all_inner_texts()]
        assert rows == [["ann", "2"], ["bob", "1"]]
        ears.append(enter("carl"))
        page.wait_for_selector("tr[data-user=carl]")
        ears[2].leave()
        page.wait_for_selector("tr[data-user=bob]", state="detached")

        page.fill("section[aria-labelledby=present-title] input", "ticker")
        page.keyboard.press("Enter")
        page.wait_for_selector(
            "[data-present=ticker]:has-text('0 users, 1 stream, 1 of them without a token')"
        )
        page.fill("section[aria-labelledby=present-title] input", "nowhere")
        page.keyboard.press("Enter")
        page.wait_for_selector("section[aria-labelledby=present-title] [role=alert]:has-text('nowhere')")
        boss.trouble.clear()  # the browser notes the 404
        page.fill("section[aria-labelledby=present-title] input", "desk.one")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-present='desk.one']:has-text('0 users, 0 streams')")
        tab_to(page, "Stop")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-present='']", state="attached")
        stream.close()
    for ear in ears:
        ear.leave()
