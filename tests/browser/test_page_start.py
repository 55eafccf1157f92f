"""The server's own page in a real Chromium: it shows the public status, and goes on over a restart."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page

from sse_app.version import VERSION
from tests.support.browser import PATIENCE, Chrome, Start, publish, wait_for_connections
from tests.support.people import Ear
from tests.support.visitors import visitor

pytestmark = pytest.mark.browser


LOOKED_AT = "document.dispatchEvent(new Event('visibilitychange'))"
"""Has the page look at once, as when it comes to the front."""


def says(page: Page, title: str) -> None:
    page.wait_for_selector(f".state [data-title]:text-is('{title}')")


@pytest.mark.slow
def test_it_shows_the_status_and_goes_on_over_a_restart(chromium: Browser, start_server: Start) -> None:
    server = start_server(CHANNELS=["orders", "alerts", "user.**"])
    with visitor(chromium, server) as stranger, server.publisher() as publisher:
        publish(publisher, 3, "orders")
        ear = Ear(server, "alerts", server.stream_token("alerts"))
        page = stranger.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{server.url}/")
        says(page, "Ready")
        assert page.inner_text("[data-figure=version]") == VERSION
        assert page.inner_text("[data-figure=streams]") == "1"
        rows = [row.split()[:3] for row in page.locator("[data-channels] tr").all_inner_texts()]
        assert rows == [["orders", "0", "3"], ["alerts", "1", "0"]]
        assert "sse-app listen orders" in page.inner_text("pre >> nth=0")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "content"
        ear.leave()
        for change, title in ((server.kill, "No answer"), (server.start, "Ready")):
            change()
            page.evaluate(LOOKED_AT)
            says(page, title)
        page.wait_for_selector("[data-figure=streams]:text-is('0')")


@pytest.mark.long
def test_the_script_on_it_runs_as_it_stands_in_a_page_elsewhere(chrome: Chrome, serve: Start) -> None:
    server = serve(CHANNELS=["orders", "alerts"])
    server.add_user("ann", "correct horse battery", subscribe="orders")
    page = chrome.context.new_page()
    page.goto(f"{server.url}/")
    page.wait_for_selector("pre:has-text('orders')")
    script = page.inner_text("pre >> nth=1").replace('"…"', '"correct horse battery"')
    assert f'"{server.url}/static/sse-client.js"' in script
    page.goto(f"{chrome.origin}/nothing.html")
    with page.expect_console_message(lambda message: "test" in message.text, timeout=PATIENCE) as heard:
        page.add_script_tag(content=script, type="module")
        wait_for_connections(server, 1)
        with server.publisher() as publisher:
            publish(publisher, channel="orders", event="test")
    assert heard.value.args[1].json_value()["channel"] == "orders"
