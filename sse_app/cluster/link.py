"""A connection between two nodes: messages in msgpack, each with its length before it, and a bound on both.

A message is a list that begins with its type. What a newer version of the program adds to the end of a list, and
messages of types that are not known, are ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import msgspec

MAX_BYTES = 16 * 1024 * 1024
"""How long a message may be. The longest is the answer that sorts the streams of a node, some 50 bytes for each."""

MAX_WAITING = 2 * MAX_BYTES
"""How many bytes may wait for a node that does not read; what it is asked or answered then is dropped."""

MAX_TOLD = 1024 * 1024
"""How many bytes may wait when it is told something; what it is told then is dropped."""

HELLO, TELL, ASK, ANSWER, NO_ANSWER = range(5)
"""Types of messages: ``[HELLO, name]``, ``[TELL, kind, payload]``, ``[ASK, number, kind, payload, until]``,
``[ANSWER, number, payload]``, ``[NO_ANSWER, number, why]``. The time until which an answer is waited for is that of the
monotonic clock, which is the same for all processes of a machine."""

_LENGTH_BYTES = 4

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def message(*members: object) -> bytes:
    """Return a message as it is sent.

    Raises:
        ValueError: it is too long.
    """
    body = _encode(members)
    if len(body) > MAX_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is longer than {MAX_BYTES}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class Link(asyncio.Protocol):
    """One connection to another node.

    Args:
        received: called with each message, as a list.
        lost: called once, when the connection has ended.
    """

    def __init__(self, received: Callable[[Link, list[Any]], None], lost: Callable[[Link], None]) -> None:
        self._received = received
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.node = ""
        """The name of the other node; empty until it is known."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)

    def send(self, data: bytes, most: int = MAX_WAITING) -> bool:
        """Send a message, and return whether it is on its way: it is dropped where more bytes than `most` wait."""
        transport = self._transport
        if transport is None or transport.is_closing() or transport.get_write_buffer_size() > most:
            return False
        transport.write(data)
        return True

    def close(self) -> None:
        """End the connection at once; what waits is not sent."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Take the messages that are complete; one that is too long or malformed ends the connection."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH_BYTES:
            body = start + _LENGTH_BYTES
            length = int.from_bytes(buffer[start:body], "big")
            if length > MAX_BYTES:
                self.close()
                return
            if len(buffer) - body < length:
                break
            start = body + length
            try:
                members = _decode(memoryview(buffer)[body:start])
            except (ValueError, RecursionError):  # no msgpack, or no UTF-8 in it, or too many levels
                members = None
            if not isinstance(members, list) or not members:
                self.close()
                return
            self._received(self, members)
        del buffer[:start]

    def connection_lost(self, error: Exception | None) -> None:
        """Tell that it has ended."""
        self._lost(self)
