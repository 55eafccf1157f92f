"""Fragments of HTML, published as text: htmx shows some, Turbo others, each from npm and unmodified.

Usage: npm ci --prefix examples/htmx/page && python -m examples.htmx, from the checkout.

For htmx an event is a fragment, and its type says which element takes it (``sse-swap``). For Turbo it is a
``<turbo-stream>`` of the type ``message``. Both begin with the last three of their channel, so the page opens full.
Who may publish here can put any HTML into the page, scripts too: escape what users have written, as this does.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from datetime import datetime
from html import escape
from itertools import count
from pathlib import Path

from examples.page_server import arguments, run
from sse_app import SSEApp
from sse_app.settings.model import ChannelSettings

PAGE = Path(__file__).parent / "page"
PAUSE = 2.0
"""Seconds between two pieces of news."""

CHANNELS = [ChannelSettings(pattern=name, public=True, history_size=100) for name in ("news", "turbo")]


def fragment(text: str) -> str:
    """Return a piece of news as a list item, of more than one line."""
    return f"<li>\n  <time>{datetime.now():%H:%M:%S}</time>\n  {escape(text)}\n</li>"


def turbo_stream(text: str) -> str:
    """Return what has Turbo put a piece of news into the page."""
    return (
        f'<turbo-stream action="prepend" target="turbo-news">\n'
        f"<template>{fragment(text)}</template>\n</turbo-stream>"
    )


async def publish(sse: SSEApp, url: str) -> None:
    """Publish news for ever, and say how to publish some by hand."""
    state, python = sse.node.settings.state_dir, shlex.quote(sys.executable)
    mint = f"{python} main.py token --state-dir {state} --set 'channels=[\"news\"]' --publish news"
    print(
        f"""Publish some by hand:

curl -H "Authorization: Bearer $({mint})" -H "Content-Type: text/html" \\
  -d '<li>by hand</li>' '{url}/api/v1/sse/news?event=item'
""",
        flush=True,
    )
    for number in count(1):
        await sse.publish("news", "item", fragment(f"Trains & <trams>, report {number}"))
        await sse.publish("turbo", "message", turbo_stream(f"Boats & <barges>, report {number}"))
        await asyncio.sleep(PAUSE)


if __name__ == "__main__":
    given = arguments("htmx", "Fragments of HTML in a page of htmx and Turbo.").parse_args()
    if not (PAGE / "node_modules").exists():
        sys.exit(f"htmx and Turbo are not there: npm ci --prefix {PAGE}")
    run(given, CHANNELS, PAGE, publish)
