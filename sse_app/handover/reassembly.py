"""A handover in one or two parts as one: streams that were copied ahead, and what has changed until all stood still.

Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sse_app.handover.message import Envelope, Parcel, State, UnreadableState


class Whole:
    """All connections that are handed over, whatever the format of their state.

    Args:
        parts: the envelopes in their order, each with the descriptors of the sockets that came with it.

    Raises:
        UnreadableState: they do not go together.
    """

    def __init__(self, parts: Sequence[tuple[Envelope, Sequence[int]]]) -> None:
        *before, (self._rest, sockets) = parts
        self._copied: Envelope | None = None
        copied_sockets: Sequence[int] = ()
        if before:
            self._copied, copied_sockets = before[-1]
        self._unchanged = _unchanged(len(copied_sockets), self._rest)
        arrived = iter(sockets)
        self.parcels: list[Parcel] = []
        """Those copied ahead of which nothing more is said, then the others."""
        if self._copied is not None:
            if len(self._copied.parcels) != len(copied_sockets):
                raise UnreadableState("the handover is broken: sockets are missing")
            self.parcels += [self._copied.parcels[place] for place in self._unchanged]
        self.parcels += [
            parcel if parcel.place < 0 else parcel._replace(place=-1) for parcel in self._rest.parcels
        ]
        self.descriptors = [copied_sockets[place] for place in self._unchanged]
        """Of the parcels' sockets."""
        try:
            self.descriptors += [
                next(arrived) if place < 0 else copied_sockets[place] for *_, place in self._rest.parcels
            ]
        except StopIteration:
            raise UnreadableState("the handover is broken: sockets are missing") from None
        if list(arrived):
            raise UnreadableState("the handover is broken: there are more sockets than connections")
        self.ended = [copied_sockets[place] for place in self._rest.gone]
        """Descriptors of connections that have ended since they were copied."""

    def open(self) -> State:
        """Return the state of them all.

        Raises:
            UnreadableState: another version of the program wrote it, or it is broken.
        """
        rest = self._rest.open()
        if self._copied is None:
            return rest
        copied = self._copied.open()
        shift = len(copied.channels)
        told = [msgspec.structs.replace(one, channels=one.channels + shift) for one in rest.streams]
        streams = [*(copied.streams[place] for place in self._unchanged), *told]
        return State(rest.epoch, rest.head, [*copied.channels, *rest.channels], streams, self.parcels)


def _unchanged(copied: int, rest: Envelope) -> list[int]:
    """Return the places of copied connections that have neither ended nor changed."""
    told = [*rest.gone, *(place for *_, place in rest.parcels if place >= 0)]
    left = set(range(copied))
    for place in told:
        if place not in left:
            raise UnreadableState("the handover is broken: a socket is missing")
        left.remove(place)
    return sorted(left)
