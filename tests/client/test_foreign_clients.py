"""Clients that others wrote: httpx-sse, the eventsource of npm, and a browser's own EventSource."""

from __future__ import annotations

import json
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice, pairwise
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

import httpx
import pytest
from httpx_sse import connect_sse
from playwright.sync_api import Browser

from tests.support.npm import installed_package
from tests.support.programs import require
from tests.support.server_process import ServerProcess

CHANNEL = "user.foreign"
EVENTSOURCE = "5.1.5"

# Prints everything that an EventSource fires, a line of JSON each; for "open" and "error" its readyState.
LISTEN = """(EventSource, [url, types]) => {
    const source = new EventSource(url);
    const data = (event) => event.data === undefined ? source.readyState : JSON.parse(event.data);
    const print = (event) => console.log(JSON.stringify([event.type, event.lastEventId ?? "", data(event)]));
    const all = new Set(["open", "error", "connected", "reset", "closing", "message", ...types]);
    for (const type of all) source.addEventListener(type, print);
}"""
IN_PAGE = f"(given) => ({LISTEN})(EventSource, given)"
IN_NODE = f"""import {{ EventSource }} from "eventsource";
setTimeout(() => process.exit(1), 60000);  // it also keeps the process alive between two connections
({LISTEN})(EventSource, JSON.parse(process.argv[2]));
"""

ODD_TEXTS = list('\r\n\v\f\0\x1b\x7f\x85\u2028\u2029\u202e\ufeff\ufffd\uffff\U0010ffff漢🙂 :"\\')
ODD_TEXTS += ["\r\n", "\n\r", "\n\n", "\r\r", "e\u0301", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "\\u0000", "\\n"]
ODD_TEXTS += ["</script>", "\nid: x-1\n", "\n\nevent: closing\ndata: {}\n\n"]
ODD_NUMBERS = [0, -1, 2**53 - 1, 1 - 2**53, 0.1, -0.0, 5e-324, 1.7976931348623157e308, 1e21, 1.5e-7]
ODD_DATA: list[dict[str, Any]] = [
    {},
    {"": ""},
    {"__proto__": {"a": 1}, "constructor": None, "toString": [], "0": 0},
    {"channel": "dashboard", "timestamp": "mine"},
    {"timestamp": None},
    {text: text for text in ODD_TEXTS},
    {"large": "".join(ODD_TEXTS) * 1200},
]

Start = Callable[..., ServerProcess]


class Heard(NamedTuple):
    """What a client tells of one event."""

    type: str
    id: str
    data: Any


Listen = Callable[[str, list[str]], Iterator[Heard]]


def by_httpx(stack: ExitStack, url: str, _types: list[str]) -> Iterator[Heard]:
    """Listen with httpx-sse."""
    client = stack.enter_context(httpx.Client(timeout=20))
    source = stack.enter_context(connect_sse(client, "GET", url))
    heard = (event for event in source.iter_sse() if event.event != "ping")  # as a client that asks for types
    return (Heard(event.event, event.id, json.loads(event.data)) for event in heard)


def by_node(stack: ExitStack, url: str, types: list[str]) -> Iterator[Heard]:
    """Listen with npm's eventsource, installed once for all runs."""
    node = require("node")
    folder = installed_package("eventsource", EVENTSOURCE)
    (folder / "listen.mjs").write_text(IN_NODE)
    command = [node, "listen.mjs", json.dumps([url, types])]
    process = stack.enter_context(Popen(command, cwd=folder, stdout=PIPE, encoding="utf-8"))
    stack.callback(process.kill)
    assert process.stdout is not None
    return (Heard(*json.loads(line)) for line in process.stdout)


def by_page(browser: Browser, address: str, stack: ExitStack, url: str, types: list[str]) -> Iterator[Heard]:
    """Listen with the EventSource of a page at an address; "/" is the server's own."""
    page = browser.new_page()
    stack.callback(page.close)
    lines: deque[str] = deque()
    page.on("console", lambda message: lines.append(message.text) if message.type == "log" else None)
    page.goto(str(httpx.URL(url).join(address)))
    page.evaluate(IN_PAGE, [url, types])
    while True:
        while not lines:
            page.wait_for_event("console", timeout=20_000)
        yield Heard(*json.loads(lines.popleft()))


@contextmanager
def blank_pages() -> Iterator[int]:
    """Serve an empty page, on a port of its own."""

    class BlankPage(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n")

    with ThreadingHTTPServer(("127.0.0.1", 0), BlankPage) as pages:
        threading.Thread(target=pages.serve_forever, args=(0.02,)).start()
        try:
            yield pages.server_port
        finally:
            pages.shutdown()


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The origin of a page that is not the server's."""
    with blank_pages() as port:
        yield f"http://localhost:{port}"


@pytest.fixture
def listen(request: pytest.FixtureRequest, elsewhere: str) -> Iterator[Listen]:
    """A function that opens a URL with the client that the test's parameter names, for events of these types."""
    with ExitStack() as stack:
        match request.param:
            case "httpx-sse":
                yield partial(by_httpx, stack)
            case "node":
                yield partial(by_node, stack)
            case page:
                address = elsewhere if page == "page elsewhere" else "/"
                yield partial(by_page, request.getfixturevalue("chromium"), address, stack)


NODE = pytest.param("node", marks=pytest.mark.node)
PAGE = pytest.param("page", marks=pytest.mark.browser)


def until(heard: Iterator[Heard], type: str) -> list[Heard]:
    """Return what is heard up to the first event of a type."""
    story: list[Heard] = []
    for event in islice(heard, 10_000):  # else a replay without an end would keep the test going
        story.append(event)
        if event.type == type:
            return story
    pytest.fail(f"no {type!r} in time, but {[(event.type, event.id) for event in story]}")


def publish(client: httpx.Client, *events: dict[str, Any], ascii: bool = True) -> list[str]:
    """Publish events, one alone or several as a batch, and return their ids."""
    batch = {"events": [{"channel": CHANNEL, **event} for event in events]}
    path, body = (f"/api/v1/sse/{CHANNEL}", events[0]) if len(events) == 1 else ("/api/v1/sse", batch)
    answer = client.post(path, content=json.dumps(body, ensure_ascii=ascii).encode())
    assert answer.status_code == 201, answer.text
    return [answer.json()["id"]] if len(events) == 1 else list(answer.json()["ids"])


def random_text(chance: random.Random) -> str:
    first, beyond = chance.choice([(0, 0x80), (0, 0xD800), (0xE000, 0x110000)])  # no surrogates
    plain = [chr(chance.randrange(first, beyond)) for _ in range(20)]
    return "".join(chance.choices(plain + ODD_TEXTS, k=chance.randrange(12)))


def random_value(chance: random.Random, depth: int = 3) -> Any:
    match chance.randrange(7 if depth else 5):
        case 0:
            return chance.choice([None, True, False, [], {}, "", *ODD_NUMBERS])
        case 1:
            return chance.randrange(-(2**53) + 1, 2**53)
        case 2:
            return chance.uniform(-1, 1) * 10.0 ** chance.randrange(-300, 300)
        case 5:
            return [random_value(chance, depth - 1) for _ in range(chance.randrange(5))]
        case 6:
            return {random_text(chance): random_value(chance, depth - 1) for _ in range(chance.randrange(5))}
    return random_text(chance)


def random_events(chance: random.Random) -> list[dict[str, Any]]:
    types = ["".join(chance.choices("AZaz09_.:-", k=chance.randint(1, 128))) for _ in range(20)]
    types += ["message", "__proto__", "Open", "data", "a" * 128]
    data = ODD_DATA + [{random_text(chance): random_value(chance) for _ in range(4)} for _ in range(150)]
    chance.shuffle(data)
    return [{"event": chance.choice(types), "data": each} for each in data]


@pytest.mark.slow
@pytest.mark.parametrize(
    "listen",
    ["httpx-sse", NODE, pytest.param("page", marks=[pytest.mark.browser, pytest.mark.long])],
    indirect=True,
)
def test_what_is_published_comes_back_equal_live_and_replayed(listen: Listen, start_server: Start) -> None:
    server = start_server(LIMITS__BACKLOG_BYTES=4 * 2**20)  # httpx-sse reads nothing until all is published
    events = random_events(random.Random(20))
    if isinstance(listen, partial) and listen.func is by_httpx:  # JavaScript's numbers do not go so far
        events.append({"event": "exact", "data": {"n": [10**29 + 1, -(10**29) - 7, 2**53 + 1, 2**64]}})
    events.append({"event": "end", "data": {}})
    types = [event["event"] for event in events]
    token = server.stream_token(CHANNEL)
    live = listen(server.stream_url(CHANNEL, token), types)
    before = until(live, "connected")[-1].id
    with server.publisher() as client:
        ids = [publish(client, event, ascii=index % 2 == 0)[0] for index, event in enumerate(events[:60])]
        ids += publish(client, *events[60:], ascii=False)
    replayed = listen(server.stream_url(CHANNEL, token, last_event_id=before), types)
    until(replayed, "connected")
    for heard in (until(live, "end"), until(replayed, "end")):
        assert [(got.type, got.id) for got in heard] == list(zip(types, ids, strict=True))
        for got, event in zip(heard, events, strict=True):
            time = event["data"].get("timestamp", got.data["timestamp"])
            assert got.data == {**event["data"], "channel": CHANNEL, "timestamp": time}


@pytest.mark.slow
@pytest.mark.parametrize(
    "listen",
    [NODE, PAGE, pytest.param("page elsewhere", marks=[pytest.mark.browser, pytest.mark.long])],
    indirect=True,
)
def test_a_native_client_comes_back_by_itself_after_a_kill_and_misses_nothing(
    listen: Listen, start_server: Start, elsewhere: str
) -> None:
    server = start_server(STREAM__RETRY=200, CORS_ORIGINS=[elsewhere])
    heard = listen(server.stream_url(CHANNEL, server.stream_token(CHANNEL)), ["tick", "end"])
    story = until(heard, "connected")
    ticks = iter({"event": "tick", "data": {"n": n}} for n in range(1000))
    with server.publisher() as client:
        ids: list[str] = []
        for _ in range(2):
            ids += publish(client, next(ticks))
            story += until(heard, "tick")
            ids += publish(client, *(next(ticks) for _ in range(300)))
            server.kill()  # how much of the batch was sent by then is anybody's guess
            server.start()
            ids += publish(client, next(ticks))
            story += until(heard, "connected")
        ids += publish(client, {"event": "end", "data": {}})
    story += until(heard, "end")
    assert [event.id for event in story if event.type in ("tick", "end")] == ids
    assert [event.data["n"] for event in story if event.type == "tick"] == list(range(len(ids) - 1))
    assert {event.type for event in story} == {"open", "connected", "error", "tick", "end"}
    assert {event.data for event in story if event.type == "error"} == {0}  # connecting, not closed
    pairs = pairwise(event for event in story if event.id)
    returns = [(last, event) for last, event in pairs if event.type == "connected"]
    assert len(returns) == 2
    for last, connected in returns:
        assert (connected.data["recovered"], connected.id) == (True, last.id)


@pytest.mark.slow
@pytest.mark.browser
def test_a_page_on_an_allowed_origin_may_listen_and_one_on_any_other_hears_nothing(
    chromium: Browser, start_server: Start, elsewhere: str
) -> None:
    server = start_server(CORS_ORIGINS=[elsewhere])
    url = server.stream_url(CHANNEL, server.stream_token(CHANNEL))
    with ExitStack() as stack:
        friend = by_page(chromium, elsewhere, stack, url, ["end"])
        until(friend, "connected")
        other_port = f"http://localhost:{stack.enter_context(blank_pages())}"
        other_host = elsewhere.replace("localhost", "127.0.0.1")
        for stranger in (other_port, other_host, "data:text/html,an opaque origin"):
            heard = by_page(chromium, stranger, stack, url, ["end"])
            assert until(heard, "error") == [Heard("error", "", 2)]  # closed
        with server.publisher() as client:
            ids = publish(client, {"event": "end", "data": {}})
        assert [event.id for event in until(friend, "end")] == ids


def test_an_event_type_that_could_pass_for_something_else_is_refused(server: ServerProcess) -> None:
    forged = ["a\rb", "a\nb", "a\r\nb", "a\n", "\na", "a\0", "a\nid: 1-1", "a\n\nevent: b\ndata: {}\n\n"]
    wrong: list[object] = ["", " ", " a", "a b", "a" * 129, "é", "a\u2028", "\ufeffa", None, 1, ["a"], {}]
    reserved = ["connected", "ping", "reset", "closing", "open", "error"]
    with ExitStack() as stack, server.publisher() as client:
        heard = by_httpx(stack, server.stream_url(CHANNEL, server.stream_token(CHANNEL)), [])
        until(heard, "connected")
        for hostile in (*forged, *wrong, *reserved):
            event = {"event": hostile, "data": {}}
            batch = [{"channel": CHANNEL, **each} for each in ({"event": "good", "data": {}}, event)]
            for path, body in ((f"/api/v1/sse/{CHANNEL}", event), ("/api/v1/sse", {"events": batch})):
                answer = client.post(path, json=body)
                assert answer.status_code == 422, hostile
                assert "event" in answer.json()["error"]["message"]
        ids = publish(client, {"event": "end", "data": {}})
        assert [event.id for event in until(heard, "end")] == ids
