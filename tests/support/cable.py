"""A cable between browsers and a server, on real sockets, from which connections can be lost in silence."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Cable:
    """Forwards TCP connections, in threads of its own.

    Args:
        port: of the server, on this machine.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lost = threading.Event()
        self._start(self._accept)

    @property
    def port(self) -> int:
        """Where browsers connect to."""
        return int(self._listener.getsockname()[1])

    def lose(self) -> None:
        """Carry nothing more over the connections that there are; neither end is told, and new ones work."""
        self._lost.set()
        self._lost = threading.Event()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return  # closed
            self._ends.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self._server), 30)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._ends.append(far)
            self._start(self._copy, near, far, self._lost)
            self._start(self._copy, far, near, self._lost)

    def _copy(self, source: socket.socket, target: socket.socket, lost: threading.Event) -> None:
        with suppress(OSError):
            while (piece := source.recv(65_536)) and not lost.is_set():
                target.sendall(piece)
        if not lost.is_set():
            _shut(source, target)

    def close(self) -> None:
        """End all connections."""
        _shut(self._listener)
        self._threads[0].join()
        _shut(*self._ends)
        for thread in self._threads:
            thread.join()
        for end in (self._listener, *self._ends):
            end.close()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def cable_to(port: int) -> Iterator[Cable]:
    """Lay a cable to a server meanwhile."""
    cable = Cable(port)
    try:
        yield cable
    finally:
        cable.close()
