"""Which start of the machine this is: monotonic times of different processes can be compared within one."""

from __future__ import annotations

import secrets
from functools import cache
from pathlib import Path


@cache
def boot_id() -> str:
    """Return the kernel's name for this start of the machine; where there is none, one that only this process has."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return secrets.token_hex(16)
