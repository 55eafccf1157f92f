"""nginx as it is without any setting for streams: it speaks HTTP/1.0 to the server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx

from sse_app.client import Event, Publisher, Reset, Stream
from tests.ops.test_proxies import CHANNEL, DEADLINE, next_event
from tests.support.ports import reserve_port
from tests.support.proxies import bare_nginx
from tests.support.server_process import ServerProcess


def test_nginx_with_its_defaults_which_speak_http_1_0_to_the_server_passes_a_correct_stream(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = start_server(KEEPALIVE__PING_INTERVAL=0.5)
    url = f"http://127.0.0.1:{reserve_port(server)}"
    listen = url.removeprefix("http://")
    folder = tmp_path / "proxy"
    folder.mkdir()
    defaults = f"access_log off; server {{ listen {listen}; location / {{ proxy_pass {server.url}; }} }}"

    async def test() -> None:
        items: list[Event | Reset] = []
        async with (
            Stream(url, CHANNEL, server.stream_token(CHANNEL)) as stream,
            Publisher(url, server.access_token()) as publisher,
        ):
            await stream.opened()
            ids = []
            for n in range(10):
                ids.append(await publisher.publish(CHANNEL, "tick", {"n": n, "text": "🙂\r\n" * n}))
                items.append(await next_event(stream))
            ids += await publisher.publish_batch(
                [{"channel": CHANNEL, "event": "tick", "data": {"text": "x" * n}} for n in range(500)]
            )
            async with asyncio.timeout(DEADLINE):
                items += [await anext(stream) for _ in range(500)]
            assert [item.id for item in items if isinstance(item, Event)] == ids
        stream_url = httpx.URL(f"{url}/api/v1/sse/{CHANNEL}", params={"token": server.stream_token(CHANNEL)})
        async with httpx.AsyncClient(trust_env=False) as http, http.stream("GET", stream_url) as raw:
            pieces = b""
            async for piece in raw.aiter_bytes():
                pieces += piece
                if pieces.count(b"event: ping") == 2:
                    break
        assert re.fullmatch(
            rb"retry: \d+\nid: [\w-]+\nevent: connected\ndata: {[^\n]+}\n\n(event: ping\ndata: {[^\n]+}\n\n){2}",
            pieces,
        )

    with bare_nginx(defaults, url, folder):
        asyncio.run(test())
