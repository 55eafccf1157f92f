"""Has the interpreter's memory lie in huge pages, where the kernel has them.

A request that comes alone finds the processor's caches cold, that of address translations too: for what it needs of the
interpreter's memory there are hundreds of them in pages of 4 KiB, and a dozen in pages of 2 MiB. That is 5 to 8 % of
the CPU of a lone publish.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

RESERVED = 10 * 1024 * 1024
"""How many bytes are reserved: about what the small objects take of a server that has started."""

ARENA = 1024 * 1024
"""CPython takes memory for small objects in pieces of so many bytes."""

BLOCK = 512
"""How many bytes the largest of the small objects take."""

_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_COLLAPSE = 25
"""``MADV_COLLAPSE`` of madvise(2), since Linux 6.1."""
_PRESENT = 1 << 63
"""In an entry of /proc/PID/pagemap (proc_pid_pagemap(5)): the page is in memory."""

_kept: list[bytes] = []
"""Objects in each of these pieces, which therefore do not go back to the system."""


def reserve() -> None:
    """Have the memory of small objects lie in one piece; to be called before most modules are imported.

    CPython takes it from the system as it needs it, and the libraries that are loaded meanwhile would lie in between.
    """
    blocks = [bytes(BLOCK - bytes.__basicsize__) for _ in range(RESERVED // BLOCK)]
    _kept.extend(blocks[:: ARENA // BLOCK // 2])


def use_huge_pages() -> None:
    """Have the kernel make huge pages of the memory that is in use by now.

    It does nothing where the kernel cannot do that, or the operator has switched huge pages off.
    """
    with suppress(OSError):
        if "[never]" in (_SETTINGS / "enabled").read_text():
            return
        size = int((_SETTINGS / "hpage_pmd_size").read_text())
        madvise = ctypes.CDLL(None).madvise
        for address in mostly_in_use(size):
            madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), _COLLAPSE)


def mostly_in_use(size: int) -> Iterator[int]:
    """Yield where huge pages can be made of which more than half is in use: the rest is memory taken in vain.

    Args:
        size: of a huge page, in bytes.

    Raises:
        OSError: the kernel does not tell.
    """
    page = os.sysconf("SC_PAGESIZE")
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for start, end in _own_memory():
            for address in range(-(-start // size) * size, end - size + 1, size):
                pagemap.seek(address // page * 8)
                entries = array("Q", pagemap.read(size // page * 8))
                if sum(entry & _PRESENT != 0 for entry in entries) * page > size // 2:
                    yield address


def _own_memory() -> list[tuple[int, int]]:
    """Return where the memory begins and ends that this process can write and that is no file's."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, access, _, _, inode, *name = line.split()
        if access == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append((start, end))
    return found
