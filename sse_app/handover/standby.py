"""A restart without a cold start in its pause: a stand-in serves until the next main process takes over warm.

systemd starts the next main process only when the one before has ended, and to load the program takes ten
times as long as to hand streams over. So the old process hands over to a stand-in, which it has started, and
ends; the next one knocks at the stand-in's door, and is handed everything when it is ready.

    old main process                 stand-in                           next main process
    starts it                        loads, opens its door
    hands over, ends                 serves
                                                                        loads, knocks, builds
                                     hands over, ends                   serves
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sse_app.core.errors import StateError
from sse_app.handover.fd_passing import channel
from sse_app.handover.protocol import Along, Conversation, Successor, UpgradeFailed, hand_over
from sse_app.handover.sender import Giving
from sse_app.handover.warm import Upgrade

STAND_IN = "SSE_APP_STAND_IN"
"""A variable that tells a successor that it is one."""

START_TIMEOUT = 20.0
"""How long the stand-in may take until it serves, in seconds: there must be time left for a cold restart."""

PATIENCE = 30.0
"""How long the stand-in waits for somebody who takes over, in seconds; then it ends its streams."""

GLANCE = 0.5
"""Seconds between two looks at whether somebody is still to come."""

ATTEMPTS = 5
"""After how many that came and failed it does so too."""

WITHOUT = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""What the stand-in must not see: systemd listens to the main process only."""

_DOOR = "stand-in"

log = logging.getLogger(__name__)


async def leave_stand_in(upgrade: Upgrade, state_dir: Path) -> bool:
    """Hand over to a stand-in, and return whether it serves; this process must end then, at once."""
    giving_up = asyncio.get_running_loop().call_later(START_TIMEOUT, upgrade.give_up)
    try:
        process = await upgrade.run(without=WITHOUT, **{STAND_IN: "1"})
    except UpgradeFailed as error:
        log.warning("stand_in_failed", extra={"detail": str(error)})
        close_door(state_dir)
        return False
    finally:
        giving_up.cancel()
    log.info("stand_in_serves", extra={"pid": process})
    upgrade.told()
    return True


def open_door(state_dir: Path) -> socket.socket:
    """Return the listening socket at which the next main process knocks.

    Raises:
        StateError: it cannot be opened, on a full disk for instance.
    """
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.setblocking(False)
    try:
        close_door(state_dir)
        with _short_path(state_dir) as path:
            door.bind(path)
        (state_dir / _DOOR).chmod(0o600)
        door.listen()
    except OSError as error:
        door.close()
        raise StateError(
            f"cannot open a door for the next process in {state_dir}: {error.strerror}"
        ) from None
    return door


def knock(state_dir: Path) -> Successor | None:
    """Ask a stand-in to hand over, and return the end of the one who takes over; None where there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as knocking:
        ours, theirs = channel()
        sending, receiving = channel()
        with theirs, sending:
            descriptors = array.array("i", [theirs.fileno(), sending.fileno()])
            try:
                with _short_path(state_dir) as path:
                    knocking.connect(path)
                knocking.sendmsg([b"knock"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
            except OSError:
                ours.close()
                receiving.close()
                return None
    return Successor(ours, receiving)


async def stand_in(
    giving: Giving, along: Along, door: socket.socket, has_stopped: Callable[[], Awaitable[bool]]
) -> None:
    """Serve until a main process has taken over; this process must end then, at once.

    Args:
        giving: what is handed over.
        along: what goes along: listening sockets, lock.
        door: where it knocks.
        has_stopped: asked now and then, whether nobody will come.

    Raises:
        UpgradeFailed: nobody came.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    failed = 0
    while failed < ATTEMPTS and loop.time() < deadline and not await has_stopped():
        try:
            descriptors = await _handed_in(door)
        except OSError:  # nobody came, or died over it
            continue
        if len(descriptors) != 2:
            continue
        conversation, sending = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        with conversation, sending:
            try:
                await hand_over(giving, along, Conversation(conversation), sending)
                return
            except Exception as error:  # whatever it is, the streams go on, and the next one may come
                log.warning("handover_failed", extra={"detail": str(error)})
        failed += 1
    raise UpgradeFailed(f"no main process has taken over, {failed} have failed")


async def _handed_in(door: socket.socket) -> list[int]:
    """Wait a moment for somebody who knocks, and return the descriptors that were handed in.

    Raises:
        OSError: nobody came.
    """
    loop = asyncio.get_running_loop()
    knocked = asyncio.Event()
    loop.add_reader(door.fileno(), knocked.set)
    try:
        async with asyncio.timeout(GLANCE):
            await knocked.wait()
    finally:
        loop.remove_reader(door.fileno())
    visitor, _ = door.accept()
    with visitor:
        visitor.settimeout(GLANCE)
        _, descriptors, *_ = socket.recv_fds(visitor, 16, 2)
    return descriptors


def close_door(state_dir: Path) -> None:
    """Leave no door behind that nobody opens."""
    (state_dir / _DOOR).unlink(missing_ok=True)


@contextmanager
def _short_path(state_dir: Path) -> Iterator[str]:
    """Give the door's path, which in full may be longer than an address of a Unix socket can be (unix(7))."""
    directory = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{_DOOR}"
    finally:
        with suppress(OSError):
            os.close(directory)
