"""Ports that belong to one test until it ends."""

from __future__ import annotations

import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port(*, everywhere: bool = False) -> Iterator[int]:
    """Yield a port that only a server started for this test will get.

    Args:
        everywhere: of all addresses of both families, for a server that listens on them; else of 127.0.0.1.
    """
    with _reservation(everywhere) as reservation:
        yield _port_of(reservation)


def reserve_port(owner: object, *, everywhere: bool = False) -> int:
    """Return a port that is reserved as long as its owner exists.

    Args:
        owner: an object.
        everywhere: as in `reserved_port`. Reserved for 127.0.0.1 alone, it may be that of a connection which another
            test makes from 127.0.0.2; a server could then not listen on all addresses.
    """
    reservation = _reservation(everywhere)
    weakref.finalize(owner, reservation.close)
    return _port_of(reservation)


def _reservation(everywhere: bool = False) -> socket.socket:
    """Return a socket that is bound and does not listen.

    With SO_REUSEADDR on both, a server may bind the same port and listen on it (socket(7)), again after each
    restart, and is refused connections meanwhile; but the kernel gives the port to no other process that asks for
    any, nor to an outgoing connection. A port that is found by binding and closing may be taken by another test
    before the server binds it.
    """
    both = everywhere and socket.has_dualstack_ipv6()
    reservation = socket.socket(socket.AF_INET6 if both else socket.AF_INET)
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if both:
        reservation.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    reservation.bind(("::" if both else "0.0.0.0" if everywhere else "127.0.0.1", 0))
    return reservation


def _port_of(reservation: socket.socket) -> int:
    return int(reservation.getsockname()[1])
