"""Starts a program with descriptors, as systemd passes them to a service (sd_listen_fds(3))."""

from __future__ import annotations

import fcntl
import os
import signal
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress

from sse_app.process.systemd import FIRST_INHERITED


def spawn(command: Sequence[str], environment: Mapping[str, str], passed: Sequence[tuple[str, int]]) -> int:
    """Start a program in a process group of its own, and return its process id.

    What a terminal sends to its foreground processes, at Ctrl-C for instance, comes to the parent alone.

    Args:
        command: the program and its arguments.
        environment: its variables, without those about the descriptors.
        passed: the descriptors with their names.

    Raises:
        OSError: no process can be made.
    """
    variables = {
        **environment,
        "LISTEN_FDS": str(len(passed)),
        "LISTEN_FDNAMES": ":".join(name for name, _ in passed),
    }
    # No handler of this process is to run in the new one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            # The log's thread is not needed in the new process, which becomes another program at once.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _become(command, variables, [descriptor for _, descriptor in passed])
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(command: Sequence[str], variables: dict[str, str], descriptors: Sequence[int]) -> None:
    """Make this process the program; it never returns."""
    try:
        os.setpgid(0, 0)
        beyond = FIRST_INHERITED + len(descriptors)
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, beyond) for descriptor in descriptors]
        for place, copy in enumerate(copies):
            os.dup2(copy, FIRST_INHERITED + place)
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)  # until it handles them; by default they would end it
        variables["LISTEN_PID"] = str(os.getpid())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.execvpe(command[0], list(command), variables)
    except BaseException as error:
        with suppress(OSError):
            os.write(2, f"sse-app: cannot start {command[0]}: {error}\n".encode())
    finally:
        os._exit(127)
