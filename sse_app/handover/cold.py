"""A cold restart: one process puts everything into the service manager's store, and the next one takes it out.

The connections stay open while no process runs. systemd keeps the listening sockets (socket activation) and
the pair of sockets in which the handover lies (file descriptor store).
"""

from __future__ import annotations

import logging
import os

from sse_app.core.events import EventId
from sse_app.handover.fd_store import FdStore
from sse_app.handover.message import State, UnreadableState, decode, encode
from sse_app.handover.reassembly import Reassembly
from sse_app.handover.receiver import HandoverReceiver
from sse_app.handover.sender import HandoverSender
from sse_app.streams.stream import Stream

COLD_COPY_LIFETIME = 10.0
"""A stream whose token expires within so many seconds is not copied before the pause."""

log = logging.getLogger(__name__)


async def store_handover(sender: HandoverSender, store: FdStore) -> bool:
    """Put all connections into the store, and return whether that was possible; this process must end then.

    Nearly all streams are described before the pause, so that the pause is short.
    """
    try:
        copied, state, descriptors = sender.quiet_streams(COLD_COPY_LIFETIME)
        store.put(encode(state), descriptors, last=False)
        sender.stop_watching_disconnects()
        await sender.pause()
        state, descriptors = sender.everything(copied)
        store.put(encode(state), descriptors, last=True)
    except Exception as error:  # of any kind: streams that cannot be handed over are drained
        log.exception("handover_failed", extra={"detail": str(error)})
        store.clear()
        sender.resume()
        return False
    return True


class StoredHandover:
    """The handover of the process before. It stays in the store until it is adopted, in case this process crashes.

    Args:
        store: where it is.
    """

    def __init__(self, store: FdStore) -> None:
        self._arrival = store.look()
        self._whole: Reassembly | None = None
        self._state: State | None = None
        if self._arrival is None:
            return
        try:
            self._whole = Reassembly(
                [(decode(text), descriptors) for text, descriptors in self._arrival.parts]
            )
        except UnreadableState as error:
            log.error("handover_lost", extra={"detail": str(error)})
            self._arrival.drop()
            self._arrival = None
            return
        try:
            self._state = self._whole.state()
        except UnreadableState as error:
            log.warning("handover_refused", extra={"detail": str(error)})

    @property
    def position(self) -> EventId | None:
        """The position up to which its streams have their events; None where there are none to adopt."""
        return self._state.position if self._state is not None else None

    def adopt(self, receiver: HandoverReceiver) -> list[Stream]:
        """Adopt its connections, and end those whose state cannot be read.

        Returns:
            The streams that are yet to be watched.
        """
        if self._arrival is None or self._whole is None:
            return []
        for descriptor in self._whole.ended:
            os.close(descriptor)
        adopted: list[Stream] = []
        if self._state is not None:
            adopted = receiver.adopt(self._state, self._whole.descriptors)
            log.info("adopted", extra={"streams": len(adopted)})
        else:
            receiver.refuse(self._whole.passed, self._whole.descriptors)
        self._arrival.take()
        return adopted
