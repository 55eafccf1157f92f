"""Passes sockets to the next process: texts in memory files, and sockets with SCM_RIGHTS, over a Unix socket pair.

The receiver reads without taking: until `Arrival.take` everything stays in the queue, so that a process that
crashes in between leaves all of it for the next one.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from sse_app.core.errors import SSEAppError

SOCKETS_A_MESSAGE = 253
"""SCM_MAX_FD (unix(7))."""

CROWDED_TIMEOUT = 1.0
CROWDED_PAUSE = 0.01
"""For how many seconds it is tried again, and how often, where too many sockets of this user are on their way: the
kernel counts those of all processes against the limit of this one (unix(7), ETOOMANYREFS)."""

_SO_SNDBUFFORCE = 32  # socket(7); Python has no name for it
_BUFFER = 4 * 1024 * 1024
_SO_PEEK_OFF = 42  # socket(7); Python has no name for it
_TEXT, _SOCKETS, _END = b"text", b"sockets", b"end"
_MESSAGE_BYTES = 16
_SPACE = socket.CMSG_SPACE(SOCKETS_A_MESSAGE * array.array("i").itemsize)


class IncompleteHandover(SSEAppError):
    """A handover is not complete: its sender crashed, or this process may not open so many files."""


def channel() -> tuple[socket.socket, socket.socket]:
    """Return a connected pair that keeps messages apart: one end sends, the other receives."""
    sending, receiving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for size in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):  # the first needs a privilege
        with suppress(OSError):
            sending.setsockopt(socket.SOL_SOCKET, size, _BUFFER)
            break
    sending.setblocking(False)  # so that a slow receiver cannot block this process
    return sending, receiving


def send(to: socket.socket, text: bytes, descriptors: Sequence[int], *, last: bool = True) -> None:
    """Send a text and the sockets that belong to it; the caller keeps its own copies of them.

    Args:
        to: the sending end.
        text: the message.
        descriptors: of the sockets.
        last: whether the handover is complete with it.

    Raises:
        OSError: not all of it was sent.
    """
    deadline = time.monotonic() + CROWDED_TIMEOUT
    file = os.memfd_create("handover")
    try:
        with memoryview(text) as view:
            written = 0
            while written < len(text):
                written += os.write(file, view[written:])
        _send(to, _TEXT, [file], deadline)
    finally:
        os.close(file)
    for start in range(0, len(descriptors), SOCKETS_A_MESSAGE):
        _send(to, _SOCKETS, descriptors[start : start + SOCKETS_A_MESSAGE], deadline)
    if last:
        _send(to, _END, [], deadline)


def _send(to: socket.socket, kind: bytes, descriptors: Sequence[int], deadline: float) -> None:
    passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    while True:
        try:
            to.sendmsg([kind], passed)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                raise
            time.sleep(CROWDED_PAUSE)


class Arrival:
    """The content of a queue: the texts, and copies of their sockets, while the originals stay in the queue.

    Args:
        receiving: the receiving end.

    Raises:
        IncompleteHandover: there is something, but not all of it.
    """

    def __init__(self, receiving: socket.socket) -> None:
        self._receiving = receiving
        self.parts: list[tuple[bytes, list[int]]] = []
        """Each text with its sockets."""
        self._messages = 0
        receiving.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
        try:
            self._look()
        except BaseException:
            self.drop()
            raise
        finally:
            receiving.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, -1)

    def __bool__(self) -> bool:
        """Whether there is a handover."""
        return bool(self.parts)

    def _look(self) -> None:
        while True:
            try:
                kind, descriptors = _receive(self._receiving, socket.MSG_PEEK)
            except BlockingIOError:
                if self._messages:
                    raise IncompleteHandover("the handover has no end") from None
                return
            self._messages += 1
            if kind == _END:
                return
            if kind == _TEXT and descriptors:
                self.parts.append((_read(descriptors[0]), []))
            elif kind == _SOCKETS and self.parts:
                self.parts[-1][1].extend(descriptors)
            else:
                _close(descriptors)
                raise IncompleteHandover("the other end is gone")

    def take(self) -> None:
        """Take the handover out of the queue, so that only this process has it."""
        for _ in range(self._messages):
            _discard(self._receiving)

    def drop(self) -> None:
        """Take the handover out of the queue and close its sockets, so that its connections end."""
        for _, descriptors in self.parts:
            _close(descriptors)
        self.parts = []
        empty(self._receiving)


def empty(receiving: socket.socket) -> None:
    """Take out and close all that lies in a queue."""
    with suppress(BlockingIOError):
        while _discard(receiving):
            pass


def _discard(receiving: socket.socket) -> bytes:
    """Take out a message; the kernel closes the sockets in it that are not asked for."""
    return receiving.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _receive(receiving: socket.socket, flags: int) -> tuple[bytes, list[int]]:
    kind, ancillary, answered, _ = receiving.recvmsg(
        _MESSAGE_BYTES, _SPACE, flags | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
    )
    descriptors = array.array("i")
    for level, type, data in ancillary:
        if level == socket.SOL_SOCKET and type == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if answered & socket.MSG_CTRUNC:
        _close(descriptors)
        raise IncompleteHandover(
            "this process may not open as many files as are handed over: raise LimitNOFILE"
        )
    return kind, list(descriptors)


def _read(file: int) -> bytes:
    with os.fdopen(file, "rb") as reader:
        reader.seek(0)
        return reader.read()
