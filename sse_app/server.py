"""A process that serves: listens, says so, and ends in order on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys

from tornado.netutil import bind_sockets

from sse_app.application import SSEApp
from sse_app.arrival import StreamServer
from sse_app.errors import StateError
from sse_app.settings import Settings
from sse_app.version import VERSION

FIRST_INHERITED = 3
"""The first file descriptor that systemd passes (sd_listen_fds(3))."""

SWITCH_INTERVAL = 0.001
"""Seconds; see `sys.setswitchinterval`."""
M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 128 * 1024
MAX_HEADER_BYTES = 32 * 1024
IDLE_TIMEOUT = 75.0
"""How long a connection may take to send a request's headers, in seconds."""
BODY_TIMEOUT = 60.0
"""How long a request's body may take to come, in seconds."""

log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Serve until a signal asks to stop.

    Raises:
        StateError: the state directory, the event log or the address cannot be used.
    """
    _tune_garbage_collection()
    _give_large_memory_back()
    # The event log's writer thread waits at most so long for the interpreter's lock when the event loop is busy.
    sys.setswitchinterval(SWITCH_INTERVAL)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings))


def _tune_garbage_collection() -> None:
    """Collect cycles seldom, and never look again at what was there from the start.

    Requests leave cycles, which the young generations catch; streams hold none, so that a full collection
    over ten thousand of them, tens of milliseconds in which nothing else happens, finds nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def _give_large_memory_back() -> None:
    """Have the C library map large blocks one by one, so that they go back to the system when freed.

    By itself it raises the size from which it does so to the largest block it has seen freed; from then on
    what stalled streams held stays in the heap, in holes (mallopt(3)). Other libraries than glibc have no
    such function, or need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed: it takes half the time of asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    loop: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return loop


async def _serve(settings: Settings) -> None:
    _raise_file_limit()
    app = SSEApp(settings)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await app.start()
    # Listening comes last: whoever connects is served.
    sockets = inherited_sockets() or _bind(settings)
    server = StreamServer(
        app.application(),
        settings=settings,
        max_header_size=MAX_HEADER_BYTES,
        idle_connection_timeout=IDLE_TIMEOUT,
        body_timeout=BODY_TIMEOUT,
    )
    server.add_sockets(sockets)
    log.info("listening", extra={"address": _addresses(sockets), "pid": os.getpid(), "version": VERSION})
    await stopped.wait()
    log.info("stopping", extra={"streams": len(app.services.hub.streams)})
    server.stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)  # a second signal ends the process at once
    await app.stop()
    await server.close_all_connections()
    log.info("stopped")


def _raise_file_limit() -> None:
    """Allow as many open files as the system lets us: each stream is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def inherited_sockets() -> list[socket.socket]:
    """Return the listening sockets that systemd has opened for this process, whatever their names."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = int(os.environ.get("LISTEN_FDS", "0"))
    sockets = [socket.socket(fileno=FIRST_INHERITED + number) for number in range(count)]
    for inherited in sockets:
        inherited.setblocking(False)
        inherited.set_inheritable(False)
    return sockets


def _bind(settings: Settings) -> list[socket.socket]:
    try:
        return bind_sockets(settings.port, settings.host, backlog=settings.socket.backlog)
    except OSError as error:
        raise StateError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}"
        ) from None


def _addresses(sockets: list[socket.socket]) -> str:
    names = []
    for bound in sockets:
        name = bound.getsockname()
        host = f"[{name[0]}]" if bound.family == socket.AF_INET6 else name[0]
        names.append(f"http://{host}:{name[1]}" if isinstance(name, tuple) else str(name))
    return ", ".join(names)
