"""The events of a run, what is known of each, and what was promised: all that the account of a client is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.faults.journal import Sent
from tests.faults.verdict import Finding, Mistake, Verdict

REFUSALS = (401, 503)
"""What may be answered instead of a stream or an id; 401: by a clock that is set back a token is not issued yet."""


class Id(NamedTuple):
    """An event id, in parts; those of one epoch are in order."""

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.seq}"

    @classmethod
    def of(cls, text: str) -> Id:
        """Return the parts of an id.

        Raises:
            ValueError: it is none.
        """
        epoch, _, seq = text.rpartition("-")
        return cls(epoch, int(seq))


class Loss(NamedTuple):
    """The log was replaced by a copy of it, which may lack the latest: so it has another epoch from then on.

    Attributes:
        begins: a time; all that was known to be stored before is in the copy.
        ends: a time; all that is sent later goes into the copy.
    """

    begins: float
    ends: float


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What is promised of a run.

    Attributes:
        kept: everything is kept for ever: no history is trimmed, no log is replaced. Then any ``reset`` is needless.
        keeps: how many of each channel's newest events are kept in any case, where not all are.
        whole: the listing begins with the first event of the log.
        refusals: what may be answered instead of a stream.
        told: a server always had the time to say that it ends a stream.
        ends: from when until when something was done of which streams may end; None where any may end at any time.
        losses: each time that the log was replaced, in their order. What was acknowledged within one may be lost,
            but nothing that is earlier in the log than what is kept; and each client is told by a ``reset``.
    """

    kept: bool = True
    keeps: int = 0
    whole: bool = False
    refusals: Sequence[int] = REFUSALS
    told: bool = False
    ends: Sequence[tuple[float, float]] | None = None
    losses: Sequence[Loss] = ()


@dataclass
class Event:
    """An event that was sent."""

    channel: str
    payload: str
    sent: float
    """When it was first sent."""
    acknowledged: float = 0.0
    """When that was first known; 0 where it never was."""
    ids: dict[str, Id] = field(default_factory=dict)
    """By their epochs; there is more than one only where the log was replaced."""
    refused: bool = False
    """Whether each attempt was answered, and none acknowledged: then it is nowhere."""

    @property
    def id(self) -> Id | None:
        """The one that was known first."""
        return next(iter(self.ids.values()), None)


class Ledger:
    """All events, by what publishers, the log and clients have said of them so far."""

    def __init__(self, promises: Promises) -> None:
        self.promises = promises
        self.verdict = Verdict()
        self.requests: dict[str, Sent] = {}
        """By their names."""
        self.events: dict[str, Event] = {}
        """All that were sent, by their payloads."""
        self.listed: dict[str, Id] = {}
        """By their payloads, the events that the log has in the end."""
        self.due: dict[str, list[Event]] = {}
        """By their channels, those that clients are to be sent."""
        self.epochs: list[str] = []
        """In the order in which events were acknowledged with them."""
        self.timestamps: dict[Id, str] = {}
        """What clients were sent."""
        self._by_id: dict[Id, str] = {}
        """Payloads."""

    def find(self, mistake: Mistake, where: str, what: str) -> None:
        """Note that something went wrong."""
        self.verdict.findings.append(Finding(mistake, where, what))

    def is_that_event(self, where: str, id: Id, payload: str) -> bool:
        """Note which event an id stands for, and return whether it stands for no other."""
        if (known := self._by_id.setdefault(id, payload)) != payload:
            self.find(Mistake.TWO_EVENTS, where, f"{id} is {known} and {payload}")
            return False
        return True

    def may_be_both(self, event: Event, one: Id, other: Id) -> bool:
        """Return whether an event may have two ids: that of the log, and that of the log which was replaced by it.

        It keeps its number, or is lost and has another one where the request is repeated.
        """
        if one.epoch == other.epoch or not self.promises.losses:
            return one == other
        return one.seq == other.seq or self.may_be_lost(event, event.acknowledged)

    def may_come_again(self, event: Event, one: Id, other: Id) -> bool:
        """Return whether a client may be sent an event by two ids: as it may be lost, and published again."""
        return one.epoch != other.epoch and self.may_be_lost(event, event.acknowledged)

    def may_be_lost(self, event: Event, known: float) -> bool:
        """Return whether an event may be lost that was known to be stored at a time; 0 where it never was."""
        return any(
            (not known or known > loss.begins) and event.sent < loss.ends for loss in self.promises.losses
        )

    def was_replaced(self, position: Id | None, at: float) -> bool:
        """Return whether the log of a position had been replaced by another one at a time."""
        if position is None or position.epoch not in self.epochs:
            return False
        number = self.epochs.index(position.epoch)
        return number < len(self.promises.losses) and at >= self.promises.losses[number].begins

    def is_stored(self, event: Event, known: float) -> bool:
        """Return whether an event is in the log, or may have been there at a time."""
        return not self.promises.kept or event.payload in self.listed or self.may_be_lost(event, known)

    def is_due(self, event: Event) -> bool:
        """Return whether clients are to be sent an event whose id is known."""
        return bool(self.promises.losses) or not self.promises.kept or event.payload in self.listed
