"""The socket between a worker and the parent that started it: over it the parent lends listening sockets to workers.

Each has one end. The kernel closes the parent's end when the parent dies, so that a worker never serves on without
one. A worker's successor is handed its end with the connections.
"""

from __future__ import annotations

import array
import asyncio
import os
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

PARENT_LINK = "sse-app-parent"
"""The name of the worker's end among the descriptors that it is started with, and in a handover."""

LISTEN, LEAVE, END = b"listen", b"leave", b"end"
"""What the parent asks for: to accept connections on the sockets that come along, to close them again, to end."""

MOST_SOCKETS = 64
"""How many sockets come with a message at most."""


def ask_to_end(link: socket.socket) -> None:
    """Ask a worker to end, and close the link."""
    with link, suppress(OSError):
        link.send(END, socket.MSG_DONTWAIT)


def send(link: socket.socket, word: bytes, sockets: Sequence[socket.socket]) -> bool:
    """Send a worker a word with listening sockets; return whether that was possible at once."""
    try:
        for start in range(0, len(sockets), MOST_SOCKETS):
            descriptors = array.array("i", [sock.fileno() for sock in sockets[start : start + MOST_SOCKETS]])
            # socket.send_fds and recv_fds pass the flags over in some versions of Python.
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
            link.sendmsg([word], ancillary, socket.MSG_DONTWAIT)
    except OSError:  # it hangs, or has just died
        return False
    return True


class ParentLink:
    """The worker's end.

    Args:
        descriptor: of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.setblocking(False)
        self._socket.set_inheritable(False)

    @classmethod
    def among(cls, inherited: Sequence[tuple[str, int]]) -> ParentLink | None:
        """Return the end among descriptors that this process was given; None where it has no parent of ours."""
        return next((cls(descriptor) for name, descriptor in inherited if name == PARENT_LINK), None)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def is_closed(self) -> bool:
        """Return whether the parent has closed its end, or has died."""
        poll = select.poll()
        poll.register(self._socket, 0)  # POLLHUP is told of in any case
        return bool(poll.poll(0))

    def watch(
        self,
        listen: Callable[[list[socket.socket]], None],
        leave: Callable[[list[socket.socket]], None],
        end: Callable[[], None],
        parent_died: Callable[[], None],
    ) -> None:
        """Call a function for each message from now on, on the running event loop.

        Args:
            listen, leave: get the sockets of a message; those of `leave` are closed afterwards.
            end: the parent asks this process to end.
            parent_died: it asks no more.
        """

        def read() -> None:
            try:
                word, descriptors = self._received()
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                word, descriptors = b"", array.array("i")
            if word in (b"", END):
                self.stop_watching()
                (end if word else parent_died)()
                return
            sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            if word == LISTEN:
                for sock in sockets:
                    sock.setblocking(False)
                listen(sockets)
                return
            if word == LEAVE:
                leave(sockets)
            for sock in sockets:
                sock.close()

        asyncio.get_running_loop().add_reader(self._socket.fileno(), read)

    def _received(self) -> tuple[bytes, array.array[int]]:
        descriptors = array.array("i")
        space = socket.CMSG_SPACE(MOST_SOCKETS * descriptors.itemsize)
        word, ancillary, _, _ = self._socket.recvmsg(64, space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        return word, descriptors

    def stop_watching(self) -> None:
        """Call no function any more; what comes then waits for the next that watches, also in another process."""
        with suppress(ValueError):
            asyncio.get_running_loop().remove_reader(self._socket.fileno())

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def same(one: socket.socket, other: socket.socket) -> bool:
    """Return whether two descriptors are of one socket."""
    return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
