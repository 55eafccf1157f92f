"""Tabs that open, close, crash, freeze and change their minds at random: those that remain have every event once."""

from __future__ import annotations

import random

import pytest
from playwright.sync_api import Error

from tests.browser.test_browser_tabs import publishing
from tests.support.browser import CHANNEL, Chrome, ClientPage, Start, connections

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEPS = 150
"""How often something happens to a tab: a number, and not a time, so that a busy machine tests as much."""

WANTED = (CHANNEL, [CHANNEL, "alerts"], [CHANNEL, "training"])


@pytest.mark.parametrize("seed", [1])
def test_whatever_becomes_of_the_other_tabs_a_tab_has_every_event_once(
    chrome: Chrome, serve: Start, seed: int
) -> None:
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
        for _ in range(STEPS):
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
