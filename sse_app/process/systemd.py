"""Talks to systemd: sd_notify(3), sd_listen_fds(3) for socket activation, the file descriptor store, systemctl."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import select
import socket
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress

from sse_app.core.periodic import PeriodicCallback
from sse_app.core.private_apis import queued_job

FIRST_INHERITED = 3
"""The first file descriptor that systemd passes (SD_LISTEN_FDS_START)."""

STATUS_INTERVAL = 5.0
"""Seconds between two STATUS= notifications."""

ASKING_TIMEOUT = 5.0
"""How long ``systemctl`` may take to answer, in seconds: workers that are restarted together all ask at once."""

log = logging.getLogger(__name__)


def inherited_descriptors(environment: MutableMapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """Return name and number of each file descriptor that systemd passed to this process.

    The variables are removed, for they are not meant for child processes.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "0")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    names += [""] * int(count)
    return [(names[number], FIRST_INHERITED + number) for number in range(int(count))]


class Systemd:
    """The service manager that started this process, if one did.

    Args:
        environment: says where it listens, and which unit this is (``SYSTEMD_UNIT``, set in the unit).
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._unit = environment.get("SYSTEMD_UNIT", "")
        self._of_user = "MANAGERPID" in environment
        pid = environment.get("WATCHDOG_PID", str(os.getpid()))
        usec = environment.get("WATCHDOG_USEC", "")
        self.watchdog = int(usec) / 1e6 if usec.isdigit() and pid == str(os.getpid()) else 0.0
        """Within how many seconds it wants WATCHDOG=1; 0 where it does not watch this process."""
        self._notifier: socket.socket | None = None
        """Kept open: without a word from this process the watchdog would end it, also where no descriptor is left."""
        if self._address:
            self._notifier = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    @property
    def knows_unit(self) -> bool:
        """Whether this process was started by a unit of this program, which sets ``SYSTEMD_UNIT``."""
        return bool(self._unit)

    @property
    def present(self) -> bool:
        """Whether it accepts notifications of this process."""
        return bool(self._address)

    def notify(self, *assignments: str, descriptors: Sequence[int] = (), wait: bool = True) -> None:
        """Send it assignments, e.g. ``READY=1``; where it cannot be reached, that is only logged.

        Args:
            assignments: what to send.
            descriptors: what to send with them.
            wait: whether to wait until it takes them; else they are dropped where it has many unread.
        """
        if self._notifier is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        passed = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        try:
            flags = 0 if wait else socket.MSG_DONTWAIT
            self._notifier.sendmsg(["\n".join(assignments).encode()], passed, flags, address)
        except BlockingIOError:
            pass
        except OSError as error:
            log.warning("systemd_unreachable", extra={"detail": str(error)})

    def wait_until_read(self, within: float) -> None:
        """Wait until it has read all that this process has sent, while the event loop stands still.

        It closes the descriptor that comes with BARRIER=1 (sd_notify(3)).

        Args:
            within: how many seconds at most.
        """
        with suppress(OSError):  # no descriptor is left for it
            reading, writing = os.pipe2(os.O_CLOEXEC)
            self.notify("BARRIER=1", descriptors=[writing])
            os.close(writing)
            poll = select.poll()
            poll.register(reading, 0)  # POLLHUP is told of in any case
            poll.poll(within * 1000)
            os.close(reading)

    def notify_periodically(self, status: Callable[[], str]) -> list[PeriodicCallback]:
        """Send STATUS= and, where systemd watches, WATCHDOG=1 from the event loop; return the timers."""
        timers = [PeriodicCallback(lambda: self.notify(status(), wait=False), STATUS_INTERVAL)]
        if self.watchdog:
            timers.append(PeriodicCallback(lambda: self.notify("WATCHDOG=1", wait=False), self.watchdog / 3))
        for timer in timers if self.present else ():
            timer.start()
        return timers

    def leave(self) -> None:
        """Send nothing any more: it has gone."""
        if self._notifier is not None:
            self._notifier.close()
            self._notifier = None

    async def stops_for_good(self) -> bool:
        """Return whether it stops the unit rather than restarts it; unknown counts as a restart.

        At SIGTERM the two look the same, but after a stop it empties the file descriptor store.
        """
        return queued_job(await self._jobs(), self._unit) == "stop"

    async def has_stopped(self) -> bool:
        """Return whether the unit is neither there nor about to be; no answer counts as about to be."""
        answer = (await self._ask("show", "--property=ActiveState,Job", self._unit)).split()
        jobs = [line for line in answer if line.startswith("Job=") and line not in ("Job=", "Job=0")]
        return not jobs and not {"ActiveState=inactive", "ActiveState=failed"}.isdisjoint(answer)

    async def has_other_main_process(self) -> bool:
        """Return whether another process than this one is the unit's main process, or none; no answer counts as not."""
        answer = (await self._ask("show", "--property=MainPID", self._unit)).strip()
        return answer not in ("", f"MainPID={os.getpid()}")

    async def keeps_other_processes(self) -> bool:
        """Return whether another process of the unit can serve on when the main process has ended.

        By default systemd would end it too, and make the listening socket, which both have, a blocking one. Where the
        socket unit is restarted too, systemd opens that socket anew, which it cannot while a process has it.
        """
        answer = await self._ask("show", "--property=KillMode,NonBlocking", self._unit)
        if not {"KillMode=process", "NonBlocking=yes"} <= set(answer.split()):
            return False
        return queued_job(await self._jobs(), self._socket_unit) is None

    async def keeps_descriptors(self) -> bool:
        """Return whether it has stored file descriptors of this process for the next one.

        By default a unit stores none (``FileDescriptorStoreMax=``), and the process that sends them is not told.
        In a unit of this program no answer counts as stored.
        """
        if not self.knows_unit:
            return False
        answer = await self._ask("show", "--property=NFileDescriptorStore", self._unit)
        return answer.strip() not in ("NFileDescriptorStore=0", "NFileDescriptorStore=1")

    @property
    def _socket_unit(self) -> str:
        return f"{self._unit.removesuffix('.service')}.socket"

    async def _jobs(self) -> str:
        return await self._ask("list-jobs", "--no-legend", "--plain", "--full")

    async def _ask(self, *words: str) -> str:
        """Return what systemctl prints; nothing where it does not answer, or the unit is not known."""
        if not self._unit:
            return ""
        command = ["systemctl", *(["--user"] if self._of_user else []), *words]
        try:
            async with asyncio.timeout(ASKING_TIMEOUT):
                asking = await asyncio.create_subprocess_exec(
                    *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
                )
                try:
                    answer, _ = await asking.communicate()
                finally:
                    if asking.returncode is None:
                        with suppress(ProcessLookupError):
                            asking.kill()
        except (OSError, TimeoutError) as error:
            log.warning("systemd_unreachable", extra={"detail": str(error) or f"no answer to {words[0]}"})
            return ""
        return answer.decode("utf-8", "replace")
