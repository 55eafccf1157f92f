"""A server for one page: a Tornado application of its own with sse_app in it. What the small examples share."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, StaticFileHandler

from sse_app import Settings, SSEApp, SSEAppError
from sse_app.settings.model import ChannelSettings

ROOT = Path(__file__).resolve().parents[1]

Work = Callable[[SSEApp, str], Coroutine[None, None, None]]
"""What an example does from its start on, given the server and its address."""


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of an example's arguments, with those that all have."""
    parser = argparse.ArgumentParser(prog=f"python -m examples.{name}", description=description)
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1 (8000; 0 for any free one)")
    parser.add_argument(
        "--state-dir",
        type=Path,
        default=ROOT / "var" / name,
        metavar="DIR",
        help="of the server (%(default)s)",
    )
    return parser


def run(
    options: argparse.Namespace,
    channels: list[ChannelSettings],
    page: Path,
    work: Work,
    *handlers: tuple[str, type[Any], dict[str, Any]],
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        options: of `arguments`.
        channels: the rules for channels.
        page: the folder of the page, ``index.html``, and of what it loads.
        work: what the example does meanwhile.
        handlers: of the example's own paths; a dictionary that has ``sse`` gets the server there.
    """
    try:
        asyncio.run(_serve(options, channels, page, work, handlers))
    except (SSEAppError, OSError) as error:
        sys.exit(str(error))


async def _serve(
    options: argparse.Namespace,
    channels: list[ChannelSettings],
    page: Path,
    work: Work,
    handlers: tuple[tuple[str, type[Any], dict[str, Any]], ...],
) -> None:
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    sse = SSEApp(Settings(state_dir=options.state_dir, channels=tuple(channels)))
    await sse.start()
    try:
        own = [(path, handler, {**given, "sse": sse}) for path, handler, given in handlers]
        files = (r"/(.*)", StaticFileHandler, {"path": str(page), "default_filename": "index.html"})
        server = HTTPServer(Application([*sse.routes(), *own, files]))
        try:
            sockets = bind_sockets(options.port, "127.0.0.1")
        except OSError as error:
            sys.exit(
                f"cannot listen on port {options.port}: {error.strerror} (--port takes another one, 0 any free one)"
            )
        server.add_sockets(sockets)
        port = sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        print(f"Open {url}/ in a browser. Ctrl-C ends.", flush=True)
        working = asyncio.create_task(work(sse, url))
        ended = asyncio.create_task(end.wait())
        await asyncio.wait([working, ended], return_when=asyncio.FIRST_COMPLETED)
        server.stop()
        for task in (working, ended):
            task.cancel()
        if working.done():
            working.result()  # it fails as its work did
    finally:
        await sse.stop()
