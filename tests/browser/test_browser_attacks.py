"""Ways to break the browser client, each tried: misleading servers, odd networks, careless pages."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.support.browser import CHANNEL, Chrome, ClientPage, Start, connections, publish
from tests.support.databases import back_up
from tests.support.scripted_server import HOURS, Answer, ScriptedServer, connected, frame

pytestmark = pytest.mark.browser

ALONE = {"share": False, "reconnectDelay": 50}


def open_on(chrome: Chrome, script: ScriptedServer, **given: Any) -> ClientPage:
    """Open a tab with a client of its own connection to the scripted server."""
    given = {"tokens": ["one", "two", "three"], "channels": "news"} | given
    given["options"] = ALONE | given.get("options", {})
    return chrome.open(script.url, **given)


def tick(id: str, channel: str = "news") -> str:
    """Return an event as it stands on the wire."""
    return frame("tick", {"channel": channel}, id)


@pytest.mark.slow
def test_a_log_restored_from_a_backup_is_told_and_its_new_events_are_not_taken_for_seen(
    chrome: Chrome, serve: Start
) -> None:
    """The restored log has the same epoch and smaller numbers: a client that only compares would be deaf."""
    server = serve()
    tabs = [chrome.open(server, options=options) for options in (ALONE, {}, {})]
    for tab in tabs:
        tab.opened()
    with server.publisher() as publisher:
        publish(publisher, 3)
        server.kill()
        backup = server.state_dir.with_name("backup")
        back_up(server.state_dir, backup)
        server.start()
        ids = publish(publisher, 50)
        for tab in tabs:
            tab.has(ids[-1])
        server.kill()
        shutil.rmtree(server.state_dir)
        backup.rename(server.state_dir)
        server.start()
        for tab in tabs:
            tab.wait("log.some((e) => e.kind === 'reset')")
        again = publish(publisher, 5)
        assert set(again) <= set(ids)
        for tab in tabs:
            tab.wait(f"log.at(-1).id === '{again[-1]}'")
            assert tab.ids()[-5:] == again
            assert [entry["channel"] for entry in tab.noted("reset")] == [CHANNEL]


def test_a_log_that_was_replaced_while_a_page_was_away_is_told(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tab = chrome.open(server, options={"persist": True})
    tab.opened()
    with server.publisher() as publisher:
        tab.has(publish(publisher)[0])
    address = tab.page.url
    tab.page.goto("about:blank")
    server.stop()
    server.command("eventlog", "new-epoch")
    server.start()
    other = chrome.open(server)
    other.opened()
    tab.page.goto(address)
    tab.wait("log.some((e) => e.kind === 'reset')")
    with server.publisher() as publisher:
        (id,) = publish(publisher)
    for each in (tab, other):
        each.has(id)
        assert each.ids() == [id]
    assert other.noted("reset") == []


def test_a_token_for_half_a_year_makes_no_storm_of_renewals(chrome: Chrome, script: ScriptedServer) -> None:
    """A timer of more than 2^31 ms fires at once."""
    script.answers = [Answer(body=connected(expires_in=180 * 86_400), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.opened()
    tab.page.wait_for_timeout(500)
    assert len(script.asked) == 1


def test_a_retry_after_beyond_all_timers_makes_no_storm_of_requests(
    chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [Answer(503, headers={"Retry-After": "99999999"})]
    tab = open_on(chrome, script)
    tab.wait("log.length")
    tab.page.wait_for_timeout(500)
    assert len(script.streams()) == 1


@pytest.mark.ci
def test_pings_that_come_at_a_slower_pace_than_was_learned_end_in_one_reconnect_not_in_a_loop(
    chrome: Chrome, script: ScriptedServer
) -> None:
    ping = frame("ping", {})
    # Two pings at once tell a pace, also where this process pauses.
    fast = Answer(body=connected() + 2 * ping, pings=0.5, hold=1.2)
    script.answers = [fast, Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.wait("log.some((e) => e.reason === 'stalled')")
    tab.opened(3)
    tab.page.wait_for_timeout(4000)  # longer than the patience that was learned
    assert [entry["reason"] for entry in tab.noted("reconnect")] == ["lost", "stalled"]


def test_a_token_that_never_comes_is_asked_for_again_and_one_that_comes_late_opens_nothing(
    chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.opened()
    tab.run("client.close()")
    tab.run("""{
        window.release = [];
        const token = () => release.length < 2 ? new Promise((go) => release.push(go)) : "good";
        window.client = make({ token, connectTimeout: 1000 });
    }""")
    tab.opened(2)
    tab.run("release.forEach((go) => go('late')), client.readyState")
    tab.page.wait_for_timeout(300)
    first, *others = [request.query["token"] for request in script.streams()]
    assert (first, {*others}) == ("one", {"good"})
    assert len(tab.noted("open")) == 2
    reasons = [entry["reason"] for entry in tab.noted("reconnect")]
    assert reasons == ["timeout"] * max(2, len(reasons))  # a good one may be late too


def test_a_token_for_a_shared_stream_that_never_comes_is_asked_for_again(
    chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script, options={"autoConnect": False})
    tab.run("""{
        let calls = 0;
        const token = () => calls++ ? "good" : new Promise(() => {});
        window.client = make({ autoConnect: true, share: true, token, connectTimeout: 1000 });
    }""")
    tab.opened()
    assert [entry["reason"] for entry in tab.noted("reconnect")][:1] == ["token"]
    assert script.streams()[0].query["token"] == "good"


def test_a_tab_whose_look_at_its_user_is_never_answered_looks_again(
    chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [Answer(body=connected(), hold=HOURS)]
    tabs = [open_on(chrome, script, options={"autoConnect": False}) for _ in range(2)]
    for tab in tabs:
        tab.run("""{
            window.calls = 0;
            const now = Date.now() / 1000;
            const claims = btoa(JSON.stringify({ sub: "ann", iat: now, exp: now + 2 }));
            const token = () => ++calls === 2 ? new Promise(() => {}) : `head.${claims}.signature`;
            window.client = make({ autoConnect: true, share: true, token, connectTimeout: 1000 });
        }""")
        tab.opened()
    tabs[1].wait("calls >= 3")
    assert tabs[1].noted("close") == []


def test_what_a_superseded_connection_still_says_is_not_heard(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.opened()
    heard = tab.run("""new Promise((resolve) => {
        const encoder = new TextEncoder();
        const connected = 'id: e-1\\nevent: connected\\ndata: {}\\n\\n';
        let old;
        window.fetch = async () => {  // one that does not heed that its request was given up
            const body = new ReadableStream({ start(controller) { old = controller; } });
            old.enqueue(encoder.encode(connected));
            return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
        };
        client.close();
        log.length = 0;
        client.connect();
        client.addEventListener("open", () => {
            client.close();
            for (const type of ["tick", "connected", "closing", "reset", "ping"]) {
                old.enqueue(encoder.encode(`id: e-9\\nevent: ${type}\\ndata: {"retry": null}\\n\\n`));
            }
            old.error(new TypeError("network error"));
            setTimeout(() => resolve(log.map((entry) => entry.kind)), 300);
        });
    })""")
    assert heard == ["open", "close"]


def test_a_callback_that_throws_costs_no_event(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [
        Answer(0),
        Answer(body=connected() + "".join(tick(f"e-{n}") for n in range(2, 6)), hold=HOURS),
    ]
    tab = open_on(chrome, script, options={"autoConnect": False})
    tab.run("""{
        window.thrown = 0;
        addEventListener("error", (event) => { thrown += 1; event.preventDefault(); });
        const fail = () => { throw new Error("of the page"); };
        window.client = make({ autoConnect: true, debug: fail, onOpen: fail, onReconnect: fail, onEvent: fail });
        client.addEventListener("tick", (event) => log.push({ kind: "event", id: event.lastEventId }));
    }""")
    tab.has("e-5")
    tab.wait("thrown === 6 + 8")  # and of each step that it was told as debug
    assert tab.ids() == ["e-2", "e-3", "e-4", "e-5"]
    chrome.trouble.clear()


def test_nothing_fires_after_a_close_from_within_a_callback(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(body=connected() + tick("e-2") + tick("e-3"), hold=HOURS)]
    tab = open_on(chrome, script, options={"autoConnect": False})
    tab.run("""{
        const note = (kind) => log.push({ kind });
        window.client = make({ autoConnect: true, onEvent: () => { note("event"); client.close(); } });
        client.addEventListener("tick", () => note("listener"));
    }""")
    tab.wait("log.some((e) => e.kind === 'close')")
    tab.page.wait_for_timeout(200)
    assert [entry["kind"] for entry in tab.run("log")] == ["open", "event", "close"]


def test_data_that_makes_no_sense_does_no_harm(chrome: Chrome, script: ScriptedServer) -> None:
    nonsense = ["", "null", "[]", "7", '"text"', "{", '{"retry": "x"}', '{"expires_in": -1, "retry": -5}']
    body = "".join(
        f"event: {type}\ndata: {data}\n\n" for data in nonsense for type in ("reset", "ping", "connected")
    )
    odd = "id: \nevent: tick\ndata: {\n\nid: é-x\nevent: tick\ndata: null\n\n"
    script.answers = [Answer(body=connected() + body + odd + tick("e-2"), hold=HOURS)]
    script.answers.insert(0, Answer(body="event: closing\ndata: nonsense\n\n", hold=HOURS))
    tab = open_on(chrome, script)
    tab.has("e-2")


def test_an_event_sent_twice_is_told_once(chrome: Chrome, script: ScriptedServer) -> None:
    body = connected() + tick("e-2") + tick("e-3") + tick("e-2") + tick("e-3") + tick("f-1") + tick("e-10")
    script.answers = [Answer(body=body, hold=HOURS)]
    tab = open_on(chrome, script)
    tab.has("e-10")
    assert tab.ids() == ["e-2", "e-3", "f-1", "e-10"]


def test_a_connection_lost_in_the_middle_of_an_event_goes_on_before_it(
    chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [
        Answer(body=connected() + tick("e-2") + tick("e-3").rstrip("\n")),
        Answer(body=connected("e-2") + tick("e-3"), hold=HOURS),
    ]
    tab = open_on(chrome, script)
    tab.has("e-3")
    assert tab.ids() == ["e-2", "e-3"]
    assert script.streams()[1].query["last_event_id"] == "e-2"


@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_page_that_cannot_make_up_its_mind_ends_with_one_connection(
    chrome: Chrome, serve: Start, share: bool
) -> None:
    server = serve()
    tab = chrome.open(server, options={"share": share})
    tab.run("for (let n = 0; n < 50; n++) { client.close(); client.connect(); } log.length = 0")
    tab.opened()
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        tab.has(ids[-1])
    assert tab.ids() == ids
    tab.page.wait_for_timeout(300)
    assert connections(server) == 1


def test_the_network_goes_and_comes_back(chrome: Chrome, serve: Start) -> None:
    server = serve()
    tabs = [chrome.open(server, options=ALONE), *(chrome.open(server) for _ in range(2))]
    for tab in tabs:
        tab.opened()
    chrome.context.set_offline(True)
    for tab in tabs:
        tab.wait("log.some((e) => e.reason === 'offline')")
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        chrome.context.set_offline(False)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids


def test_storage_that_is_refused_costs_only_the_position(chrome: Chrome, serve: Start) -> None:
    chrome.context.add_init_script(
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
    )
    server = serve()
    tab = chrome.open(server, options={"persist": True})
    tab.opened()
    with server.publisher() as publisher:
        tab.has(publish(publisher)[0])


def test_a_page_that_was_busy_does_not_take_its_own_deafness_for_a_stall(
    chrome: Chrome, serve: Start
) -> None:
    server = serve(KEEPALIVE__PING_INTERVAL=1)

    def goes_on() -> bool:
        tab = chrome.open(server, options={**ALONE, "pingInterval": 1000})
        tab.opened()
        tab.run("{ const until = performance.now() + 3000; while (performance.now() < until); }")
        with server.publisher() as publisher:
            tab.has(publish(publisher)[0])
        return tab.noted("reconnect") == []

    # Where the machine has paused the server for as long, it was silent indeed.
    assert any(goes_on() for _ in range(3))


@pytest.mark.parametrize(
    ("url", "channels"),
    [
        ("/", "a"),
        pytest.param("/api/v1/sse", ["a"], marks=pytest.mark.slow),
        pytest.param("/api/v1/sse/", "a", marks=pytest.mark.slow),
        ("/api/v1/sse/a?x=1#y", None),
        pytest.param("/api/v1/sse/a", None, marks=pytest.mark.slow),
    ],
)
def test_the_url_may_be_the_servers_the_apis_or_the_streams(
    chrome: Chrome, script: ScriptedServer, url: str, channels: Any
) -> None:
    script.answers = [Answer(body=connected(channel="a") + tick("e-2", "a"), hold=HOURS)]
    tab = open_on(chrome, script, url=script.url + url, channels=channels)
    tab.has("e-2")
    (asked,) = script.streams()
    assert asked.path == "/api/v1/sse/a"
    assert asked.query.get("x") == ("1" if "x=1" in url else None)
