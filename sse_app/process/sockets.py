"""The listening sockets: opened here, or passed by systemd."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

from sse_app.core.errors import StateError
from sse_app.settings.model import Settings


def bind(settings: Settings) -> list[socket.socket]:
    """Open the listening sockets that the settings name.

    Raises:
        StateError: the address cannot be used.
    """
    from tornado.netutil import bind_sockets  # the parent of workers does without Tornado

    try:
        return bind_sockets(settings.port, _host(settings), backlog=settings.socket.backlog)
    except (OSError, ValueError) as error:
        raise unusable(settings, error) from None


def check_address(settings: Settings) -> None:
    """Bind the addresses that `bind` would, without listening there, and close them again.

    A server that listens on one of them is not disturbed.

    Raises:
        StateError: the address cannot be used.
    """
    try:
        for family, address in found_addresses(settings):
            if (sock := bound_if_supported(family, address, shared=False)) is not None:
                sock.close()
    except (OSError, ValueError) as error:
        raise unusable(settings, error) from None


def found_addresses(settings: Settings) -> list[tuple[int, Any]]:
    """Return family and address of each socket that the settings ask for.

    Raises:
        OSError: the host is not known.
    """
    found = socket.getaddrinfo(
        _host(settings), settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((int(one[0]), one[4]) for one in found))


def bound(family: int, address: Any, *, shared: bool) -> socket.socket:
    """Return a socket with an address, on which it does not listen yet.

    Args:
        family: of the address.
        address: as `found_addresses` returns it.
        shared: whether others of this user may have the address in the same way (SO_REUSEPORT in socket(7)).

    Raises:
        OSError: the address cannot be used.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def bound_if_supported(family: int, address: Any, *, shared: bool) -> socket.socket | None:
    """Do as `bound` does; return None where the system has no such family, or IPv6 is off in a container."""
    try:
        return bound(family, address, shared=shared)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT or (error.errno == errno.EADDRNOTAVAIL and address[0] == "::1"):
            return None
        raise


def processes_listening(port: int) -> dict[int, str]:
    """Return the processes that listen on a port, as far as this one may look at them, with their names."""
    wanted = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(link) in wanted for link in (directory / "fd").iterdir()):
                found[int(directory.name)] = (directory / "comm").read_text().strip()
    return found


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the inodes of the listening sockets on a port (proc_net_tcp.txt of the kernel's documentation)."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                local, state, inode = (line.split()[column] for column in (1, 3, 9))
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    yield inode


def _host(settings: Settings) -> str | None:
    """Return the address to bind; None for all of both families, which is what ``::`` stands for."""
    try:
        return None if ip_address(settings.host) == IPv6Address(0) else settings.host
    except ValueError:
        return settings.host


def unusable(settings: Settings, error: Exception) -> StateError:
    """Return the error that says why the settings' address cannot be used, and of one in use, by whom."""
    reason = str(getattr(error, "strerror", None) or error)
    if getattr(error, "errno", None) == errno.EADDRINUSE:
        users = ", ".join(
            f"process {pid}, {name}" for pid, name in processes_listening(settings.port).items()
        )
        reason += f" ({users})" if users else ""
        reason += "; another port: --port or SSE_APP_PORT"
    return StateError(f"cannot listen on {settings.host}:{settings.port}: {reason}")


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
