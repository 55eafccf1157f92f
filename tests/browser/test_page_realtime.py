"""The realtime page in a real Chromium: it stays logged in, comes back, and shows each event once."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import Start
from tests.support.server_process import ServerProcess
from tests.support.visitors import Market, chart, live, people, tab_to, visitor, wait_for_chart
from tests.support.waiting import until

pytestmark = pytest.mark.browser


def figure(page: Page, name: str) -> str:
    return page.inner_text(f'#connection [data-figure="{name}"]')


def start(start_server: Start, **settings: Any) -> tuple[ServerProcess, Market]:
    server = start_server(STREAM__RETRY=200, DEMO=True, **settings)
    people(server)
    return server, Market(server)


def test_four_panels_move(chromium: Browser, start_server: Start) -> None:
    server, market = start(start_server)
    market.trade(3)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        wait_for_chart(page, "value", 3)
        for data in (None, "<p>a text</p>", [1], 2):  # which a panel is none of the events for
            market.publish({"channel": "dashboard", "event": "dashboard_update", "data": data})
        last = market.trade(2)
        market.alert()
        for progress in (10, 20):
            market.run(progress)
        wait_for_chart(page, "value", 5, last)
        wait_for_chart(page, "drawdown", 5, last)
        for name in ("loss", "accuracy", "equity"):
            wait_for_chart(page, name, 2)
        page.wait_for_selector(".alert-unread:has-text('limit')")
        assert page.eval_on_selector(".backtest progress", "(bar) => bar.value") == 20
        assert page.inner_text(".backtest [data-figure=sharpe_ratio]") == "1.00"
        assert figure(page, "latency").endswith(" ms")


@pytest.mark.slow
def test_a_restart_leaves_no_gap_and_no_double_and_is_told(chromium: Browser, start_server: Start) -> None:
    server, market = start(start_server)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        wait_for_chart(page, "value", 4, market.trade(4))
        for number, end in enumerate((server.kill, server.stop), 1):
            end()
            page.wait_for_selector('#connection[data-state="reconnecting"]')
            page.wait_for_selector("[data-countdown]:not(:empty)")
            server.start()
            last = market.trade(5)
            market.run(10 * number)
            wait_for_chart(page, "value", 0, last)
            live(page)
            wait_for_chart(page, "equity", number)
            assert int(figure(page, "reconnects")) >= number
        for name in ("value", "drawdown"):
            assert chart(page, name) == {"chart": name, "points": "14", "gaps": "0", "last": last}
        assert figure(page, "lost") == "0"
        assert "back after" in page.inner_text("[data-reason]")


@pytest.mark.ci
def test_what_was_missed_is_replayed_and_counted(chromium: Browser, start_server: Start) -> None:
    server, market = start(start_server)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        wait_for_chart(page, "value", 2, market.trade(2))
        # The page cannot reach the server, which goes on: what it publishes meanwhile is missed.
        ann.context.route("**/*", lambda route: route.abort())
        at = f"{server.url}/api/v1/admin"
        admin = {"Authorization": f"Bearer {server.access_token(subject='a', admin=True)}"}
        (stream,) = httpx.get(f"{at}/connections", headers=admin).json()["connections"]
        spent = {"token_id": stream["token_id"]}
        httpx.post(f"{at}/revocations", json=spent, headers=admin).raise_for_status()
        page.wait_for_selector('#connection[data-state="reconnecting"]')
        last = market.trade(7)
        ann.context.unroute("**/*")
        wait_for_chart(page, "value", 9, last)
        assert chart(page, "value")["points"] == "9"
        assert figure(page, "replayed") == "7"
        assert "7 missed and replayed" in page.inner_text("[data-reason]")


@pytest.mark.slow
def test_a_reload_asks_for_no_password_and_a_logout_ends_every_tab(
    chromium: Browser, start_server: Start
) -> None:
    server, _ = start(start_server)
    with visitor(chromium, server) as ann:
        page, other = ann.open("/", "ann"), ann.open("/", "ann")
        live(page)
        live(other)
        for each in (page, other):
            each.reload()
            live(each)
            assert each.inner_text("#who") == "ann"
        page.click("#logout")
        for each in (page, other):
            each.wait_for_selector("body[data-view=login]")
        page.reload()
        page.wait_for_selector("body[data-view=login]")
        until(
            lambda: ann.context.cookies() == [],
            "the cookie is gone",
        )


@pytest.mark.long
def test_a_login_outlives_its_tokens(chromium: Browser, start_server: Start) -> None:
    server, market = start(start_server, AUTH__ACCESS_LIFETIME=6, AUTH__STREAM_LIFETIME=4)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        deadline = page.evaluate("performance.now()") + 18_000  # three lifetimes of the access token
        while page.evaluate("performance.now()") < deadline:
            wait_for_chart(page, "value", 0, market.trade(1))
            page.wait_for_timeout(500)  # each event is drawn, and a few in each lifetime show as much
        assert page.get_attribute("body", "data-view") == "live"
        assert chart(page, "value")["points"] == str(market.days)


@pytest.mark.long
def test_unread_alerts_are_counted_until_they_are_marked_by_keyboard(
    chromium: Browser, start_server: Start
) -> None:
    server, market = start(start_server)
    market.alert("low")  # from before: it is no news
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        page.wait_for_selector(".alert")
        for _ in range(3):
            market.alert("critical")
        page.wait_for_selector("[data-unread]:has-text('3 unread')")
        assert page.title() == "(3) Market dashboard"
        tab_to(page, "Mark as read")
        page.keyboard.press("Enter")
        page.wait_for_selector("[data-unread]", state="hidden")
        assert page.locator(".alert-unread").count() == 0
        assert page.title() == "Market dashboard"
        page.keyboard.press("Shift+Tab")
        tab_to(page, "Log out")
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-view=login]")
        assert page.evaluate("document.activeElement.id") in ("username", "password")
