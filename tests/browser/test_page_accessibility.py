"""What axe finds on either page, in light and dark, wide and narrow: nothing. And the keyboard reaches everything."""

from __future__ import annotations

from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.test_page_realtime import Market
from tests.support.browser import Start
from tests.support.npm import installed_modules
from tests.support.visitors import live, people, visitor, wait_for_chart

pytestmark = [pytest.mark.browser, pytest.mark.node]

SIZES = [{"width": 1440, "height": 900}, {"width": 390, "height": 844}]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, of the version in the lock."""
    return (installed_modules() / "axe-core/axe.min.js").read_text()


def check(page: Page, axe: str, what: str) -> None:
    """Have axe look at the page as it is."""
    page.evaluate(axe)  # the page's policy lets no script in; this is the debugger's way
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    assert found == [], (what, [(each["id"], [node["html"] for node in each["nodes"]]) for each in found])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_on_either_page(
    chromium: Browser, start_server: Start, axe: str, scheme: Literal["light", "dark"]
) -> None:
    server = start_server()
    people(server)
    market = Market(server)
    with visitor(chromium, server, scheme, reduced_motion="reduce") as boss:
        page = boss.context.new_page()
        for path in ("/", "/admin"):
            page.goto(f"{server.url}{path}")
            page.wait_for_selector("body[data-view=login]")
            check(page, axe, f"login at {path}")
        realtime = boss.open("/")
        live(realtime)
        market.trade(3)
        market.alert()
        market.run(50)
        wait_for_chart(realtime, "equity", 1)
        realtime.wait_for_selector("[data-unread]:not([hidden])")
        admin = boss.open("/admin")
        live(admin)
        wait_for_chart(admin, "streams", 2)
        admin.fill("section[aria-labelledby=history-title] input[name=channel]", "dashboard")
        admin.click("section[aria-labelledby=history-title] button:has-text('Show')")
        admin.wait_for_selector(".events li")
        for size in SIZES:
            for name, each in (("realtime page", realtime), ("admin dashboard", admin)):
                each.set_viewport_size(size)  # type: ignore[arg-type]
                check(each, axe, f"{name}, {size['width']} wide")
        admin.click("button:has-text('Kick') >> nth=0")
        admin.wait_for_selector("dialog[open]")
        check(admin, axe, "dialog")
    with visitor(chromium, server, scheme) as ann:
        check(ann.open("/admin", "ann"), axe, "refusal")


def test_nothing_that_can_be_pressed_is_out_of_the_keyboards_reach(
    chromium: Browser, start_server: Start
) -> None:
    server = start_server()
    people(server)
    with visitor(chromium, server) as boss:
        for path in ("/", "/admin"):
            page = boss.open(path)
            live(page)
            if path == "/admin":
                page.wait_for_selector("[data-connection]")
            page.evaluate(NUMBER_THE_CONTROLS)
            reached: set[str] = set()
            for _ in range(120):  # more than there are, so that it goes round
                page.keyboard.press("Tab")
                reached.add(page.evaluate("document.activeElement.dataset.control ?? ''"))
            missed = page.evaluate(CONTROLS_BUT, sorted(reached))
            assert missed == [], path


NUMBER_THE_CONTROLS = """() => {
  const controls = document.querySelectorAll("a, button, input, select, textarea");
  const shown = [...controls].filter((each) => each.checkVisibility() && !each.disabled);
  shown.forEach((each, number) => (each.dataset.control = String(number)));
}"""

CONTROLS_BUT = """(reached) => [...document.querySelectorAll("[data-control]")]
  .filter((each) => each.isConnected && !reached.includes(each.dataset.control))
  .map((each) => each.outerHTML)"""
