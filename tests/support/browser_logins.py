"""Pages on which users log in and out, for tests of the browser's session."""

from __future__ import annotations

from typing import Any

from tests.support.browser import Chrome, ClientPage, Start
from tests.support.server_process import ServerProcess

PASSWORD = "correct horse battery"

HOSTS = ["127.0.0.1", "localhost"]
"""The server's names: to a page on ``localhost`` the first is another site, the second its own."""


def start(serve: Start, **settings: Any) -> ServerProcess:
    """Start a server with two users, each with a channel of its own beside one that both may read."""
    server = serve(**settings)
    for name in ("ann", "bob"):
        server.add_user(name, PASSWORD, subscribe=f"alerts,user.{name}", publish=f"user.{name}")
    return server


def open_tab(chrome: Chrome, server: ServerProcess, host: str, user: str = "", **given: Any) -> ClientPage:
    """Open a tab with a session, and log in there."""
    given = {"channels": ["alerts"], "server": f"http://{host}:{server.port}", **given}
    tab = ClientPage(chrome.context.new_page(), chrome.origin, file="session.html", **given)
    tab.wait("window.ready")
    if user:
        log_in(tab, user)
    return tab


def log_in(tab: ClientPage, user: str) -> None:
    """Log in at the page of a tab."""
    tab.run(f"session.login('{user}', '{PASSWORD}')")
    assert tab.run("session.username") == user


def reasons(tab: ClientPage) -> list[str]:
    """Return why logins of the tab have ended."""
    return [str(entry["reason"]) for entry in tab.noted("ended")]
