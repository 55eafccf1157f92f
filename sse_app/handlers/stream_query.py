"""The query of a stream: where it begins, and what of its channels it carries."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from sse_app.core.errors import InvalidInput
from sse_app.core.events import check_type
from sse_app.eventlog.base import Beginning
from sse_app.handlers.errors import Refusal
from sse_app.handlers.parsing import Query

MOST_TYPES = 32
"""How many event types a stream may name."""

LONGEST_AGO = 100 * 366 * 86_400.0
"""No event is older than so many seconds."""

FASTEST_RATE = 100
"""Events of a key a second that a stream can ask for at most."""

_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
_AGO = re.compile(r"-(\d{1,10}(?:\.\d{1,9})?)")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d{1,9})?)([Zz]|[+ -]\d\d:\d\d)")
_BEGINNINGS = ("from", "last", "since")


def parse_beginning(query: Query, most: int, types: frozenset[str] | None = None) -> Beginning | None:
    """Return where a stream begins whose client has no position; None: at the head.

    Args:
        query: the arguments as they came.
        most: of how many of the last events a stream begins with at most; more are as many.
        types: the event types that the stream is sent, which alone count as the last events; None: all.

    Raises:
        Refusal: a value is bad, or there is more than one of ``from``, ``last`` and ``since``.
    """
    given = [name for name in _BEGINNINGS if name in query]
    if not given:
        return None
    if len(given) > 1:
        raise _bad(given[1], f"{' and '.join(given)} exclude each other")
    name = given[0]
    text = _single(query, name)
    match name:
        case "from":
            if text not in ("earliest", "latest"):
                raise _bad(name, "from must be earliest or latest")
            return Beginning() if text == "earliest" else None
        case "last":
            if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) == 0:
                raise _bad(name, "last must be a number of events, 1 or more")
            return Beginning(last=min(int(text), most), types=types)
        case _:
            return _since(text)


def _since(text: str) -> Beginning:
    """Return the beginning with events of a time or later (RFC 3339), or of so many seconds ago (``-60``)."""
    if match := _AGO.fullmatch(text):
        return Beginning(ago=min(float(match[1]), LONGEST_AGO))
    if match := _TIME.fullmatch(text):
        day, time, offset = match[1], match[2], match[3].upper().replace("Z", "+00:00")
        # A plus sign in a query stands for a space, unless it is written as %2B.
        seconds, _, fraction = time.partition(".")
        try:
            at = datetime.fromisoformat(f"{day}T{seconds}{offset.replace(' ', '+')}").astimezone(UTC)
        except (ValueError, OverflowError):
            pass
        else:
            return Beginning(since=at.timestamp() + (float(f"0.{fraction}") if fraction else 0.0))
    raise _bad("since", "since must be a time such as 2026-01-31T12:00:00Z, or seconds ago such as -60")


def parse_types(query: Query) -> frozenset[str] | None:
    """Return the event types that a stream is sent; None: all.

    Raises:
        Refusal: one is none that can be published, or there are too many.
    """
    if "types" not in query:
        return None
    names = _single(query, "types").split(",")
    if len(names) > MOST_TYPES:
        raise _bad("types", f"types has more than {MOST_TYPES} event types")
    for name in names:
        try:
            check_type(name, "each of types")
        except InvalidInput as error:
            raise _bad("types", str(error)) from None
    return frozenset(names)


def parse_rate(query: Query) -> float | None:
    """Return how many events of each key a second a stream asks for at most; None: as they come.

    Raises:
        Refusal: it is no number over 0 and up to 100.
    """
    if "rate" not in query:
        return None
    text = _single(query, "rate")
    if not _NUMBER.fullmatch(text) or not 0 < float(text) <= FASTEST_RATE:
        raise _bad("rate", f"rate must be a number of events a second over 0 and up to {FASTEST_RATE}")
    return float(text)


def _single(query: Query, name: str) -> str:
    """Return the value of an argument that may be given once."""
    values = query[name]
    if len(values) > 1:
        raise _bad(name, f"{name} is given more than once")
    return values[0].decode("latin-1")


def _bad(name: str, message: str) -> Refusal:
    return Refusal(400, f"invalid_{name}", message)
