"""An upgrade with zero downtime: a successor is started beside the running process, and takes over warm."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sse_app.handover.fd_passing import channel
from sse_app.handover.protocol import (
    Attached,
    ControlChannel,
    HandedOver,
    Successor,
    UpgradeFailed,
    hand_over,
)
from sse_app.handover.sender import HandoverSender

SUCCESSOR_VARIABLE = "SSE_APP_SUCCESSOR"
"""Names the successor's file descriptors: its ends of the two channels."""

INIT_PROGRAMS = frozenset({"tini", "docker-init", "podman-init", "dumb-init", "catatonit"})
"""Programs that run as process 1 of a container for one other process, and end with it."""

_OBSTACLE = "the server is {}, and the container would end with it: replace the container instead"


def upgrade_obstacle(pid: int) -> str | None:
    """Return why a server must not be replaced by a successor, or None: a container would end with it.

    A container ends with the process that its runtime has started, whose parent is outside and is 0 to those inside
    (pid_namespaces(7)).

    Args:
        pid: of the server.
    """
    if pid == 1:
        return _OBSTACLE.format("the container's process 1")
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        parent = next(int(line.split()[1]) for line in status.split("\n") if line.startswith("PPid:"))
        if parent == 0:
            return _OBSTACLE.format("the process that the container was started with")
        name = Path(f"/proc/{parent}/comm").read_text().strip()
    except (OSError, StopIteration):  # a system without /proc
        return None
    if parent == 1 and name in INIT_PROGRAMS:
        return _OBSTACLE.format(f"what the container's {name} waits for")
    return None


class Upgrade:
    """Starts a successor and hands everything over to it.

    Args:
        sender: describes what is handed over.
        attached: what is passed beside the connections: listening sockets, lock, store.

    Raises:
        UpgradeFailed: there are no file descriptors for it.
    """

    def __init__(self, sender: HandoverSender, attached: Attached) -> None:
        self._sender = sender
        self._attached = attached
        ours, self._theirs = _channel()
        self._control = ControlChannel(ours)
        self.handed_over = HandedOver([], [])
        """What is left to this process once its successor serves."""

    async def run(self, *, without: Sequence[str] = (), **variables: str) -> int:
        """Bring the successor to where it serves, and return its process id; this process must end then, at once.

        Args:
            without: variables of the environment that it does not get.
            variables: what it gets besides.

        Raises:
            UpgradeFailed: it does not serve, and this process serves on.
        """
        sending, receiving = _channel()
        descriptors = [self._theirs.fileno(), receiving.fileno()]
        environment = {
            name: value for name, value in os.environ.items() if name not in ("WATCHDOG_PID", *without)
        }
        environment |= variables
        environment[SUCCESSOR_VARIABLE] = ",".join(map(str, descriptors))
        try:
            successor = await _spawn(descriptors, environment)
        finally:
            self._theirs.close()
            receiving.close()
        try:
            self.handed_over = await hand_over(self._sender, self._attached, self._control, sending)
        except Exception as error:
            with suppress(ProcessLookupError):
                os.kill(successor, signal.SIGKILL)
            raise UpgradeFailed(str(error)) from error
        finally:
            sending.close()
        return successor

    def confirm(self) -> None:
        """Tell the successor that systemd has been notified of its process id."""
        with suppress(UpgradeFailed):
            self._control.send("told")

    def give_up(self) -> None:
        """Make `run` fail: this process has been asked to end meanwhile, or the successor takes too long."""
        self._control.shut_down()


def started_as_successor() -> Successor | None:
    """Return the successor's end of the exchange, if this process was started as one."""
    descriptors = os.environ.pop(SUCCESSOR_VARIABLE, "")
    if not descriptors:
        return None
    control, receiving = (socket.socket(fileno=int(one)) for one in descriptors.split(","))
    return Successor(control, receiving)


def _channel() -> tuple[socket.socket, socket.socket]:
    try:
        return channel()
    except OSError as error:
        raise UpgradeFailed(f"no sockets for the successor: {error.strerror}") from None


async def _spawn(descriptors: list[int], environment: dict[str, str]) -> int:
    """Start this program once more, and return the process id.

    It has to become a child of the service manager, which at the next stop waits only for its own children.
    So a shell starts it, and ends.
    """
    command = ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *sys.orig_argv]

    # Not with asyncio: under uvloop the shell's output ends only when the process that it has started ends.
    def run() -> bytes:
        shell = subprocess.run(
            command, pass_fds=descriptors, env=environment, stdout=subprocess.PIPE, check=True
        )
        return shell.stdout

    try:
        return int(await asyncio.to_thread(run))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UpgradeFailed(f"the successor cannot be started: {error}") from error
