"""A browser's own EventSource on a channel that ends: it has every text once, and then asks no more."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.support.browser import Start
from tests.support.waiting import until

pytestmark = pytest.mark.browser

LISTEN = """(url) => {
  window.heard = [];
  window.source = new EventSource(url);
  for (const type of ["token", "closing"]) source.addEventListener(type, ({ data }) => heard.push([type, data]));
}"""


def test_an_event_source_has_each_text_once_and_stops_after_the_end(
    chromium: Browser, start_server: Start
) -> None:
    server = start_server(STREAM__RETRY=1000)
    texts = [
        "<p>Hello,\n  <b>world</b></p>\n",
        "",
        "  two spaces",
        "ü😀\ufeff\u2028",
        "data: x\n\nevent: closing\n\n",
    ]
    with server.publisher() as http, chromium.new_context() as context:
        page = context.new_page()
        page.goto(f"{server.url}/")
        page.evaluate(LISTEN, server.stream_url("alerts", server.stream_token("alerts")))
        until(lambda: page.evaluate("source.readyState === EventSource.OPEN"), "the stream is open")
        for number, text in enumerate(texts, 1):
            event: dict[str, Any] = {"event": "token", "data": text, "final": number == len(texts)}
            http.post("/api/v1/sse/alerts", json=event).raise_for_status()
        until(lambda: page.evaluate("source.readyState === EventSource.CLOSED"), "the browser asks no more")
        assert page.evaluate("heard") == [
            *(["token", text] for text in texts),
            ["closing", '{"reason":"ended","retry":null}'],
        ]

    def answers() -> int:
        return sum(line["event"] == "request" and line["status"] == 204 for line in server.log_lines())

    until(answers, "the answer is logged")
    assert answers() == 1, "it came back once"
