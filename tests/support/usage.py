"""What a process holds: memory, file descriptors, threads."""

from __future__ import annotations

import os
from pathlib import Path

MEBIBYTE = 2**20


class Usage:
    """What a process holds at one time.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        proc = Path(f"/proc/{pid}")
        self.resident = int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        """Bytes."""
        self.descriptors = len(list((proc / "fd").iterdir()))
        self.threads = len(list((proc / "task").iterdir()))

    def __repr__(self) -> str:
        return f"{self.resident / MEBIBYTE:.1f} MiB, {self.descriptors} descriptors, {self.threads} threads"
