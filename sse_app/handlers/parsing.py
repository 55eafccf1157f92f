"""What clients send, parsed: JSON, and the position that a client resumes from."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import orjson

from sse_app.handlers.errors import Refusal

LONGEST_POSITION = 128
"""Bytes; what is longer is the id of no event."""

MAX_INTEGER_DIGITS = 4000

Query = Mapping[str, Sequence[bytes]]
"""The arguments of a request's query as they came: the raw bytes of each time that one was given."""

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_DIGITS_TO_ZERO = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
_LONG_NUMBER = b"0" * 18


def parse_position(values: Sequence[bytes], name: str) -> str | None:
    """Return the position as text, or None where there is none; it need not be the id of an event.

    One of over `LONGEST_POSITION` bytes is cut there, and still no id: the client gets a ``reset``, as with any
    other that cannot be continued. Were it refused, a browser's EventSource would give up for good.

    Args:
        values: the raw bytes of each time it was given; Tornado's own accessors would strip them.
        name: the parameter or header, for the error's text.

    Raises:
        Refusal: it is given twice, or has control characters.
    """
    if len(values) > 1:
        raise Refusal(400, "invalid_position", f"{name} is given more than once")
    raw = values[0] if values else b""
    if _CONTROL.search(raw):
        raise Refusal(400, "invalid_position", f"{name} must have no control characters")
    return raw[:LONGEST_POSITION].decode("utf-8", "replace") or None


def cookie_values(headers: Sequence[str], name: str) -> list[str]:
    """Return the values of all cookies of a name, in the order in which they were sent.

    Of several browsers send the one with the most specific path first (RFC 6265 §5.4); Tornado keeps the last.
    A value is taken as it stands, without its quotes (§4.1.1): none of ours needs an escape.

    Args:
        headers: the ``Cookie`` headers.
        name: in its own case.
    """
    pairs = (pair.partition("=") for header in headers for pair in header.split(";"))
    return [
        _unquoted(value.strip(" \t")) for key, equals, value in pairs if equals and key.strip(" \t") == name
    ]


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


_UNQUOTED = re.compile(rb"\{\s*['\w]|\[?\s*'")
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def hint_of(body: bytes, content_type: str) -> str:
    """Return what may be said of a body that is not JSON: of what it seems to be, with no part of it."""
    if content_type.lower().startswith(_FORMS):
        return "; Content-Type says that it is a form: send JSON, with Content-Type: application/json"
    if body.startswith(codecs.BOM_UTF8):
        return "; it begins with a byte order mark"
    try:
        body.decode()
    except UnicodeDecodeError:
        return "; it is not in UTF-8"
    return "; texts and names take double quotes in JSON" if _UNQUOTED.match(body.lstrip()) else ""


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; integers up to 4,000 digits keep every digit.

    Raises:
        ValueError: it is not JSON; the text says where.
    """
    value = orjson.loads(body)
    if _LONG_NUMBER not in body.translate(_DIGITS_TO_ZERO):
        return value
    # orjson rounds integers beyond 64 bits to floats. What it accepted the standard library reads too, to less depth.
    try:
        return json.loads(body, parse_int=_integer, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply for a number of so many digits") from None


def _integer(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too long")
    return int(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
