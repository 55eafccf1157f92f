"""A strict reader of event streams: what the server sends is nothing but what it says it sends."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LINE_BREAK = re.compile(rb"\r\n|\r|\n")
_FIELDS = frozenset({"id", "event", "data", "retry"})


@dataclass(frozen=True, slots=True)
class ReceivedEvent:
    """One event as a client gets it.

    Attributes:
        type: ``message`` where the event does not say.
        data: the lines of its data.
        id: its own id, or None.
        last_id: the last event id in force, which an earlier event may have set.
        retry: the reconnection time in milliseconds that it sets, or None.
    """

    type: str
    data: str
    id: str | None
    last_id: str
    retry: int | None

    def json(self) -> Any:
        """Return the data parsed as JSON, strictly."""
        return strict_json(self.data)


class EventStreamReader:
    """Reads an event stream in pieces cut anywhere, as WHATWG HTML §9.2.6 says.

    The time it takes is linear in the length of the stream, however long an event is and however it is cut.

    Args:
        strict: fail on what the standard has a client ignore or bear, and the server never sends: comments, unknown
            fields, a field twice, no space after the colon, an event without data, bytes that are not UTF-8.
        texts: take events whose data is any text: of several lines, and with any character in them.
    """

    def __init__(self, *, strict: bool = True, texts: bool = False) -> None:
        self._strict = strict
        self._texts = texts
        self._start: bytes | None = b""
        self._after_cr = False
        self._line: list[bytes] = []
        self._fields: dict[str, list[str]] = {}
        self._last_id = ""

    def feed(self, piece: bytes) -> list[ReceivedEvent]:
        """Return the events that a piece completes."""
        if self._start is not None:
            self._start += piece
            if len(self._start) < len(_BYTE_ORDER_MARK) and _BYTE_ORDER_MARK.startswith(self._start):
                return []  # perhaps a byte order mark that was cut
            piece, self._start = self._start.removeprefix(_BYTE_ORDER_MARK), None
        if not piece:
            return []
        if self._after_cr:
            piece = piece.removeprefix(b"\n")  # the second half of a CRLF that was cut
        self._after_cr = piece.endswith(b"\r")
        head, *more = _LINE_BREAK.split(piece)
        self._line.append(head)
        found = []
        for part in more:
            line, self._line = b"".join(self._line), [part]
            if line:
                self._take(line.decode("utf-8", "strict" if self._strict else "replace"))
            elif self._fields and (event := self._dispatch()) is not None:
                found.append(event)
        return found

    def end(self) -> None:
        """Fail where the stream ends amid an event."""
        assert not self._fields, f"the stream ended within an event: {self._fields}"
        assert not any(self._line), f"the stream ended within a line: {b''.join(self._line)!r}"

    def _take(self, line: str) -> None:
        name, colon, value = line.partition(":")
        if self._strict:
            assert colon, f"no field: {line!r}"
            assert name in _FIELDS, f"injected field: {line!r}"
            is_text = self._texts and name == "data"
            assert is_text or name not in self._fields, f"field {name} twice: {line!r}"
            assert value.startswith(" "), f"no space after the colon: {line!r}"
            assert is_text or "\0" not in value, f"NUL: {line!r}"
            assert name != "retry" or _is_number(value[1:]), f"no number: {line!r}"
        if name in _FIELDS:
            self._fields.setdefault(name, []).append(value.removeprefix(" "))

    def _dispatch(self) -> ReceivedEvent | None:
        fields, self._fields = self._fields, {}
        ids = [value for value in fields.get("id", []) if "\0" not in value]
        if ids:
            self._last_id = ids[-1]
        retries = [value for value in fields.get("retry", []) if _is_number(value)]
        if "data" not in fields:
            assert not self._strict or set(fields) == {"retry"}, f"an event without data: {fields}"
            return None
        return ReceivedEvent(
            fields.get("event", [""])[-1] or "message",
            "\n".join(fields["data"]),
            ids[-1] if ids else None,
            self._last_id,
            int(retries[-1]) if retries else None,
        )


def read_events(stream: bytes) -> list[ReceivedEvent]:
    """Return the events of a whole stream; it may end anywhere."""
    return EventStreamReader().feed(stream)


def strict_json(text: str | bytes) -> Any:
    """Parse JSON as a browser would: no NaN, no Infinity, and here no key twice either."""

    def constant(name: str) -> NoReturn:
        raise AssertionError(f"{name} is not JSON")

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in members}) == len(members), f"a key twice: {members}"
        return dict(members)

    return json.loads(text, parse_constant=constant, object_pairs_hook=pairs)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
