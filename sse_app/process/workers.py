"""Several worker processes on one state directory: which one this process is, and how many there are to be."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sse_app.core.errors import SettingsError
from sse_app.settings.model import MOST_WORKERS, Settings

SUPERVISOR_VARIABLE = "SSE_APP_SUPERVISOR"
"""The variable in which the parent of workers leaves what it holds for the program that takes its place."""

WORKER_VARIABLE = "SSE_APP_WORKER"
"""The variable that tells a process that it is a worker, and which: its number, from 1."""


def worker_number(environment: Mapping[str, str] = os.environ) -> int:
    """Return the number of this process among the workers; 0 where it is alone.

    Raises:
        SettingsError: the variable holds no such number.
    """
    text = environment.get(WORKER_VARIABLE, "")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_WORKERS):
        raise SettingsError(
            f"bad value for {WORKER_VARIABLE}: a worker has a number from 1 to {MOST_WORKERS}"
        )
    return int(text)


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
