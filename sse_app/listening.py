"""The listening sockets of a server that opens its own."""

from __future__ import annotations

import socket

from tornado.netutil import bind_sockets

from sse_app.errors import StateError
from sse_app.settings import Settings


def bind(settings: Settings) -> list[socket.socket]:
    """Open the listening sockets that the settings name.

    Raises:
        StateError: the address cannot be used.
    """
    try:
        return bind_sockets(settings.port, settings.host, backlog=settings.socket.backlog)
    except OSError as error:
        raise StateError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}"
        ) from None


def addresses(sockets: list[socket.socket]) -> str:
    """Return where sockets listen, for people."""
    names = []
    for bound in sockets:
        name = bound.getsockname()
        host = f"[{name[0]}]" if bound.family == socket.AF_INET6 else name[0]
        names.append(f"http://{host}:{name[1]}" if isinstance(name, tuple) else str(name))
    return ", ".join(names)
