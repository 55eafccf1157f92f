"""What a node says to the others with the notification of a small commit: its events, which they need not read then.

It is sealed, since every role that may connect to the database can listen and notify there. It names the position of
the last event, so it is good for no other place of the log; the database adds it only where the events have that place.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Sequence

import msgspec

from sse_app.core.events import Event, EventId, NewEvent
from sse_app.storage.postgres.sealing import Seal

LONGEST = 5800
"""How many bytes a notice may have: sealed, in base64 and with what stands before it these are fewer than 8000."""

_PURPOSE = b"sse_app.events"
"""Tells these messages from others that are sealed with the same secret."""


class Notice(msgspec.Struct, array_like=True, gc=False):
    """The events of a commit, after which the log had this epoch and head."""

    epoch: str
    head: int
    events: list[Event]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Notice).decode


class Notices:
    """Seals and opens notices, once it has the secret that all nodes of a database share."""

    def __init__(self) -> None:
        self._secret: bytes | None = None
        self._seal: Seal | None = None

    def use(self, secret: bytes | None) -> None:
        """Take the secret as it is in the database; None where there is none."""
        if secret != self._secret:
            self._secret = secret
            self._seal = Seal(hmac.digest(secret, _PURPOSE, hashlib.sha256)) if secret else None

    def close(self, known: EventId, new: Sequence[NewEvent]) -> str | None:
        """Return what to say of events that follow a position directly; None where nothing is to be said, or too much.

        Args:
            known: the position.
            new: the events.
        """
        if self._seal is None or not new or sum([len(event.data) for event in new]) > LONGEST:
            return None
        events = [Event(seq, *event) for seq, event in enumerate(new, known.seq + 1)]
        notice = _encode(Notice(known.epoch, events[-1].seq, events))
        return b64encode(self._seal.close(notice)).decode() if len(notice) <= LONGEST else None

    def open(self, text: str, position: EventId) -> list[Event]:
        """Return the events that a node says it has committed, or none.

        Args:
            text: the notice.
            position: what the notification says to be that of the last event.
        """
        if self._seal is None or not text:
            return []
        try:
            notice = _decode(self._seal.open(b64decode(text, validate=True)) or b"")
        except (ValueError, msgspec.DecodeError):  # not of a node, or of one of another version
            return []
        return notice.events if (notice.epoch, notice.head) == position else []
