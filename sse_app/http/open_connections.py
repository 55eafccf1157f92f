"""The connections of a server that are no streams: how many there may be, and which is closed where there are too many.

A client that connects and sends nothing costs as much as one that is served, so places are given to those who use
them: the connection that has been silent for longest makes room for a new one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from sse_app.core.addresses import network_of
from sse_app.core.counters import ConnectionCounts
from sse_app.core.repeated_event import RepeatedEvent
from sse_app.http.connection import Connection
from sse_app.http.deadlines import Deadlines

log = logging.getLogger(__name__)


SHARE = 4
"""Of which part of the places those that are slow may be spared: so many at once are no slow clients, but an attack."""


class ConnectionLimits(NamedTuple):
    """How many connections there may be.

    Args:
        total: in all.
        per_address: of an address, as `core.addresses.network_of` counts it.
        is_shared: whether an address is that of many clients, a proxy's for instance, and has no limit of its own.
    """

    total: int
    per_address: int
    is_shared: Callable[[str], bool]


class Sheddable(NamedTuple):
    """Connections that may be closed to make room, the oldest first.

    Args:
        reason: for logs and metrics.
        connections: since when each waits.
        grace: for how many seconds it may do so unharmed, while it and its like have few of the places.
    """

    reason: str
    connections: Deadlines[Connection]
    grace: float = 0.0


class OpenConnections:
    """Holds the connections and closes some where there are too many.

    Args:
        limits: how many there may be.
        order: what is closed first; what is in none of them is never closed.
        counts: are kept up to date.
    """

    def __init__(
        self, limits: ConnectionLimits, order: Sequence[Sheddable], counts: ConnectionCounts
    ) -> None:
        self.limits = limits
        self._order = order
        self._counts = counts
        self._networks: dict[Connection, str] = {}
        self._of_network: dict[str, set[Connection]] = {}
        self._shed = RepeatedEvent(log, logging.WARNING, "connections_shed")

    def __len__(self) -> int:
        return len(self._networks)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._networks)

    @property
    def too_many(self) -> bool:
        """Whether there are more than there may be, because none of them could be closed."""
        return len(self) > self.limits.total

    def add(self, connection: Connection) -> None:
        """Hold a connection."""
        network = network_of(connection.context.remote_ip)
        self._networks[connection] = network
        self._of_network.setdefault(network, set()).add(connection)
        self._counts.open = len(self)

    def discard(self, connection: Connection) -> None:
        """Forget a connection, if it is held."""
        network = self._networks.pop(connection, None)
        if network is None:
            return
        of_network = self._of_network[network]
        of_network.discard(connection)
        if not of_network:
            del self._of_network[network]
        self._counts.open = len(self)

    def make_room(self, address: str) -> bool:
        """Close what has to be closed for a new connection of an address; return whether that may be served.

        It may also be where all others are busy: then there is one too many for a while.
        """
        limits = self.limits
        of_network = self._of_network.get(network_of(address), ())
        if len(of_network) >= limits.per_address and not limits.is_shared(address):
            if not self._close(self._oldest_of(of_network)):
                self._note("address")
                return False
        elif len(self) >= limits.total:
            self.shed()
        return True

    def back_to_limit(self) -> bool:
        """Close what is too many; return False where that is not possible, because all are busy."""
        while self.too_many:
            if not self.shed():
                return False
        return True

    def shed(self) -> bool:
        """Close the connection that is missed least; return False where all are busy."""
        return self._close(self._oldest())

    def _oldest(self) -> tuple[str, Connection] | None:
        for sheddable in self._order:
            oldest = next(iter(sheddable.connections), None)
            if oldest is not None and self._may_be_closed(
                oldest, sheddable, len(sheddable.connections), self.limits.total
            ):
                return sheddable.reason, oldest
        return None

    def _oldest_of(self, some: Iterable[Connection]) -> tuple[str, Connection] | None:
        for sheddable in self._order:
            waiting = [connection for connection in some if connection in sheddable.connections]
            if not waiting:
                continue
            oldest = min(waiting, key=sheddable.connections.since)
            if self._may_be_closed(oldest, sheddable, len(waiting), self.limits.per_address):
                return sheddable.reason, oldest
        return None

    @staticmethod
    def _may_be_closed(oldest: Connection, sheddable: Sheddable, count: int, places: int) -> bool:
        """Return whether the oldest of so many of a kind may be closed, where there are so many places."""
        now = asyncio.get_running_loop().time()
        return sheddable.connections.since(oldest) <= now - sheddable.grace or count > max(1, places // SHARE)

    def _close(self, found: tuple[str, Connection] | None) -> bool:
        if found is None:
            return False
        reason, connection = found
        connection.close()
        self._note(reason)
        return True

    def _note(self, reason: str) -> None:
        self._counts.shed[reason] += 1
        self._shed.add(reason)
