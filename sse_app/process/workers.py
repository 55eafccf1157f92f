"""Several worker processes on one state directory: which one this process is."""

from __future__ import annotations

import os
from collections.abc import Mapping

from sse_app.core.errors import SettingsError
from sse_app.settings.model import MOST_WORKERS

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
