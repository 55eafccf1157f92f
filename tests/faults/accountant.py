"""Compares the journals of publishers and clients, and says what went wrong, client by client.

It knows nothing of the server but its promises: what is acknowledged stays; an id is one event for ever; a client that
gives its position is sent what follows it, once and in order, or is told by a ``reset`` of the channel where not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from tests.faults.journal import (
    Answered,
    AnyRecord,
    Asked,
    Ended,
    Left,
    Malformed,
    Opened,
    Pinged,
    Received,
    Reset,
    Sent,
)

REFUSALS = (401, 503)
"""What a client may be answered instead of a stream; 401: by a clock that is set back its token is not issued yet."""


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
    """One thing that went wrong, and to whom."""

    mistake: Mistake
    whom: str
    what: str

    def __str__(self) -> str:
        return f"{self.whom}: {self.mistake}: {self.what}"


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
    """Acknowledged events that were lost where that may be (`Loss`)."""

    def counts(self) -> dict[str, int]:
        """Return how often each mistake was found."""
        found = Counter(finding.mistake for finding in self.findings)
        return {mistake.value: found[mistake] for mistake in Mistake}


@dataclass
class _Event:
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


class Accountant:
    """Takes the journals of a run, and balances them once it has ended.

    Args:
        publishers: their journals, by their names.
        clients: theirs.
        listing: all events that the log has in the end: each with its id, channel and payload.
        kept: whether everything is kept for ever: no history is trimmed, no log is replaced. Then any ``reset`` is
            needless.
        keeps: how many of each channel's newest events are kept in any case, where not all are.
        whole: whether the listing begins with the first event of the log.
        refusals: what may be answered instead of a stream.
        told: whether a server always had the time to say that it ends a stream.
        ends: from when until when something was done of which streams may end; None where any may end at any time.
        losses: each time that the log was replaced, in their order. What was acknowledged within one may be lost,
            but nothing that is earlier in the log than what is kept; and each client is told by a ``reset``.
    """

    def __init__(
        self,
        publishers: Mapping[str, Iterable[AnyRecord]],
        clients: Mapping[str, Iterable[AnyRecord]],
        listing: Iterable[tuple[str, str, str]],
        *,
        kept: bool = True,
        keeps: int = 0,
        whole: bool = False,
        refusals: Sequence[int] = REFUSALS,
        told: bool = False,
        ends: Sequence[tuple[float, float]] | None = None,
        losses: Sequence[Loss] = (),
    ) -> None:
        self.verdict = Verdict()
        self.events: dict[str, _Event] = {}
        """All that were sent, by their payloads."""
        self.due: dict[str, list[_Event]] = {}
        """By their channels, those that clients are to be sent."""
        self.kept = kept
        self.keeps = keeps
        self.refusals = refusals
        self.told = told
        self.ends = ends
        self._losses = losses
        self._epochs: list[str] = []
        """In the order in which events were acknowledged with them."""
        self._whole = whole
        self.timestamps: dict[Id, str] = {}
        """What clients were sent."""
        self._by_id: dict[Id, str] = {}
        """Payloads."""
        self._requests: dict[str, Sent] = {}
        self._clients = {name: list(records) for name, records in clients.items()}
        self._listing = listing
        self._listed: dict[str, Id] = {}
        """By their payloads, the events that the log has in the end."""
        for name, records in publishers.items():
            self._take_publisher(name, records)

    def balance(self) -> Verdict:
        """Compare everything, and return what was found."""
        self.verdict.acknowledged = sum(event.acknowledged > 0 for event in self.events.values())
        self._balance_listing()
        self._balance_batches()
        self._balance_order()
        for name, records in self._clients.items():
            self._learn_ids(name, records)
        for event in self.events.values():
            if event.ids and (self._losses or not self.kept or event.payload in self._listed):
                self.due.setdefault(event.channel, []).append(event)
        if not self.kept:
            self._balance_newest()
        for name, records in self._clients.items():
            _Client(name, self).follow(records)
        return self.verdict

    def find(self, mistake: Mistake, whom: str, what: str) -> None:
        """Note that something went wrong."""
        self.verdict.findings.append(Finding(mistake, whom, what))

    def _take_publisher(self, name: str, records: Iterable[AnyRecord]) -> None:
        requests = self._requests
        mine: dict[str, Sent] = {}
        unanswered: Counter[str] = Counter()
        for record in records:
            match record:
                case Sent():
                    unanswered[record.name] += 1
                    mine[record.name] = request = requests.setdefault(record.name, record)
                    if request.events != record.events:
                        raise ValueError(f"{name} sent {record.name} twice, with other events")
                    for channel, payload in record.events:
                        self.events.setdefault(payload, _Event(channel, payload, record.at))
                case Answered(status=201):
                    unanswered[record.name] -= 1
                    self._acknowledge(name, requests[record.name], record)
                case Answered(status=0) | Answered(code="outcome_unknown"):
                    pass  # it may have been stored
                case Answered():
                    unanswered[record.name] -= 1
                    if record.status not in (503, *self.refusals):
                        self.find(Mistake.MALFORMED, name, f"{record.name} was answered {record.status}")
        for request in mine.values():
            for _, payload in request.events:
                event = self.events[payload]
                event.refused = not unanswered[request.name] and not event.acknowledged

    def _acknowledge(self, name: str, request: Sent, answer: Answered) -> None:
        if len(answer.ids) != len(request.events):
            self.find(
                Mistake.INVENTED, name, f"{len(answer.ids)} ids for {len(request.events)} events: {answer}"
            )
            return
        ids = [Id.of(text) for text in answer.ids]
        self._check_batch(name, request, ids)
        for (_, payload), id in zip(request.events, ids, strict=True):
            event = self.events[payload]
            event.acknowledged = event.acknowledged or answer.at
            known = event.ids.get(id.epoch, event.id)
            if known is not None and not self._may_be_both(event, known, id):
                self.find(Mistake.DOUBLED, name, f"{payload} was acknowledged as {known} and as {id}")
            event.ids[id.epoch] = id
            self.is_that_event(name, id, payload)

    def _check_batch(self, whom: str, request: Sent, ids: Sequence[Id]) -> None:
        if any(later != Id(first.epoch, first.seq + 1) for first, later in pairwise(ids)):
            self.find(Mistake.MISORDERED, whom, f"{request.name} is {', '.join(map(str, ids))}")

    def _learn_ids(self, name: str, records: Sequence[AnyRecord]) -> None:
        """Take the ids of events that are known from what a client was sent alone, or find that it was another's."""
        for record in records:
            if not isinstance(record, Received):
                continue
            id, event = Id.of(record.id), self.events.get(record.payload)
            if event is None or event.channel != record.channel or event.refused:
                continue  # that is found where the client is followed
            known = event.ids.get(id.epoch, event.id)
            if known is None:
                if self._losses or not self.kept:
                    event.ids[id.epoch] = id
            elif self._may_be_both(event, known, id):
                event.ids.setdefault(id.epoch, id)
            elif self.kept or known.epoch == id.epoch:
                self.find(Mistake.INVENTED, name, f"{record.payload} as {id}, and it is {known}")

    def is_that_event(self, whom: str, id: Id, payload: str) -> bool:
        """Note which event an id stands for, and return whether it stands for no other."""
        if (known := self._by_id.setdefault(id, payload)) != payload:
            self.find(Mistake.TWO_EVENTS, whom, f"{id} is {known} and {payload}")
            return False
        return True

    def _may_be_both(self, event: _Event, one: Id, other: Id) -> bool:
        """Return whether an event may have two ids: that of the log, and that of the log which was replaced by it.

        It keeps its number, or is lost and has another one where the request is repeated.
        """
        if one.epoch == other.epoch or not self._losses:
            return one == other
        return one.seq == other.seq or self._may_be_lost(event, event.acknowledged)

    def may_come_again(self, event: _Event, one: Id, other: Id) -> bool:
        """Return whether a client may be sent an event by two ids: as it may be lost, and published again."""
        return one.epoch != other.epoch and self._may_be_lost(event, event.acknowledged)

    def _may_be_lost(self, event: _Event, known: float) -> bool:
        """Return whether an event may be lost that was known to be stored at a time; 0 where it never was."""
        return any((not known or known > loss.begins) and event.sent < loss.ends for loss in self._losses)

    def was_replaced(self, position: Id | None, at: float) -> bool:
        """Return whether the log of a position had been replaced by another one at a time."""
        if position is None or position.epoch not in self._epochs:
            return False
        number = self._epochs.index(position.epoch)
        return number < len(self._losses) and at >= self._losses[number].begins

    def is_stored(self, event: _Event, known: float) -> bool:
        """Return whether an event is in the log, or may have been there at a time."""
        return not self.kept or event.payload in self._listed or self._may_be_lost(event, known)

    def _balance_listing(self) -> None:
        listed = self._listed
        for text, channel, payload in self._listing:
            id, event = Id.of(text), self.events.get(payload)
            if event is None or event.channel != channel:
                self.find(Mistake.INVENTED, "log", f"{id} on {channel}: {payload}")
                continue
            if event.refused:
                self.find(Mistake.INVENTED, "log", f"{payload} was refused, and is {id}")
            if payload in listed:
                self.find(Mistake.DOUBLED, "log", f"{payload} is {listed[payload]} and {id}")
            listed[payload] = id
            self.is_that_event("log", id, payload)
            if not event.ids:
                event.ids[id.epoch] = id
        if self.kept:
            self._balance_losses()
            numbers = [0] * self._whole + sorted(id.seq for id in listed.values())
            for before, after in pairwise(numbers):
                if after > before + 1:
                    self.find(
                        Mistake.LOST, "log", f"no event has the numbers from {before + 1} to {after - 1}"
                    )

    def _balance_losses(self) -> None:
        """Find what was acknowledged and is not in the log; and where it was replaced, which ids are of one event."""
        acknowledged = [event for event in self.events.values() if event.acknowledged]
        lost: list[tuple[_Event, Id]] = []
        kept: dict[str, int] = {}
        """By its epoch, the number up to which a log has been copied to the next."""
        for event in sorted(acknowledged, key=lambda event: event.acknowledged):
            id, listed = event.id, self._listed.get(event.payload)
            if id is None:  # it was acknowledged without one
                continue
            if id.epoch not in self._epochs:
                self._epochs.append(id.epoch)
            if listed is not None and (listed == id or (self._losses and listed.seq == id.seq)):
                kept[id.epoch] = max(kept.get(id.epoch, 0), id.seq)
            else:
                lost.append((event, id))
        for event, id in lost:
            if not self._may_be_lost(event, event.acknowledged):
                self.find(Mistake.LOST, "log", f"{event.payload}, acknowledged as {id}")
            elif id.seq <= (end := kept.get(id.epoch, 0)):
                self.find(Mistake.LOST, "log", f"{event.payload}, {id}, and all is kept up to {end}")
            else:
                self.verdict.taken_back += 1
        if self._losses:
            self._join_ids(kept)

    def _join_ids(self, kept: Mapping[str, int]) -> None:
        """Have each event that is in the log know its id there, and the one that it had in each log before."""
        for payload, id in self._listed.items():
            ids = self.events[payload].ids
            for epoch, end in kept.items():
                if id.seq <= end and epoch != id.epoch:
                    before = ids.setdefault(epoch, Id(epoch, id.seq))
                    self.is_that_event("log", before, payload)
            ids.setdefault(id.epoch, id)

    def _balance_batches(self) -> None:
        """Check that of each batch all was stored, in its order, or nothing."""
        for request in self._requests.values() if self.kept else ():
            ids = [self._listed[payload] for _, payload in request.events if payload in self._listed]
            acknowledged = any(self.events[payload].acknowledged for _, payload in request.events)
            if not acknowledged and ids:  # else that was found for each event
                self._check_batch("log", request, ids)
                if len(ids) < len(request.events):
                    self.find(Mistake.LOST, "log", f"{request.name}, but for {len(ids)} of its events")

    def _balance_newest(self) -> None:
        """Check that the newest events of each channel are there, where not all are kept."""
        epochs = {id.epoch for id in self._listed.values()}
        for channel, events in self.due.items():
            of_now = [event for event in events if event.id is not None and event.id.epoch in epochs]
            newest = (
                sorted(of_now, key=lambda event: event.id or Id("", 0))[-self.keeps :] if self.keeps else []
            )
            for event in newest:
                if event.payload not in self._listed:
                    self.find(Mistake.LOST, "log", f"{event.payload}, {event.id}, of the newest on {channel}")

    def _balance_order(self) -> None:
        """Check that what was sent after another was acknowledged comes after it."""
        known = [event for event in self.events.values() if event.acknowledged and event.id]
        ended = sorted(known, key=lambda event: event.acknowledged)
        highest: dict[str, Id] = {}
        place = 0
        for event in sorted(known, key=lambda event: event.sent):
            assert event.id is not None
            while ended[place].acknowledged < event.sent:
                before = ended[place].id
                assert before is not None
                highest[before.epoch] = max(highest.get(before.epoch, before), before)
                place += 1
            if event.id <= highest.get(event.id.epoch, Id(event.id.epoch, -1)):
                self.find(
                    Mistake.MISORDERED,
                    "log",
                    f"{event.payload} is {event.id}, after {highest[event.id.epoch]}",
                )


@dataclass
class _Span:
    """A part of a channel that is due to a client whole: after a position, and all that was sent later.

    Attributes:
        after: the position; None after a reset, until an event has come.
        since: when its client was told of the position or the reset.
        until: the position of the client when it was told of the next gap; None where there was none.
    """

    after: Id | None
    since: float
    until: Id | None = None

    def covers(self, event: _Event) -> bool:
        """Return whether an event was due."""
        if self.until is not None:
            id = event.ids.get(self.until.epoch)
            if id is None or id > self.until:
                return False
        if event.sent > self.since:
            return True
        if self.after is None:
            return False
        id = event.ids.get(self.after.epoch)
        return id is not None and id > self.after


class _Client:
    """Follows one client through all of its streams.

    Args:
        name: of the client.
        books: of all events.
    """

    def __init__(self, name: str, books: Accountant) -> None:
        self._name = name
        self._books = books
        self._open = False
        """Whether it has a stream."""
        self._begun = False
        """Whether something has come on that stream after which no ``reset`` may come."""
        self._asked_at = 0.0
        self._channels: Sequence[str] = ()
        self._position: Id | None = None
        self._asked = ""
        self._recovered: bool | None = None
        """What ``connected`` said, until the first event after it."""
        self._spans: dict[str, list[_Span]] = {}
        self._seen: dict[str, Id] = {}
        """By their payloads, the events that it was sent."""

    def follow(self, records: Iterable[AnyRecord]) -> None:
        """Go through its journal, and find what was wrong."""
        left = False
        for record in records:
            match record:
                case Asked():
                    self._channels, self._asked = record.channels, record.position
                    self._asked_at = record.at
                case Opened():
                    self._opened(record)
                case Received():
                    self._go_on("an event")
                    self._received(record)
                case Reset():
                    self._reset(record)
                case Pinged():
                    self._go_on("a ping")
                    self._pinged(record)
                case Ended():
                    self._ended(record)
                case Malformed():
                    self._find(Mistake.MALFORMED, record.why)
                case Left():
                    left = True
        if self._channels and not self._spans and not left:
            self._find(Mistake.SILENT_GAP, f"it never had a stream on {', '.join(self._channels)}")
        for channel, spans in self._spans.items():
            if left:
                spans[-1].until = self._position
            for event in self._books.due.get(channel, ()):
                if event.payload not in self._seen and any(span.covers(event) for span in spans):
                    self._find(Mistake.SILENT_GAP, f"{event.payload}, {event.id}, on {channel}")

    def _find(self, mistake: Mistake, what: str) -> None:
        self._books.find(mistake, self._name, what)

    def _opened(self, record: Opened) -> None:
        self._books.verdict.streams += 1
        self._open, self._begun = True, False
        if not self._asked:
            self._position = Id.of(record.id)
            for channel in self._channels:
                self._spans.setdefault(channel, []).append(_Span(self._position, record.at))
            return
        self._recovered = record.recovered
        if record.id != self._asked:
            self._find(
                Mistake.FALSE_POSITION, f"connected is at {record.id}, and {self._asked} was asked for"
            )

    def _ended(self, record: Ended) -> None:
        self._expect_no_reset()
        if record.status not in (0, *self._books.refusals):
            self._find(Mistake.MALFORMED, f"a stream was answered {record.status}")
        if self._books.told and self._open and not record.reason and not record.left:
            self._find(Mistake.UNTOLD, f"the stream that was opened after {self._asked or 'no position'}")
        if not record.left and not self._may_end(record.at):
            how = record.reason or record.status or ("untold" if self._open else "unanswered")
            self._find(
                Mistake.ENDED, f"the stream that was asked for after {self._asked or 'no position'}: {how}"
            )
        self._open = False

    def _may_end(self, at: float) -> bool:
        """Return whether something was done, between the request for a stream and a time, of which it may end."""
        return self._books.ends is None or any(
            self._asked_at <= until and since <= at for since, until in self._books.ends
        )

    def _go_on(self, with_what: str) -> None:
        """Something comes on a stream that has begun, and has said where it has gaps."""
        if not self._open:
            self._find(Mistake.MALFORMED, f"{with_what} before connected")
            self._open = True
        self._expect_no_reset()
        self._begun = True

    def _pinged(self, record: Pinged) -> None:
        if not record.id:
            return
        id = Id.of(record.id)
        if self._position is not None and id.epoch == self._position.epoch and id < self._position:
            self._find(Mistake.FALSE_POSITION, f"a ping at {id}, after {self._position}")
        self._position = id

    def _expect_no_reset(self) -> None:
        if self._recovered is False:
            self._find(
                Mistake.FALSE_POSITION, f"after {self._asked} it is not recovered, and no reset says where"
            )
        self._recovered = None

    def _reset(self, record: Reset) -> None:
        self._books.verdict.resets += 1
        if self._recovered:
            self._find(
                Mistake.FALSE_POSITION, f"after {self._asked} all is recovered, and {record.channel} is reset"
            )
        self._recovered = None
        if not self._open or self._begun:
            self._find(Mistake.FALSE_POSITION, f"a reset of {record.channel} that does not follow connected")
        if record.channel not in self._spans or record.channel not in self._channels:
            self._find(Mistake.INVENTED, f"a reset of {record.channel}")
            return
        if self._is_needless(record):
            self._find(Mistake.NEEDLESS_RESET, f"{record.channel} after {self._position}: {record.reason}")
        spans = self._spans[record.channel]
        spans[-1].until = self._position
        spans.append(_Span(None, record.at))

    def _is_needless(self, reset: Reset) -> bool:
        """Return whether all that follows the position was certainly there when the client was told of a gap."""
        if self._books.kept:
            return not self._books.was_replaced(self._position, reset.at)
        position = self._position
        if reset.reason != "history_trimmed" or position is None:
            return False
        follow = sum(
            event.sent < reset.at
            and (event.id is None or event.id.epoch != position.epoch or event.id > position)
            for event in self._books.events.values()
            if event.channel == reset.channel and not event.refused
        )
        return follow <= self._books.keeps

    def _received(self, record: Received) -> None:
        self._books.verdict.received += 1
        id, event = Id.of(record.id), self._books.events.get(record.payload)
        if event is None or event.channel != record.channel:
            self._find(Mistake.INVENTED, f"{id} on {record.channel}: {record.payload}")
        elif record.channel not in self._channels:
            self._find(Mistake.INVENTED, f"{id} of {record.channel}, which it has not asked for")
        elif event.refused or not self._books.is_stored(event, record.at):
            self._find(Mistake.INVENTED, f"{record.payload}, {id}, which is not in the log")
        elif (timestamp := self._books.timestamps.setdefault(id, record.timestamp)) != record.timestamp:
            self._find(Mistake.TWO_EVENTS, f"{id} is of {timestamp} and of {record.timestamp}")
        elif self._books.is_that_event(self._name, id, record.payload):
            self._place(id, event)
        if (spans := self._spans.get(record.channel)) and spans[-1].after is None:
            spans[-1].after = id
        self._seen[record.payload] = id
        self._position = id

    def _place(self, id: Id, event: _Event) -> None:
        before, spans = self._seen.get(event.payload), self._spans.get(event.channel)
        after = spans[-1].after if spans and event.ids.get(id.epoch) == id else None
        if after is not None and after.epoch != id.epoch:
            self._find(Mistake.SILENT_GAP, f"{event.payload}, {id}, is of another log than {self._position}")
        elif before is not None and not self._books.may_come_again(event, before, id):
            self._find(Mistake.DOUBLED, f"{event.payload}, {before} and {id}")
        elif self._position is not None and id.epoch == self._position.epoch and id <= self._position:
            self._find(Mistake.MISORDERED, f"{event.payload}, {id}, after {self._position}")
