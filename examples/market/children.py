"""The child processes of the demo: start them, see them through, end them, and say why one has died."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

LAST_LINES = 15
"""Lines of its output that tell why a child has died."""

PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>."""

# Loaded here, because between fork and exec nothing may be imported or allocated that need not be.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Child:
    """A process whose output goes to a file.

    It has a process group of its own: Ctrl-C reaches this process alone, and the children are ended in order.

    Args:
        name: what to call it in a message.
        command: the program and its arguments.
        environment: all of its environment.
        log: the file for what it prints, begun afresh and readable by the owner alone.
        directory: where it runs.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, directory: Path
    ) -> None:
        self.name = name
        self._log = log
        with _private_file(log) as output:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )

    @property
    def dead(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def obituary(self) -> str:
        """How the process ended, and the last it printed."""
        code = self._process.poll()
        if code is None:
            how = "is running"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return "\n".join([f"the {self.name} {how}" + (", after printing:" if lines else ""), *lines])

    def end(self, seconds: float) -> None:
        """Ask the process to end; kill it when it has not after so many seconds."""
        with suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _private_file(path: Path) -> BinaryIO:
    """Open a file to write from its beginning, with access for its owner only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "wb")


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent dies, even by SIGKILL, or the port stays taken."""
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
