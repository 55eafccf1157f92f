"""Runs the program anew in the same process, which keeps its children, its descriptors and its process id."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

SUPERVISOR_VARIABLE = "SSE_APP_SUPERVISOR"
"""The variable in which the parent of workers leaves what it holds for the program that takes its place."""


def is_replacement() -> bool:
    """Return whether this program takes the place of an earlier one of the same process."""
    return SUPERVISOR_VARIABLE in os.environ


def taken_over() -> dict[str, Any] | None:
    """Return what the earlier program has left, once; None where there was none."""
    kept = os.environ.pop(SUPERVISOR_VARIABLE, "")
    found: dict[str, Any] | None = json.loads(kept) if kept else None
    return found


def put_variable(name: str, value: str | None) -> None:
    """Put a variable back to what it was; None where it was not there."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def replace_program(
    kept: Mapping[str, Any], variables: Mapping[str, str], descriptors: Sequence[int]
) -> None:
    """Run the program anew in this process. Signals must be blocked: one that came would be lost.

    Args:
        kept: what it has to know, as JSON can have it.
        variables: further ones of its environment.
        descriptors: those that it gets.

    Raises:
        OSError: it cannot be run; nothing has changed.
    """
    try:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        for handler in logging.getLogger().handlers:
            handler.flush()
        environment = {**os.environ, **variables, SUPERVISOR_VARIABLE: json.dumps(kept)}
        os.execvpe(sys.orig_argv[0], sys.orig_argv, environment)
    except OSError:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        raise
