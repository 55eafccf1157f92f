"""What workers report to their parent: the receiving side of sd_notify(3)."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sse_app.core.errors import StateError
from sse_app.storage.unix_sockets import CREDENTIALS, LONGEST_ADDRESS

UPGRADE_FAILED = "X_SSE_APP_UPGRADE=failed"
"""What a worker reports whose upgrade has failed: it serves on. systemd passes it over."""

LONGEST_MESSAGE = 4096
"""How many bytes of a message are read."""

MOST_READ = 1000
"""How many messages are read at once; what comes faster than it is read keeps the parent from nothing else so."""

_NAME = "notify"
_STREAMS = re.compile(r"STATUS=([0-9]+) streams")


def status(streams: int) -> str:
    """Return the report of how many streams a process has."""
    return f"STATUS={streams} streams"


def streams_in(report: str) -> int | None:
    """Return how many streams a report is of; None where it is another one."""
    found = _STREAMS.fullmatch(report)
    return None if found is None else int(found[1])


class Notifications:
    """The socket that workers report to.

    It lies in the state directory, where other users do not come.

    Args:
        sock: the socket, bound.
        address: what workers are told as ``NOTIFY_SOCKET``.
        directory: a descriptor of the directory, where the address names it by that.
    """

    def __init__(self, sock: socket.socket, address: str, directory: int | None) -> None:
        self.socket = sock
        self.address = address
        self.directory = directory
        sock.setblocking(False)
        if hasattr(socket, "SO_PASSCRED"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)

    @classmethod
    def bound(cls, directory: Path) -> Notifications:
        """Make the socket in a directory.

        Raises:
            StateError: it cannot be made, on a full disk for instance.
        """
        path = directory.absolute() / _NAME
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        opened = None
        try:
            path.unlink(missing_ok=True)
            address = str(path)
            if len(os.fsencode(address)) > LONGEST_ADDRESS:
                # For the life of this process, which the workers see as they are of the same user.
                opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                address = f"/proc/{os.getpid()}/fd/{opened}/{_NAME}"
            sock.bind(address)
            path.chmod(0o600)
        except OSError as error:
            sock.close()
            raise StateError(
                f"cannot make a socket for the workers in {directory}: {error.strerror}"
            ) from None
        return cls(sock, address, opened)

    @staticmethod
    def is_left(directory: Path) -> bool:
        """Return whether there is a socket of a process that was killed, where none runs that has one there."""
        return (directory / _NAME).is_socket()

    def read(self) -> Iterator[tuple[int, str]]:
        """Yield what has been reported, each message with the process that sent it, which the kernel names.

        Of very many messages the first are yielded; the socket can still be read then.
        """
        space = socket.CMSG_SPACE(CREDENTIALS.size)
        for _ in range(MOST_READ):
            try:
                text, ancillary, _, _ = self.socket.recvmsg(LONGEST_MESSAGE, space)
            except BlockingIOError:
                return
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    pid, user, _ = CREDENTIALS.unpack(data[: CREDENTIALS.size])
                    if user == os.geteuid():
                        yield pid, text.decode("utf-8", "replace")

    def kept(self) -> tuple[int, str, int | None]:
        """Return what the program that takes the place of this process's has to know."""
        return self.socket.fileno(), self.address, self.directory

    def descriptors(self) -> list[int]:
        """Return the descriptors in it."""
        return [self.socket.fileno(), *([] if self.directory is None else [self.directory])]

    @classmethod
    def of_kept(cls, kept: Sequence[Any]) -> Notifications:
        """Return the socket that another program has kept."""
        descriptor, address, directory = kept
        notifications = cls(socket.socket(fileno=descriptor), address, directory)
        for one in notifications.descriptors():
            os.set_inheritable(one, False)
        return notifications

    def close(self) -> None:
        """Close the socket and remove its file."""
        self.socket.close()
        with suppress(OSError):
            os.unlink(self.address)
