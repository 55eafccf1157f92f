"""A handover in one or two parts as one: streams that were copied before the pause, and what has changed until it.

Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sse_app.handover.message import Message, PassedDescriptor, State, UnreadableState


class Reassembly:
    """All connections that are handed over, also where the format of their state is not known.

    Args:
        parts: the messages in their order, each with the descriptors of the sockets that came with it.

    Raises:
        UnreadableState: they do not go together.
    """

    def __init__(self, parts: Sequence[tuple[Message, Sequence[int]]]) -> None:
        *before, (self._rest, sockets) = parts
        self._copied: Message | None = None
        copied_sockets: Sequence[int] = ()
        if before:
            self._copied, copied_sockets = before[-1]
        self._unchanged = _unchanged(len(copied_sockets), self._rest)
        arrived = iter(sockets)
        self.passed: list[PassedDescriptor] = []
        """The descriptors: first those that were copied and have not changed, then the others."""
        if self._copied is not None:
            if len(self._copied.passed) != len(copied_sockets):
                raise UnreadableState("the handover is broken: sockets are missing")
            self.passed += [self._copied.passed[place] for place in self._unchanged]
        self.passed += [one if one.place < 0 else one._replace(place=-1) for one in self._rest.passed]
        self.descriptors = [copied_sockets[place] for place in self._unchanged]
        """Their numbers."""
        try:
            self.descriptors += [
                next(arrived) if place < 0 else copied_sockets[place] for *_, place in self._rest.passed
            ]
        except StopIteration:
            raise UnreadableState("the handover is broken: sockets are missing") from None
        if list(arrived):
            raise UnreadableState("the handover is broken: there are more sockets than connections")
        self.ended = [copied_sockets[place] for place in self._rest.gone]
        """Descriptors of connections that have ended since they were copied."""

    def state(self) -> State:
        """Return the state of them all.

        Raises:
            UnreadableState: another version of the program wrote it, or it is broken.
        """
        rest = self._rest.state()
        if self._copied is None:
            return rest
        copied = self._copied.state()
        shift = len(copied.channels)
        changed = [msgspec.structs.replace(one, channels=one.channels + shift) for one in rest.streams]
        streams = [*(copied.streams[place] for place in self._unchanged), *changed]
        return State(rest.epoch, rest.head, [*copied.channels, *rest.channels], streams, self.passed)


def _unchanged(copied: int, rest: Message) -> list[int]:
    """Return the places of copied connections that have neither ended nor changed."""
    mentioned = [*rest.gone, *(place for *_, place in rest.passed if place >= 0)]
    left = set(range(copied))
    for place in mentioned:
        if place not in left:
            raise UnreadableState("the handover is broken: a socket is missing")
        left.remove(place)
    return sorted(left)
