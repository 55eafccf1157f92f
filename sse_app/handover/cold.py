"""A cold restart: one process leaves everything in the service manager's store, and the next one finds it there."""

from __future__ import annotations

import logging
import os

from sse_app.core.events import EventId
from sse_app.handover.fd_store import Store
from sse_app.handover.message import State, UnreadableState, decode, encode
from sse_app.handover.reassembly import Whole
from sse_app.handover.receiver import Taking
from sse_app.handover.sender import Giving
from sse_app.streams.stream import Stream

AHEAD = 10.0
"""A stream whose token expires within so many seconds is not copied before the process holds still."""

log = logging.getLogger(__name__)


async def leave(giving: Giving, store: Store) -> bool:
    """Leave all connections to the next process, and return whether that was possible; this one must end then.

    Nearly all is said while the streams still go on, so that the pause begins with the little that is left.
    """
    try:
        copied, state, descriptors = giving.quiet_streams(AHEAD)
        store.put(encode(state), descriptors, last=False)
        giving.forget_disconnects()
        await giving.hold()
        state, descriptors = giving.everything(copied)
        store.put(encode(state), descriptors, last=True)
    except Exception as error:  # whatever it is: streams that cannot be handed over are drained
        log.exception("handover_failed", extra={"detail": str(error)})
        store.clear()
        giving.let_go_on()
        return False
    return True


class Found:
    """What the process before has left in the store, where it stays until it has been adopted.

    So it is there for the next attempt, should this process die over it.

    Args:
        store: the store.
    """

    def __init__(self, store: Store) -> None:
        self._arrival = store.look()
        self._whole: Whole | None = None
        self._state: State | None = None
        if self._arrival is None:
            return
        try:
            self._whole = Whole([(decode(text), descriptors) for text, descriptors in self._arrival.parts])
        except UnreadableState as error:
            log.error("handover_lost", extra={"detail": str(error)})
            self._arrival.drop()
            self._arrival = None
            return
        try:
            self._state = self._whole.open()
        except UnreadableState as error:
            log.warning("handover_refused", extra={"detail": str(error)})

    @property
    def position(self) -> EventId | None:
        """The position up to which its streams have their events; None where there are none to go on with."""
        return self._state.position if self._state is not None else None

    def adopt(self, taking: Taking) -> list[Stream]:
        """Go on with it, and end connections whose state cannot be read.

        Returns:
            The streams that are to be settled.
        """
        if self._arrival is None or self._whole is None:
            return []
        for descriptor in self._whole.ended:
            os.close(descriptor)
        adopted: list[Stream] = []
        if self._state is not None:
            adopted = taking.adopt(self._state, self._whole.descriptors)
            log.info("adopted", extra={"streams": len(adopted)})
        else:
            taking.refuse(self._whole.parcels, self._whole.descriptors)
        self._arrival.take()
        return adopted
