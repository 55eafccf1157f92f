"""The two pages in a real Chromium: visitors who log in, press keys, and note what the browser complains about."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.support.browser import PATIENCE
from tests.support.server_process import ServerProcess

PASSWORD = "correct horse battery"
CHANNELS = "dashboard,alerts,training,backtest,quotes"
_NETWORK = re.compile(r"Failed to load resource: net::ERR_|net::ERR_(CONNECTION|INCOMPLETE|EMPTY)")


def people(server: ServerProcess) -> None:
    """Make the accounts: an administrator, and ann, who only reads."""
    server.add_user("admin", PASSWORD, subscribe=CHANNELS, publish=CHANNELS, admin=True)
    server.add_user("ann", PASSWORD, subscribe=CHANNELS)


def stream_paths(server: ServerProcess, count: int, users: int = 40) -> list[str]:
    """Return the paths of many streams of several users, each with a client id of its own."""
    minted = [
        server.stream_token("alerts", subject=f"user-{n:02}", session=f"session-{n:02}", ttl=3000)
        for n in range(users)
    ]
    return [f"/api/v1/sse/alerts?token={minted[n % users]}&client_id=desk-{n:05}" for n in range(count)]


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


class Visitor:
    """Somebody with a browser profile; ``trouble`` has what the console said, broken connections aside."""

    def __init__(self, context: BrowserContext, server: ServerProcess) -> None:
        self.context = context
        self.server = server
        self.trouble: list[str] = []
        context.on("weberror", lambda error: self.trouble.append(str(error.error)))
        context.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not _NETWORK.search(message.text):
            self.trouble.append(message.text)

    def open(self, path: str, name: str = "admin") -> Page:
        """Open a page and log in, unless there is a session."""
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(f"{self.server.url}{path}")
        page.wait_for_selector("body[data-view]")
        if page.get_attribute("body", "data-view") == "login":
            page.fill("#username", name)
            page.fill("#password", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_selector("body[data-view=live], body[data-view=refused]")
        return page


@contextmanager
def visitor(
    browser: Browser, server: ServerProcess, scheme: Literal["light", "dark"] = "light", **options: Any
) -> Iterator[Visitor]:
    """Yield a visitor; complaints of the browser that the test leaves in ``trouble`` fail it."""
    # Without motion: else Chromium draws frames all the while that a page is open.
    options.setdefault("reduced_motion", "reduce")
    with browser.new_context(color_scheme=scheme, **options) as context:
        visitor = Visitor(context, server)
        yield visitor
        assert visitor.trouble == []


def live(page: Page) -> None:
    """Wait until the page's stream is live."""
    page.wait_for_selector('#connection[data-state="live"]')


def chart(page: Page, name: str) -> dict[str, str]:
    """Return what a chart says of itself: ``points``, ``gaps`` and the ``last`` label."""
    found: dict[str, str] = page.eval_on_selector(f"[data-chart={name}]", "(box) => ({ ...box.dataset })")
    return found


def wait_for_chart(page: Page, name: str, points: int, last: str = "") -> None:
    """Wait until a chart has so many points, or has come to the last one named."""
    page.wait_for_function(
        """([name, points, last]) => {
          const { dataset } = document.querySelector(`[data-chart=${name}]`);
          return last ? dataset.last === last : Number(dataset.points) >= points;
        }""",
        arg=[name, points, last],
        polling=50,  # milliseconds; else each frame asks, and the page draws frames all the while
    )


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element with that name has the focus, as somebody without a mouse would."""
    for _ in range(150):
        page.keyboard.press("Tab")
        if page.evaluate(_NAMED, name):
            return
    raise AssertionError(f"no Tab leads to {name}")


_NAMED = """(name) => {
  const at = document.activeElement;
  const labels = [...(at.labels ?? [])].map((label) => label.textContent);
  const names = [at.getAttribute("aria-label"), at.textContent, at.value, ...labels];
  return names.some((each) => each?.trim().startsWith(name));
}"""
