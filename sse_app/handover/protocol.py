"""A warm handover: both ends of the conversation between a process that serves and the one that takes over.

    process                               successor
                                          imports, reads the settings          "ready"
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
import socket
from contextlib import suppress

from sse_app.core.errors import SSEAppError
from sse_app.handover.fd_passing import Arrival, send
from sse_app.handover.message import Envelope, Parcel, State, decode, encode
from sse_app.handover.sender import Giving

LISTENING, LOCK = "listening", "lock"
"""Parcels that go with the connections."""

Along = list[tuple[str, int]]
"""Names and descriptors of such parcels."""

START_TIMEOUT = 60.0
TAKE_TIMEOUT = 10.0
"""How long the successor may take to start and to take over, in seconds."""

AHEAD = 120.0
"""A stream whose token expires within so many seconds is not copied ahead."""

TELL_TIMEOUT = 1.0
"""How long the process before may take to tell systemd who is the main process now, in seconds."""


class UpgradeFailed(SSEAppError):
    """The successor did not take over; the text says where it stopped."""


class Conversation:
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


async def hand_over(giving: Giving, along: Along, conversation: Conversation, sending: socket.socket) -> None:
    """Bring a successor to where it serves; this process must end then, at once.

    Args:
        giving: what is handed over.
        along: what goes along: listening sockets, lock, store.
        conversation: with the successor.
        sending: where streams and sockets are sent to.

    Raises:
        UpgradeFailed: it does not, and this process serves on.
    """
    await conversation.hear("ready", START_TIMEOUT)
    copied, state, descriptors = giving.quiet_streams(AHEAD)
    send(sending, encode(state), descriptors)
    conversation.say("copied")
    await conversation.hear("built", START_TIMEOUT)
    try:
        await giving.hold()
        if giving.publishing:  # two processes must not write to the log
            raise UpgradeFailed("the event log did not end its work")
        state, descriptors = giving.everything(copied)
        parcels = [*state.parcels, *(Parcel(name, "", b"") for name, _ in along)]
        everything = encode(state._replace(parcels=parcels))
        send(sending, everything, [*descriptors, *(descriptor for _, descriptor in along)])
        conversation.say("handed over")
        await conversation.hear("serving", TAKE_TIMEOUT)
        conversation.say("go")
    except BaseException:
        giving.let_go_on()
        raise


class Successor:
    """The end of the one who takes over.

    Args:
        conversation, receiving: its ends of the two channels.
    """

    def __init__(self, conversation: socket.socket, receiving: socket.socket) -> None:
        self._conversation = Conversation(conversation)
        self._receiving = receiving

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


def along_with(state: State, descriptors: list[int]) -> Along:
    """Return name and descriptor of what came along with the connections."""
    attached = [parcel.kind for parcel in state.parcels if parcel.place < 0]
    return [
        (kind, descriptor)
        for kind, descriptor in zip(attached, descriptors, strict=True)
        if kind not in ("stream", "idle")
    ]
