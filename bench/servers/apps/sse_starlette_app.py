"""Peer: sse-starlette on uvicorn with uvloop and httptools, one queue a stream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import uvicorn  # type: ignore[import-not-found]
from sse_starlette import (  # type: ignore[import-not-found]
    EventSourceResponse,
    ServerSentEvent,
)
from starlette.applications import Starlette  # type: ignore[import-not-found]
from starlette.requests import Request  # type: ignore[import-not-found]
from starlette.responses import JSONResponse, Response  # type: ignore[import-not-found]
from starlette.routing import Route  # type: ignore[import-not-found]

Subscribers = dict[str, set["asyncio.Queue[tuple[str, str]]"]]
subscribers: Subscribers = {}
published = 0


async def stream(request: Request) -> Response:
    queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    listeners = subscribers.setdefault(request.path_params["channel"], set())
    listeners.add(queue)

    async def events() -> AsyncIterator[ServerSentEvent]:
        try:
            while True:
                event_id, data = await queue.get()
                yield ServerSentEvent(data=data, event="tick", id=event_id)
        finally:
            listeners.discard(queue)

    return EventSourceResponse(events(), ping=30)


async def publish(request: Request) -> Response:
    global published
    published += 1
    event = str(published), (await request.body()).decode()
    for queue in subscribers.get(request.path_params["channel"], ()):
        queue.put_nowait(event)
    return JSONResponse({"id": published}, status_code=201)


async def health(request: Request) -> Response:
    return Response("ok")


app = Starlette(
    routes=[
        Route("/stream/{channel}", stream),
        Route("/publish/{channel}", publish, methods=["POST"]),
        Route("/healthz", health),
    ]
)

if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        backlog=4096,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
