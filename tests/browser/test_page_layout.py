"""What the eye meets on the pages, and the keyboard: labels apart, axes in one unit, buttons on a phone's screen."""

from __future__ import annotations

import re

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import Start
from tests.support.fleet import Fleet
from tests.support.people import bearer
from tests.support.visitors import Market, live, people, stream_paths, tab_to, visitor, wait_for_chart
from tests.support.waiting import until

pytestmark = pytest.mark.browser

WIDTHS = (1440, 1280, 1024, 768, 390)

RUN_TOGETHER = """() => {
  const boxes = [...document.querySelectorAll(".figures dt, .figures dd, .facts dt, .facts dd, th, figcaption, h2")]
    .filter((each) => each.checkVisibility() && each.textContent.trim())
    .map((each) => {
      const range = document.createRange();
      range.selectNodeContents(each);
      return { text: each.textContent.trim(), rect: range.getBoundingClientRect() };
    });
  const near = (one, other) =>
    Math.max(one.left, other.left) < Math.min(one.right, other.right) + 4 &&
    Math.max(one.top, other.top) < Math.min(one.bottom, other.bottom) - 2;
  const pairs = [];
  for (const [number, one] of boxes.entries()) {
    for (const other of boxes.slice(number + 1)) if (near(one.rect, other.rect)) pairs.push([one.text, other.text]);
  }
  return pairs;
}"""

FITS = "document.documentElement.scrollWidth <= innerWidth"

NOTE_DRAWN_TEXTS = """
window.drawn = new Map();
const fillText = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const name = this.canvas.closest("[data-chart]")?.dataset.chart;
  const at = this.getTransform().transformPoint({ x, y });
  const half = this.measureText(text).width / 2;
  if (!drawn.has(name)) drawn.set(name, []);
  drawn.get(name).push({ text, right: at.x + half, width: this.canvas.width });
  return fillText.apply(this, arguments);
};
"""

AXES = [
    (980_000, 1_060_000, 20_000, "M"),
    (950_000, 1_050_000, 50_000, "M"),
    (1_000_000, 1_004_000, 1_000, "M"),
    (800_000, 1_000_000, 50_000, "M"),
    (-250_000, 1_000_000, 250_000, "M"),
    (2_000_000_000, 4_000_000_000, 500_000_000, "B"),
    (700_000, 900_000, 50_000, "K"),
    (700_000, 702_000, 500, "K"),
    (990, 1010, 5, "K"),
    (1_000_000, 1_000_020, 5, "K"),
    (0, 1, 0.2, ""),
]
"""From where to where an axis goes, the step between two labels, and the unit that all of them are to have."""

LABELS = """async ([low, high, step]) => {
  const { axisMoney } = await import("/static/format.js");
  const ticks = [];
  for (let tick = low; tick <= high; tick += step) ticks.push(tick);
  return ticks.map((tick) => axisMoney(tick, step, Math.max(...ticks.map(Math.abs))));
}"""


CHART_OF_TIMES = """async () => {
  const { LineChart } = await import("/static/chart.js");
  const box = document.createElement("div");
  box.className = "chart";
  box.dataset.chart = "times";
  Object.assign(box.style, { width: "340px", height: "132px", flex: "none" });
  document.body.append(box);
  const text = String;
  const options = { label: "", lines: [{ name: "" }], formatTick: text, formatValue: text };
  const chart = new LineChart(box, { ...options, formatX: () => "17:41:00", xSteps: [5, 10, 60] });
  chart.show([...Array(121).keys()].map((x) => ({ x, label: "", y: [x] })));
}"""
"""Draws a chart as those of the dashboard, whose last point has a label."""


@pytest.mark.slow
def test_no_two_labels_run_together_at_any_width(chromium: Browser, start_server: Start) -> None:
    server = start_server(DEMO=True)
    people(server)
    market = Market(server)
    market.trade(2)
    metrics = {
        "date": "2020-03-01",
        "total_value": 1_000_000,
        "volatility": 83.5,
        "volatility_source": "realised",
    }
    metrics |= {
        "hedge_ratio": 0.5,
        "drawdown": 0.3,
        "value_at_risk": 0.02,
        "cash": 246_133,
        "index_close": 930.09,
    }
    data = {"update_type": "metrics", "data": metrics}
    market.publish({"channel": "dashboard", "event": "dashboard_update", "data": data})
    market.run(50)
    with visitor(chromium, server) as boss:
        page, admin = boss.open("/"), boss.open("/admin")
        live(page)
        page.wait_for_selector("dt:has-text('Volatility realised')")
        live(admin)
        wait_for_chart(admin, "streams", 2)
        for each in (page, admin):
            for width in WIDTHS:
                each.set_viewport_size({"width": width, "height": 900})
                assert each.evaluate(RUN_TOGETHER) == [], width
                until(lambda each=each: each.evaluate(FITS), f"nothing is wider than {width}")  # type: ignore[misc]


@pytest.mark.long
def test_an_axis_has_one_unit_and_no_label_twice_and_the_last_day_is_on_it_whole(
    chromium: Browser, start_server: Start
) -> None:
    server = start_server(DEMO=True)
    people(server)
    market = Market(server)
    with visitor(chromium, server) as ann:
        ann.context.add_init_script(NOTE_DRAWN_TEXTS)
        page = ann.open("/", "ann")
        live(page)
        for low, high, step, unit in AXES:
            labels = page.evaluate(LABELS, [low, high, step])
            assert len(set(labels)) == len(labels), labels
            assert {re.sub(r"[^A-Z]", "", label) for label in labels} == {unit}, labels
        for days in (1, 6, 31):
            last = market.trade(days)
            wait_for_chart(page, "drawdown", 0, last)
            for width in (1280, 390):
                page.set_viewport_size({"width": width, "height": 900})
                page.evaluate("drawn.clear()")
                page.set_viewport_size({"width": width + 1, "height": 900})
                until(lambda: page.evaluate("drawn.get('drawdown')?.length > 0"), "it is drawn")
                dates = [
                    each for each in page.evaluate("drawn.get('drawdown')") if each["text"].startswith("20")
                ]
                assert dates[-1]["text"] == last, (days, width)
                assert dates[-1]["right"] <= dates[-1]["width"], (days, width)


@pytest.mark.slow
def test_the_last_time_below_a_chart_is_whole(chromium: Browser, start_server: Start) -> None:
    server = start_server()
    with visitor(chromium, server) as stranger:
        stranger.context.add_init_script(NOTE_DRAWN_TEXTS)
        page = stranger.context.new_page()
        page.goto(f"{server.url}/admin")
        page.evaluate(CHART_OF_TIMES)
        until(lambda: page.evaluate("drawn.get('times')?.length > 0"), "it is drawn")
        times = [each for each in page.evaluate("drawn.get('times')") if ":" in each["text"]]
        assert len(times) > 1
        assert all(each["right"] <= each["width"] for each in times)


def refresh_until(page: Page, selector: str) -> None:
    """Have the table of connections brought up to date until it shows something; the focus stays where it is."""

    def shown() -> bool:
        page.eval_on_selector("form[role=search] button[type=submit]", "(button) => button.click()")
        return page.locator(selector).count() > 0

    until(shown, selector)


def in_sight(page: Page, selector: str) -> bool:
    """Return whether the middle of an element is what lies there on the screen."""
    script = """(element) => {
      scrollBy(0, element.getBoundingClientRect().top - innerHeight / 2); // and not sideways
      const { left, right, top, bottom } = element.getBoundingClientRect();
      const there = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
      return left >= 0 && right <= innerWidth && there === element;
    }"""
    return bool(page.eval_on_selector(selector, script))


@pytest.mark.slow
def test_what_acts_on_a_row_is_on_the_screen_of_a_phone(chromium: Browser, start_server: Start) -> None:
    server = start_server()
    people(server)
    with visitor(chromium, server, viewport={"width": 390, "height": 844}, has_touch=True) as boss:
        page = boss.open("/admin")
        live(page)
        refresh_until(page, "[data-connection]")
        for action in ("Kick", "Revoke"):
            assert in_sight(page, f"[data-connection] button:has-text('{action}')"), action
        page.click(".views a:has-text('Users')")
        page.wait_for_selector("tr[data-user=ann]")
        assert in_sight(page, "[aria-label='Change ann']")


FIRST = (
    "[...document.querySelectorAll('a, button, input')].find((each) => each.checkVisibility()).textContent"
)


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.textContent"))


@pytest.mark.slow
def test_a_table_is_one_stop_for_tab_and_arrow_keys_move_in_it(
    chromium: Browser, start_server: Start
) -> None:
    server = start_server()
    people(server)
    fleet = Fleet(server.port)
    try:
        fleet.open(60, stream_paths(server, 60).__getitem__)
        with visitor(chromium, server) as boss:
            page = boss.open("/admin")
            live(page)
            refresh_until(page, "[data-found]:has-text('61 open')")
            page.focus("input[name=search]")
            stops = 0
            while focused(page) != "Next":
                page.keyboard.press("Tab")
                stops += 1
                assert stops < 20
            tab_to(page, "Search")
            tab_to(page, "Kick desk-00000")
            for key, at in (
                ("ArrowDown", "Kick desk-00001 of user-01"),
                ("ArrowRight", "Revoke desk-00001 of user-01"),
                ("ArrowRight", "Revoke desk-00001 of user-01"),
                ("PageDown", "Revoke desk-00011 of user-11"),
                ("ArrowUp", "Revoke desk-00010 of user-10"),
                ("End", "Revoke desk-00049 of user-09"),
                ("ArrowDown", "Revoke desk-00049 of user-09"),
                ("Home", "Revoke desk-00000 of user-00"),
                ("ArrowLeft", "Kick desk-00000 of user-00"),
                ("ArrowDown", "Kick desk-00001 of user-01"),
            ):
                page.keyboard.press(key)
                assert focused(page) == at, key
            page.keyboard.press("Tab")
            page.keyboard.press("Shift+Tab")
            assert focused(page) == "Kick desk-00001 of user-01"  # where it was left
            # A row that goes leaves the focus to the one that takes its place.
            fleet.clients[1].socket.close()
            refresh_until(page, "[data-found]:has-text('60 open')")
            assert focused(page) == "Kick desk-00002 of user-02"
    finally:
        fleet.close()


@pytest.mark.long
def test_a_link_leads_past_the_top_of_each_page(chromium: Browser, start_server: Start) -> None:
    server = start_server(DEMO=True)
    people(server)
    with visitor(chromium, server) as boss:
        for path in ("/", "/admin"):
            page = boss.open(path)
            live(page)
            assert page.evaluate(FIRST) == "Skip to the content", path
            page.focus("a.skip")
            assert in_sight(page, "a.skip")
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.id") == "content", path


@pytest.mark.long
def test_the_trail_says_in_words_what_an_entry_is_about(chromium: Browser, start_server: Start) -> None:
    server = start_server()
    people(server)
    for revocation in ({"all": True}, {"subject": "zoe"}, {"session": "s-1"}, {"token_id": "t-1"}):
        headers = bearer(server.access_token(subject="root", admin=True))
        url = f"{server.url}/api/v1/admin/revocations"
        httpx.post(url, json=revocation, headers=headers, timeout=30).raise_for_status()
    headers = bearer(server.access_token(subject="root", admin=True))
    dora = {"name": "dora", "password": "battery staple"}
    httpx.post(f"{server.url}/api/v1/admin/users", json=dora, headers=headers, timeout=30).raise_for_status()
    url = f"{server.url}/api/v1/admin/users/ann"
    httpx.patch(url, json={"password": "battery staple"}, headers=headers, timeout=30).raise_for_status()
    server.command("keys", "rotate")
    with visitor(chromium, server) as boss:
        page = boss.open("/admin")
        live(page)
        table = "section[aria-labelledby=audit-title]"
        page.wait_for_selector(f"{table} td:text-matches('^session [A-Za-z0-9_-]+$')")
        about = dict(
            page.eval_on_selector_all(
                f"{table} tbody tr",
                "(rows) => rows.map((row) => [1, 4].map((n) => row.cells[n].textContent))",
            )
        )
        assert about["login"].startswith("session ")
        assert about["user added"] == "user dora"
        assert about["password changed"] == "user ann"
        assert about["key rotation"].startswith("key ")
        revoked = page.locator(f"{table} tr:has-text('revocation') td:nth-child(5)").all_inner_texts()
        assert revoked == ["token t-1", "session s-1", "user zoe", "all tokens"]
