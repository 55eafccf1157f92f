"""What axe finds on either page, in light and dark, wide and narrow: nothing. And the keyboard reaches everything."""

from __future__ import annotations

from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import Start
from tests.support.npm import installed_modules
from tests.support.visitors import Market, live, people, visitor, wait_for_chart

pytestmark = [pytest.mark.browser, pytest.mark.node]

SCHEMES: list[tuple[Literal["light", "dark"], dict[str, object]]] = [
    ("light", {}),
    ("dark", {"runOnly": ["color-contrast", "link-in-text-block"]}),
]
SIZES = [{"width": 1440, "height": 900}, {"width": 390, "height": 844}]


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, of the version in the lock."""
    return (installed_modules() / "axe-core/axe.min.js").read_text()


def check(page: Page, axe: str, what: str) -> None:
    """Have axe look at the page as it is; in dark at its colours alone, for nothing else depends on the scheme."""
    page.evaluate(axe)  # the page's policy lets no script in; this is the debugger's way
    for scheme, rules in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(f"matchMedia('(prefers-color-scheme: {scheme})').matches")
        found = page.evaluate("(rules) => axe.run({ resultTypes: ['violations'], ...rules })", rules)[
            "violations"
        ]
        nodes = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
        assert nodes == [], (what, scheme)


@pytest.mark.long
def test_axe_finds_nothing_on_either_page_in_light_and_dark(
    chromium: Browser, start_server: Start, axe: str
) -> None:
    quotes = {"pattern": "quotes", "conflate": "symbol"}
    server = start_server(DEMO=True, CHANNELS=["dashboard", "alerts", "training", "backtest", quotes])
    people(server)
    market = Market(server)
    with visitor(chromium, server, reduced_motion="reduce") as boss:
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
        for symbol, change in (("up", 0.1), ("down", -0.1)):
            data = {"symbol": symbol, "price": 1, "change": change}
            market.publish({"channel": "quotes", "event": "quote", "data": data})
            realtime.wait_for_selector(f"#quotes [data-symbol={symbol}]")
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
        admin.click("a[title='Who is on it'] >> nth=0")
        admin.wait_for_selector("[data-user=admin]")
        check(admin, axe, "who is on a channel")
        users = boss.open("/admin#users")
        live(users)
        users.wait_for_selector("tr[data-user=ann]")
        for size in SIZES:
            users.set_viewport_size(size)  # type: ignore[arg-type]
            check(users, axe, f"users, {size['width']} wide")
        users.click("text=Add a user…")
        users.fill("dialog input[name=name]", "ann")
        users.click("dialog button[type=submit]")
        users.wait_for_selector("dialog [role=alert]:has-text('exists')")
        check(users, axe, "form")
        boss.trouble.clear()  # the browser notes the refusal
        admin.click("button:has-text('Kick') >> nth=0")
        admin.wait_for_selector("dialog[open]")
        check(admin, axe, "dialog")
    with visitor(chromium, server) as ann:
        check(ann.open("/admin", "ann"), axe, "refusal")


@pytest.mark.ci
def test_axe_finds_nothing_on_the_servers_own_page(chromium: Browser, start_server: Start, axe: str) -> None:
    server = start_server()
    with visitor(chromium, server) as stranger:
        page = stranger.context.new_page()
        page.goto(f"{server.url}/")
        page.wait_for_selector(".state [data-title]:text-is('Ready')")
        for size in SIZES:
            page.set_viewport_size(size)  # type: ignore[arg-type]
            check(page, axe, f"start page, {size['width']} wide")


@pytest.mark.long
def test_nothing_that_can_be_pressed_is_out_of_the_keyboards_reach(
    chromium: Browser, start_server: Start
) -> None:
    server = start_server(DEMO=True)
    people(server)
    with visitor(chromium, server) as boss:
        for path, rows in (("/", ""), ("/admin", "[data-connection]"), ("/admin#users", "tr[data-user=ann]")):
            page = boss.open(path)
            live(page)
            if rows:
                page.wait_for_selector(rows)
            page.evaluate(NUMBER_THE_CONTROLS)
            for _ in range(12):
                for _ in range(10):  # 120 are more than there are, so that it goes round
                    page.keyboard.press("Tab")
                    if page.evaluate(IN_ROWS):
                        for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp"):
                            page.keyboard.press(key)
                if not (missed := page.evaluate(NOT_REACHED)):
                    break
            assert missed == [], path


NUMBER_THE_CONTROLS = """() => {
  const controls = document.querySelectorAll("a, button, input, select, textarea");
  const shown = [...controls].filter((each) => each.checkVisibility() && !each.disabled);
  shown.forEach((each, number) => (each.dataset.control = String(number)));
  document.addEventListener("focusin", ({ target }) => (target.dataset.reached = ""));
}"""

IN_ROWS = "document.activeElement.closest('tbody') !== null"

NOT_REACHED = """[...document.querySelectorAll("[data-control]:not([data-reached])")]
  .map((each) => each.outerHTML)"""
