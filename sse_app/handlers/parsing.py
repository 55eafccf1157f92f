"""The position a client resumes from, as it stands in a request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sse_app.handlers.errors import Refusal

MAX_BYTES = 128

_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


def parse_position(values: Sequence[bytes], name: str) -> str | None:
    """Return the position as text, or None where there is none; whether it is an id is not asked here.

    Args:
        values: the raw bytes of each time it was given; Tornado's own accessors would strip them.
        name: what it is called, for the error's text.

    Raises:
        Refusal: it is given twice, has control characters, or over 128 bytes.
    """
    if len(values) > 1:
        raise Refusal(400, "invalid_position", f"{name} is given more than once")
    raw = values[0] if values else b""
    if len(raw) > MAX_BYTES or _CONTROL.search(raw):
        raise Refusal(
            400, "invalid_position", f"{name} must have at most {MAX_BYTES} bytes and no control characters"
        )
    return raw.decode("utf-8", "replace") or None
