"""A graceful restart without a cold start in its pause: a standby serves until the next main process takes over.

systemd starts the next main process only when the one before has ended, and to load the program takes ten
times as long as to hand streams over. So the old process hands over to a standby, which it has started, and
ends; the next one connects to the standby's socket, and is handed everything when it is ready.

    old main process                 standby                            next main process
    starts it                        loads, binds its socket
    hands over, ends                 serves
                                                                        loads, connects, builds
                                     hands over, ends                   serves

The log calls the standby a stand-in, and so do the variable and the socket's file, which the processes of two
versions of the program agree on.
"""

from __future__ import annotations

import array
import asyncio
import errno
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from sse_app.core.errors import StateError
from sse_app.handover.fd_passing import channel
from sse_app.handover.protocol import Attached, ControlChannel, Successor, UpgradeFailed, hand_over
from sse_app.handover.sender import HandoverSender
from sse_app.handover.warm import Upgrade
from sse_app.storage.state_dir import STANDBY_SOCKET
from sse_app.storage.unix_sockets import short_path

STANDBY_VARIABLE = "SSE_APP_STAND_IN"
"""The variable that tells a successor that it is the standby."""

STANDBY_TIMEOUT = 20.0
"""How long the standby may take until it serves, in seconds: there must be time left for a cold restart."""

TAKEOVER_DEADLINE = 30.0
"""How long the standby waits for a main process to take over, in seconds; then it ends its streams."""

MAX_FAILED_TAKEOVERS = 5
"""How many main processes may fail to take over before the standby ends its streams."""

CONNECT_TIMEOUT = 0.5
"""How long the standby waits for a connection before it asks again whether the unit has stopped, in seconds."""

CROWDED_TIMEOUT = 5.0
CROWDED_PAUSE = 0.05
"""For how many seconds the next main process tries again, and how often, where too many sockets of this user are on
their way (unix(7), ETOOMANYREFS): the standby serves meanwhile."""

HIDDEN_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
"""Variables that the standby is not given: systemd accepts notifications of the main process only."""

log = logging.getLogger(__name__)


async def hand_over_to_standby(begin: Callable[[], Upgrade], state_dir: Path) -> bool:
    """Start a standby and hand over to it; return whether it serves: this process must end then, at once."""
    giving_up: asyncio.TimerHandle | None = None
    try:
        upgrade = begin()
        giving_up = asyncio.get_running_loop().call_later(STANDBY_TIMEOUT, upgrade.give_up)
        process = await upgrade.run(without=HIDDEN_VARIABLES, **{STANDBY_VARIABLE: "1"})
    except UpgradeFailed as error:
        log.warning("stand_in_failed", extra={"detail": str(error)})
        remove_standby_socket(state_dir)
        return False
    finally:
        if giving_up is not None:
            giving_up.cancel()
    log.info("stand_in_serves", extra={"pid": process})
    upgrade.confirm()
    return True


def bind_standby_socket(state_dir: Path) -> socket.socket:
    """Return the listening socket that the next main process connects to.

    Raises:
        StateError: it cannot be made, on a full disk for instance.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.setblocking(False)
    try:
        remove_standby_socket(state_dir)
        with short_path(state_dir) as path:
            listening.bind(f"{path}/{STANDBY_SOCKET}")
        (state_dir / STANDBY_SOCKET).chmod(0o600)
        listening.listen()
    except OSError as error:
        listening.close()
        raise StateError(
            f"cannot make a socket for the next process in {state_dir}: {error.strerror}"
        ) from None
    return listening


def connect_standby(state_dir: Path) -> Successor | None:
    """Ask a standby to hand over, and return the successor's end of the exchange; None where there is none."""
    control, theirs = channel()
    sending, receiving = channel()
    with theirs, sending:
        deadline = time.monotonic() + CROWDED_TIMEOUT
        while True:
            try:
                _knock(state_dir, [theirs.fileno(), sending.fileno()])
                return Successor(control, receiving)
            except OSError as error:
                if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                    control.close()
                    receiving.close()
                    return None
                time.sleep(CROWDED_PAUSE)


def _knock(state_dir: Path, descriptors: list[int]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        with short_path(state_dir) as path:
            connection.connect(f"{path}/{STANDBY_SOCKET}")
        passed = array.array("i", descriptors)
        connection.sendmsg([b"knock"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])


async def run_standby(
    sender: HandoverSender,
    attached: Attached,
    listening: socket.socket,
    has_stopped: Callable[[], Awaitable[bool]],
) -> None:
    """Serve until a main process has taken over; this process must end then, at once.

    Args:
        sender: describes what is handed over.
        attached: what is passed beside the connections: listening sockets, lock.
        listening: the socket that the main process connects to.
        has_stopped: called now and then; returns whether the unit has stopped, so that no main process will come.

    Raises:
        UpgradeFailed: no main process has taken over.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + TAKEOVER_DEADLINE
    failed = 0
    while failed < MAX_FAILED_TAKEOVERS and loop.time() < deadline:
        try:
            descriptors = await _received_descriptors(listening)
        except OSError as error:
            # Else it died over it, or no descriptor is left for its connection.
            if not isinstance(error, TimeoutError):
                await asyncio.sleep(CONNECT_TIMEOUT)
            # Only when it has not come at once: several workers that are restarted together would all ask.
            if await has_stopped():
                break
            continue
        if len(descriptors) != 2:
            continue
        control, sending = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        with control, sending:
            try:
                await hand_over(sender, attached, ControlChannel(control), sending)
                return
            except Exception as error:  # of any kind: the streams stay here, and the next process may come
                log.warning("handover_failed", extra={"detail": str(error)})
        failed += 1
    raise UpgradeFailed(f"no main process has taken over, {failed} have failed")


async def _received_descriptors(listening: socket.socket) -> list[int]:
    """Wait a moment for a main process to connect, and return the descriptors that it passes.

    Raises:
        OSError: none has connected.
    """
    loop = asyncio.get_running_loop()
    connected = asyncio.Event()
    loop.add_reader(listening.fileno(), connected.set)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connected.wait()
    finally:
        loop.remove_reader(listening.fileno())
    connection, _ = listening.accept()
    with connection:
        connection.settimeout(CONNECT_TIMEOUT)
        _, descriptors, *_ = socket.recv_fds(connection, 16, 2)
    return descriptors


def remove_standby_socket(state_dir: Path) -> None:
    """Remove the standby's socket: no process accepts connections there any more."""
    (state_dir / STANDBY_SOCKET).unlink(missing_ok=True)
