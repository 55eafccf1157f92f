"""How many workers the settings ask for, and what these cannot share."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from sse_app.core.errors import SettingsError
from sse_app.settings.model import MOST_WORKERS, Settings


def worker_count(settings: Settings) -> int:
    """Return how many workers the settings ask for; ``auto`` is one for each core that this process may use."""
    if settings.workers == "auto":
        return min(MOST_WORKERS, usable_cores())
    return settings.workers


def require_shareable(settings: Settings) -> None:
    """Refuse settings that several workers cannot have.

    Raises:
        SettingsError: they cannot.
    """
    if settings.event_log == "memory:" and worker_count(settings) > 1:
        raise SettingsError(
            'bad value for the setting event_log: "memory:" is one process\'s alone; set workers to 1, or use "sqlite:"'
        )


def usable_cores() -> int:
    """Return on how many cores this process may run, and for how many the time suffices that it is allowed."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, processor_quota())))


def processor_quota(
    hierarchy: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float:
    """Return how many cores' time this process may have, with all others of its control groups; infinity where all.

    That is what a container or a unit is allowed of the processors (``docker run --cpus``, ``CPUQuota=``).

    Args:
        hierarchy: where the control groups are mounted (cgroups(7), version 2).
        membership: the file that names those of this process.
    """
    found = [math.inf]
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            if line.startswith("0::/"):
                group = hierarchy / line.removeprefix("0::/")
                found += [_quota_of(one) for one in (group, *group.parents) if one.is_relative_to(hierarchy)]
    return min(found)


def _quota_of(group: Path) -> float:
    with suppress(OSError, ValueError):  # no such file in the group at the top, or an entry that is none
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    return math.inf
