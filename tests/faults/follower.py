"""Follows one client through all of its streams, and finds what it was sent or told wrongly, or not sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.faults.journal import AnyRecord, Asked, Ended, Left, Malformed, Opened, Pinged, Received, Reset
from tests.faults.ledger import Event, Id, Ledger
from tests.faults.verdict import Mistake


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

    def covers(self, event: Event) -> bool:
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


class Follower:
    """Follows one client through all of its streams.

    Args:
        name: of the client.
        ledger: of all events.
    """

    def __init__(self, name: str, ledger: Ledger) -> None:
        self._name = name
        self._ledger = ledger
        self._promises = ledger.promises
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
            for event in self._ledger.due.get(channel, ()):
                if event.payload in self._seen or self._may_be_of_later(event):
                    continue
                if any(span.covers(event) for span in spans):
                    self._find(Mistake.SILENT_GAP, f"{event.payload}, {event.id}, on {channel}")

    def _may_be_of_later(self, event: Event) -> bool:
        """Return whether an event may have been stored only after the client was told to end.

        An append whose outcome is not known may reach a database late, as where its connection was cut off.
        """
        if event.acknowledged or event.id is None or self._position is None:
            return False
        return event.id.epoch == self._position.epoch and event.id > self._position

    def _find(self, mistake: Mistake, what: str) -> None:
        self._ledger.find(mistake, self._name, what)

    def _opened(self, record: Opened) -> None:
        self._ledger.verdict.streams += 1
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
        if record.status not in (0, *self._promises.refusals):
            self._find(Mistake.MALFORMED, f"a stream was answered {record.status}")
        if self._promises.told and self._open and not record.reason and not record.left:
            self._find(Mistake.UNTOLD, f"the stream that was opened after {self._asked or 'no position'}")
        if not record.left and not self._may_end(record.at):
            how = record.reason or record.status or ("untold" if self._open else "unanswered")
            self._find(
                Mistake.ENDED, f"the stream that was asked for after {self._asked or 'no position'}: {how}"
            )
        self._open = False

    def _may_end(self, at: float) -> bool:
        """Return whether something was done, between the request for a stream and a time, of which it may end."""
        return self._promises.ends is None or any(
            self._asked_at <= until and since <= at for since, until in self._promises.ends
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
        self._ledger.verdict.resets += 1
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
        if self._promises.kept:
            return not self._ledger.was_replaced(self._position, reset.at)
        position = self._position
        if reset.reason != "history_trimmed" or position is None:
            return False
        follow = sum(
            event.sent < reset.at
            and (event.id is None or event.id.epoch != position.epoch or event.id > position)
            for event in self._ledger.events.values()
            if event.channel == reset.channel and not event.refused
        )
        return follow <= self._promises.keeps

    def _received(self, record: Received) -> None:
        self._ledger.verdict.received += 1
        id, event = Id.of(record.id), self._ledger.events.get(record.payload)
        if event is None or event.channel != record.channel:
            self._find(Mistake.INVENTED, f"{id} on {record.channel}: {record.payload}")
        elif record.channel not in self._channels:
            self._find(Mistake.INVENTED, f"{id} of {record.channel}, which it has not asked for")
        elif event.refused or not self._ledger.is_stored(event, record.at):
            self._find(Mistake.INVENTED, f"{record.payload}, {id}, which is not in the log")
        elif (timestamp := self._ledger.timestamps.setdefault(id, record.timestamp)) != record.timestamp:
            self._find(Mistake.TWO_EVENTS, f"{id} is of {timestamp} and of {record.timestamp}")
        elif self._ledger.is_that_event(self._name, id, record.payload):
            self._place(id, event)
        if (spans := self._spans.get(record.channel)) and spans[-1].after is None:
            spans[-1].after = id
        self._seen[record.payload] = id
        self._position = id

    def _place(self, id: Id, event: Event) -> None:
        before, spans = self._seen.get(event.payload), self._spans.get(event.channel)
        after = spans[-1].after if spans and event.ids.get(id.epoch) == id else None
        if after is not None and after.epoch != id.epoch:
            self._find(Mistake.SILENT_GAP, f"{event.payload}, {id}, is of another log than {self._position}")
        elif before is not None and not self._ledger.may_come_again(event, before, id):
            self._find(Mistake.DOUBLED, f"{event.payload}, {before} and {id}")
        elif self._position is not None and id.epoch == self._position.epoch and id <= self._position:
            self._find(Mistake.MISORDERED, f"{event.payload}, {id}, after {self._position}")
