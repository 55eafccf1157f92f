"""What the kernel knows of data under way to a client: acknowledged, in flight, or kept back (tcp(7), ``TCP_INFO``)."""

from __future__ import annotations

import socket
import struct
import sys
from typing import NamedTuple

_SIZE = 152
_FIELDS = struct.Struct("=24xI28xI60xQ16xI4x")
"""``tcpi_unacked``, ``tcpi_last_ack_recv``, ``tcpi_bytes_acked`` and ``tcpi_notsent_bytes`` of ``struct tcp_info``."""

_SO_MEMINFO = 55
"""``SO_MEMINFO`` of ``asm-generic/socket.h`` (Linux 4.12), which Python does not name."""
_MEMINFO_SIZE = 24
_NOTHING_QUEUED = bytes(4)
"""The last 4 of so many bytes, ``SK_MEMINFO_WMEM_QUEUED``, where the client has acknowledged all."""

_TCP_INFO = getattr(socket, "TCP_INFO", None) if sys.platform == "linux" else None


class Unacknowledged(NamedTuple):
    """The state of a connection whose client has not acknowledged all that was written to it."""

    acknowledged: int
    """How many bytes the client has acknowledged since the connection began."""
    in_flight: bool
    """Whether something was sent and not acknowledged. If not, the client's window is closed: it does not read."""
    silent_for: float
    """Seconds since any segment with an acknowledgement came, also one of the same data."""


def unacknowledged(sock: socket.SocketType) -> Unacknowledged | None:
    """Return what the kernel knows, or None where all is acknowledged, or the system does not say.

    Args:
        sock: a connected socket of any kind.
    """
    if _TCP_INFO is None:
        return None
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
    except OSError:  # it is closed, or no TCP socket
        return None
    if len(info) < _SIZE:
        return None
    in_flight, last_ack, acknowledged, not_sent = _FIELDS.unpack(info)
    if not (in_flight or not_sent):
        return None
    return Unacknowledged(acknowledged, in_flight > 0, last_ack / 1000)


def settled(sock: socket.SocketType) -> bool:
    """Return whether the client is known to have acknowledged all that was sent to it.

    It costs half of what `unacknowledged` does.

    Args:
        sock: a connected socket of any kind.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO_SIZE)[-4:] == _NOTHING_QUEUED
    except OSError:  # it is closed, or the kernel does not say
        return False
