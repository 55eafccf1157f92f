"""The servers that are compared, by name, in the order of the tables."""

from __future__ import annotations

from bench.servers.better_sse import BetterSse
from bench.servers.floor import Floor
from bench.servers.interface import Options, Server
from bench.servers.nchan import Nchan
from bench.servers.pushpin import Pushpin
from bench.servers.python_peers import AiohttpSse, SseStarlette
from bench.servers.sse_app import SseApp, SseAppBefore, SseAppPostgres
from bench.servers.tornado_plain import TornadoPost, TornadoQueue, TornadoSqlite

SERVERS: dict[str, type[Server]] = {
    server.name: server
    for server in (
        SseApp,
        SseAppPostgres,
        SseAppBefore,
        Floor,
        Nchan,
        TornadoQueue,
        SseStarlette,
        AiohttpSse,
        BetterSse,
        Pushpin,
        TornadoSqlite,
        TornadoPost,
    )
}

__all__ = ["SERVERS", "Options", "Server", "SseApp", "SseAppBefore", "SseAppPostgres"]
