"""The listening sockets of several workers: one for each, on the same address, and which worker accepts on which."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from sse_app.process.sockets import (
    bound,
    bound_if_supported,
    check_address,
    found_addresses,
    inherited_sockets,
    unusable,
)
from sse_app.settings.model import Settings


class Listeners:
    """The sockets, which the parent of the workers keeps open: what waits on one outlives its worker.

    Args:
        addresses: for each address its sockets, among which the kernel spreads the connections (SO_REUSEPORT in
            socket(7)), or the single one, which all workers share.
        backlog: of sockets that are opened for more workers; None where the sockets are another program's, which
            opens no more.
    """

    def __init__(self, addresses: list[list[socket.socket]], backlog: int | None) -> None:
        self.addresses = addresses
        self.backlog = backlog

    @classmethod
    def bound(cls, settings: Settings, workers: int) -> Listeners:
        """Open the sockets that the settings name, so many for each address.

        Raises:
            StateError: an address cannot be used.
        """
        # Of a port that another server of this user shares in the same way, this process would get a part of the
        # connections, and no error.
        check_address(settings)
        addresses: list[list[socket.socket]] = []
        port = settings.port
        try:
            for family, address in found_addresses(settings):
                first = bound_if_supported(family, (address[0], port, *address[2:]), shared=True)
                if first is not None:
                    addresses.append([first])
                    port = port or first.getsockname()[1]
            listeners = cls(addresses, settings.socket.backlog)
            for sock in listeners.all():
                sock.listen(settings.socket.backlog)
            listeners.grow(workers)
        except (OSError, ValueError) as error:
            raise unusable(settings, error) from None
        return listeners

    @classmethod
    def inherited(cls, passed: Sequence[tuple[str, int]]) -> Listeners:
        """Take the sockets that systemd has passed, by name and descriptor."""
        by_address: dict[tuple[int, Any], list[socket.socket]] = {}
        for sock in inherited_sockets(passed):
            by_address.setdefault((sock.family, sock.getsockname()), []).append(sock)
        return cls(list(by_address.values()), None)

    def grow(self, workers: int) -> None:
        """Open sockets until each of so many workers has its own.

        Raises:
            OSError: one cannot be opened.
        """
        if self.backlog is None:
            return
        for sockets in self.addresses:
            while len(sockets) < workers:
                sock = bound(sockets[0].family, sockets[0].getsockname(), shared=True)
                sock.listen(self.backlog)
                sockets.append(sock)

    def of(self, worker: int) -> list[socket.socket]:
        """Return the sockets of a worker, one for each address."""
        return [sockets[(worker - 1) % len(sockets)] for sockets in self.addresses]

    def all(self) -> list[socket.socket]:
        """Return all sockets."""
        return [sock for sockets in self.addresses for sock in sockets]

    def kept(self) -> dict[str, Any]:
        """Return what the program that takes the place of this process's has to know."""
        numbers = [[sock.fileno() for sock in sockets] for sockets in self.addresses]
        return {"addresses": numbers, "backlog": self.backlog}

    @classmethod
    def of_kept(cls, kept: Mapping[str, Any]) -> Listeners:
        """Return the sockets that another program has kept."""
        addresses = [[socket.socket(fileno=number) for number in numbers] for numbers in kept["addresses"]]
        listeners = cls(addresses, kept["backlog"])
        for sock in listeners.all():
            sock.set_inheritable(False)
        return listeners

    def close(self) -> None:
        """Close all of them: once the workers have done so too, connections are refused."""
        for sock in self.all():
            sock.close()
        self.addresses = []
