"""Reads the event stream format: pure, no I/O (WHATWG HTML §9.2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sse_app.core.events import MAX_RETRY

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MOST_DIGITS = len(str(MAX_RETRY))


@dataclass(frozen=True, slots=True)
class Sent:
    """What came before an empty line.

    Attributes:
        type: the event type; ``message`` where none is given.
        data: its text; None where there is none, so that it is no event: it may still move the position.
        id: what the ``id`` field says; None where there is none.
    """

    type: str
    data: str | None
    id: str | None


class EventStreamParser:
    """Takes a stream in pieces of any size and returns the events that each piece completes.

    The time it takes grows with the length of the stream alone, however small the pieces are.

    Attributes:
        retry: the last reconnection time that the server has sent, in milliseconds, at most `MAX_RETRY`; None before.
    """

    def __init__(self) -> None:
        self.retry: int | None = None
        self._line: list[bytes] = []  # the pieces of a line that has not ended
        self._after_cr = False
        self._at_start = True
        self._type = ""
        self._data: list[bytes] = []
        self._id: str | None = None

    def feed(self, piece: bytes) -> Iterator[Sent]:
        """Yield the events that end in this piece; it must be iterated to its end."""
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")  # the other half of a line's end
            self._after_cr = False
        for line in piece.splitlines(keepends=True):  # of bytes: at LF, CR and CR LF alone
            ended = line.rstrip(b"\r\n")
            if len(ended) == len(line):
                self._line.append(line)
                break
            if self._line:
                ended = b"".join([*self._line, ended])
                self._line.clear()
            if self._at_start:
                self._at_start = False
                ended = ended.removeprefix(_BYTE_ORDER_MARK)
            if ended:
                self._field(ended)
            elif (sent := self._end()) is not None:
                yield sent
        self._after_cr = piece.endswith(b"\r")

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
            case b"event":
                self._type = _text(value)
            case b"id" if b"\0" not in value:
                self._id = _text(value)
            case b"retry" if value.isdigit():  # of bytes: ASCII digits
                digits = value.lstrip(b"0") or b"0"
                self.retry = min(int(digits), MAX_RETRY) if len(digits) <= _MOST_DIGITS else MAX_RETRY

    def _end(self) -> Sent | None:
        """Return what has come since the last empty line; None where that was nothing that counts."""
        sent = None
        if self._data or self._id is not None:
            data = _text(b"\n".join(self._data)) if self._data else None
            sent = Sent(self._type or "message", data, self._id)
        self._type, self._id = "", None
        self._data.clear()
        return sent


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
