"""Leaves no room on a disk."""

from __future__ import annotations

from pathlib import Path


def fill_up(ballast: Path) -> None:
    """Take all the room that there is for a file, also where it has some already."""
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
