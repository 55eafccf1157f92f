"""What is around a page does not harm its streams: a service worker, another origin, no locks, a cache of pages."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from playwright.sync_api import Error, Route

from tests.support.browser import (
    CHANNEL,
    Chrome,
    ClientPage,
    Start,
    connections,
    log_of,
    publish,
    wait_for_connections,
)
from tests.support.browser_logins import log_in, open_tab, reasons, start
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.browser


def open_at(chrome: Chrome, origin: str, server: ServerProcess, **given: Any) -> ClientPage:
    """Open a tab with a client of a server, at a page of this origin."""
    given = {"channels": CHANNEL, "access": [server.access_token()], "server": server.url, **given}
    return ClientPage(chrome.context.new_page(), origin, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    "worker",
    ["keeps", pytest.param("passes", marks=pytest.mark.long), pytest.param("spares", marks=pytest.mark.long)],
)
def test_streams_go_through_a_service_worker_that_answers_all_requests(
    worker: str, chrome: Chrome, serve: Start
) -> None:
    server = serve()
    first = chrome.context.new_page()
    first.goto(f"{chrome.origin}/plain.html")
    first.evaluate(
        f"navigator.serviceWorker.register('/worker.js?{worker}').then(() => navigator.serviceWorker.ready)"
    )
    tabs = [chrome.open(server, access=[server.access_token()]) for _ in range(3)]
    for tab in tabs:
        tab.opened()
        assert tab.run("navigator.serviceWorker.controller.scriptURL").endswith(worker)
    assert connections(server) == 1
    with server.publisher() as publisher:
        publish(publisher, 3)
        tabs[0].page.close()
        last = publish(publisher, 3)[-1]
        for tab in tabs[1:]:
            tab.has(last)
        if worker != "keeps":  # a copy goes on reading until the token expires
            assert connections(server) == 1
        server.kill()
        for tab in tabs[1:]:
            tab.wait("log.some((e) => e.kind === 'reconnect')")
        server.start()
        last = publish(publisher, 3)[-1]
        for tab in tabs[1:]:
            tab.has(last)
            assert tab.ids() == log_of(publisher)
            assert tab.noted("close") == tab.noted("reset") == []
    for tab in tabs[1:]:
        tab.run("client.close()")
    if worker != "keeps":
        wait_for_connections(server, 0)


@pytest.mark.long
def test_a_login_outlives_a_server_for_which_a_service_worker_answers_meanwhile(
    chrome: Chrome, serve: Start
) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=2)
    tab = open_tab(chrome, server, "localhost", "ann")
    tab.run("navigator.serviceWorker.register('/worker.js?passes').then(() => navigator.serviceWorker.ready)")
    tab.wait("navigator.serviceWorker.controller")
    server.kill()
    tab.page.wait_for_timeout(2100)
    assert tab.run("failed(session.streamToken(['alerts']))")["status"] == 0
    assert tab.run("failed(session.fetch('/api/v1/auth/me'))")["status"] == 0
    server.start()
    assert tab.run("session.streamToken(['alerts'])")
    assert reasons(tab) == []


@pytest.mark.long
def test_tabs_of_two_origins_have_a_stream_each_and_do_not_disturb_each_other(
    chrome: Chrome, start_server: Start
) -> None:
    origins = [
        chrome.origin.replace("localhost", host) for host in ("localhost", "127.0.0.1", "desk.localhost")
    ]
    server = start_server(CORS_ORIGINS=origins, STREAM__RETRY=200)
    groups = [[open_at(chrome, origin, server) for _ in range(2)] for origin in origins]
    tabs = [tab for group in groups for tab in group]
    for tab in tabs:
        tab.opened()
    assert connections(server) == 3
    with server.publisher() as publisher:
        publish(publisher, 3)
        for group in groups:
            group.pop(0).page.close()
        last = publish(publisher, 3)[-1]
        for (tab,) in groups:
            tab.has(last)
            assert tab.ids() == log_of(publisher)
    assert connections(server) == 3


@pytest.mark.long
def test_a_page_on_plain_http_has_no_locks_and_each_of_its_tabs_a_stream_and_a_login(
    chrome: Chrome, start_server: Start
) -> None:
    origin = chrome.origin.replace("localhost", "desk.test")
    server = start_server(
        CORS_ORIGINS=[origin], STREAM__RETRY=200, AUTH__ACCESS_LIFETIME=3, AUTH__STREAM_LIFETIME=2
    )
    server.add_user("ann", "correct horse battery", subscribe="alerts")
    given = {"file": "session.html", "server": server.url, "channels": ["alerts"]}
    tabs = [ClientPage(chrome.context.new_page(), origin, **given) for _ in range(3)]
    for tab in tabs:
        assert tab.run("[isSecureContext, navigator.locks === undefined]") == [False, True]
        assert not tab.run("session.resume()")
        log_in(tab, "ann")
        tab.run("listen()")
        tab.opened()
    assert connections(server) == 3
    with server.publisher() as publisher:
        ids = publish(publisher, 3, channel="alerts")
        tabs[0].page.wait_for_timeout(4000)  # tokens are renewed meanwhile
        ids += publish(publisher, 3, channel="alerts")
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids
        tabs[1].run("session.logout()")
        wait_for_connections(server, 0)
        publish(publisher, 3, channel="alerts")
    for tab in tabs:
        tab.wait("log.some((entry) => entry.kind === 'close')")
        assert (tab.ids(), reasons(tab)) == (ids, ["logout"])


SHOWS = "addEventListener('pageshow', ({ persisted }) => log.push({ kind: 'shown', persisted }))"


@pytest.mark.long
def test_pages_that_the_browser_caches_come_back_with_their_login_and_miss_nothing(
    whole_chrome: Chrome, start_server: Start
) -> None:
    chrome = whole_chrome
    server = start_server(CORS_ORIGINS=[chrome.origin], STREAM__RETRY=200)
    server.add_user("ann", "correct horse battery", subscribe="alerts")
    server.add_user("bob", "correct horse battery", subscribe="alerts")
    tabs = [open_tab(chrome, server, "127.0.0.1", "ann") for _ in range(3)]
    for tab in tabs:
        tab.run(f"{SHOWS}, listen()")
        tab.opened()
    with server.publisher() as publisher:
        ids = publish(publisher, 2, channel="alerts")
        for _ in range(2):
            for tab in tabs[:2]:
                tab.has(ids[-1])
                tab.page.goto(f"{chrome.origin}/plain.html")
            ids += publish(publisher, 2, channel="alerts")
            tabs[2].has(ids[-1])
            for tab in tabs[:2]:
                tab.page.go_back(wait_until="commit")
                tab.wait("log.at(-1)")
            ids += publish(publisher, 2, channel="alerts")
            for tab in tabs:
                tab.has(ids[-1])
                assert tab.ids() == ids
            assert connections(server) == 1
        assert all(entry["persisted"] for tab in tabs[:2] for entry in tab.noted("shown"))
        assert [len(tab.noted("shown")) for tab in tabs] == [2, 2, 0]
        tabs[0].page.goto(f"{chrome.origin}/plain.html")
        tabs[2].run("session.logout()")
        publish(publisher, 2, channel="alerts")
        tabs[0].page.go_back(wait_until="commit")
        for tab in tabs:
            tab.wait("session.username === ''")
        publish(publisher, 2, channel="alerts")
        assert tabs[0].run("failed(session.streamToken(['alerts']))")["status"] == 401
        assert connections(server) == 0
    assert tabs[0].ids() in (ids, [])  # the browser may have dropped the page, which is then loaded anew
    assert [tab.ids() for tab in tabs[1:]] == [ids, ids]


@pytest.mark.long
def test_a_tab_that_crashes_takes_only_its_own_login_along(chrome: Chrome, serve: Start) -> None:
    server = start(serve, AUTH__ACCESS_LIFETIME=4)
    tabs = [open_tab(chrome, server, "localhost", user) for user in ("ann", "")]
    tabs[1].run("session.resume()")
    bob = open_tab(chrome, server, "127.0.0.1", "bob")
    for tab in (*tabs, bob):
        tab.run("listen()")
        tab.opened()
    # In the middle of its refresh: it has the turn when it crashes.
    held: list[Route] = []
    chrome.context.route("**/auth/refresh", lambda route: held.append(route), times=1)
    tabs[0].run("performance.now = ((now) => () => now.call(performance) + 3000)(performance.now)")
    tabs[0].run("void session.streamToken(['alerts'])")
    with tabs[0].page.expect_event("crash"), pytest.raises(Error):
        tabs[0].page.goto("chrome://crash")
    for route in held:
        with suppress(Error):  # its request has gone with the tab
            route.abort()
    assert tabs[1].run("session.streamToken(['alerts'])")
    with server.publisher() as publisher:
        ids = publish(publisher, 3, channel="alerts")
    for tab in (tabs[1], bob):
        tab.has(ids[-1])
        assert (tab.ids(), reasons(tab)) == (ids, [])
    assert connections(server) == 2
