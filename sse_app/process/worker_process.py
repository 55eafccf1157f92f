"""One worker as its parent sees it: the process, what it has reported, and what is to happen to it next."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sse_app.process import parent_link
from sse_app.process.spawning import spawn
from sse_app.process.workers import WORKER_VARIABLE

FIRST_DELAY = 0.1
"""After how many seconds a worker that has died is started again; each time that it dies soon doubles it."""

LONGEST_DELAY = 5.0
"""Up to how many seconds."""

GOOD_START = 10.0
"""A worker that has served for so many seconds did not die soon."""

ENDING_GRACE = 15.0
"""How many seconds more than `stream.drain_time` a worker may take to end."""

HANG_TIMEOUT = 15.0
"""A worker that serves and has reported nothing for so many seconds hangs."""

START_TIMEOUT = 60.0
"""So does one that has not begun to serve for so many seconds."""


class WorkerProcess:
    """One worker.

    Args:
        number: from 1.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.pid: int | None = None
        self.link: socket.socket | None = None
        """The parent's end; None where the worker is to end, or does not run."""
        self.ready = False
        self.streams = 0
        self.seen_at = 0.0
        """When it last reported, or was started."""
        self.ready_at: float | None = None
        """When it began to serve, itself or a process that it has succeeded."""
        self.down_since: float | None = None
        """Since when no process of this number has served."""
        self.start_at: float | None = None
        """When to start it."""
        self.kill_at: float | None = None
        """When to kill it, if it has been asked to end and has not."""
        self.killed_for = ""
        """Why the parent has killed it."""
        self.failures = 0
        """How often it has died soon after its start, one after another."""
        self.listens: set[socket.socket] = set()
        """The sockets that it accepts connections on."""
        self.reload_due = False
        """Whether it has yet to be told that the settings have changed."""

    @property
    def stopping(self) -> bool:
        """Whether it runs and has been asked to end."""
        return self.pid is not None and self.link is None

    @property
    def hangs_at(self) -> float | None:
        """When it counts as hung, if it reports nothing before; None where it does not run, or is killed anyway."""
        if self.pid is None or self.kill_at is not None or self.killed_for:
            return None
        return self.seen_at + (HANG_TIMEOUT if self.ready else START_TIMEOUT)

    def start(
        self, environment: Mapping[str, str], sockets: Sequence[socket.socket], now: float, timeout: float
    ) -> None:
        """Start the process.

        Args:
            environment: its variables, but for those of its descriptors.
            sockets: what it is to listen on.
            now: the time.
            timeout: after how many seconds without a word it counts as hung.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        passed = [
            *(("listening", sock.fileno()) for sock in sockets),
            (parent_link.PARENT_LINK, theirs.fileno()),
        ]
        variables = {
            **environment,
            WORKER_VARIABLE: str(self.number),
            "WATCHDOG_USEC": str(int(timeout * 1e6)),
        }
        self.start_at = None
        try:
            self.pid = spawn(sys.orig_argv, variables, passed)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.link = ours
        self.listens = set(sockets)
        self.seen_at = now
        if self.down_since is None:
            self.down_since = now

    def serves(self, now: float) -> None:
        """Note that it has reported that it serves."""
        self.seen_at = now
        if not self.ready:
            self.ready = True
            self.down_since = None
            self.ready_at = self.ready_at or now

    def succeeded_by(self, pid: int, now: float) -> None:
        """Note that another process has taken over from it."""
        self.pid = pid
        self.ready = False
        self.seen_at = self.down_since = now

    def has_died(self, now: float) -> float:
        """Note that the process has gone, and return after how many seconds it is to be started again."""
        soon = self.ready_at is None or now - self.ready_at < GOOD_START
        self.failures = self.failures + 1 if soon else 0
        self.ask_to_end()
        self.pid = self.ready_at = self.kill_at = None
        self.ready = self.reload_due = False
        self.streams = 0
        self.listens = set()
        self.down_since = self.down_since or now
        self.killed_for = ""
        return float(min(FIRST_DELAY * 2 ** max(0, min(self.failures, 10) - 1), LONGEST_DELAY))

    def ask_to_end(self) -> None:
        """Ask it to end, as it would at a signal; nothing more can be asked of it then."""
        if self.link is not None:
            parent_link.ask_to_end(self.link)
            self.link = None

    def kept(self) -> dict[str, Any]:
        """Return what the program that takes the place of this process's has to know."""
        return {
            "number": self.number,
            "pid": self.pid,
            "link": None if self.link is None else self.link.fileno(),
            "ready": self.ready,
            "streams": self.streams,
            "failures": self.failures,
            "reload_due": self.reload_due,
            "listens": [sock.fileno() for sock in self.listens],
        }

    @classmethod
    def of_kept(
        cls, kept: Mapping[str, Any], sockets: Mapping[int, socket.socket], now: float
    ) -> WorkerProcess:
        """Return the worker that another program has kept.

        Args:
            kept: what it returned as `kept`.
            sockets: the listening sockets by their descriptors.
            now: the time.
        """
        worker = cls(kept["number"])
        worker.pid, worker.ready, worker.streams = kept["pid"], kept["ready"], kept["streams"]
        worker.failures, worker.reload_due = kept["failures"], kept["reload_due"]
        if kept["link"] is not None:
            worker.link = socket.socket(fileno=kept["link"])
            worker.link.set_inheritable(False)
        worker.listens = {sockets[descriptor] for descriptor in kept["listens"]}
        worker.seen_at = now
        worker.ready_at = now if worker.ready else None
        worker.down_since = None if worker.ready else now
        return worker

    def signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self, cause: str) -> None:
        """End it at once."""
        self.killed_for = self.killed_for or cause
        self.signal(signal.SIGKILL)
