"""A control group of its own for a service manager: two in one would end each other's processes, by units' names."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")


class ControlGroup:
    """A new group below the one that the tests are in, in the hierarchies that systemd uses (systemd(1), cgroups(7)).

    Args:
        name: of the group.
        user: whom it is left to; None for whoever runs the tests.
    """

    def __init__(self, name: str, user: str | None) -> None:
        self.directories: list[Path] = []
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if (root := _hierarchy(controllers)) is None:
                continue
            directory = root / path.lstrip("/") / name
            directory.mkdir()
            self.directories.append(directory)
            if user:
                subprocess.run(["chown", "-R", user, str(directory)], check=True)

    @property
    def entering(self) -> list[str]:
        """The beginning of a command that runs the rest in this group."""
        enter = "".join(f"echo $$ > {directory}/cgroup.procs; " for directory in self.directories)
        return ["/bin/sh", "-c", f'{enter}exec "$@"', "sh"]

    def close(self) -> None:
        """End what is left in the group, and remove it."""
        for directory in self.directories:
            for _ in range(200):
                inner = [Path(path) for path, _, _ in os.walk(directory, topdown=False)]
                for group in inner:
                    with suppress(OSError):
                        for pid in (group / "cgroup.procs").read_text().split():
                            os.kill(int(pid), 9)
                    with suppress(OSError):
                        group.rmdir()
                if not directory.exists():
                    break
                time.sleep(0.01)


def _hierarchy(controllers: str) -> Path | None:
    if controllers == "name=systemd":
        return MOUNT / "systemd"
    if controllers:
        return None
    return MOUNT if (MOUNT / "cgroup.procs").exists() else MOUNT / "unified"
