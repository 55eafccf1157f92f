"""The event stream format: pure, no I/O (WHATWG HTML §9.2)."""

from __future__ import annotations

import re

from sse_app.core.events import EventId, timestamp
from sse_app.core.json_text import to_json

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


def encode_text_event(id: bytes, type: bytes, data: bytes, retry: int | None) -> bytes:
    """Return an event whose data is a text: each of its lines is one of the data."""
    return encode_event(id, type, b"\ndata: ".join(_LINE_BREAK.split(data)), retry)


def encode_without_id(type: bytes, data: bytes, retry: int | None, *, is_text: bool) -> bytes:
    """Return an event that is not in the log, and so has no id; of a text each line is one of the data."""
    head = b"" if retry is None else b"retry: %d\n" % retry
    lines = b"\ndata: ".join(_LINE_BREAK.split(data)) if is_text else data
    return b"%bevent: %b\ndata: %b\n\n" % (head, type, lines)


def encode_json(event: str, data: object, *, id: str | None = None, retry: int | None = None) -> bytes:
    """Return one event whose data is ``data`` as JSON."""
    return encode(to_json(data), event=event, id=id, retry=retry)


def encode_ping(now: float, position: EventId | None = None) -> bytes:
    """Return the event that shows a client that its stream is alive.

    Args:
        now: the wall clock's time.
        position: up to which the client has all events that it is sent; it resumes from there.
    """
    id = None if position is None else str(position)
    return encode_json("ping", {"timestamp": timestamp(now)}, id=id)


def encode_closing(reason: str, retry: int | None) -> bytes:
    """Return the event with which the server ends a stream.

    Args:
        reason: for the client, e.g. ``token_expired``.
        retry: when to come back, in milliseconds; None when it is of no use to come back.
    """
    return encode_json("closing", {"reason": reason, "retry": retry}, retry=retry)
