"""Memory beside that of the server: the kernel's, for sockets, and what is left on the machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.processes import proportional_kib

_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def _meminfo() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/meminfo").read_text().split("\n") if line)
    return {fields[0].rstrip(":"): int(fields[1]) for fields in lines}


def available_mib() -> float:
    """Return how much memory the kernel could still give to programs, in MiB."""
    return _meminfo()["MemAvailable"] / 1024


def _socket_pages() -> int:
    """Return how many pages TCP accounts to sockets' buffers."""
    for line in Path("/proc/net/sockstat").read_text().split("\n"):
        if line.startswith("TCP:"):
            fields = line.split()
            return int(fields[fields.index("mem") + 1])
    return 0


@dataclass(frozen=True)
class Shares:
    """Who has how much memory, in KiB."""

    server: int
    """Proportional set size of its processes."""
    client: int
    """That of the load client's."""
    kernel: int
    """Its slab (sockets, files, inodes, epoll items, of server and client both) and the buffers of TCP."""
    available: int

    def __sub__(self, before: Shares) -> Shares:
        """Return what each has grown by."""
        return Shares(
            self.server - before.server,
            self.client - before.client,
            self.kernel - before.kernel,
            self.available - before.available,
        )

    @property
    def total(self) -> int:
        """All of it."""
        return self.server + self.client + self.kernel


def shares(server: Iterable[int], client: Iterable[int]) -> Shares:
    """Return who has how much memory now.

    Args:
        server, client: process ids.
    """
    info = _meminfo()
    return Shares(
        proportional_kib(server),
        proportional_kib(client),
        info["Slab"] + _socket_pages() * _PAGE_KIB,
        info["MemAvailable"],
    )
