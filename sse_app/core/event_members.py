"""The members of an event's data, without the rest of it being read; apart, for clients do without msgspec."""

from __future__ import annotations

import msgspec

from sse_app.core.events import TEXT, Event, NewEvent

_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def member_of(event: NewEvent | Event, name: str) -> bytes | None:
    """Return a member of an event's data as JSON; None where the data is no object, or does not have it."""
    if event.flags & TEXT or not event.data.startswith(b"{"):
        return None
    value = _decode_members(event.data).get(name)
    return None if value is None else bytes(value)
