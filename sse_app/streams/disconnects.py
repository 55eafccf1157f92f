"""Notices that clients leave: one epoll for the sockets of all streams, which the event loop watches as one."""

from __future__ import annotations

import asyncio
import select
from typing import Protocol

SOCKETS_PER_POLL = 256
"""How many are looked at before others run."""

_EPOLL = hasattr(select, "epoll")


class Readable(Protocol):
    """Something that wants to know when its socket has something to read."""

    def readable(self) -> None:
        """Read it."""


class Disconnects:
    """Calls ``readable`` of whoever's socket has something to read: of a stream's client that is mostly its end.

    To watch a socket, an event loop keeps a handle, a callback and its arguments for each, and takes five times
    as long; here it is an entry in a dictionary. Systems without epoll do it the event loop's way.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Readable] = {}
        self._suspended = False

    def watch(self, fd: int, who: Readable) -> None:
        """Watch a socket, on the running event loop."""
        if not _EPOLL:
            asyncio.get_running_loop().add_reader(fd, who.readable)
            return
        self._watched[fd] = who
        if self._suspended:
            return
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)
        self._epoll.register(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """Watch a socket no more; before it is closed, for its number may be another one's then."""
        if not _EPOLL:
            asyncio.get_running_loop().remove_reader(fd)
        elif self._watched.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def suspend(self) -> None:
        """Let go of all sockets for a while; what the kernel has to do for that is not left to the process's end.

        Those that come meanwhile are watched from `resume` on.
        """
        self._suspended = True
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def resume(self) -> None:
        """Watch again whom `suspend` let go of."""
        if self._suspended:
            self._suspended = False
            for fd, who in list(self._watched.items()):
                self.watch(fd, who)

    def close(self) -> None:
        """Let go of the event loop; nobody is watched any more."""
        self.suspend()
        self._suspended = False
        self._watched.clear()

    def _look(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0, SOCKETS_PER_POLL):
            if (who := self._watched.get(fd)) is not None:  # one that came before may have ended it
                who.readable()
