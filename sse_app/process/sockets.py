"""The listening sockets: opened here, or passed by systemd."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from tornado.netutil import bind_sockets

from sse_app.core.errors import StateError
from sse_app.settings.model import Settings


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


def inherited_sockets(inherited: Sequence[tuple[str, int]]) -> list[socket.socket]:
    """Return the listening sockets that systemd has passed, by name and descriptor."""
    sockets = [socket.socket(fileno=descriptor) for _, descriptor in inherited]
    for sock in sockets:
        sock.setblocking(False)
        sock.set_inheritable(False)
    return sockets


def addresses(sockets: list[socket.socket]) -> str:
    """Return where sockets listen, for people."""
    names = []
    for bound in sockets:
        name = bound.getsockname()
        host = f"[{name[0]}]" if bound.family == socket.AF_INET6 else name[0]
        names.append(f"http://{host}:{name[1]}" if isinstance(name, tuple) else str(name))
    return ", ".join(names)
