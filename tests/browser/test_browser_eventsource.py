"""The browser client beside the browser's own EventSource, by the web platform's tests that make sense for it.

The names are those of the tests in ``eventsource/`` of web-platform-tests. What is different on purpose stands in
``client/README.md``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Chrome, ClientPage, serve_pages
from tests.support.scripted_server import HOURS, Answer, ScriptedServer

pytestmark = pytest.mark.browser

BOTH = ["EventSource", "SSEClient"]
END = "event: end\ndata: end\n\n"

READ = """([name, url, types, options]) => new Promise((resolve) => {
    const all = { share: false, reconnectDelay: 50, ...options };
    const source = name === "EventSource" ? new EventSource(url) : new SSEClient(url, all);
    const heard = [];
    const note = ({ type, data, lastEventId, origin }) => {
        if (type !== "end") return heard.push([type, data, lastEventId, origin]);
        source.close();
        resolve(heard);
    };
    for (const type of [...types, "end"]) source.addEventListener(type, note);
})"""


@pytest.fixture(scope="module")
def page(chromium: Browser) -> Iterator[ClientPage]:
    """A page that has both, of another origin than the server."""
    with serve_pages() as origin, chromium.new_context() as context:
        chrome = Chrome(context, origin)
        yield chrome.open("", options={"autoConnect": False, "share": False}, tokens=["none"])
        assert chrome.trouble == []


FORMATS: dict[str, tuple[str, list[tuple[str, str, str]]]] = {
    "format-bom": (
        "\ufeffdata:1\n\n\ufeffdata:2\n\ndata:3\n\n",
        [("message", "1", ""), ("message", "3", "")],
    ),
    "format-bom-2": (
        "\ufeff\ufeffdata:1\n\ndata:2\n\ndata:3\n\n",
        [("message", "2", ""), ("message", "3", "")],
    ),
    "format-comments": (
        f"data:a\r:\0\n:\r\ndata:b\n:{'x' * 5000}\rdata:c\n:data:no\r:{'y' * 5000}\ndata:d\n\n",
        [("message", "a\nb\nc\nd", "")],
    ),
    "format-field-data": (
        "data:\n\ndata\ndata\n\ndata:last\n\n",
        [("message", "", ""), ("message", "\n", ""), ("message", "last", "")],
    ),
    "format-field-event": (
        "event:test\ndata:x\n\ndata:y\n\n",
        [("test", "x", ""), ("message", "y", "")],
    ),
    "format-field-event-empty": ("event: \ndata:x\n\n", [("message", "x", "")]),
    "format-field-id": (
        "id: \u2026\ndata:a\n\ndata:b\n\n",
        [("message", "a", "\u2026"), ("message", "b", "\u2026")],
    ),
    "format-field-id-3": (
        "id: 1\ndata:a\n\ndata:b\n\nid: 2\ndata:c\n\nid:\ndata:d\n\nid: 3\ndata:e\n\nid\ndata:f\n\ndata:g\n\n",
        [
            *(("message", "a", "1"), ("message", "b", "1"), ("message", "c", "2"), ("message", "d", "")),
            *(("message", "e", "3"), ("message", "f", ""), ("message", "g", "")),
        ],
    ),
    "format-field-id-null": (
        "id: 1\ndata:a\n\nid: x\0\ndata:b\n\nid: \0\ndata:c\n\n",
        [("message", "a", "1"), ("message", "b", "1"), ("message", "c", "1")],
    ),
    "format-field-parsing": (
        "data:\0\ndata:  2\rData:3\ndata\0:4\ndata:5\r\0data:6\nda-ta:7\rdata_8\ndata:9\r"
        "data:\r\n data:10\ndata:11\n\n",
        [("message", "\0\n 2\n5\n9\n\n11", "")],
    ),
    "format-field-unknown": (
        "data:a\n data\ndata\nfoo:b\n:c\njustsome:d\nDATA:e\ndata:f\n\n",
        [("message", "a\n\nf", "")],
    ),
    "format-leading-space": (
        "data:\ta\rdata: \ndata:b\ndata:  c\n\n",
        [("message", "\ta\n\nb\n c", "")],
    ),
    "format-newlines": (
        "data:a\r\ndata:b\ndata:c\rdata:d\r\n\r\ndata:e\r\r",
        [
            ("message", "a\nb\nc\nd", ""),
            ("message", "e", ""),
        ],
    ),
    "format-null-character": ("data:\0\n\n\n\n", [("message", "\0", "")]),
    "format-utf-8": ("data:ok\u2026\U0001f600\n\n", [("message", "ok\u2026\U0001f600", "")]),
    "format-field-retry-bogus": (
        "retry:3000\nretry:1000x\ndata:a\n\nretry\ndata:b\n\n",
        [("message", "a", ""), ("message", "b", "")],
    ),
    "event-data": (
        f"data:{'d' * 200_000}\n\ndata:x\ndata\ndata:y\n\nevent:message\ndata:z\n\n",
        [("message", "d" * 200_000, ""), ("message", "x\n\ny", ""), ("message", "z", "")],
    ),
    "an event repeats the last id": (
        "id: 7\ndata:a\n\nid: 7\ndata:b\n\n",
        [("message", "a", "7"), ("message", "b", "7")],
    ),
    "types that are names of objects' own": (
        "event: constructor\ndata:a\n\nevent: __proto__\ndata:b\n\nevent: toString\ndata:c\n\n",
        [("constructor", "a", ""), ("__proto__", "b", ""), ("toString", "c", "")],
    ),
}


@pytest.mark.parametrize("case", FORMATS)
def test_both_read_the_same(case: str, page: ClientPage, script: ScriptedServer) -> None:
    body, events = FORMATS[case]
    script.answers = [Answer(body=body + END, hold=HOURS)]
    types = sorted({type for type, _, _ in events} | {"message"})
    for name in BOTH:
        heard = page.page.evaluate(READ, [name, f"{script.url}/case", types, {}])
        assert heard == [[*each, script.url] for each in events], name


@pytest.mark.parametrize("name", BOTH)
def test_an_event_that_is_not_complete_is_dropped_with_its_id(
    name: str, page: ClientPage, script: ScriptedServer
) -> None:
    """format-data-before-final-empty-line, format-field-retry"""
    script.answers = [
        Answer(body="retry:20\ndata:a\n\nid:no\ndata:b"),
        Answer(body=f"data:c\n\n{END}", hold=HOURS),
    ]
    heard = page.page.evaluate(READ, [name, f"{script.url}/case", ["message"], {}])
    assert [each[:3] for each in heard] == [["message", "a", ""], ["message", "c", ""]]
    assert "last_event_id" not in script.streams()[1].query


@pytest.mark.parametrize(
    "type",
    [
        "text/event-stream;",
        "text/event-stream;x bogus",
        "Text/Event-Stream",
        "text/event-stream; charset=utf-8",
    ],
)
@pytest.mark.parametrize("name", BOTH)
def test_both_take_the_type_with_what_follows_it(
    name: str, type: str, page: ClientPage, script: ScriptedServer
) -> None:
    """format-mime-trailing-semicolon, format-mime-valid-bogus"""
    script.answers = [Answer(body=f"data:a\n\n{END}", type=type, hold=HOURS)]
    assert page.page.evaluate(READ, [name, f"{script.url}/case", ["message"], {}])


@pytest.mark.parametrize("name", BOTH)
def test_both_follow_a_redirect_and_tell_the_origin_that_it_led_to(
    name: str, page: ClientPage, script: ScriptedServer
) -> None:
    """request-redirect, eventsource-cross-origin, request-accept"""
    other = script.url.replace("localhost", "127.0.0.1")
    script.answers = [
        Answer(307, headers={"Location": f"{other}/there"}),
        Answer(body=f"data:a\n\n{END}", headers={"Access-Control-Allow-Origin": "*"}, hold=HOURS),
    ]
    heard = page.page.evaluate(READ, [name, f"{script.url}/case", ["message"], {}])
    assert heard == [["message", "a", "", other]]
    assert [request.path for request in script.streams()] == ["/case", "/there"]


LIFE = """([name, url]) => new Promise((resolve) => {
    const Source = name === "EventSource" ? EventSource : SSEClient;
    Source.prototype.own = function () { return this.url; };
    const source = new Source({ toString: () => url }, { withCredentials: true, share: false, reconnectDelay: 50 });
    const log = [[source.readyState, source.withCredentials, source.own() === source.url]];
    log.push([Source.CONNECTING, Source.OPEN, Source.CLOSED, source.CONNECTING, source.OPEN, source.CLOSED]);
    log.push([source.onopen, source.onmessage, source.onerror]);
    delete Source.prototype.own;
    const note = function (event) {
        const { type, bubbles, cancelable, target, data } = event;
        log.push([type, this.readyState, bubbles, cancelable, target === source && this === source, data ?? ""]);
        if (data !== "last") return;
        source.removeEventListener("other", note);
        source.close();
        log.push([source.readyState]);
        setTimeout(() => resolve(log), 200);
    };
    source.onopen = source.onmessage = note;
    source.onerror = "not a function";
    source.onerror = note;
    source.addEventListener("other", note);
    source.addEventListener("other", { handleEvent: ({ data }) => log.push([data]) });
})"""


@pytest.mark.parametrize("name", BOTH)
def test_both_live_the_same_life(name: str, page: ClientPage, script: ScriptedServer) -> None:
    """eventsource-constructor-stringify, -eventtarget, -onopen, -onmessage, -prototype, -reconnect, -close, -url"""
    credentials = {"Access-Control-Allow-Credentials": "true"}
    script.answers = [
        Answer(body="retry: 20\ndata:a\n\nevent: other\ndata: b\n\n", headers=credentials),
        Answer(body="event: other\ndata: last\n\ndata: never\n\n", headers=credentials, hold=HOURS),
    ]
    log = page.page.evaluate(LIFE, [name, f"{script.url}/case"])
    assert log == [
        [0, True, True],
        [0, 1, 2, 0, 1, 2],
        [None, None, None],
        ["open", 1, False, False, True, ""],
        ["message", 1, False, False, True, "a"],
        ["other", 1, False, False, True, "b"],
        ["b"],
        ["error", 0, False, False, True, ""],
        ["open", 1, False, False, True, ""],
        ["other", 1, False, False, True, "last"],
        [2],
        ["last"],
    ]


@pytest.mark.parametrize("name", BOTH)
def test_both_end_with_an_error_where_asking_again_is_of_no_use(
    name: str, page: ClientPage, script: ScriptedServer
) -> None:
    """request-status-error"""
    for status in (204, 400, 403, 404):
        script.answers = [Answer(status)]
        ended = page.page.evaluate(
            """([name, url]) => new Promise((resolve) => {
                const Source = name === "EventSource" ? EventSource : SSEClient;
                const source = new Source(url, { share: false });
                source.onopen = source.onmessage = () => resolve("opened");
                source.onerror = () => resolve(source.readyState);
            })""",
            [name, f"{script.url}/case"],
        )
        assert ended == 2, status


@pytest.mark.parametrize("name", BOTH)
def test_both_refuse_what_is_no_url(name: str, page: ClientPage) -> None:
    """eventsource-constructor-url-bogus"""
    thrown = page.run(
        f"(() => {{ try {{ new {name}('http://['); }}"
        " catch (error) { return [error.name, error instanceof DOMException]; } })()"
    )
    assert thrown == ["SyntaxError", True]


@pytest.mark.parametrize("name", BOTH)
def test_nothing_is_heard_after_a_close_while_it_opens(
    name: str, page: ClientPage, script: ScriptedServer
) -> None:
    """eventsource-request-cancellation, eventsource-close"""
    script.answers = [Answer(body="data:a\n\ndata:b\n\n", hold=HOURS)]
    heard = page.page.evaluate(
        """([name, url]) => new Promise((resolve) => {
            const Source = name === "EventSource" ? EventSource : SSEClient;
            const heard = [];
            const make = (close) => {
                const source = new Source(url, { share: false });
                source.onopen = () => { heard.push("open"); close(source); };
                source.onmessage = source.onerror = ({ type }) => heard.push(type);
                return source;
            };
            make(() => {}).close();
            make((source) => {
                source.close();
                setTimeout(() => resolve(heard), 500);
            });
            setTimeout(() => resolve(heard), 60_000); // it never opened
        })""",
        [name, f"{script.url}/case"],
    )
    assert heard == ["open"]
