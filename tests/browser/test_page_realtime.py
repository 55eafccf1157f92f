"""The realtime page in a real Chromium: it stays logged in, comes back, and shows each event once."""

from __future__ import annotations

import datetime
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page

from tests.support.browser import Start
from tests.support.server_process import ServerProcess
from tests.support.visitors import chart, live, people, tab_to, visitor, wait_for_chart
from tests.support.waiting import until

pytestmark = pytest.mark.browser


class Market:
    """Publishes what the panels show: days, one after the other, and how far the runs are."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._token = server.access_token()
        self.days = 0

    def publish(self, *events: dict[str, Any]) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        url = f"{self._server.url}/api/v1/sse"
        httpx.post(url, json={"events": events}, headers=headers, timeout=30).raise_for_status()

    def trade(self, days: int) -> str:
        """Publish days of the portfolio, and return the last one's date."""
        for _ in range(days):
            self.days += 1
            metrics = {
                "date": self.date,
                "total_value": 1e6 + self.days,
                "drawdown": 0.1,
                "daily_return": 0.01,
            }
            data = {"update_type": "metrics", "data": metrics}
            self.publish({"channel": "dashboard", "event": "dashboard_update", "data": data})
        return self.date

    @property
    def date(self) -> str:
        return str(datetime.date(2020, 1, 1) + datetime.timedelta(days=self.days))

    def alert(self, severity: str = "high") -> None:
        data = {"severity": severity, "message": "limit", "alert_type": "drawdown_breach"}
        self.publish({"channel": "alerts", "event": "risk_alert", "data": data})

    def run(self, progress: float) -> None:
        """Publish how far a training and a backtest are."""
        metrics, results = (
            {"loss": 0.5, "accuracy": 0.6},
            {"total_return": 0.1, "sharpe_ratio": 1, "max_drawdown": 0.2},
        )
        common = {"progress": progress, "status": "running", "message": "going on"}
        self.publish(
            {
                "channel": "training",
                "event": "training_progress",
                "data": {"task_id": "t", "metrics": metrics, **common},
            },
            {
                "channel": "backtest",
                "event": "backtest_progress",
                "data": {"backtest_id": "b", "results": results, **common},
            },
        )


def figure(page: Page, name: str) -> str:
    return page.inner_text(f'#connection [data-figure="{name}"]')


def start(start_server: Start, **settings: Any) -> tuple[ServerProcess, Market]:
    server = start_server(STREAM__RETRY=200, **settings)
    people(server)
    return server, Market(server)


def test_four_panels_move(chromium: Browser, start_server: Start) -> None:
    server, market = start(start_server)
    market.trade(3)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        wait_for_chart(page, "value", 3)
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


def test_what_was_missed_is_replayed_and_counted(chromium: Browser, start_server: Start) -> None:
    server, market = start(start_server)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        wait_for_chart(page, "value", 2, market.trade(2))
        # The page cannot reach the server, which goes on: what it publishes meanwhile is missed.
        ann.context.route("**/*", lambda route: route.abort())
        connections = f"{server.url}/api/v1/admin/connections"
        admin = {"Authorization": f"Bearer {server.access_token(subject='a', admin=True)}"}
        (stream,) = httpx.get(connections, headers=admin).json()["connections"]
        httpx.post(f"{connections}/{stream['connection']}/kick", headers=admin).raise_for_status()
        page.wait_for_selector('#connection[data-state="reconnecting"]')
        last = market.trade(7)
        ann.context.unroute("**/*")
        wait_for_chart(page, "value", 9, last)
        assert chart(page, "value")["points"] == "9"
        assert figure(page, "replayed") == "7"
        assert "7 missed and replayed" in page.inner_text("[data-reason]")


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
            lambda: all(cookie["name"] != "sse_app_refresh" for cookie in ann.context.cookies()),
            "the cookie is gone",
        )


def test_a_login_outlives_its_tokens(chromium: Browser, start_server: Start) -> None:
    server, market = start(start_server, AUTH__ACCESS_LIFETIME=3, AUTH__STREAM_LIFETIME=2)
    with visitor(chromium, server) as ann:
        page = ann.open("/", "ann")
        live(page)
        deadline = page.evaluate("performance.now()") + 9_000  # three lifetimes of the access token
        while page.evaluate("performance.now()") < deadline:
            wait_for_chart(page, "value", 0, market.trade(1))
        assert page.get_attribute("body", "data-view") == "live"
        assert chart(page, "value")["points"] == str(market.days)


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
