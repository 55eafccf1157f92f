"""SQLite files that cannot be written to, or read: locked by another process, on a full disk, or garbage."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.read()
"""

_OVERWRITE = """
import os, pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_bytes(os.urandom(path.stat().st_size))
"""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Have another process keep all others from writing to a file."""
    with subprocess.Popen(
        [sys.executable, "-c", _LOCK, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.communicate()


@contextmanager
def disk_full(path: Path) -> Iterator[None]:
    """Let no file of this process grow beyond what the write-ahead log of a file has now: EFBIG for ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = path.with_name(f"{path.name}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill_with_garbage(path: Path) -> None:
    """Overwrite a file, in another process: to close it in one that has it open would end its locks there."""
    subprocess.run([sys.executable, "-c", _OVERWRITE, str(path)], check=True)


def back_up(state_dir: Path, copy: Path) -> None:
    """Copy a state directory, or a copy back, as an operator does: it may have sockets, which `shutil` cannot copy."""
    subprocess.run(["cp", "-a", str(state_dir), str(copy)], check=True, timeout=60)
