"""JSON from outside: fast for what is usual, exact for numbers that do not fit the fast way."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

import orjson

_LONG_NUMBER = re.compile(rb"[0-9]{18}")
_MAX_LONG_DIGITS = 4000


def parse_json(body: bytes) -> Any:
    """Return the value of a JSON text in UTF-8; integers of any usual size keep every digit.

    Raises:
        ValueError: it is no JSON; the text says where.
    """
    value = orjson.loads(body)
    if not _LONG_NUMBER.search(body):
        return value
    # orjson rounds integers beyond 64 bits to floats. What it accepted the standard library reads too.
    return json.loads(body, parse_int=_integer, parse_constant=_refuse)


def _integer(text: str) -> int:
    if len(text) > _MAX_LONG_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too long")
    return int(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")
