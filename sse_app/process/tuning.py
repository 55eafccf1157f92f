"""What is set once for the whole process: memory, threads, open files, the event loop."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import resource
import sys
from contextlib import suppress

from sse_app.process.garbage_collection import collect_seldom

SWITCH_INTERVAL = 0.001
"""Seconds; see `sys.setswitchinterval`."""

MOST_FILES = 65_536
"""For how many open files the kernel's table is made large enough at the start, at eight bytes each."""

M_MMAP_THRESHOLD = -3
LARGE_BLOCK = 128 * 1024


def prepare() -> None:
    """Prepare the process for a server with many streams."""
    collect_seldom()
    _give_large_memory_back()
    _raise_file_limit()
    _make_room_for_files()
    # The event log's writer thread waits at most so long for the interpreter's lock when the event loop is busy.
    sys.setswitchinterval(SWITCH_INTERVAL)


def loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where it is installed: it takes half the time of asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    loop: type[asyncio.AbstractEventLoop] = uvloop.Loop
    return loop


def _give_large_memory_back() -> None:
    """Have the C library map large blocks one by one, so that they go back to the system when freed.

    By default it raises the size from which it does so to that of the largest block that was freed; from then on
    what stalled streams held stays in the heap, in holes (mallopt(3)). Other libraries than glibc have no
    such function, or need none.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def _raise_file_limit() -> None:
    """Allow as many open files as the system permits: each stream is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(PermissionError):  # a hardened unit has it set by systemd
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _make_room_for_files() -> None:
    """Have the kernel make its table of this process's files as large as it may become, while there are no threads.

    It grows by doubling, and in a process with threads waits each time until all processors have seen it: tens
    of milliseconds in all, in the middle of adopting ten thousand streams, or of serving them.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull, "rb") as file, suppress(OSError):
        os.close(fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, min(soft, MOST_FILES) - 1))
