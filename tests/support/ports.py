"""Ports that belong to one test until it ends."""

from __future__ import annotations

import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port of 127.0.0.1 that only a server started for this test will get."""
    with _reservation() as reservation:
        yield _port_of(reservation)


def reserve_port(owner: object) -> int:
    """Return a port of 127.0.0.1 that is reserved as long as its owner exists."""
    reservation = _reservation()
    weakref.finalize(owner, reservation.close)
    return _port_of(reservation)


def _reservation() -> socket.socket:
    """Return a socket that is bound and does not listen.

    With SO_REUSEADDR on both, a server may bind the same port and listen on it (socket(7)), again after each
    restart, and is refused connections meanwhile; but the kernel gives the port to no other process that asks for
    any, nor to an outgoing connection. A port that is found by binding and closing may be taken by another test
    before the server binds it.
    """
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


def _port_of(reservation: socket.socket) -> int:
    return int(reservation.getsockname()[1])
