"""A warm handover, for upgrades with zero downtime: both ends of the exchange between a process and its successor.

    process                               successor
                                          imports, reads the settings,
                                          prepares the log                     "ready"
    copies of the quiet streams    →      builds them                          "built"
    pauses at a position in the log;
    what has changed and all other
    connections, listening sockets,
    store, lock                    →      opens the log, adopts the others     "serving"
    "go"                           →      knows that there is no way back
    tells systemd, "told"          →      sends events after the position,
    when systemd has read it:             accepts connections
    passes signals on, ends        →      ends, or reloads

Other processes may append to the log all the while: what follows the position is sent by the successor.
Until "go" the process can resume as if nothing had been, and does when the successor fails; so the successor
has not sent a byte to any stream before.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sse_app.core.errors import SSEAppError
from sse_app.handover.fd_passing import Arrival, send
from sse_app.handover.message import IDLE, STREAM, Message, PassedDescriptor, State, decode, encode
from sse_app.handover.sender import HandoverSender

LISTENING, LOCK = "listening", "lock"
"""Kinds of attached descriptors."""

Attached = list[tuple[str, int]]
"""Kinds and numbers of the descriptors that are passed beside the connections."""

START_TIMEOUT = 60.0
"""How long the successor may take until it is ready, and until it has built the copied streams, in seconds."""

TAKEOVER_TIMEOUT = 5.0
"""How long the successor may take from then until it serves, in seconds.

No event is delivered meanwhile, and systemd's watchdog, which waits for 15 s, gets no sign of life.
"""

WARM_COPY_LIFETIME = 120.0
"""A stream whose token expires within so many seconds is not copied before the pause."""

MAINPID_TIMEOUT = 1.0
"""How long the process before may take to tell systemd which one is the main process now, in seconds."""


class UpgradeFailed(SSEAppError):
    """The successor did not take over; the text says where it stopped."""


class HandedOver(NamedTuple):
    """What is left to a process whose successor serves.

    Args:
        signals: those that have come since it could resume no more; the list grows as more come.
        sockets: the descriptors of the connections and the listening sockets, which both processes have now.
    """

    signals: list[int]
    sockets: list[int]


class ControlChannel:
    """The socket over which the two processes report their progress to each other, in single words.

    Args:
        sock: a connected Unix socket that keeps messages apart.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)

    def send(self, word: str) -> None:
        """Send a word.

        Raises:
            UpgradeFailed: the other process has ended.
        """
        try:
            self._socket.send(word.encode())
        except OSError as error:
            raise UpgradeFailed(f"the other process ended before it heard {word!r}: {error}") from None

    async def receive(self, word: str, within: float) -> None:
        """Wait for a word for so many seconds.

        Raises:
            UpgradeFailed: it did not come.
        """
        try:
            async with asyncio.timeout(within):
                received = await asyncio.get_running_loop().sock_recv(self._socket, 64)
        except TimeoutError:
            raise UpgradeFailed(f"{word!r} did not come within {within:g} s") from None
        except OSError as error:
            raise UpgradeFailed(f"{word!r} did not come: {error}") from None
        _expect(word, received)

    def receive_blocking(self, word: str, within: float) -> None:
        """Wait for a word for so many seconds, while the event loop stands still.

        Raises:
            UpgradeFailed: it did not come.
        """
        self._socket.settimeout(within)
        try:
            received = self._socket.recv(64)
        except OSError as error:
            raise UpgradeFailed(f"{word!r} did not come: {error}") from None
        finally:
            self._socket.setblocking(False)
        _expect(word, received)

    def has_ended(self) -> bool:
        """Return whether the other process has ended, and has said nothing that was not received."""
        try:
            return not self._socket.recv(64, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def shut_down(self) -> None:
        """Make every further `send` and `receive` of both processes fail."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _expect(word: str, received: bytes) -> None:
    if received.decode() != word:
        raise UpgradeFailed(f"the other process ended before {word!r}")


async def hand_over(
    sender: HandoverSender, attached: Attached, control: ControlChannel, sending: socket.socket
) -> HandedOver:
    """Bring a successor to where it serves; this process must end then, and its event loop must not turn again.

    Args:
        sender: describes what is handed over.
        attached: what is passed beside the connections: listening sockets, lock, store.
        control: to the successor.
        sending: where the messages and their sockets are sent.

    Raises:
        UpgradeFailed: the successor does not serve, and this process has resumed.
    """
    await control.receive("ready", START_TIMEOUT)
    copied, state, quiet = sender.quiet_streams(WARM_COPY_LIFETIME)
    send(sending, encode(state), quiet)
    control.send("copied")
    await control.receive("built", START_TIMEOUT)
    try:
        await sender.pause()
        if sender.publishing:  # its publisher would be cut off, and not know whether its events are stored
            raise UpgradeFailed("the event log did not end its work")
        state, descriptors = sender.everything(copied)
        passed = [*state.passed, *(PassedDescriptor(kind, "", b"") for kind, _ in attached)]
        everything = encode(state._replace(passed=passed))
        send(sending, everything, [*descriptors, *(descriptor for _, descriptor in attached)])
        control.send("handed over")
        # The event loop must stand still here: another turn of it could send bytes that the successor sends too.
        with _noted_signals() as came:
            control.receive_blocking("serving", TAKEOVER_TIMEOUT)
            if not {signal.SIGTERM, signal.SIGINT}.isdisjoint(came):
                # systemd waits for this process, and would not learn of another main process any more.
                raise UpgradeFailed("this process was asked to end meanwhile")
            control.send("go")
            return HandedOver(
                came, [*quiet, *descriptors, *(one for kind, one in attached if kind == LISTENING)]
            )
    except BaseException:
        sender.resume()
        raise


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Note which signals come while the event loop stands still; it gets them afterwards if the handover fails.

    Python tells the loop of a signal through a socket (`signal.set_wakeup_fd`) before it calls the handler, so the
    handler can be replaced meanwhile. A signal whose default action is in force is left alone. When the handover has
    succeeded the signals are noted for the rest of this process's life.
    """
    came: list[int] = []
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if callable(signal.getsignal(number))
    }
    for number in handlers:
        signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield came
    except BaseException:
        for number, handler in handlers.items():
            signal.signal(number, handler)
            signal.siginterrupt(number, False)  # as the event loop has it
        raise


class Successor:
    """The successor's end of the exchange.

    Args:
        control, receiving: its ends of the two channels.
    """

    def __init__(self, control: socket.socket, receiving: socket.socket) -> None:
        self._control = ControlChannel(control)
        self._receiving = receiving

    async def streams(self) -> tuple[State, list[int]]:
        """Say that this process is ready, and return the streams that are copied before the pause."""
        self._control.send("ready")
        await self._control.receive("copied", START_TIMEOUT)
        message, descriptors = self._take()
        return message.state(), descriptors

    async def everything(self) -> tuple[State, list[int]]:
        """Say that the streams are built, and return the state in which the process before has paused."""
        self._control.send("built")
        await self._control.receive("handed over", START_TIMEOUT)
        message, descriptors = self._take()
        return message.state(), descriptors

    def serve(self) -> bool:
        """Say that this process serves, wait until the one before knows it, and return whether systemd knows it too.

        The event loop stands still meanwhile: as long as the other one may resume, nothing is sent to a stream.

        Returns:
            False where the other one was ended, and may not have told systemd that this one is the main process.
        """
        self._control.send("serving")
        try:
            self._control.receive_blocking("go", TAKEOVER_TIMEOUT)
        except UpgradeFailed as late:
            # From here on the other one cannot say it any more, and resumes; it may have said it just before.
            self._control.shut_down()
            try:
                self._control.receive_blocking("go", 0.0)
            except UpgradeFailed:
                raise late from None
        told = True
        try:  # systemd listens to the main process only
            self._control.receive_blocking("told", MAINPID_TIMEOUT)
        except UpgradeFailed:
            told = not self._control.has_ended()
        self._control.close()
        self._receiving.close()
        return told

    def _take(self) -> tuple[Message, list[int]]:
        arrival = Arrival(self._receiving)
        arrival.take()
        ((text, descriptors),) = arrival.parts
        return decode(text), descriptors


def attached_to(state: State, descriptors: list[int]) -> Attached:
    """Return kind and number of the descriptors that were passed beside the connections."""
    arrived = [passed.kind for passed in state.passed if passed.place < 0]
    return [
        (kind, descriptor)
        for kind, descriptor in zip(arrived, descriptors, strict=True)
        if kind not in (STREAM, IDLE)
    ]
