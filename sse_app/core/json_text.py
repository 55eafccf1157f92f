"""JSON as bytes that take no more memory than they are long: pure, no I/O."""

from __future__ import annotations

import orjson


def to_json(value: object) -> bytes:
    """Return a value as JSON in UTF-8 on one line.

    What `orjson.dumps` returns keeps the buffer that it was written into, at least 4 KB and up to twice its length,
    for as long as it lives; this is a copy of the exact length.

    Raises:
        orjson.JSONEncodeError: the value cannot be written.
    """
    return b"%b" % orjson.dumps(value)
