"""Bytes sent to a server piece by piece, and the answers to them, read strictly."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.support.sse_reader import EventStreamReader, ReceivedEvent, strict_json

PATIENCE = 30.0
"""Seconds after which a server that neither answers nor closes is taken to hang."""

PINGS = 30
"""After so many of them, one a second, an event that is due has not come."""

RESET_AT_CLOSE = b"\1\0\0\0\0\0\0\0"
"""The value of SO_LINGER with which a close resets the connection."""

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*\r\n")
_HEADER = re.compile(rb"([A-Za-z0-9-]+): ?([\t -~\x80-\xff]*)\r\n")
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)\r\n")


def request_of(method: str, target: str, *headers: str, body: bytes | None = None) -> bytes:
    """Return the bytes of a request."""
    framing = [] if body is None else [f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *headers, *framing, "", ""])
    return head.encode("latin-1") + (body or b"")


def bearer(token: str) -> str:
    """Return the header that has a token."""
    return f"Authorization: Bearer {token}"


@dataclass(frozen=True)
class Manner:
    """How a client sends.

    Attributes:
        cuts: where the bytes are cut into pieces, as shares of them.
        pause: seconds between two pieces.
        end: what the client does after the last one: ``half-close`` sends no more and reads all answers, ``close``
            and ``reset`` leave at once.
    """

    cuts: Sequence[float] = ()
    pause: float = 0.0
    end: str = "half-close"

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Yield the pieces."""
        places = sorted({0, *(int(cut * len(data)) for cut in self.cuts), len(data)})
        for begin, end in pairwise(places):
            yield data[begin:end]


@dataclass
class Answer:
    """An answer; of a stream the body is the events up to the one that was waited for."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    events: list[ReceivedEvent] = field(default_factory=list)

    @property
    def is_stream(self) -> bool:
        """Whether it is an event stream."""
        return self.headers.get("content-type") == "text/event-stream"

    def json(self) -> Any:
        """Return the body parsed as JSON, strictly."""
        return strict_json(self.body)

    def names_what_is_wrong(self) -> bool:
        """Return whether it is an error in the form of all errors, with words for people."""
        if not 400 <= self.status < 500 or "application/json" not in self.headers["content-type"]:
            return False
        error = self.json()["error"]
        return bool(re.fullmatch(r"[a-z_0-9]+", error["code"])) and " " in error["message"]


@dataclass
class Heard:
    """What came back.

    Attributes:
        answers: the whole ones, in order.
        cut: whether the connection was cut, so that further answers may have been lost.
    """

    answers: list[Answer]
    cut: bool = False


class Conversation:
    """One connection to a server.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self._file = self.socket.makefile("rb")
        self._reader = EventStreamReader(texts=True)
        self._chunked = False

    def send(self, data: bytes, manner: Manner) -> None:
        """Send bytes; a server that has closed meanwhile does not hear the rest."""
        with suppress(ConnectionError):
            for piece in manner.pieces(data):
                self.socket.sendall(piece)
                if manner.pause:
                    time.sleep(manner.pause)

    def leave(self, manner: Manner) -> None:
        """End as the manner says."""
        with suppress(OSError):
            if manner.end == "reset":
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
            elif manner.end == "half-close":
                self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.socket.close()

    def answer(self, *, is_head: bool = False) -> Answer | None:
        """Return the next answer; None where the server has closed. Of a stream it is the head.

        Raises:
            ConnectionError: the server has cut the connection.
        """
        line = self._file.readline(65_536)
        if not line:
            return None
        match = _STATUS.fullmatch(line)
        assert match is not None, line
        status, headers = int(match[1]), {}
        while (line := self._file.readline(65_536)) != b"\r\n":
            header = _HEADER.fullmatch(line)
            assert header is not None, line
            headers[header[1].decode().lower()] = header[2].decode("latin-1")
        if status == 100:
            return self.answer(is_head=is_head)
        found = Answer(status, headers)
        if is_head and headers.get("connection") == "close":
            # What cannot be read is answered with a body: its method is not known. Nor is it HEAD where what was
            # inserted into the body before stands in front of it.
            rest = self._file.read()
            is_other = status == 400 or (status == 405 and b"not that method" in rest)
            assert not rest or (is_other and len(rest) == int(headers["content-length"])), rest
            return found
        if is_head or status in (204, 304):
            return found
        self._chunked = headers.get("transfer-encoding") == "chunked"
        if found.is_stream:
            return found
        if self._chunked:
            found.body = b"".join(iter(self._chunk, b""))
        elif "content-length" in headers:
            found.body = self._exactly(int(headers["content-length"]))
        else:
            assert headers.get("connection") == "close" or status == 200, headers
            found.body = self._file.read()
        return found

    def events(self) -> Iterator[ReceivedEvent]:
        """Yield the events of a stream whose head has been read, to its end."""
        while piece := self._chunk() if self._chunked else self._some():
            yield from self._reader.feed(piece)
        self._reader.end()

    def _some(self) -> bytes:
        return self._file.read1(65_536)

    def _chunk(self) -> bytes:
        line = self._file.readline(100)
        if not line:
            return b""
        match = _CHUNK.fullmatch(line)
        assert match is not None, line
        piece = self._exactly(int(match[1], 16))
        assert self._exactly(2) == b"\r\n"
        return piece

    def _exactly(self, size: int) -> bytes:
        piece = self._file.read(size)
        if len(piece) < size:
            raise ConnectionAbortedError(f"{len(piece)} of {size} bytes came")
        return piece


@contextmanager
def conversing(port: int) -> Iterator[Conversation]:
    """Connect to a server, and close at the end."""
    conversation = Conversation(port)
    try:
        yield conversation
    finally:
        conversation.close()


def converse(port: int, requests: Sequence[bytes], manner: Manner) -> Heard:
    """Send requests on one connection, one right behind the other, and return the answers to them.

    Args:
        port: of the server.
        requests: the bytes of each. A stream that opens is left after its first event.
        manner: how they are sent.
    """
    heard = Heard([], cut=manner.end != "half-close")
    with conversing(port) as conversation:
        conversation.send(b"".join(requests), manner)
        conversation.leave(manner)
        if heard.cut:
            return heard
        methods = [request.lstrip(b"\r\n").partition(b" ")[0] for request in requests]
        try:
            while True:
                method = methods[len(heard.answers)] if len(heard.answers) < len(methods) else b""
                answer = conversation.answer(is_head=method == b"HEAD")
                if answer is None:
                    break
                heard.answers.append(answer)
                if answer.is_stream and method != b"HEAD":
                    answer.events.append(next(conversation.events()))
                    break
        except ConnectionError:
            heard.cut = True
    return heard
