"""Why an upgrade has failed: a file in the directory of the process that has tried it, for the command that asked."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

UPGRADE_TIMEOUT = 150.0
"""How many seconds command and parent wait for the upgrade of one process, which that process gives up before."""

_NAME = "upgrade-failed"


def forget_failure(directory: Path) -> None:
    """Remove what an earlier upgrade has left.

    Args:
        directory: of a server alone, of a worker, or of all workers where their parent upgrades them.
    """
    with suppress(OSError):
        (directory / _NAME).unlink()


def tell_failure(directory: Path, detail: str) -> None:
    """Leave word that the upgrade has failed; where that cannot be written, the command waits for as long as it may.

    Args:
        directory: as `forget_failure` has it.
        detail: why.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(OSError):
        descriptor = os.open(directory / _NAME, flags, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(f"{detail}\n")


def failure(directory: Path) -> str | None:
    """Return why the upgrade has failed, or None where it has not, as far as is known.

    Args:
        directory: as `forget_failure` has it.
    """
    try:
        text = (directory / _NAME).read_text("utf-8")
    except OSError:
        return None
    return text.strip() if text.endswith("\n") else None  # else it is being written
