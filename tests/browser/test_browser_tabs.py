"""Tabs of one browser share one stream, and the leader's death costs none of them an event."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from playwright.sync_api import Error

from tests.support.browser import (
    CHANNEL,
    Chrome,
    ClientPage,
    Start,
    connections,
    log_of,
    publish,
    publishing,
    wait_for_connections,
)
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.browser

LEADS = """navigator.locks.request(`me ${Math.random()}`, async ({ name }) => {
    const { held } = await navigator.locks.query();
    const me = held.find((lock) => lock.name === name).clientId;
    return held.filter((lock) => lock.clientId === me && lock.name.startsWith("sse-client")).length === 2;
})"""
"""Whether a tab leads: beside the lock that says that it lives it has the one that is the lead."""


def open_tabs(chrome: Chrome, server: ServerProcess, count: int, **given: Any) -> list[ClientPage]:
    """Open so many tabs, and wait until each is open."""
    given = {"access": [server.access_token()], **given}
    tabs = [chrome.open(server, **given) for _ in range(count)]
    for tab in tabs:
        tab.opened()
    return tabs


def take_leader(tabs: list[ClientPage]) -> ClientPage:
    """Remove the tab that leads from the list, and return it."""
    (leader,) = [tab for tab in tabs if tab.run(LEADS)]
    tabs.remove(leader)
    return leader


def longest_silence(tabs: list[ClientPage], since: int) -> float:
    """Return the longest time between two events in any of the tabs, from that number on, in seconds."""
    times = [[float(event["at"]) / 1000 for event in tab.noted("event")[since:]] for tab in tabs]
    return max(after - before for each in times for before, after in pairwise(each))


@pytest.mark.slow
def test_eight_tabs_have_one_connection_and_go_on_without_loss_when_the_leader_is_closed_then_crashed(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    tabs = open_tabs(chrome, server, 8)
    assert connections(server) == 1
    silences: dict[str, list[float]] = {"closed": [], "crashed": []}
    with publishing(server) as ids:
        for end in ("closed", "crashed") * 2:  # the machine does not stand still in both
            begun = len(ids)
            for tab in tabs:
                tab.wait(f"log.filter((e) => e.kind === 'event').length > {begun}")
            leader = take_leader(tabs)
            if end == "closed":
                leader.page.close()
            else:
                with leader.page.expect_event("crash"), pytest.raises(Error):
                    leader.page.goto("chrome://crash")
            seen = len(ids)
            for tab in tabs:
                tab.wait(f"log.filter((e) => e.kind === 'event').length > {seen + 20}")
            assert connections(server) == 1
            silences[end].append(longest_silence(tabs, begun))
    with server.publisher() as publisher:
        assert log_of(publisher) == ids
    for tab in tabs:
        tab.has(ids[-1])
        assert tab.ids() == ids
        assert [len(tab.noted(kind)) for kind in ("open", "reconnect", "reset", "close")] == [1, 0, 0, 0]
    assert len(tabs) == 4
    print(f"longest silences of any tab: {silences}")
    assert all(min(each) < 1.0 for each in silences.values())


@pytest.mark.slow
def test_all_tabs_recover_when_the_server_is_killed(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tabs = open_tabs(chrome, server, 4)
    with server.publisher() as publisher:
        publish(publisher, 10)
        server.kill()
        for tab in tabs:
            tab.wait("log.some((e) => e.kind === 'reconnect')")
        server.start()
        last = publish(publisher, 300)[-1]
        for tab in tabs:
            tab.has(last)
            assert tab.ids() == log_of(publisher)
    assert connections(server) == 1


def test_channels_wanted_by_any_tab_are_on_the_connection_and_each_tab_gets_its_own(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    first, second = "alerts", "training"
    tabs = [open_tabs(chrome, server, 1, channels=names)[0] for names in (first, second, [first, second])]
    assert connections(server) == 1
    with server.publisher() as publisher:
        sent = {name: publish(publisher, 3, channel=name) for name in (first, second)}
        both = sent[first] + sent[second]
        for tab, expected in zip(tabs, (sent[first], sent[second], both), strict=True):
            tab.has(expected[-1])
        take_leader(tabs).page.close()
        sent = {name: publish(publisher, 3, channel=name) for name in (first, second)}
        for tab, expected in zip(tabs, ((sent[second]), sent[first] + sent[second]), strict=True):
            tab.has(expected[-1])
    first_events = [entry["channel"] for entry in tabs[0].noted("event")]
    assert first_events == [second] * 6
    assert [entry["channel"] for entry in tabs[1].noted("event")] == ([first] * 3 + [second] * 3) * 2


def test_a_tab_that_asks_for_what_the_leader_may_not_read_does_not_disturb_the_others(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    narrow = [server.access_token(subscribe=CHANNEL)]
    (tab,) = open_tabs(chrome, server, 1, access=narrow)
    greedy = chrome.open(server, access=narrow, channels=[CHANNEL, "alerts"])
    wide = chrome.open(server, access=[server.access_token()], channels=[CHANNEL, "alerts"])
    greedy.wait("log.some((e) => e.kind === 'close')")
    assert [(entry["status"]) for entry in greedy.noted("close")] == [403]
    wide.opened()
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        for other in (tab, wide):
            other.has(ids[-1])
            assert other.ids() == ids
    assert tab.noted("close") == []
    assert connections(server) == 2


def test_tabs_of_two_users_do_not_share(chrome: Chrome, serve: Start) -> None:
    server = serve()
    for subject in ("ann", "bob"):
        open_tabs(chrome, server, 2, access=[server.access_token(subject=subject)], channels="alerts")
    assert connections(server) == 2


def test_a_tab_whose_user_has_changed_leaves_the_others_and_gives_them_nothing_of_what_it_may_read(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    alice = server.access_token(subject="alice", subscribe=CHANNEL)
    bob = server.access_token(subject="bob", subscribe=f"{CHANNEL},training")
    # The first token that it fetches is alice's, and all after it are bob's.
    (changing,) = open_tabs(chrome, server, 1, access=[alice, *[bob] * 100])
    (follower,) = open_tabs(chrome, server, 1, access=[alice])
    narrow = server.stream_token(CHANNEL, subject="alice")
    greedy = chrome.open(server, tokens=[narrow], channels=[CHANNEL, "training"])
    greedy.wait("log.some((e) => e.kind === 'close')")
    assert [entry["status"] for entry in greedy.noted("close")] == [403]
    changing.opened(2)
    wait_for_connections(server, 2)
    with server.publisher() as publisher:
        publish(publisher, 3, channel="training")
        ids = publish(publisher, 3)
        for tab in (changing, follower):
            tab.has(ids[-1])
            assert tab.ids() == ids
    assert greedy.ids() == []
    assert [entry["reason"] for entry in changing.noted("reconnect")] == ["user"]
    assert changing.run("client.readyState") == follower.run("client.readyState") == 1


@pytest.mark.slow
def test_the_group_that_a_page_names_is_of_one_user_too(chrome: Chrome, serve: Start) -> None:
    server = serve()
    for subject in ("ann", "bob"):
        access = [server.access_token(subject=subject)]
        open_tabs(chrome, server, 2, access=access, channels="alerts", options={"share": "desk"})
    assert connections(server) == 2


def test_tabs_whose_urls_differ_in_the_query_do_not_share(chrome: Chrome, serve: Start) -> None:
    server = serve()
    base = server.url.replace("127.0.0.1", "localhost")
    access = [server.access_token()]
    for tenant in ("a", "b", "a"):
        open_tabs(chrome, server, 1, access=access, url=f"{base}/api/v1/sse?tenant={tenant}")
    assert connections(server) == 2


@pytest.mark.parametrize(
    "missing", [pytest.param("navigator.locks", marks=pytest.mark.slow), "globalThis.BroadcastChannel"]
)
def test_without_the_apis_each_tab_has_its_own_connection(chrome: Chrome, serve: Start, missing: str) -> None:
    server = serve()
    owner, name = missing.split(".")
    chrome.context.add_init_script(f"Object.defineProperty({owner}, '{name}', {{ value: undefined }})")
    tabs = open_tabs(chrome, server, 2)
    assert connections(server) == 2
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids


@pytest.mark.ci
def test_the_lead_is_taken_from_a_tab_that_a_dialog_has_stopped_and_it_catches_up_afterwards(
    chrome: Chrome, serve: Start
) -> None:
    server = serve(KEEPALIVE__PING_INTERVAL=1)
    tabs = open_tabs(chrome, server, 3, options={"pingInterval": 1000})
    others = list(tabs)
    leader = take_leader(others)
    with leader.page.expect_event("dialog") as opened:
        leader.page.on("dialog", lambda dialog: None)
        leader.run("setTimeout(() => alert('anybody there?'))")
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        for tab in others:
            tab.has(ids[-1])
        ids += publish(publisher, 3)
        opened.value.accept()
        ids += publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids
    leader.wait(f"{LEADS}.then((leads) => !leads)")
    (tab,) = [tab for tab in tabs if tab.run(LEADS)]
    assert tab is not leader


def test_a_tab_that_holds_the_lead_keeps_it_when_the_word_of_one_before_it_comes_late(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    tabs = open_tabs(chrome, server, 3)
    leader = take_leader(others := list(tabs))
    others[0].run("""navigator.locks.query().then(({ held }) => {
        const name = held.map((lock) => lock.name).sort()[0];
        const air = new BroadcastChannel(name);
        air.postMessage({ kind: "lead", from: "a tab that had the lead for a moment" });
        air.close();
    })""")
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids
    assert leader.run(LEADS)
    assert len(leader.noted("open")) == 1


@pytest.mark.slow
def test_a_frozen_tab_lets_go_and_catches_up_when_it_is_resumed(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tabs = open_tabs(chrome, server, 3)
    others = list(tabs)
    leader = take_leader(others)
    session = chrome.context.new_cdp_session(leader.page)
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    with server.publisher() as publisher:
        ids = publish(publisher, 30)
        for tab in others:
            tab.has(ids[-1])
        session.send("Page.setWebLifecycleState", {"state": "active"})
        ids += publish(publisher, 30)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids
    assert connections(server) == 1


@pytest.mark.slow
def test_a_page_that_the_browser_caches_lets_go_and_catches_up_when_the_user_comes_back(
    whole_chrome: Chrome, start_server: Start
) -> None:
    chrome = whole_chrome
    server = start_server(CORS_ORIGINS=[chrome.origin], STREAM__RETRY=200)
    tabs = open_tabs(chrome, server, 3)
    leader = take_leader(others := list(tabs))
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        leader.has(ids[-1])
        leader.page.goto(f"{chrome.origin}/nothing.html")
        ids += publish(publisher, 3)
        for tab in others:
            tab.has(ids[-1])
        leader.page.go_back(wait_until="commit")
        ids += publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids  # the page that came back is the same one, with what it noted before
    assert connections(server) == 1


def test_the_position_survives_a_page_load_and_nobody_else_gets_anything_twice(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    tabs = open_tabs(chrome, server, 3, options={"persist": True})
    with server.publisher() as publisher:
        before = publish(publisher, 3)
        for tab in tabs:
            tab.has(before[-1])
        address = tabs[2].page.url
        tabs[2].page.goto("about:blank")
        meanwhile = publish(publisher, 3)
        tabs[0].has(meanwhile[-1])
        tabs[2].page.goto(address)
        after = publish(publisher, 3)
        for tab in tabs:
            tab.has(after[-1])
        assert tabs[2].ids() == meanwhile + after
        assert tabs[0].ids() == tabs[1].ids() == before + meanwhile + after


def test_a_tab_that_closes_its_client_leaves_no_lock_and_no_connection(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tabs = open_tabs(chrome, server, 2)
    for tab in tabs:
        tab.run("client.close()")
    tabs[0].wait("navigator.locks.query().then(({ held, pending }) => held.length + pending.length === 0)")
    tabs[0].wait(
        f"fetch('{server.url.replace('127.0.0.1', 'localhost')}/api/v1/sse/status')"
        ".then((answer) => answer.json()).then((status) => status.total_connections === 0)"
    )
    assert [tab.run("client.readyState") for tab in tabs] == [2, 2]


@pytest.mark.ci
def test_a_follower_whose_user_logs_out_or_changes_by_a_function_of_the_page_follows_no_longer_than_a_token_lives(
    chrome: Chrome, serve: Start
) -> None:
    """Of a function nobody hears what it would return: it is asked as a stream of its own would ask it."""
    # All have joined before the first of them asks again, after five seconds; the pages are there before.
    server = serve(AUTH__STREAM_LIFETIME=12)
    ann, bob = (server.access_token(subject=user, subscribe=f"alerts,user.{user}") for user in ("ann", "bob"))
    channels = ["alerts"]
    leader, changed, gone = tabs = [
        chrome.open(server, options={"autoConnect": False}, access=access, channels=channels)
        for access in ([ann], [ann, bob, bob, bob, bob], [ann, "no token"])
    ]
    for tab in tabs:
        tab.run("client.connect()")
        tab.opened()
    assert connections(server) == 1
    gone.wait("log.some((e) => e.kind === 'close')")
    assert [(entry["reason"], entry["status"]) for entry in gone.noted("close")] == [("token", 401)]
    changed.wait("log.some((e) => e.kind === 'reconnect')")
    wait_for_connections(server, 2)
    changed.opened(2)
    with server.publisher() as publisher:
        ids = publish(publisher, 3, channel="alerts")
    for tab in (leader, changed):
        tab.has(ids[-1])
        assert tab.ids() == ids
    assert gone.ids() == []
    assert leader.noted("reconnect") == leader.noted("close") == []


@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_first_token_that_the_server_asks_to_wait_for_is_waited_for(
    share: bool, chrome: Chrome, serve: Start
) -> None:
    (tab,) = open_tabs(chrome, serve(), 1)
    options = {"share": share, "reconnectDelay": 10}
    tab.run(f"""client.close(), window.calls = [], window.client = make({{ ...{json.dumps(options)}, token() {{
        calls.push(performance.now());
        throw Object.assign(new Error("not now"), {{ status: 429, retryAfter: 1.5 }});
    }} }})""")
    tab.wait("calls.length >= 2")
    assert tab.run("calls[1] - calls[0]") >= 1490


def test_a_tab_that_was_opened_while_offline_connects_as_soon_as_it_is_online(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    tab = chrome.open(server, options={"autoConnect": False, "reconnectDelay": 3e6, "maxReconnectDelay": 3e6})
    tab.wait("window.client")
    tab.run("import('/static/sse-page.js'), import('/static/sse-shared.js')")  # as from a cache
    chrome.context.set_offline(True)
    tab.run("client.connect()")
    tab.wait("log.some((e) => e.kind === 'reconnect')")
    chrome.context.set_offline(False)
    tab.opened()
