"""A successor that starts beside the running process and takes over warm: both ends of their conversation.

    process                               successor
    starts it                      →      imports, reads the settings          "ready"
    copies of the quiet streams    →      builds them                          "built"
    holds still; what has changed
    and all others, listening
    sockets, store, lock           →      opens the log, adopts the others     "serving"
    "go"                           →      knows that there is no way back
    tells systemd, "told", ends    →      sends to the streams, accepts connections

Until "go" the process can go on as if nothing had been, and does when the successor fails; so the successor
has not sent a byte to any stream before.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

from sse_app.errors import SSEAppError
from sse_app.handover.giving import Giving
from sse_app.handover.state import Envelope, Parcel, State, decode, encode
from sse_app.handover.transfer import Arrival, channel, send

ENVIRONMENT = "SSE_APP_SUCCESSOR"
"""Names the successor's file descriptors: those of the conversation and of the handover."""

LISTENING, LOCK = "listening", "lock"
"""Parcels that go with the connections."""

START_TIMEOUT = 60.0
TAKE_TIMEOUT = 10.0
"""How long the successor may take to start and to take over, in seconds."""

AHEAD = 120.0
"""A stream whose token expires within so many seconds is not copied ahead."""

TELL_TIMEOUT = 1.0
"""How long the process before may take to tell systemd who is the main process now, in seconds."""

log = logging.getLogger(__name__)


class UpgradeFailed(SSEAppError):
    """The successor did not take over; the text says where it stopped."""


class _Conversation:
    """Short words from one process to the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)

    def say(self, word: str) -> None:
        """Say a word.

        Raises:
            UpgradeFailed: there is nobody to hear it.
        """
        try:
            self._socket.send(word.encode())
        except OSError as error:
            raise UpgradeFailed(f"the other process ended before it heard {word!r}: {error}") from None

    async def hear(self, word: str, within: float) -> None:
        """Wait for a word for so many seconds.

        Raises:
            UpgradeFailed: it did not come.
        """
        try:
            async with asyncio.timeout(within):
                heard = await asyncio.get_running_loop().sock_recv(self._socket, 64)
        except TimeoutError:
            raise UpgradeFailed(f"{word!r} did not come within {within:g} s") from None
        except OSError as error:
            raise UpgradeFailed(f"{word!r} did not come: {error}") from None
        _expect(word, heard)

    def hear_standing_still(self, word: str, within: float) -> None:
        """Wait for a word without a turn of the event loop.

        Raises:
            UpgradeFailed: it did not come.
        """
        self._socket.settimeout(within)
        try:
            heard = self._socket.recv(64)
        except OSError as error:
            raise UpgradeFailed(f"{word!r} did not come: {error}") from None
        _expect(word, heard)

    def end(self) -> None:
        """Say nothing more, and hear nothing more: whoever waits for a word waits in vain."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def _expect(word: str, heard: bytes) -> None:
    if heard.decode() != word:
        raise UpgradeFailed(f"the other process ended before {word!r}")


class Upgrade:
    """Starts a successor and hands everything over to it.

    Args:
        giving: what is handed over.
        along: names and descriptors of what goes along: listening sockets, lock, store.
    """

    def __init__(self, giving: Giving, along: list[tuple[str, int]]) -> None:
        self._giving = giving
        self._along = along
        ours, self._theirs = channel()
        self._conversation = _Conversation(ours)

    async def run(self, taken_over: Callable[[int], None]) -> None:
        """Bring the successor to where it serves; this process must end then, at once.

        Args:
            taken_over: called with the successor's process id once there is no way back.

        Raises:
            UpgradeFailed: it does not, and this process serves on.
        """
        theirs = self._theirs
        sending, receiving = channel()
        environment = {name: value for name, value in os.environ.items() if name != "WATCHDOG_PID"}
        environment[ENVIRONMENT] = f"{theirs.fileno()},{receiving.fileno()}"
        try:
            successor = await _spawn([theirs.fileno(), receiving.fileno()], environment)
        finally:
            theirs.close()
            receiving.close()
        try:
            await self._hand_over(sending)
        except Exception as error:
            with suppress(ProcessLookupError):
                os.kill(successor, signal.SIGKILL)
            raise UpgradeFailed(str(error)) from error
        finally:
            sending.close()
        taken_over(successor)
        with suppress(UpgradeFailed):
            self._conversation.say("told")

    def give_up(self) -> None:
        """Have `run` fail: this process has been asked for something else."""
        self._conversation.end()

    async def _hand_over(self, sending: socket.socket) -> None:
        await self._conversation.hear("ready", START_TIMEOUT)
        copied, state, descriptors = self._giving.quiet_streams(AHEAD)
        send(sending, encode(state), descriptors)
        self._conversation.say("copied")
        await self._conversation.hear("built", START_TIMEOUT)
        try:
            await self._giving.hold()
            if self._giving.publishing:  # two processes must not write to the log
                raise UpgradeFailed("the event log did not end its work")
            state, descriptors = self._giving.everything(copied)
            along = [Parcel(name, False, b"") for name, _ in self._along]
            whole = state._replace(parcels=[*state.parcels, *along])
            send(sending, encode(whole), [*descriptors, *(descriptor for _, descriptor in self._along)])
            self._conversation.say("handed over")
            await self._conversation.hear("serving", TAKE_TIMEOUT)
            self._conversation.say("go")
        except BaseException:
            self._giving.let_go_on()
            raise


async def _spawn(descriptors: list[int], environment: dict[str, str]) -> int:
    """Start this program once more, and return the process id.

    It is nobody's child but the service manager's, for which a main process that is not its own would be a
    stranger: it would not wait for it at the next stop. So a shell starts it, and ends.
    """
    command = ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *sys.orig_argv]

    # Not asyncio's way: with uvloop the end of what the shell says comes with the end of what it has started.
    def run() -> bytes:
        shell = subprocess.run(
            command, pass_fds=descriptors, env=environment, stdout=subprocess.PIPE, check=True
        )
        return shell.stdout

    try:
        return int(await asyncio.to_thread(run))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UpgradeFailed(f"the successor cannot be started: {error}") from error


class Successor:
    """The successor's end.

    Args:
        conversation, receiving: the descriptors that it was given.
    """

    def __init__(self, conversation: int, receiving: int) -> None:
        self._conversation = _Conversation(socket.socket(fileno=conversation))
        self._receiving = socket.socket(fileno=receiving)

    @classmethod
    def of_environment(cls) -> Successor | None:
        """Return it if this process was started as one."""
        descriptors = os.environ.pop(ENVIRONMENT, "")
        if not descriptors:
            return None
        conversation, receiving = map(int, descriptors.split(","))
        return cls(conversation, receiving)

    async def streams(self) -> tuple[State, list[int]]:
        """Say that this process is ready, and return the streams that were copied ahead, with their sockets."""
        self._conversation.say("ready")
        await self._conversation.hear("copied", START_TIMEOUT)
        envelope, descriptors = self._take()
        return envelope.open(), descriptors

    async def everything(self) -> tuple[State, list[int]]:
        """Say that the streams are built, and return the state in which all came to a standstill."""
        self._conversation.say("built")
        await self._conversation.hear("handed over", START_TIMEOUT)
        envelope, descriptors = self._take()
        return envelope.open(), descriptors

    def serve(self) -> None:
        """Say that this process serves, and wait until the one before has let go.

        The event loop stands still meanwhile: as long as the other one may go on, nothing is sent to a stream.
        """
        self._conversation.say("serving")
        self._conversation.hear_standing_still("go", TAKE_TIMEOUT)
        with suppress(UpgradeFailed):  # systemd listens to the main process only
            self._conversation.hear_standing_still("told", TELL_TIMEOUT)
        self._conversation.close()
        self._receiving.close()

    def _take(self) -> tuple[Envelope, list[int]]:
        arrival = Arrival(self._receiving)
        arrival.take()
        ((text, descriptors),) = arrival.parts
        return decode(text), descriptors


def along_with(state: State, descriptors: list[int]) -> list[tuple[str, int]]:
    """Return name and descriptor of what came along with the connections."""
    attached = [parcel.kind for parcel in state.parcels if parcel.place < 0]
    return [
        (kind, descriptor)
        for kind, descriptor in zip(attached, descriptors, strict=True)
        if kind not in ("stream", "idle")
    ]
