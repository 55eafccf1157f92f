"""Peer: aiohttp-sse on aiohttp with uvloop, one queue a stream."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web  # type: ignore[import-not-found]
from aiohttp_sse import sse_response  # type: ignore[import-not-found]

subscribers: dict[str, set[asyncio.Queue[tuple[str, str]]]] = {}
published = 0


async def stream(request: web.Request) -> web.StreamResponse:
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    listeners = subscribers.setdefault(request.match_info["channel"], set())
    async with sse_response(request, ping_interval=30) as response:
        listeners.add(queue)
        try:
            while response.is_connected():
                event_id, data = await queue.get()
                await response.send(data, id=event_id, event="tick")
        finally:
            listeners.discard(queue)
    return response


async def publish(request: web.Request) -> web.StreamResponse:
    global published
    published += 1
    event = str(published), await request.text()
    for queue in subscribers.get(request.match_info["channel"], ()):
        queue.put_nowait(event)
    return web.json_response({"id": published}, status=201)


async def health(request: web.Request) -> web.StreamResponse:
    return web.Response(text="ok")


async def main() -> None:
    app = web.Application()
    app.add_routes(
        [
            web.get("/stream/{channel}", stream),
            web.post("/publish/{channel}", publish),
            web.get("/healthz", health),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[1]), backlog=4096).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
