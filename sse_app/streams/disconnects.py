"""Disconnect detection: one epoll for the sockets of all streams, which the event loop watches as one descriptor."""

from __future__ import annotations

import asyncio
import logging
import select
from typing import Protocol

SOCKETS_PER_POLL = 256
"""How many sockets are looked at before the event loop runs other callbacks."""

_EPOLL = hasattr(select, "epoll")

log = logging.getLogger(__name__)


class Watched(Protocol):
    """An object whose socket is watched."""

    def readable(self) -> None:
        """Read from the socket, or notice that it has ended."""


class Disconnects:
    """Calls ``readable`` of a socket's owner when there is something to read: on a stream, mostly the end.

    An event loop keeps a handle, a callback and its arguments for each socket, and takes five times as long;
    here a socket is an entry in a dictionary. On systems without epoll the event loop watches each socket.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._watched: dict[int, Watched] = {}
        self._suspended = False

    def prepare(self) -> None:
        """Make what `watch` needs, on the running event loop: later there may be no file descriptor left for it."""
        if _EPOLL and not self._suspended:
            self._opened()

    def watch(self, fd: int, owner: Watched) -> None:
        """Watch a socket, on the running event loop."""
        if not _EPOLL:
            asyncio.get_running_loop().add_reader(fd, self._notice, fd, owner)
            return
        if not self._suspended:
            self._opened().register(fd, select.EPOLLIN)
        self._watched[fd] = owner

    def _opened(self) -> select.epoll:
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._look)
        return self._epoll

    def forget(self, fd: int) -> None:
        """Stop watching a socket; call this before it is closed, for its number may be another one's then."""
        if not _EPOLL:
            asyncio.get_running_loop().remove_reader(fd)
        elif self._watched.pop(fd, None) is not None and self._epoll is not None:
            self._epoll.unregister(fd)

    def ignore_input(self, fd: int) -> None:
        """Call no more for what there is to read, which for a client that has ended its side is always its end.

        With epoll the owner is still called when the connection is reset.
        """
        if not _EPOLL:
            asyncio.get_running_loop().remove_reader(fd)
        elif self._epoll is not None:
            self._epoll.modify(fd, 0)

    def suspend(self) -> None:
        """Stop watching all sockets until `resume`; those that are added meanwhile are watched from then on.

        A process that hands its streams over does this ahead: for many sockets the kernel takes a while, and at
        the end of the process the successor would wait for it.
        """
        self._suspended = True
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def resume(self) -> None:
        """Watch the sockets again after `suspend`."""
        if self._suspended:
            self._suspended = False
            self.prepare()
            for fd, owner in list(self._watched.items()):
                self.watch(fd, owner)

    def close(self) -> None:
        """Stop watching for good."""
        self.suspend()
        self._suspended = False
        self._watched.clear()

    def _look(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0, SOCKETS_PER_POLL):
            if (owner := self._watched.get(fd)) is not None:  # the callback of another may have ended it
                self._notice(fd, owner)

    def _notice(self, fd: int, owner: Watched) -> None:
        """Call an owner; one that fails is forgotten, or it would be called again at once, for ever."""
        try:
            owner.readable()
        except Exception:
            log.exception("uncaught")
            self.forget(fd)
