"""Programs that a test needs of the machine."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def require(program: str) -> str:
    """Return the path of a program; without the program the test is skipped, and in CI it fails."""
    path = shutil.which(program)
    if path is None:
        unavailable(f"{program} is not installed")
    return path


def unavailable(reason: str) -> NoReturn:
    """Skip the test for what the machine lacks; in CI, where everything has to be there, fail it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
