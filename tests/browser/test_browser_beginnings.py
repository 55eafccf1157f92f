"""The browser client on streams that begin anywhere, carry anything, and come to an end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from tests.support.browser import Chrome, ClientPage, connections, serve_pages
from tests.support.server_process import ServerProcess, running

pytestmark = pytest.mark.browser

CHANNELS = [
    {"pattern": "user.**"},
    {"pattern": "alerts"},
    {"pattern": "cursors", "stored": False},
    {"pattern": "quotes", "conflate": "symbol"},
]


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    """Where the pages of all these tests are."""
    with serve_pages() as pages:
        yield pages


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, origin: str) -> Iterator[ServerProcess]:
    """One server for all of these tests, each of which has channels of its own."""
    with running(
        state_dir=tmp_path_factory.mktemp("beginnings") / "state",
        CHANNELS=CHANNELS,
        CORS_ORIGINS=[origin],
        STREAM__RETRY=200,
        KEEPALIVE__PING_INTERVAL=1,
    ) as started:
        yield started


@pytest.fixture
def chrome(chromium: Browser, origin: str) -> Iterator[Chrome]:
    """A browser profile of its own."""
    with chromium.new_context() as context:
        chrome = Chrome(context, origin)
        yield chrome
        assert chrome.trouble == []


@pytest.fixture
def publisher(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.publisher() as client:
        yield client


def publish(publisher: httpx.Client, channel: str, data: Any, event: str = "tick", **more: Any) -> str:
    answer = publisher.post(f"/api/v1/sse/{channel}", json={"event": event, "data": data, **more})
    return str(answer.json().get("id", ""))


def texts(tab: ClientPage) -> list[str]:
    return [event["text"] for event in tab.noted("event")]


def test_it_begins_where_it_is_asked_to_and_goes_on_from_there(
    chrome: Chrome, server: ServerProcess, publisher: httpx.Client
) -> None:
    for n in range(4):
        publish(publisher, f"user.begin.{n % 2}", {"n": n}, "even" if n % 2 == 0 else "odd")
    types = {"events": ["even", "odd"]}
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"from": "earliest"}, [0, 1, 2, 3]),
        ({"last": 1}, [2, 3]),
        ({"since": 3600}, [0, 1, 2, 3]),
        ({"from": "earliest", "types": ["odd"]}, [1, 3]),
    ]
    tab = chrome.open(server, channels="user.begin.*", options=types)
    tab.opened()
    for options, expected in cases:
        tab.page.evaluate(
            "(options) => { client.close(); log.length = 0; client = make(options); }", types | options
        )
        tab.wait(f"log.filter((e) => e.kind === 'event').length === {len(expected)}")
        assert [event["data"]["n"] for event in tab.noted("event")] == expected, options
        assert {event["channel"] for event in tab.noted("event")} <= {"user.begin.0", "user.begin.1"}
    # The last of them hears odd ones only; a ping tells how far it has come all the same.
    left_out = publish(publisher, "user.begin.0", {"n": 4}, "even")
    tab.wait(f"client.lastEventId === '{left_out}'")
    server.kill()
    server.start()
    tab.opened(2)
    new = publish(publisher, "user.begin.new", {"n": 5}, "odd")
    tab.has(new)
    assert [event["data"]["n"] for event in tab.noted("event")] == [1, 3, 5]
    assert tab.noted("reset") == []


def test_data_of_any_kind_comes_as_it_was_published(
    chrome: Chrome, server: ServerProcess, publisher: httpx.Client
) -> None:
    tab = chrome.open(server, channels="user.any")
    tab.opened()
    values: list[Any] = ["<p>é</p>\n<p>2</p>", "", '{"channel": "alerts"}', [1, None], None, 0, {"n": 1}]
    for value in values:
        last = publish(publisher, "user.any", value)
    tab.has(last)
    heard = tab.noted("event")
    assert [event["text"] for event in heard[:3]] == values[:3]
    assert [event["data"] for event in heard[:6]] == [*values[:2], {"channel": "alerts"}, *values[3:6]]
    assert {event["channel"] for event in heard} == {"user.any"}
    assert heard[-1]["data"].items() >= {"n": 1, "channel": "user.any"}.items()


def test_tabs_that_want_different_channels_are_not_given_each_others_texts(
    chrome: Chrome, server: ServerProcess, publisher: httpx.Client
) -> None:
    access = [server.access_token()]
    tabs = [chrome.open(server, channels=f"user.tab{n}", access=access) for n in range(2)]
    for tab in tabs:
        tab.opened()
    assert connections(server) == 1
    for n in range(2):
        for text in ("first", "second"):
            last = publish(publisher, f"user.tab{n}", f"{text} of {n}")
        tabs[n].has(last)
    assert [texts(tab) for tab in tabs] == [[f"first of {n}", f"second of {n}"] for n in range(2)]


def test_the_end_of_all_its_channels_stops_it(
    chrome: Chrome, server: ServerProcess, publisher: httpx.Client
) -> None:
    tab = chrome.open(server, channels="user.final", options={"from": "earliest"})
    tab.opened()
    publish(publisher, "user.final", "one")
    publish(publisher, "user.final", "two", final=True)
    tab.wait("log.at(-1)?.kind === 'close'")
    assert texts(tab) == ["one", "two"]
    assert [(entry["reason"], entry["status"]) for entry in tab.noted("close")] == [("ended", 204)]
    tab.run("client.connect()")  # there is nothing to come
    tab.wait("log.filter((e) => e.kind === 'close').length === 2")
    assert tab.noted("close")[1]["reason"] == "ended"
    assert tab.noted("reconnect") == []


def test_a_conflated_table_and_events_that_are_not_stored(
    chrome: Chrome, server: ServerProcess, publisher: httpx.Client
) -> None:
    for symbol, price in (("a", 1), ("b", 2), ("a", 3)):
        stored = publish(publisher, "quotes", {"symbol": symbol, "price": price})
    tab = chrome.open(server, channels="quotes,cursors", options={"last": 1, "rate": 50})
    tab.has(stored)
    assert [event["data"]["price"] for event in tab.noted("event")] == [2, 3]
    assert tab.noted("open")[0]["conflated"] == ["quotes"]
    publish(publisher, "cursors", {"x": 1})
    tab.wait("log.at(-1).id === ''")
    assert tab.run("client.lastEventId") == stored
