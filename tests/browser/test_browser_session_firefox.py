"""The login of a page in a real Firefox: three frames of one origin stand for three tabs."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.support.browser import Start, publish, serve_pages, wait_for_connections
from tests.support.browser_logins import HOSTS, PASSWORD, start
from tests.support.firefox import Firefox, firefox
from tests.support.server_process import ServerProcess, clean_environment
from tests.support.waiting import until

pytestmark = pytest.mark.browser


def frames(browser: Firefox, origin: str, server: str) -> None:
    """Open a page with three frames, each with a session."""
    browser.open(f"{origin}/plain.html")
    given = quote(json.dumps({"server": server, "channels": ["alerts"]}))
    browser.run(f"""Promise.all([0, 1, 2].map(() => new Promise((resolve) => {{
        const frame = document.createElement("iframe");
        frame.src = "/session.html#{given}";
        frame.onload = resolve;
        document.body.append(frame);
    }})))""")
    browser.run("(window.tabs = [frames[0], frames[1], frames[2]]).length")
    until(lambda: browser.run("tabs.every((frame) => frame.ready)"), "the frames are ready")


def noted(browser: Firefox, kind: str, name: str) -> list[list[str]]:
    """Return what each frame has noted of a kind."""
    found: list[list[str]] = browser.run(
        f"tabs.map((tab) => tab.log.filter((entry) => entry.kind === '{kind}').map((entry) => entry.{name}))"
    )
    return found


@pytest.mark.long
def test_tabs_of_a_firefox_share_login_and_stream_and_end_together(
    start_server: Start, tmp_path: Path
) -> None:
    (tmp_path / "browser").mkdir()
    with serve_pages() as origin, firefox(tmp_path / "browser", clean_environment()) as browser:
        lifetimes = {"AUTH__ACCESS_LIFETIME": 3, "AUTH__STREAM_LIFETIME": 2}
        server = start(start_server, CORS_ORIGINS=[origin], STREAM__RETRY=200, **lifetimes)
        for host in HOSTS:
            share(browser, origin, server, host)


def share(browser: Firefox, origin: str, server: ServerProcess, host: str) -> None:
    """Log in in three frames, hear of events, and log out."""
    frames(browser, origin, f"http://{host}:{server.port}")
    browser.run(f"tabs[0].session.login('ann', '{PASSWORD}')")
    resumed = browser.run("Promise.all(tabs.map((tab) => tab.session.resume()))")
    assert resumed == [True, host == "localhost", host == "localhost"]
    browser.run(
        f"Promise.all(tabs.map((tab) => tab.session.username || tab.session.login('ann', '{PASSWORD}')))"
    )
    browser.run("tabs.forEach((tab) => tab.listen())")
    until(lambda: browser.run("tabs.every((tab) => tab.client.readyState === 1)"), "all are open")
    wait_for_connections(server, 1)
    browser.run("new Promise((resolve) => setTimeout(resolve, 4000))")  # tokens are replaced meanwhile
    with server.publisher() as publisher:
        ids = publish(publisher, 3, channel="alerts")
    until(lambda: noted(browser, "event", "id") == [ids] * 3, "each has heard all")
    browser.run("tabs[1].session.logout()")
    wait_for_connections(server, 0)
    until(lambda: noted(browser, "ended", "reason") == [["logout"]] * 3, "each is told once")
