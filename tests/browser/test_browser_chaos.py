"""Tabs that open, close, crash, freeze and change their minds at random: those that remain have every event once."""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import Error

from tests.support.browser import CHANNEL, Chrome, ClientPage, Start, connections, publishing

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WANTED = (CHANNEL, [CHANNEL, "alerts"], [CHANNEL, "training"])


@pytest.mark.parametrize(("seed", "steps"), [(1, 75), pytest.param(1, 150, marks=pytest.mark.long)])
def test_whatever_becomes_of_the_other_tabs_a_tab_has_every_event_once(
    chrome: Chrome, serve: Start, seed: int, steps: int
) -> None:
    """How often something happens is a number, and not a time, so that a busy machine tests as much."""
    chance = random.Random(seed)
    server = serve(AUTH__STREAM_LIFETIME=8, KEEPALIVE__PING_INTERVAL=1)
    access = [server.access_token()]
    frozen: set[ClientPage] = set()

    def open_tab() -> ClientPage:
        tab = chrome.open(
            server, access=access, channels=chance.choice(WANTED), options={"pingInterval": 1000}
        )
        tab.opened()
        return tab

    def set_state(tab: ClientPage, state: str) -> None:
        chrome.context.new_cdp_session(tab.page).send("Page.setWebLifecycleState", {"state": state})

    tabs = [open_tab() for _ in range(4)]
    with publishing(server) as ids:
        for _ in range(steps):
            awake = [tab for tab in tabs if tab not in frozen]
            tab = chance.choice(awake)
            match chance.choice(["open", "close", "crash", "freeze", "thaw", "toggle"]):
                case "open" if len(tabs) < 7:
                    tabs.append(open_tab())
                case "close" if len(awake) > 2:
                    tabs.remove(tab)
                    tab.page.close()
                case "crash" if len(awake) > 2:
                    tabs.remove(tab)
                    with pytest.raises(Error):
                        tab.page.goto("chrome://crash")
                case "freeze" if len(awake) > 2:
                    frozen.add(tab)
                    set_state(tab, "frozen")
                case "thaw" if frozen:
                    set_state(frozen.pop(), "active")
                case "toggle":
                    tab.run("client.close(); client.connect()")
        for tab in frozen:
            set_state(tab, "active")
    for tab in tabs:
        tab.has(ids[-1])
        seen = tab.ids()
        assert seen == ids[ids.index(seen[0]) :]
    assert connections(server) == 1
