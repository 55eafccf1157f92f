"""What an account of a run comes to: each thing that went wrong, and of how much."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple


class Mistake(StrEnum):
    """What may have gone wrong."""

    LOST = "lost"
    """An event was acknowledged, and is not in the log."""
    SILENT_GAP = "silent gap"
    """A client was not sent an event that was due to it, and was not told."""
    DOUBLED = "doubled"
    """A client was sent an event twice, or one request is in the log twice."""
    MISORDERED = "misordered"
    """A client was sent an event after a later one, or ids do not follow the order of the acknowledgements."""
    INVENTED = "invented"
    """What was sent or stored was not published, or on another channel, or was refused."""
    NEEDLESS_RESET = "needless reset"
    """A client was told of a gap, and all that it lacked was kept, and the log was not replaced."""
    TWO_EVENTS = "one id, two events"
    UNTOLD = "untold end"
    """A stream ended without ``closing``, and nothing was done to the server for which it could not send one."""
    ENDED = "ended"
    """A stream ended, or was not begun, and nothing was done to the server for which it could not go on."""
    MALFORMED = "malformed"
    """A stream is not as the format says."""
    FALSE_POSITION = "false position"
    """``connected`` is not at the position that was asked for, or says falsely whether something is missing."""


class Finding(NamedTuple):
    """One thing that went wrong.

    Attributes:
        where: it was seen: in the ``log``, or in the journal of a publisher or client, whose name it is.
        what: went wrong, in words.
    """

    mistake: Mistake
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.mistake}: {self.what}"


@dataclass
class Verdict:
    """What was found, and of how much."""

    findings: list[Finding] = field(default_factory=list)
    acknowledged: int = 0
    """Events."""
    received: int = 0
    """Events, over all clients."""
    streams: int = 0
    resets: int = 0
    taken_back: int = 0
    """Acknowledged events that were lost where that may be (`tests.faults.ledger.Loss`)."""

    def counts(self) -> dict[str, int]:
        """Return how often each mistake was found."""
        found = Counter(finding.mistake for finding in self.findings)
        return {mistake.value: found[mistake] for mistake in Mistake}
