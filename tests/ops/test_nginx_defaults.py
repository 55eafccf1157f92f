"""nginx as it is without any setting for streams: it speaks HTTP/1.0 to the server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from sse_app.client import Event, Publisher, Reset, Stream
from sse_app.core.errors import TokenTooLarge
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
                if pieces.count(b"event: ping") > 1 and pieces.endswith(b"\n\n"):
                    break
        assert re.fullmatch(
            rb"retry: \d+\nid: [\w-]+\nevent: connected\ndata: {[^\n]+}\n\n(event: ping\ndata: {[^\n]+}\n\n){2,}",
            pieces,
        )

    with bare_nginx(defaults, url, folder):
        asyncio.run(test())


@pytest.mark.slow
def test_the_largest_tokens_that_are_issued_pass_through_nginx_with_its_defaults(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = start_server(CHANNELS=["**"])
    url = f"http://127.0.0.1:{reserve_port(server)}"
    folder = tmp_path / "proxy"
    folder.mkdir()
    listen = url.removeprefix("http://")
    defaults = f"access_log off; server {{ listen {listen}; location / {{ proxy_pass {server.url}; }} }}"
    names = [f"{number:02}.{'x' * 60}.{'y' * 60}" for number in range(32)]
    with bare_nginx(defaults, url, folder), httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        bearer = {"Authorization": f"Bearer {largest_access_token(server)}"}
        assert http.get("/api/v1/auth/me", headers=bearer).status_code == 200
        bearer = {"Authorization": f"Bearer {server.access_token()}"}
        count = 0
        for count in range(1, 33):
            answer = http.post("/api/v1/auth/stream-token", json={"channels": names[:count]}, headers=bearer)
            if answer.status_code != 200:
                break
            query = {
                "token": answer.json()["stream_token"],
                "client_id": "c" * 64,
                "last_event_id": "p" * 60,
            }
            path = f"/api/v1/sse/{','.join(names[:count])}"
            with http.stream("GET", path, params=query) as stream:
                assert stream.status_code == 200, count
        assert answer.status_code == 422
        assert answer.json()["error"]["code"] == "token_too_large"
        assert count > 20


def largest_access_token(server: ServerProcess) -> str:
    """Return an access token with as many grants as one can have."""
    patterns: list[str] = []
    token = ""
    try:
        while True:
            patterns.append(f"pattern-{len(patterns):04}.**")
            token = server.access_token(subscribe=",".join(patterns))
    except TokenTooLarge:
        assert len(token) > 7000
        return token
