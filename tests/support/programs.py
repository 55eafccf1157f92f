"""Programs that a test needs of the machine, and libraries in C that it preloads."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
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


def compiled(source: Path, directory: Path) -> Path:
    """Compile a library in C; return its path, which a program gets as ``LD_PRELOAD``."""
    library = directory / f"{source.stem}.so"
    command = [require("gcc"), "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(source)], check=True, timeout=60)
    return library
