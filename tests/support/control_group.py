"""A control group of its own for a service manager: two in one would end each other's processes, by units' names."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from tests.support.waiting import until

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

    def end(self, name: str) -> None:
        """End what is left in the groups of that name below this one."""
        for directory in self.directories:
            for group in directory.rglob(name):
                until(lambda group=group: not _kill(group), f"the group {name} is empty")  # type: ignore[misc]

    def processes(self, name: str) -> set[int]:
        """Return the processes in the groups of that name below this one."""
        found: set[int] = set()
        for directory in self.directories:
            for group in directory.rglob(name):
                with suppress(OSError):  # it has just gone
                    found.update(map(int, (group / "cgroup.procs").read_text().split()))
        return found

    def close(self) -> None:
        """End what is left in the group, and remove it."""
        for directory in self.directories:
            until(lambda directory=directory: _removed(directory), "the control group is removed")  # type: ignore[misc]


def _removed(directory: Path) -> bool:
    """End what is left in a group and in those below it, remove what is empty, and return whether that is all."""
    for path, _, _ in os.walk(directory, topdown=False):
        _kill(Path(path))
        with suppress(OSError):
            Path(path).rmdir()
    return not directory.exists()


def _kill(group: Path) -> bool:
    """Kill the processes of a group, and return whether there were any."""
    found = False
    with suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            found = True
            os.kill(int(pid), 9)
    return found


def _hierarchy(controllers: str) -> Path | None:
    if controllers == "name=systemd":
        return MOUNT / "systemd"
    if controllers:
        return None
    return MOUNT if (MOUNT / "cgroup.procs").exists() else MOUNT / "unified"
