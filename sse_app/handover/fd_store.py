"""The pair of sockets in systemd's file descriptor store, in which one process leaves a handover for the next."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Protocol

from sse_app.handover.fd_passing import Arrival, IncompleteHandover, channel, empty, send

SENDING, RECEIVING = "handover-sending", "handover-receiving"

log = logging.getLogger(__name__)


class ServiceManager(Protocol):
    """Keeps file descriptors from one process to the next: systemd, through `sse_app.process.systemd`."""

    @property
    def present(self) -> bool:
        """Whether there is one."""

    def notify(self, *assignments: str, descriptors: Sequence[int] = ()) -> None:
        """Send assignments and file descriptors to it (sd_notify(3))."""


class FdStore:
    """Both ends of the pair. They stay in systemd's store, so a process that ends need not send them there.

    Args:
        sending, receiving: the ends.
    """

    def __init__(self, sending: socket.socket, receiving: socket.socket) -> None:
        self.sending = sending
        self.receiving = receiving
        sending.setblocking(False)

    @classmethod
    def of(cls, inherited: Sequence[tuple[str, int]], systemd: ServiceManager) -> FdStore | None:
        """Return the store that the process before used, or a new one; None without systemd."""
        by_name = dict(inherited)
        if SENDING in by_name and RECEIVING in by_name:
            return cls(socket.socket(fileno=by_name[SENDING]), socket.socket(fileno=by_name[RECEIVING]))
        if not systemd.present:
            return None
        store = cls(*channel())
        for name, end in ((SENDING, store.sending), (RECEIVING, store.receiving)):
            # FDPOLL=0: else systemd would drop an end once the other one seems to have hung up.
            systemd.notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", descriptors=[end.fileno()])
        return store

    def put(self, text: bytes, descriptors: Sequence[int], *, last: bool) -> None:
        """Put in a part of a handover; the next process finds nothing before the last part is there.

        Raises:
            OSError: it did not fit.
        """
        send(self.sending, text, descriptors, last=last)

    def clear(self) -> None:
        """Take out and drop everything."""
        empty(self.receiving)

    def look(self) -> Arrival | None:
        """Return what the process before has put in, and leave it there; None if there is nothing complete."""
        try:
            return Arrival(self.receiving) or None
        except IncompleteHandover as error:
            log.error("handover_lost", extra={"detail": str(error)})
            self.clear()
            return None

    def descriptors(self) -> list[tuple[str, int]]:
        """Return the ends by their names, to be passed on."""
        return [(SENDING, self.sending.fileno()), (RECEIVING, self.receiving.fileno())]
