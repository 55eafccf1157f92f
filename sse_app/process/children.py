"""The processes whose parent this one is, or becomes: how they have ended, and that none is left to another parent."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def ended_children() -> dict[int, int]:
    """Return the children that have ended, with their status; none of them stays a zombie."""
    ended = {}
    with suppress(ChildProcessError):  # there is none
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended


def reap_orphans() -> None:
    """As process 1 of a container, wait for whatever ends: what others leave behind there becomes its child.

    A health check or a command of an operator may; unless they are waited for, they stay as zombies
    (pid_namespaces(7)). A server that is process 1 has no children of its own whose status is wanted.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGCHLD, _reap)


def _reap(number: int, frame: object) -> None:
    ended_children()


def cause_of(status: int) -> str:
    """Return in words how a process has ended, by the status of waitpid(2)."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {-code}"


def is_child(pid: int) -> bool:
    """Return whether a process is a child of this one, as far as the system can tell."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    except (OSError, ValueError, IndexError):
        return not Path("/proc/self").exists()


def wait_for_end(pid: int) -> None:
    """Wait until a process that need not be a child of this one has ended."""
    with suppress(OSError):  # it has ended
        poll = select.poll()
        poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.poll()


def become_subreaper() -> None:
    """Become the parent of workers' successors, which a shell has started that has ended (PR_SET_CHILD_SUBREAPER)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
