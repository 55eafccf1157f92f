"""Clients that connect and are of no use: they send nothing, or only the beginning of a request."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

HALF_A_HEAD = b"GET /healthz HTTP/1.1\r\nHo"


def half_a_head(number: int) -> bytes:
    """Return nothing for every second number, and half a head for the others."""
    return HALF_A_HEAD if number % 2 else b""


def own_address(number: int) -> str:
    """Return an address of this machine that no other number has."""
    return f"127.1.{number // 250}.{1 + number % 250}"


@contextmanager
def silent_clients(
    port: int,
    count: int,
    *,
    address: Callable[[int], str] = lambda number: "127.0.0.1",
    sent: Callable[[int], bytes] = half_a_head,
) -> Iterator[list[socket.socket]]:
    """Connect so many times.

    Args:
        port: of the server.
        count: how many.
        address: where the connection of a number comes from.
        sent: what it sends.
    """
    with ExitStack() as stack:
        clients = []
        for number in range(count):
            client = socket.create_connection(("127.0.0.1", port), 30, (address(number), 0))
            clients.append(stack.enter_context(client))
            if text := sent(number):
                try:
                    client.send(text)
                except OSError:
                    continue  # the server has closed it to make room
        yield clients
