"""How many workers the settings ask for, and what these cannot share."""

from __future__ import annotations

import os

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
    """Return on how many cores this process may run."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
