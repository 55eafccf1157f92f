"""What a node remembers of the log over a restart: how far it went."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sse_app.core.events import EventId

NOTHING = EventId("", 0)
"""The position of no event of any log."""

log = logging.getLogger(__name__)


class Memory:
    """Keeps a position of the log in a file.

    A copy of the database of an earlier time has the same epoch, and would give the numbers of the events that it
    lacks to others. A node that runs knows how far the log went; one that was stopped meanwhile knows it by this.

    Args:
        file: of this node; None where nothing is remembered.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._noted = NOTHING

    def recall(self) -> EventId:
        """Return the last position that was noted, or `NOTHING`."""
        if self._file is None:
            return NOTHING
        try:
            return EventId.parse(self._file.read_text().strip()) or NOTHING
        except (OSError, UnicodeError):
            return NOTHING

    def note(self, position: EventId) -> None:
        """Keep a position; where the file cannot be written, it is tried again with the next one."""
        if self._file is None or position == self._noted:
            return
        draft = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        try:
            draft.write_text(f"{position}\n")
            draft.replace(self._file)
        except OSError as error:
            log.debug("log_position_not_kept", extra={"detail": str(error)})
        else:
            self._noted = position
