"""The disk that servers keep their state on: its power may fail, it may fail, be full, or allow no writing."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.full_disk import fill_up
from tests.support.programs import compiled, require

LIBRARY = Path(__file__).with_name("disk.c")
MEGABYTES = 40
"""Of the small disk."""

KEPT_ANYWAY = 0.2
"""How often a file has after a power cut what was written since it was last synchronised: that may be on the disk."""


class Disk:
    """A disk with the state of servers.

    Args:
        directory: an empty one, for what belongs to it.
        state: the directory that is on it.
    """

    def __init__(self, directory: Path, state: Path) -> None:
        self._state = state
        self._kept = directory / "kept"
        self._kept.mkdir(parents=True)
        self._fails, self._read_only = directory / "fails", directory / "read-only"
        self.environment = {
            "LD_PRELOAD": str(compiled(LIBRARY, directory)),
            "DISK_DIRECTORY": str(state),
            "DISK_KEEPS": str(self._kept),
            "DISK_FAILS": str(self._fails),
            "DISK_READ_ONLY": str(self._read_only),
        }
        """Further variables of the servers."""

    def synchronise(self) -> None:
        """Take what is there now for synchronised, where it was not yet: also what the run itself has put there."""
        for path in self._files():
            kept = self._kept_of(path)
            if not kept.exists():
                kept.write_bytes(path.read_bytes())

    def _files(self) -> list[Path]:
        return [path for path in self._state.rglob("*") if path.is_file()]

    def _kept_of(self, path: Path) -> Path:
        return self._kept / str(path.relative_to(self._state)).replace("/", "%")

    def lose_power(self, chance: random.Random) -> None:
        """Have the files as they were last synchronised; no process has any of them open.

        Some of them have also what was written later, as it may happen.
        """
        seed = chance.getrandbits(60)
        for path in self._files():
            kept = self._kept_of(path)
            # A choice for each file, whatever other files there are.
            chance = random.Random(f"{seed} {path.relative_to(self._state)}")
            if path.name.endswith("-shm"):
                path.unlink()  # it is in memory alone
            elif chance.random() >= KEPT_ANYWAY:
                path.write_bytes(kept.read_bytes() if kept.exists() else b"")

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Have synchronising fail meanwhile."""
        self._fails.touch()
        yield
        self._fails.unlink()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Allow no writing meanwhile."""
        self._read_only.touch()
        yield
        self._read_only.unlink()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room on it meanwhile; it is a small one (`small`)."""
        ballast = self._state / "ballast"
        fill_up(ballast)
        yield
        ballast.unlink()


@contextmanager
def small(directory: Path) -> Iterator[None]:
    """Make a directory, and mount a small disk there."""
    directory.mkdir(mode=0o700)
    options = f"size={MEGABYTES}m,mode=0700"
    subprocess.run([require("mount"), "-t", "tmpfs", "-o", options, "none", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)
