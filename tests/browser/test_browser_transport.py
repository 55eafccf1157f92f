"""How the browser client reads its stream: where it stands, when it comes back, and why it cannot reach a server."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Route

from tests.support.browser import CHANNEL, Chrome, ClientPage, Start, connections, publish, serve_pages
from tests.support.scripted_server import HOURS, Answer, ScriptedServer, connected, frame

pytestmark = pytest.mark.browser

ALONE = {"share": False, "reconnectDelay": 50}
MINUTE = {"Retry-After": "60"}


def open_on(chrome: Chrome, script: ScriptedServer, **given: Any) -> ClientPage:
    """Open a tab with a client of its own connection to the scripted server."""
    given = {"tokens": ["secret-1", "secret-2"], "channels": "news"} | given
    given["options"] = ALONE | given.get("options", {})
    return chrome.open(script.url, **given)


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_position_follows_events_of_types_that_nobody_listens_to(
    share: bool, chrome: Chrome, serve: Start
) -> None:
    server = serve(HISTORY__SIZE=100, KEEPALIVE__PING_INTERVAL=100)  # no ping tells it the position
    access = [server.access_token()]
    tabs = [
        chrome.open(server, access=access, options={"share": share, "reconnectDelay": 50}) for _ in range(2)
    ]
    for tab in tabs:
        tab.opened()
    with server.publisher() as publisher:
        last = publish(publisher, 300, event="unheard")[-1]
        for tab in tabs:
            tab.wait(f"client.lastEventId === '{last}'", timeout=20_000)
        server.kill()
        server.start()
        for tab in tabs:
            tab.opened(2)
        ids = publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids
            assert tab.noted("reset") == []


def test_without_events_it_hears_events_of_all_types(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(body=connected() + frame("a", {}, "e-2") + "data: text\n\n", hold=HOURS)]
    tab = open_on(chrome, script, options={"events": None})
    tab.wait("log.some((e) => e.text === 'text')")
    assert [(event["type"], event["id"]) for event in tab.noted("event")] == [("a", "e-2"), ("message", "")]
    assert tab.run("client.lastEventId") == "e-2"


def test_an_event_that_repeats_the_last_id_is_the_same_event(chrome: Chrome, script: ScriptedServer) -> None:
    """It is told once; one without an id is another one, and is told."""
    twice = frame("tick", {}, "e-2") * 2
    script.answers = [Answer(body=connected() + twice + frame("tick", {}) + frame("end", {}), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.wait("log.some((e) => e.type === 'end')")
    assert [(event["type"], event["id"]) for event in tab.noted("event")] == [
        ("tick", "e-2"),
        ("tick", ""),
        ("end", ""),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, headers=MINUTE),
        Answer(429, headers=MINUTE),
        Answer(body=connected() + frame("closing", {"reason": "shutdown", "retry": 60_000})),
    ],
    ids=["503", "429", "closing"],
)
def test_nothing_that_the_browser_says_overrides_the_wait_that_the_server_asks_for(
    answer: Answer, chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [answer]
    tab = open_on(chrome, script)
    tab.wait("log.some((e) => e.kind === 'reconnect')")
    tab.run("""for (let n = 0; n < 10; n++) {
        for (const type of ["online", "offline", "online", "pagehide", "pageshow"]) dispatchEvent(new Event(type));
        for (const type of ["freeze", "resume", "visibilitychange"]) document.dispatchEvent(new Event(type));
    }""")
    tab.page.wait_for_timeout(500)
    assert len(script.streams()) == 1
    noted = tab.noted("reconnect")
    assert all(note["at"] + note["delay"] >= noted[0]["at"] + 59_000 for note in noted)


def test_a_wait_of_its_own_ends_when_the_network_is_back(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(0), Answer(body=connected(), hold=HOURS)]
    tab = open_on(
        chrome, script, options={"reconnectDelay": 60_000, "maxReconnectDelay": 60_000}, random=0.999
    )
    tab.wait("log.some((e) => e.kind === 'reconnect')")
    tab.run("for (let n = 0; n < 10; n++) dispatchEvent(new Event('online'))")
    tab.opened()
    assert len(script.streams()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("wake", ["window pageshow", "document visibilitychange", "window online"])
def test_a_stream_that_was_silent_while_the_machine_slept_is_opened_anew_at_once(
    wake: str, chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script)
    tab.opened()
    target, type = wake.split()
    tab.run(f"{target}.dispatchEvent(new Event('{type}'))")
    tab.page.wait_for_timeout(200)
    assert len(script.streams()) == 1, "it is not silent"
    # An hour that the clock of timers knows nothing of, as while a machine sleeps.
    tab.run("{ const { now } = Date; Date.now = () => now() + 3_600_000; }")
    tab.run(f"for (let n = 0; n < 5; n++) {target}.dispatchEvent(new Event('{type}'))")
    tab.opened(2)
    assert len(script.streams()) == 2
    assert [(note["reason"], note["delay"]) for note in tab.noted("reconnect")] == [("stalled", 0)]


@pytest.mark.slow
def test_a_tab_that_wakes_has_the_tab_that_leads_look_at_the_stream(chrome: Chrome, serve: Start) -> None:
    """A tab that leads and is not seen is told nothing by its browser, at a machine that wakes."""
    server = serve()
    access = [server.access_token()]
    tabs = [chrome.open(server, access=access) for _ in range(2)]
    for tab in tabs:
        tab.opened()
    for tab in tabs:
        tab.run("{ const { now } = Date; Date.now = () => now() + 3_600_000; }")
    tabs[1].run(
        "document.dispatchEvent(new Event('visibilitychange'))"
    )  # the other one was there first: it leads
    for tab in tabs:
        tab.opened(2)
        assert tab.noted("reconnect")[0]["reason"] == "stalled"
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids


def test_a_retry_of_nothing_makes_no_storm(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(body="retry: 0\ndata: x\n\n"), Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script, options={"reconnectDelay": 1000}, random=0.999)
    tab.opened(2)
    assert [round(note["delay"]) for note in tab.noted("reconnect")] == [999]


def warnings_of(tab: ClientPage) -> list[str]:
    """Return the list in which what the page's console warns of is noted, from now on."""
    warnings: list[str] = []
    tab.page.on(
        "console", lambda message: warnings.append(message.text) if message.type == "warning" else None
    )
    return warnings


HINT = "log.find((e) => e.hint)?.hint"


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize("refused", ["stream", "token"])
def test_a_page_whose_origin_is_not_configured_is_told_what_to_configure(
    refused: str, share: bool, chrome: Chrome, serve: Start
) -> None:
    server = serve()
    access = {"access": [server.access_token()]}
    given = access if refused == "token" else {"tokens": [server.stream_token(CHANNEL)]}
    with serve_pages() as third:
        stranger = Chrome(chrome.context, third)
        tab = stranger.open(
            server, **given, options={"share": share, "reconnectDelay": 50, "autoConnect": False}
        )
        warnings = warnings_of(tab)
        tab.run("client.connect()")
        tab.wait(f"{HINT}")
        tab.run("make()")
        tab.wait("log.filter((e) => e.hint).length >= 4")
        hint = tab.run(HINT)
        url = server.url.replace("127.0.0.1", "localhost")
        assert hint.startswith(f"{url} is there, but ")
        assert f'add "{third}" to the server\'s cors_origins' in hint
        assert [warning for warning in warnings if "sse_app" in warning] == [f"sse_app: {hint}"], "once"
        assert tab.noted("open") == []


@pytest.mark.slow
def test_a_login_from_an_origin_that_is_not_configured_says_so_too(chrome: Chrome, serve: Start) -> None:
    server = serve()
    server.add_user("ann", "correct horse battery", subscribe="alerts")
    login = """(url) => import("/static/sse-session.js")
        .then(({ Session }) => new Session(url).login("ann", "correct horse battery"))
        .then(() => "", ({ status, message }) => `${status} ${message}`)"""

    def logged_in(origin: str) -> str:
        page = chrome.context.new_page()
        page.goto(f"{origin}/plain.html")
        return str(page.evaluate(login, server.url.replace("127.0.0.1", "localhost")))

    with serve_pages() as third:
        assert logged_in(chrome.origin) == ""
        refused = logged_in(third)
        assert refused.startswith("0 ")
        assert f'add "{third}" to the server\'s cors_origins' in refused
        server.kill()
        assert logged_in(third) == "0 the server cannot be reached"


@pytest.mark.slow
def test_a_page_whose_own_policy_is_in_the_way_is_told_so(chrome: Chrome, script: ScriptedServer) -> None:
    def guard(route: Route) -> None:
        answer = route.fetch()
        policy = {"Content-Security-Policy": "connect-src 'self'"}
        route.fulfill(response=answer, headers=answer.headers | policy)

    chrome.context.route("**/client.html", guard)
    tab = open_on(chrome, script)
    tab.wait(HINT)
    assert tab.run(HINT) == (
        f"This page's Content-Security-Policy forbids it to ask {script.url}: add that to connect-src."
    )
    assert script.asked == []


@pytest.mark.slow
def test_a_server_that_is_away_is_no_mistake_of_the_settings(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(0)]
    tab = open_on(chrome, script, options={"autoConnect": False})
    warnings = warnings_of(tab)
    tab.run("client.connect()")
    tab.wait("log.length >= 5")
    assert {note["reason"] for note in tab.noted("reconnect")} == {"unreachable"}
    script.answers = [Answer(body=connected()), Answer(0)]  # nor one that was reached once, and then is not
    tab.opened()
    count = len(tab.run("log"))
    tab.wait(f"log.length >= {count + 4}")
    assert not any("hint" in note for note in tab.run("log"))
    assert warnings == []
    assert [note["attempt"] for note in tab.noted("reconnect")][:5] == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_restart_opens_a_new_connection_after_the_last_event(
    share: bool, chrome: Chrome, serve: Start
) -> None:
    server = serve()
    tabs = [
        chrome.open(server, access=[server.access_token()], options={"share": share, "reconnectDelay": 50})
        for _ in range(2)
    ]
    for tab in tabs:
        tab.opened()
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
        calls = tabs[0].run("tokenCalls")
        tabs[0].run("client.restart()")
        tabs[0].opened(2)
        assert tabs[0].run("tokenCalls") > calls
        assert [note["reason"] for note in tabs[0].noted("reconnect")] == ["restart"]
        ids += publish(publisher, 3)
        for tab in tabs:
            tab.has(ids[-1])
            assert tab.ids() == ids
        tabs[0].run("client.close(); client.restart()")  # as connect() then
        tabs[0].opened(3)
        assert len(tabs[0].noted("reconnect")) == 1


def test_a_signal_closes_it_for_good(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script, options={"autoConnect": False})
    tab.run("""{
        window.end = new AbortController();
        window.client = make({ autoConnect: true, signal: end.signal });
    }""")
    tab.opened()
    tab.run("end.abort()")
    assert [(note["reason"], note["status"]) for note in tab.noted("close")] == [("closed", 0)]
    tab.run("client.connect(); client.restart(); make({ autoConnect: true, signal: end.signal })")
    tab.page.wait_for_timeout(300)
    assert tab.run("client.readyState") == 2
    assert len(script.streams()) == len(tab.noted("open")) == len(tab.noted("close")) == 1


@pytest.mark.slow
def test_debug_says_each_step_and_no_secret(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(401), Answer(body=connected() + frame("tick", {}, "e-2"), hold=HOURS)]
    tab = open_on(chrome, script, options={"autoConnect": False})
    said: list[str] = []
    tab.page.on("console", lambda message: said.append(message.text) if message.type == "debug" else None)
    tab.run("""{
        window.told = [];
        make({ autoConnect: true, debug: true });
        make({ autoConnect: true, debug: (...what) => told.push(what) });
    }""")
    tab.wait("log.filter((e) => e.kind === 'event').length === 2 && told.some((what) => what[1] === 'event')")
    kinds = tab.run("told.map((what) => what[1])")
    assert kinds[-3:] == ["connecting", "open", "event"]
    assert any("connecting" in text for text in said)
    assert "secret" not in str(said) + str(tab.run("told"))


@pytest.mark.slow
@pytest.mark.parametrize("share", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_worker_has_a_stream_as_a_page_has(share: bool, chrome: Chrome, serve: Start) -> None:
    server = serve()
    tab = chrome.open(server, access=[server.access_token()], options={"share": share, "reconnectDelay": 50})
    tab.opened()
    tab.page.evaluate(
        """([origin, url, channels, token, share]) => {
            const script = `
                import { SSEClient } from "${origin}/static/sse-client.js";
                const onEvent = ({ id }) => postMessage(id);
                const onOpen = () => postMessage("open");
                const [channels, token, share] = ["${channels}", "${token}", ${share}];
                new SSEClient("${url}/api/v1/sse", { channels, token, share, onOpen, onEvent });
            `;
            window.told = [];
            const at = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
            new Worker(at, { type: "module" }).onmessage = ({ data }) => told.push(data);
        }""",
        [
            chrome.origin,
            server.url.replace("127.0.0.1", "localhost"),
            CHANNEL,
            server.stream_token(CHANNEL),
            share,
        ],
    )
    tab.wait("told.includes('open')")
    assert connections(server) == (1 if share else 2)
    with server.publisher() as publisher:
        ids = publish(publisher, 3)
        tab.wait(f"told.includes('{ids[-1]}')")
        tab.has(ids[-1])
    assert tab.run("told") == ["open", *ids]


@pytest.mark.slow
def test_a_stream_that_is_closed_as_it_opens_renews_nothing(chrome: Chrome, script: ScriptedServer) -> None:
    script.answers = [Answer(body=connected(expires_in=1), hold=HOURS)]
    tab = open_on(chrome, script, options={"autoConnect": False})
    tab.run("""{
        window.asked = 0;
        const one = make({ autoConnect: true, token: () => { asked += 1; return "one"; }, onOpen: () => one.close() });
    }""")
    tab.wait("log.some((e) => e.kind === 'close')")
    tab.page.wait_for_timeout(1500)
    assert tab.run("asked") == 1
    assert len(script.asked) == 1


def test_a_channel_that_a_page_was_given_leads_to_no_other_path(
    chrome: Chrome, script: ScriptedServer
) -> None:
    script.answers = [Answer(body=connected(), hold=HOURS)]
    tab = open_on(chrome, script, channels=["../../auth/me", "a?b#c", "prices.*"])
    tab.opened()
    (asked,) = script.streams()
    assert asked.path == "/api/v1/sse/..%2F..%2Fauth%2Fme,a%3Fb%23c,prices.*"
    assert asked.query.keys() == {"token", "client_id"}
    assert tab.run("client.url").endswith(asked.path)
