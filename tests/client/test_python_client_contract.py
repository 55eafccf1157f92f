"""What LaunchDarkly's contract tests for SSE clients ask of HTTP and of reconnecting, and of a stream as it comes."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from sse_app.client import Backoff, Connected, Event, Stream, Waiting
from tests.support.python_client import run
from tests.support.stream_script import Script, connected, event, status, stream

NEWS = "/sse/news"
QUICK = Backoff(0.02, 0.1)


def listen(script: Script, token: str | None = "text", **options: Any) -> Stream:
    return Stream(script.url, "news", token, backoff=QUICK, **options)


async def texts(stream: Stream, count: int) -> list[str]:
    """Return the texts of the next events."""
    items = [await anext(stream) for _ in range(count)]
    return [item.text for item in items if isinstance(item, Event)]


def test_the_request_is_what_a_browser_would_send() -> None:
    async def test() -> None:
        async with Script({NEWS: [stream(connected(), None)]}) as script:
            async with listen(script) as first:
                await first.opened()
            own = httpx.AsyncClient(headers={"Header-Name-1": "value-1"})
            async with own, listen(script, http=own, after="abc") as second:
                await second.opened()
            plain, custom = script.asked
            assert plain.method == "GET"
            assert plain.headers["accept"] == "text/event-stream"
            assert plain.headers["cache-control"] == "no-cache"
            assert "last-event-id" not in plain.headers
            assert custom.headers["last-event-id"] == "abc"
            assert custom.headers["header-name-1"] == "value-1"

    run(test())


@pytest.mark.parametrize(
    ("sent", "resumed"),
    [
        (b"id: abc\ndata: 1\n\n", "abc"),
        (b"id: abc\ndata: 0\n\ndata: 1\n\n", "abc"),
        (b"id: abc\ndata: 1\n\nid: e-7\n\n", "e-7"),
        ("id: \u00e9\u8c46\ndata: 1\n\n".encode(), "\u00e9\u8c46"),
        (b"id: abc\ndata: 1\n\nid: a\0bc\n\n", "abc"),
        (b"id: abc\ndata: 1\n\nid: \x01\n\nid:  x\n\n", "abc"),  # no header can carry these
        (b"id: abc\ndata: 1\n\nid: half", "abc"),
        (b"id: abc\ndata: 1\n\nid\n\n", None),
    ],
)
def test_it_resumes_after_the_last_id_that_came(sent: bytes, resumed: str | None) -> None:
    async def test() -> None:
        answers = [stream(connected(), sent), stream(connected(), None)]
        async with Script({NEWS: answers}) as script, listen(script) as news:
            assert (await texts(news, sent.count(b"data")))[-1] == "1"
            _, again = await script.came(NEWS, 2)
            header = again.headers.get("last-event-id")
            assert (None if header is None else header.encode("latin-1").decode()) == resumed

    run(test())


def test_it_comes_back_after_the_time_that_the_server_has_sent() -> None:
    async def test() -> None:
        answers = [stream(b"retry: 800\n\nretry: soon\n\n"), stream(b"retry:1\n"), stream(None)]
        states: list[Connected | Waiting] = []
        async with Script({NEWS: answers}) as script, listen(script, on_state=states.append):
            first, second, _ = await script.came(NEWS, 3)
            assert second.at - first.at >= 0.8
            waits = [state.delay for state in states if isinstance(state, Waiting)]
            assert waits[0] >= 0.8 > waits[1]

    run(test())


@pytest.mark.parametrize("number", [301, 302, 303, 307, 308])
def test_a_redirect_is_followed_and_takes_the_token_to_no_other_server(number: int) -> None:
    async def test() -> None:
        async with Script({NEWS: [stream(connected(), None)]}) as other:
            elsewhere = status(number, b"", f"Location: {other.url}/there/sse/news")
            moved = status(number, b"", "Location: /moved/sse/news?token=none")
            async with Script(
                {"/moved/sse/news": [stream(connected(), None)], NEWS: [moved, elsewhere]}
            ) as script:
                for _ in range(2):
                    async with listen(script, after="e-1") as news:
                        await news.opened()
                here, there = script.asked[1], other.asked[0]
                assert (here.path, here.headers["authorization"]) == ("/moved/sse/news", "Bearer text")
                assert "authorization" not in there.headers
                assert [request.headers["last-event-id"] for request in (here, there)] == ["e-1", "e-1"]

    run(test())


def test_redirects_without_an_end_or_an_address_pass() -> None:
    async def test() -> None:
        around = status(302, b"", "Location: /api/v1/sse/news")
        nowhere = [
            status(302, b"", f"Location: {address}") for address in ("http://[", "gopher://a", "http://")
        ]
        answers = [*[around] * 21, status(302), *nowhere, stream(connected(), None)]
        states: list[Connected | Waiting] = []
        async with Script({NEWS: answers}) as script, listen(script, on_state=states.append) as news:
            await news.opened()
            assert [type(state) for state in states] == [*[Waiting] * 5, Connected]

    run(test())


@pytest.mark.parametrize(
    ("type", "is_stream"),
    [
        ("Content-Type: Text/Event-Stream; charset=UTF-8", True),
        ("content-type:text/event-stream;charset=latin-1", True),
        ("Content-Type: text/event-stream ;a=b", True),
        ("Content-Type: text/event-streams", False),
        ("Content-Type: application/json; a=text/event-stream", False),
        ("Content-Type:", False),
        ("X: y", False),
    ],
)
def test_a_stream_is_known_by_its_media_type(type: str, is_stream: bool) -> None:
    async def test() -> None:
        hello = connected() + "data: \u00e9\n\n".encode()
        answers = [stream(hello, type=type), stream(connected(), b"data: later\n\n", None)]
        async with Script({NEWS: answers}) as script, listen(script) as news:
            assert await texts(news, 1) == (["\u00e9"] if is_stream else ["later"])

    run(test())


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_an_event_is_given_as_soon_as_its_last_byte_has_come(end: bytes) -> None:
    content = (
        "\ufeff:comment\n\n".encode()
        + connected()
        + "data: \u20ac\u8c46\n\nevent: a\ndata: 2\ndata: 3\n\n".encode()
    )
    content = content.replace(b"\n", end)
    pieces = [content[place : place + 1] for place in range(len(content))]

    async def test() -> None:
        for sent in ([content], pieces):
            async with Script({NEWS: [stream(*sent, None)]}) as script, listen(script) as news:
                assert await texts(news, 2) == ["\u20ac\u8c46", "2\n3"]
                assert news.last_event_id == "e-1"

    run(test())


def test_events_of_any_size_and_kind_come_in_order() -> None:
    sizes = [1, 128, 1023, 1024, 1025, 4096, 4098, 8189, 8192, 8195, 65_536, 2**20, 8 * 2**20]
    sent = b"".join(event("a", "x" * size, f"e-{size + 1}") + b"data: small\n\n" for size in sizes)

    async def test() -> None:
        async with Script({NEWS: [stream(connected(), sent, None)]}) as script, listen(script) as news:
            items = [await anext(news) for _ in range(2 * len(sizes))]
            assert [len(item.data) for item in items[::2] if isinstance(item, Event)] == sizes
            others = {(item.id, item.type, item.data) for item in items[1::2] if isinstance(item, Event)}
            assert others == {("", "message", "small")}

    run(test())


def test_a_stream_that_falls_silent_is_opened_anew() -> None:
    async def test() -> None:
        answers = [stream(connected(), b"data: 1\n\n", None)]
        async with Script({NEWS: answers}) as script, listen(script, ping_interval=0.5) as news:
            assert await texts(news, 2) == ["1", "1"]
            assert len(script.asked) == 2

    run(test())


@pytest.mark.parametrize(
    "wrong",
    [
        event("connected", {}),
        event("connected", "news"),
        b"event: connected\ndata: {\n\n",
        b"event: ping\ndata: 1\n\n",
    ],
)
def test_what_another_server_sends_passes(wrong: bytes) -> None:
    async def test() -> None:
        answers = [stream(wrong, None), stream(connected(), b"data: 1\n\n", None)]
        async with Script({NEWS: answers}) as script, listen(script) as news:
            async with asyncio.timeout(30):
                assert await texts(news, 1) == ["1"]

    run(test())
