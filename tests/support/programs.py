"""Programs that a test needs of the machine, and libraries in C that it preloads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.waiting import until


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


def family(pid: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    found = [pid]
    for parent in found:
        found += [child for child, its in parents.items() if its == parent]
    return found


@contextmanager
def saying(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[str], str]]]:
    """Run a program that says something on its standard error, and end it with all that it has started.

    Yields:
        the process, and a function that waits for a line with a text, and returns what the line has behind that.
    """
    log = folder / f"{Path(command[0]).name}.log"

    def said(text: str) -> str:
        def is_said() -> bool:
            assert process.poll() is None, log.read_text()
            return text in log.read_text()

        until(is_said, f"{command[0]} says {text}")
        return log.read_text().partition(text)[2].partition("\n")[0].strip()

    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(environment)
        )
    try:
        yield process, said
    finally:
        for pid in family(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        process.wait(60)
