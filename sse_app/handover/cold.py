"""A cold restart: one process leaves everything in the service manager's store, and the next one finds it there."""

from __future__ import annotations

import logging
import os

from sse_app.handover.fd_store import Store
from sse_app.handover.message import UnreadableState, decode, encode
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


def find(taking: Taking, store: Store) -> list[Stream]:
    """Go on with what the process before has left; what cannot be read is ended.

    Until that has been done it stays in the store, for the next attempt should this process die over it.

    Returns:
        The streams that are to be settled.
    """
    arrival = store.look()
    if arrival is None:
        return []
    try:
        whole = Whole([(decode(text), descriptors) for text, descriptors in arrival.parts])
    except UnreadableState as error:
        log.error("handover_lost", extra={"detail": str(error)})
        arrival.drop()
        return []
    for descriptor in whole.ended:
        os.close(descriptor)
    adopted: list[Stream] = []
    try:
        adopted = taking.adopt(whole.open(), whole.descriptors)
        log.info("adopted", extra={"streams": len(adopted)})
    except UnreadableState as error:
        log.warning("handover_refused", extra={"detail": str(error)})
        taking.refuse(whole.parcels, whole.descriptors)
    arrival.take()
    return adopted
