"""Compile the C programs of this folder when they are missing or older than their sources."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / ".build"
FLAGS = ("-O2", "-Wall", "-Wextra", "-std=gnu11")
PROGRAMS = ("client", "publisher", "floor")


def compiler_version() -> str:
    """Return the first line the compiler says about itself."""
    return subprocess.run(
        ["gcc", "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]


def build() -> None:
    """Compile what changed. Raises SystemExit where there is no compiler."""
    if shutil.which("gcc") is None:
        raise SystemExit("bench: gcc is needed for the load client (Debian: apt install gcc libc6-dev)")
    BUILD.mkdir(exist_ok=True)
    newest = max(path.stat().st_mtime for path in HERE.glob("*.[ch]"))
    for name in PROGRAMS:
        target = BUILD / name
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run(["gcc", *FLAGS, "-o", str(target), str(HERE / f"{name}.c")], check=True)


def program(name: str) -> str:
    """Return the path of a compiled program."""
    return str(BUILD / name)
