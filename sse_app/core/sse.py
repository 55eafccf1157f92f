"""The event stream format, both ways: pure, no I/O (WHATWG HTML §9.2)."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import NamedTuple

import orjson

_LINE_BREAK = re.compile(rb"\r\n|\r|\n")
_FORBIDDEN = re.compile(rb"[\r\n\x00]")


def encode(
    data: bytes | None = None, *, event: str | None = None, id: str | None = None, retry: int | None = None
) -> bytes:
    """Return one event in the event stream format.

    Args:
        data: UTF-8 text; each of its lines becomes a ``data:`` line. None leaves the field out.
        event: the event type.
        id: the event id.
        retry: the reconnection time in milliseconds.

    Raises:
        ValueError: ``event`` or ``id`` contains CR, LF or NUL, with which it would forge other fields.
    """
    lines: list[bytes] = []
    if retry is not None:
        lines.append(b"retry: %d\n" % retry)
    for name, value in (("id", id), ("event", event)):
        if value is not None:
            encoded = value.encode()
            if _FORBIDDEN.search(encoded):
                raise ValueError(f"{name} must not contain CR, LF or NUL")
            lines.append(b"%s: %s\n" % (name.encode(), encoded))
    if data is not None:
        lines.extend(b"data: %s\n" % line for line in _LINE_BREAK.split(data))
    lines.append(b"\n")
    return b"".join(lines)


def encode_event(id: bytes, type: bytes, data: bytes, retry: int | None) -> bytes:
    """Return an event as `encode` would whose parts are checked and on one line already, so it is quick."""
    if retry is None:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (id, type, data)
    return b"retry: %d\nid: %b\nevent: %b\ndata: %b\n\n" % (retry, id, type, data)


def encode_json(event: str, data: object, *, id: str | None = None, retry: int | None = None) -> bytes:
    """Return one event whose data is ``data`` as JSON."""
    return encode(orjson.dumps(data), event=event, id=id, retry=retry)


def encode_closing(reason: str, retry: int | None) -> bytes:
    """Return the event with which the server ends a stream.

    Args:
        reason: for the client, e.g. ``token_expired``.
        retry: when to come back, in milliseconds; None when the client's token is of no more use.
    """
    return encode_json("closing", {"reason": reason, "retry": retry}, retry=retry)


class ParsedEvent(NamedTuple):
    """An event as a client sees it. ``id`` is the last event id in force, ``retry`` milliseconds or None."""

    type: str
    data: str
    id: str
    retry: int | None


class EventParser:
    """Parses an event stream, fed in pieces cut anywhere, as WHATWG HTML §9.2.6 says."""

    def __init__(self) -> None:
        self._first: bytes | None = b""
        """The first bytes, until it is known whether they are a byte order mark."""
        self._after_cr = False
        self._begun: list[bytes] = []
        """The pieces of the line that has not ended yet."""
        self._lines: list[str] = []
        self._type = ""
        self._id = ""
        self.retry: int | None = None

    def feed(self, piece: bytes) -> Iterator[ParsedEvent]:
        """Yield the events that ``piece`` completes."""
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")  # the second half of a CRLF cut in two
            self._after_cr = False
        if self._first is not None:
            piece = self._first + piece
            if len(piece) < len(BOM_UTF8) and BOM_UTF8.startswith(piece):
                self._first = piece
                return
            piece = piece.removeprefix(BOM_UTF8)
            self._first = None
        self._after_cr = piece.endswith(b"\r") or (self._after_cr and not piece)
        first, *others = _LINE_BREAK.split(piece)
        self._begun.append(first)
        if not others:
            return
        *lines, rest = [b"".join(self._begun), *others]
        self._begun = [rest]
        for line in lines:
            event = self._line(line.decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> ParsedEvent | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._lines.append(value)
            case "event":
                self._type = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry = int(value)
        return None

    def _dispatch(self) -> ParsedEvent | None:
        lines, self._lines = self._lines, []
        type, self._type = self._type, ""
        return ParsedEvent(type or "message", "\n".join(lines), self._id, self.retry) if lines else None
