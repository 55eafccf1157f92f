"""What ``doctor`` finds: a line for each thing that it looks at."""

from __future__ import annotations

from typing import NamedTuple

OK, WARNING, FAILURE = "ok", "warning", "failure"

TIMEOUT = 5.0
"""Seconds that an answer may take."""


class Line(NamedTuple):
    """What one look has brought.

    Args:
        level: `OK`, `WARNING` or `FAILURE`.
        text: what was looked at, what was found, and what to do where that is not good.
    """

    level: str
    text: str
