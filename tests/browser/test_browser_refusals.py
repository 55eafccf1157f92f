"""What the browser client does when it is refused or put off: when it comes back, and when it stops."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.support.browser import CHANNEL, Chrome, ClientPage, Start, connections, publish
from tests.support.scripted_server import HOURS, Answer, ScriptedServer, connected, frame
from tests.support.server_process import ServerProcess

pytestmark = pytest.mark.browser

ALONE = {"share": False, "reconnectDelay": 50}
FAR = 0.999
"""A Math.random at the far end of the jitter."""

LATE = 4.0
"""Seconds by which a request may come later than its time, on a machine that has much else to do."""


def open_on(chrome: Chrome, script: ScriptedServer, **given: Any) -> ClientPage:
    """Open a tab with a client of its own connection to the scripted server."""
    given = {"tokens": ["one", "two", "three"], "channels": "news"} | given
    given["options"] = ALONE | given.get("options", {})
    return chrome.open(script.url, **given)


def admin(server: ServerProcess) -> httpx.Client:
    """Return an HTTP client that may do what administrators may, to be used in a ``with``."""
    token = server.access_token(subject="root", admin=True)
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


@pytest.mark.slow
def test_the_backoff_doubles_up_to_its_limit_seen_from_outside(
    chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [Answer(0)]
    tab = open_on(chrome, script, options={"reconnectDelay": 100, "maxReconnectDelay": 1000}, random=FAR)
    tab.wait("log.length >= 7")
    gaps = [after.at - before.at for before, after in pairwise(script.streams())]
    wanted = (0.1, 0.2, 0.4, 0.8, 1.0, 1.0)
    for gap, least in zip(gaps[:6], wanted, strict=True):
        assert 0.99 * least <= gap < least + LATE
    delays = [entry["delay"] / 1000 for entry in tab.noted("reconnect")]
    assert delays[:6] == pytest.approx([FAR * delay for delay in wanted])
    print("gaps", [round(gap, 2) for gap in gaps])


@pytest.mark.slow
def test_the_jitter_is_full_from_nothing_to_the_whole_delay(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(0)]
    tab = open_on(chrome, script, options={"reconnectDelay": 100, "maxReconnectDelay": 100})
    tab.wait("log.length >= 40")
    delays = [entry["delay"] for entry in tab.noted("reconnect")]
    assert all(0 <= delay <= 100 for delay in delays)
    assert min(delays) < 25
    assert max(delays) > 75


@pytest.mark.long
def test_the_backoff_begins_anew_after_a_stable_connection_and_grows_from_the_servers_retry(
    chrome: Chrome, script: ScriptedServer
) -> None:
    short, stable = (Answer(body=connected(retry=300), hold=seconds) for seconds in (0.3, 11))
    script.answers = [Answer(0), Answer(0), short, stable, Answer(hold=HOURS)]
    tab = open_on(chrome, script, random=FAR)
    tab.wait("log.filter((e) => e.kind === 'reconnect').length >= 4")
    delays = [round(entry["delay"]) for entry in tab.noted("reconnect")]
    assert delays == [50, 100, 1199, 300]


@pytest.mark.parametrize(
    "status", [204, *(pytest.param(status, marks=pytest.mark.long) for status in (400, 403, 404))]
)
def test_a_final_refusal_stops_it(chrome: Chrome, script: ScriptedServer, status: int) -> None:
    script.answers = [Answer(status)]
    tab = open_on(chrome, script)
    tab.wait("log.length")
    assert [(entry["kind"], entry["status"]) for entry in tab.run("log")] == [("close", status)]
    assert [request.by for request in script.asked] == ["eventsource"], "one request tells it"
    assert tab.run("client.readyState") == 2


@pytest.mark.long
def test_after_401_it_tries_one_fresh_token_then_stops(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(401)]
    tab = open_on(chrome, script)
    tab.wait("log.length")
    assert [(entry["kind"], entry["status"]) for entry in tab.run("log")] == [("close", 401)]
    assert [request.query["token"] for request in script.streams()] == ["one", "two"]


@pytest.mark.slow
def test_after_401_a_fresh_token_that_is_good_goes_on_as_if_nothing_was(chrome: Chrome, serve: Start) -> None:
    server = serve()
    good = server.stream_token(CHANNEL)
    tab = chrome.open(server, tokens=["spent", good], options=ALONE)
    tab.opened()
    assert len(tab.run("log")) == 1


@pytest.mark.long
def test_a_text_as_token_is_not_tried_twice(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(401)]
    tab = open_on(chrome, script, options={"token": "spent"})
    tab.wait("log.length")
    assert len(script.streams()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("status", [503, pytest.param(429, marks=pytest.mark.long)])
def test_it_waits_as_long_as_retry_after_says(chrome: Chrome, script: ScriptedServer, status: int) -> None:
    script.answers = [Answer(status, headers={"Retry-After": "2"}), Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.opened()
    first, second = script.streams()
    assert 2.0 <= second.at - first.at < 2.5 + LATE
    assert 2000 <= tab.noted("reconnect")[0]["delay"] <= 2500
    assert tab.noted("reconnect")[0]["reason"] == f"status {status}"


@pytest.mark.long
def test_a_limit_of_the_real_server_puts_it_off_and_it_comes_in_when_there_is_room(
    chrome: Chrome, serve: Start
) -> None:
    server = serve(LIMITS__STREAMS_PER_USER=1)
    first = chrome.open(server, options=ALONE)
    first.opened()
    second = chrome.open(server, options=ALONE)
    second.wait("log.some((e) => e.reason === 'status 429' && e.delay >= 5000)")
    first.run("client.close()")
    second.opened()


@pytest.mark.long
def test_a_page_in_place_of_a_stream_is_no_reason_to_give_up(chrome: Chrome, script: ScriptedServer) -> None:
    portal = Answer(type="text/html", body="<h1>Please log in to this network</h1>")
    script.answers = [portal, portal, Answer(502, type="text/html"), Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.opened()
    assert [entry["reason"] for entry in tab.noted("reconnect")] == ["status 200", "status 200", "status 502"]


@pytest.mark.long
def test_closing_says_when_to_come_back(chrome: Chrome, script: ScriptedServer) -> None:
    farewell = frame("closing", {"reason": "shutdown", "retry": 1500})
    script.answers = [Answer(body=connected() + farewell, hold=HOURS), Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.opened(2)
    first, second = script.streams()
    assert 1.5 <= second.at - first.at < 1.5 + LATE
    assert round(tab.noted("reconnect")[0]["delay"]) == 1500
    assert tab.noted("reconnect")[0]["reason"] == "shutdown"


@pytest.mark.slow
def test_a_draining_server_is_left_alone_until_the_next_one_is_there(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tab = chrome.open(server, options=ALONE)
    tab.opened()
    server.stop()
    server.start()
    tab.opened(2)
    assert tab.noted("reconnect")[0]["reason"] == "shutdown"
    with server.publisher() as publisher:
        tab.has(publish(publisher)[0])


@pytest.mark.slow
def test_who_is_revoked_tries_one_fresh_token_and_stops_when_it_is_refused(
    chrome: Chrome, script: ScriptedServer
) -> None:
    farewell = frame("closing", {"reason": "revoked", "retry": None})
    script.answers = [Answer(body=connected(), end=farewell, hold=1.2), Answer(401)]
    tab = open_on(chrome, script)
    tab.wait("log.some((e) => e.kind === 'close')")
    assert [request.query["token"] for request in script.streams()] == ["one", "two"]
    assert [entry["status"] for entry in tab.noted("close")] == [401]


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.long)])
def test_who_is_kicked_stops_with_that_reason_and_gets_nothing_until_it_is_over(
    chrome: Chrome, serve: Start, share: bool
) -> None:
    server = serve()
    access = [server.access_token(session="kicked")]
    tabs = [
        chrome.open(server, access=access, options={"share": share, "reconnectDelay": 50}) for _ in range(2)
    ]
    for tab in tabs:
        tab.opened()
    with admin(server) as client:
        for stream in client.get("/api/v1/admin/connections").json()["connections"]:
            path = f"/api/v1/admin/connections/{stream['connection']}/kick"
            assert client.post(path, json={"for": 8}).status_code == 200
    for tab in tabs:
        tab.wait("log.some((e) => e.kind === 'close')")
        assert [(entry["reason"], entry["status"]) for entry in tab.noted("close")] == [("kicked", 403)]
    assert connections(server) == 0
    tab = tabs[0]
    tab.run("client.connect()")  # as a button of the page might
    tab.wait("log.filter((e) => e.kind === 'close').length === 2")
    assert tab.noted("close")[1]["reason"] == "kicked"
    tab.run("void setInterval(() => client.readyState === 2 && client.connect(), 200)")
    tab.opened(2)  # once it has passed


@pytest.mark.slow
def test_a_kick_that_a_client_did_not_hear_of_is_told_by_the_stream_that_it_opens(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    first, second = (server.stream_token(CHANNEL, session="kicked") for _ in range(2))
    other = chrome.open(server, tokens=[first], options=ALONE)
    other.opened()
    with admin(server) as client:
        (stream,) = client.get("/api/v1/admin/connections").json()["connections"]
        assert client.post(f"/api/v1/admin/connections/{stream['connection']}/kick").status_code == 200
    tab = chrome.open(server, tokens=[second], options=ALONE)
    tab.wait("log.some((e) => e.kind === 'close')")
    assert [(entry["reason"], entry["status"]) for entry in tab.noted("close")] == [("kicked", 403)]


def test_who_is_kicked_with_a_token_for_good_stops_too(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tab = chrome.open(server, options=ALONE | {"token": server.stream_token(CHANNEL)})
    tab.opened()
    with admin(server) as client:
        (stream,) = client.get("/api/v1/admin/connections").json()["connections"]
        assert client.post(f"/api/v1/admin/connections/{stream['connection']}/kick").status_code == 200
    tab.wait("log.some((e) => e.kind === 'close')")
    assert [(entry["reason"], entry["status"]) for entry in tab.noted("close")] == [("kicked", 401)]


@pytest.mark.slow
def test_all_tabs_of_a_user_who_is_revoked_stop(chrome: Chrome, serve: Start) -> None:
    server = serve()
    access = [server.access_token()]
    tabs = [chrome.open(server, access=access) for _ in range(3)]
    for tab in tabs:
        tab.opened()
    with admin(server) as client:
        assert client.post("/api/v1/admin/revocations", json={"subject": "tester"}).status_code == 201
    for tab in tabs:
        tab.wait("log.some((e) => e.kind === 'close' && e.status === 401)")
    assert connections(server) == 0


@pytest.mark.long
def test_a_token_that_ends_is_replaced_at_once(chrome: Chrome, script: ScriptedServer) -> None:
    """Where it has stood for a second; a busy page may see the beginning late."""
    farewell = frame("closing", {"reason": "token_expired", "retry": None})
    script.answers = [Answer(body=connected(), end=farewell, hold=3), Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script, options={"reconnectDelay": 5000})
    tab.opened(2)
    first, second = script.streams()
    assert second.at - first.at < 3 + LATE
    assert tab.noted("reconnect")[0]["delay"] == 0
    assert second.query == {"token": "two", "client_id": first.query["client_id"], "last_event_id": "e-1"}


@pytest.mark.ci
def test_it_gives_up_after_max_retries(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(0)]
    tab = open_on(chrome, script, options={"maxRetries": 3})
    tab.wait("log.some((e) => e.kind === 'close')")
    assert [entry["kind"] for entry in tab.run("log")] == ["reconnect"] * 3 + ["close"]
    assert len(script.streams()) == 4


@pytest.mark.slow
def test_a_login_that_is_over_stops_it_and_one_that_cannot_be_reached_does_not(
    chrome: Chrome, serve: Start
) -> None:
    server = serve()
    over = chrome.open(server, access=["spent"])
    over.wait("log.some((e) => e.kind === 'close' && e.reason === 'token' && e.status === 401)")
    server.kill()
    tabs = [chrome.open(server, access=["none yet"], options={"share": share}) for share in (True, False)]
    for tab in tabs:
        tab.wait("log.filter((e) => e.kind === 'reconnect' && e.reason === 'token').length >= 2")
        assert tab.noted("close") == []
    server.start()
    assert connections(server) == 0
