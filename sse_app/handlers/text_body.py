"""Publishing a text: the body is the data as it stands, and the query says the rest of the event."""

from __future__ import annotations

import re
from typing import NamedTuple

from sse_app.core.errors import InvalidInput
from sse_app.core.nearest import nearest_first
from sse_app.handlers.errors import Refusal
from sse_app.handlers.parsing import Query

_TEXT = re.compile(r"\s*text/[^\s;]+", re.IGNORECASE)
_CHARSET = re.compile(r";\s*charset\s*=\s*[\"']?([^\"';\s]*)", re.IGNORECASE)
_UTF_8 = frozenset({"utf-8", "utf8", "us-ascii"})
"""The names of UTF-8, and of what is a part of it."""

_WORDS = {"true": True, "false": False}


class EventQuery(NamedTuple):
    """What the query says of the event whose data is the body.

    Args:
        event: its type.
        retry: the client's new reconnection time, in milliseconds; None: as before.
        final: whether it is the last one of its channel.
    """

    event: str
    retry: int | None = None
    final: bool = False

    def __str__(self) -> str:
        """One text for all queries that say the same."""
        return f"event={self.event}&retry={self.retry}&final={self.final}"


def is_text(content_type: str) -> bool:
    """Return whether a body of this ``Content-Type`` is one of ``text/…``."""
    return _TEXT.match(content_type) is not None


def text_of(body: bytes, content_type: str) -> str:
    """Return the text that a body is, every character of it.

    Raises:
        Refusal: it is not in UTF-8, or says that it is not.
    """
    charset = _CHARSET.search(content_type)
    if charset is not None and charset[1].lower() not in _UTF_8:
        message = f"a text is taken in UTF-8 only: not in charset {ascii(charset[1])[1:-1][:40]}"
        raise Refusal(415, "unsupported_type", message)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: {error.reason} at byte {error.start}"
        raise Refusal(400, "invalid_text", message) from None


def parse_event_query(query: Query) -> EventQuery:
    """Return what the query says of an event; its type has yet to be checked.

    Raises:
        InvalidInput: it does not name the event type, or has a bad value or a parameter that means nothing.
    """
    values: dict[str, str] = {}
    for name, given in query.items():
        if name not in EventQuery._fields:
            shown = ascii(name)[1:-1][:80]
            there = ", ".join(nearest_first(name, EventQuery._fields))
            raise InvalidInput(f"unknown parameter {shown} in the query of a text; there are: {there}", name)
        if len(given) > 1:
            raise InvalidInput(f"{name} is given more than once in the query", name)
        values[name] = given[0].decode("latin-1")
    if "event" not in values:
        raise InvalidInput(
            "event is missing in the query: to publish the body as a text takes ?event=TYPE"
            " (if it is JSON, set Content-Type: application/json)",
            "event",
        )
    retry, final = values.get("retry"), values.get("final", "false")
    if retry is not None and not re.fullmatch(r"[0-9]{1,18}", retry):
        raise InvalidInput("retry in the query must be milliseconds", "retry")
    if final not in _WORDS:
        raise InvalidInput("final in the query must be true or false", "final")
    return EventQuery(values["event"], None if retry is None else int(retry), _WORDS[final])


def refuse_event_query(query: Query, content_type: str) -> None:
    """Refuse a query that speaks of the event where the body is not said to be a text.

    Raises:
        Refusal: the text names the header to set.
    """
    for name in EventQuery._fields:
        if name in query:
            now = f"it is {ascii(content_type)[1:-1][:80]}" if content_type else "there is none"
            message = f"{name} in the query is for a text as the body: set Content-Type: text/plain ({now})"
            raise Refusal(415, "unsupported_type", message)
