"""Events and their ids: pure, no I/O."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import orjson

from sse_app.core.channels import ChannelName
from sse_app.core.errors import InvalidInput
from sse_app.core.json_text import to_json

MAX_RETRY = 86_400_000
"""The longest reconnection time an event may ask for, in milliseconds (a day)."""

EVENT_OVERHEAD_BYTES = 256
"""About how many bytes an event takes in memory besides its type and data; measured."""

RESERVED_TYPES = frozenset({"connected", "ping", "reset", "closing", "open", "error"})
"""Event types that the server itself or a browser's EventSource fires."""

_TYPE = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_EPOCH = r"[A-Za-z0-9]{1,32}"
_ID = re.compile(rf"({_EPOCH})-(0|[1-9][0-9]{{0,18}})")


class EventId(NamedTuple):
    """The place of an event in the log: the log's life (``epoch``) and the event's number in it (``seq``).

    ``seq`` grows by one for every event over all channels, so one id places a stream on all of them.
    ``seq`` 0 is the place before the first event.
    """

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> EventId | None:
        """Return the id that ``text`` spells, or None where it spells none."""
        match = _ID.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None


TEXT = 1
"""The flag of an event whose data is a text as it is: sent line by line. That of another one is JSON on one line."""

FINAL = 2
"""The flag of an event that is the last one of its channel, until another one is published there."""


class NewEvent(NamedTuple):
    """An event on its way into the log. ``data`` is in UTF-8; ``retry`` is in ms; ``flags`` are `TEXT` and `FINAL`."""

    channel: ChannelName
    type: str
    data: bytes
    retry: int | None = None
    flags: int = 0


class Event(NamedTuple):
    """An event of the log; its members as those of `NewEvent`."""

    seq: int
    channel: ChannelName
    type: str
    data: bytes
    retry: int | None = None
    flags: int = 0


def held_bytes(event: Event | NewEvent) -> int:
    """Return about how many bytes of memory an event takes while it is kept."""
    return len(event.data) + len(event.type) + EVENT_OVERHEAD_BYTES


def timestamp(seconds: float) -> str:
    """Return a POSIX time as the ISO 8601 text in UTC that all our data carries, to the millisecond."""
    whole = int(seconds)
    return f"{_to_the_second(whole)}.{int((seconds - whole) * 1000):03}Z"


@lru_cache(maxsize=4)
def _to_the_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


def new_event(
    channel: ChannelName,
    type: object,
    data: object,
    retry: object = None,
    final: object = False,
    *,
    now: str,
    field: str = "",
) -> NewEvent:
    """Return a checked event with its data encoded.

    A JSON object gets ``channel``, and ``timestamp`` where absent. A text stays as it is. Any other value is written as
    JSON; nothing is added to it.

    Args:
        channel: where it goes; it overrides what the data says: no event may pose as another channel's.
        type: the event type, ``[A-Za-z0-9_.:-]{1,128}`` and none of `RESERVED_TYPES`.
        data: a JSON value.
        retry: the client's new reconnection time in milliseconds, or None.
        final: whether it is the last one of its channel, until another one is published there.
        now: the timestamp for an object that has none, as `timestamp` writes it.
        field: where the event stands in the request, such as ``events[2].``, for the error's text.

    Raises:
        InvalidInput: the type, the data, the retry or the mark is not as said; the text names the field.
    """
    type = check_type(type, f"{field}event")
    if isinstance(retry, float) and retry.is_integer():
        retry = int(retry)  # JSON has one kind of numbers: 3000.0 is 3000
    if retry is not None and (
        isinstance(retry, bool) or not isinstance(retry, int) or not 0 <= retry <= MAX_RETRY
    ):
        raise InvalidInput(f"{field}retry must be milliseconds from 0 to {MAX_RETRY}", f"{field}retry")
    if not isinstance(final, bool):
        raise InvalidInput(f"{field}final must be true or false", f"{field}final")
    flags = FINAL if final else 0
    if isinstance(data, str):
        return NewEvent(channel, type, _encode_text(data, field), retry, flags | TEXT)
    if isinstance(data, dict):
        data = {**data, "channel": channel}
        if "timestamp" not in data:
            data["timestamp"] = now
    return NewEvent(channel, type, _encode(data, field), retry, flags)


def check_type(type: object, field: str) -> str:
    """Return what is the type of an event that can be published.

    Args:
        type: what has been given.
        field: where it stands, for the error's text.

    Raises:
        InvalidInput: it does not match ``[A-Za-z0-9_.:-]{1,128}``, or is one of `RESERVED_TYPES`.
    """
    if type is None:
        raise InvalidInput(f"{field} is missing: the type of the event, such as risk_alert", field)
    if not isinstance(type, str) or not _is_type(type):
        raise InvalidInput(f"{field} must match [A-Za-z0-9_.:-]{{1,128}}", field)
    if type in RESERVED_TYPES:
        raise InvalidInput(f"{field} {type!r} is reserved for the server", field)
    return type


@lru_cache(maxsize=1024)
def _is_type(text: str) -> bool:
    return _TYPE.fullmatch(text) is not None


def _encode_text(text: str, field: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # Python's texts can hold halves of characters
        raise InvalidInput(f"{field}data cannot be written as UTF-8: {error}", f"{field}data") from None


def _encode(data: object, field: str) -> bytes:
    try:
        return to_json(data)
    except orjson.JSONEncodeError as error:
        reason: Exception = error
    if _has_long_integer(data):  # JSON sets no bound to numbers: the standard library writes them exactly
        try:
            return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        except (TypeError, ValueError, RecursionError) as error:
            reason = error
    raise InvalidInput(f"{field}data cannot be written as JSON: {reason}", f"{field}data")


def _has_long_integer(data: object) -> bool:
    """Return whether a value has an integer beyond 64 bits in it, which orjson does not write."""
    found, waiting = set[int](), [data]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int):
            if not -(2**63) <= value < 2**64:
                return True
        elif isinstance(value, (dict, list, tuple)) and id(value) not in found:
            found.add(id(value))  # a value may contain itself
            waiting += value.values() if isinstance(value, dict) else value
    return False
