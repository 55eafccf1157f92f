"""Unix sockets in directories: paths that fit into an address, and which user is at the other end (unix(7))."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_ADDRESS = 107
"""How many bytes a path has at most in an address of a Unix socket."""

CREDENTIALS = struct.Struct("3i")
"""The process, its user and its group, as the kernel names them."""


def path_by_descriptor(descriptor: int, directory: Path) -> str:
    """Return a path of an open directory for this process that is short, where the system has such paths.

    Args:
        descriptor: of the directory.
        directory: its path, which may be longer than an address can be.
    """
    short = f"/proc/self/fd/{descriptor}"
    return short if os.path.isdir(short) else str(directory)


@contextmanager
def short_path(directory: Path) -> Iterator[str]:
    """Give a path of a directory as `path_by_descriptor` does.

    Raises:
        OSError: the directory cannot be opened.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield path_by_descriptor(descriptor, directory)
    finally:
        os.close(descriptor)


def is_of_own_user(connection: socket.socket) -> bool:
    """Return whether the process at the other end of a connection runs as the user of this one (``SO_PEERCRED``)."""
    if not hasattr(socket, "SO_PEERCRED"):  # not on Linux: the directory is private
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    _, user, _ = CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())
