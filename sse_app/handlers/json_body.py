"""JSON from outside: fast for what is usual, exact for numbers that do not fit the fast way."""

from __future__ import annotations

import json
from typing import Any, NoReturn

import orjson

_DIGITS_TO_ZERO = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
_LONG_NUMBER = b"0" * 18
_MAX_LONG_DIGITS = 4000


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; integers of any usual size keep every digit.

    Raises:
        ValueError: it is no JSON; the text says where.
    """
    value = orjson.loads(body)
    if _LONG_NUMBER not in body.translate(_DIGITS_TO_ZERO):
        return value
    # orjson rounds integers beyond 64 bits to floats. What it accepted the standard library reads too.
    return json.loads(body, parse_int=_integer, parse_constant=_refuse)


def _integer(text: str) -> int:
    if len(text) > _MAX_LONG_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too long")
    return int(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
