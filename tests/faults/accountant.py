"""Compares the journals of publishers and clients, and says what went wrong, client by client.

It knows nothing of the server but its promises: what is acknowledged stays; an id is one event for ever; a client that
gives its position is sent what follows it, once and in order, or is told by a ``reset`` of the channel where not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from tests.faults.follower import Follower
from tests.faults.journal import Answered, AnyRecord, Received, Sent
from tests.faults.ledger import Event, Id, Ledger, Promises
from tests.faults.verdict import Mistake, Verdict

LEFT_OUT = 1_000_000_000
"""How many numbers a standby leaves out when it is promoted and goes on with the ids, as docs/scaling.md says."""


def account(
    publishers: Mapping[str, Iterable[AnyRecord]],
    clients: Mapping[str, Iterable[AnyRecord]],
    listing: Iterable[tuple[str, str, str]],
    promises: Promises | None = None,
) -> Verdict:
    """Compare everything that was said in a run that has ended, and return what was found.

    Args:
        publishers: their journals, by their names.
        clients: theirs.
        listing: all events that the log has in the end: each with its id, channel and payload.
        promises: of the run.
    """
    ledger = Ledger(promises or Promises())
    journals = {name: list(records) for name, records in clients.items()}
    for name, records in publishers.items():
        _take_publisher(ledger, name, records)
    ledger.verdict.acknowledged = sum(event.acknowledged > 0 for event in ledger.events.values())
    _take_listing(ledger, listing)
    if ledger.promises.kept:
        _check_nothing_is_lost(ledger)
        _check_numbers(ledger)
        _check_batches(ledger)
    _check_order(ledger)
    for name, records in journals.items():
        _learn_ids(ledger, name, records)
    for event in ledger.events.values():
        if event.ids and ledger.is_due(event):
            ledger.due.setdefault(event.channel, []).append(event)
    if not ledger.promises.kept:
        _check_newest(ledger)
    for name, records in journals.items():
        Follower(name, ledger).follow(records)
    return ledger.verdict


# -- what publishers were told -----------------------------------------------------------------------------------


def _take_publisher(ledger: Ledger, name: str, records: Iterable[AnyRecord]) -> None:
    """Note what a publisher has sent, and what it was answered."""
    mine: dict[str, Sent] = {}
    unanswered: Counter[str] = Counter()
    for record in records:
        match record:
            case Sent():
                unanswered[record.name] += 1
                mine[record.name] = request = ledger.requests.setdefault(record.name, record)
                if request.events != record.events:
                    raise ValueError(f"{name} sent {record.name} twice, with other events")
                for channel, payload in record.events:
                    ledger.events.setdefault(payload, Event(channel, payload, record.at))
            case Answered(status=201):
                unanswered[record.name] -= 1
                _take_acknowledgement(ledger, name, ledger.requests[record.name], record)
            case Answered(status=0) | Answered(code="outcome_unknown"):
                pass  # it may have been stored
            case Answered():
                unanswered[record.name] -= 1
                if record.status not in (503, *ledger.promises.refusals):
                    ledger.find(Mistake.MALFORMED, name, f"{record.name} was answered {record.status}")
    for request in mine.values():
        for _, payload in request.events:
            event = ledger.events[payload]
            event.refused = not unanswered[request.name] and not event.acknowledged


def _take_acknowledgement(ledger: Ledger, name: str, request: Sent, answer: Answered) -> None:
    if len(answer.ids) != len(request.events):
        ledger.find(
            Mistake.INVENTED, name, f"{len(answer.ids)} ids for {len(request.events)} events: {answer}"
        )
        return
    ids = [Id.of(text) for text in answer.ids]
    _check_batch(ledger, name, request, ids)
    for (_, payload), id in zip(request.events, ids, strict=True):
        event = ledger.events[payload]
        event.acknowledged = event.acknowledged or answer.at
        known = event.ids.get(id.epoch, event.id)
        if known is not None and not ledger.may_be_both(event, known, id):
            ledger.find(Mistake.DOUBLED, name, f"{payload} was acknowledged as {known} and as {id}")
        event.ids[id.epoch] = id
        ledger.is_that_event(name, id, payload)


def _check_batch(ledger: Ledger, where: str, request: Sent, ids: Sequence[Id]) -> None:
    """Check that the events of a request follow each other."""
    if any(later != Id(first.epoch, first.seq + 1) for first, later in pairwise(ids)):
        ledger.find(Mistake.MISORDERED, where, f"{request.name} is {', '.join(map(str, ids))}")


# -- what the log has --------------------------------------------------------------------------------------------


def _take_listing(ledger: Ledger, listing: Iterable[tuple[str, str, str]]) -> None:
    """Note what the log has in the end."""
    for text, channel, payload in listing:
        id, event = Id.of(text), ledger.events.get(payload)
        if event is None or event.channel != channel:
            ledger.find(Mistake.INVENTED, "log", f"{id} on {channel}: {payload}")
            continue
        if event.refused:
            ledger.find(Mistake.INVENTED, "log", f"{payload} was refused, and is {id}")
        if payload in ledger.listed:
            ledger.find(Mistake.DOUBLED, "log", f"{payload} is {ledger.listed[payload]} and {id}")
        ledger.listed[payload] = id
        ledger.is_that_event("log", id, payload)
        if not event.ids:
            event.ids[id.epoch] = id


def _check_nothing_is_lost(ledger: Ledger) -> None:
    """Find what was acknowledged and is not in the log; and where it was replaced, which ids are of one event."""
    losses = ledger.promises.losses
    acknowledged = [event for event in ledger.events.values() if event.acknowledged]
    lost: list[tuple[Event, Id]] = []
    kept: dict[str, int] = {}
    """By its epoch, the number up to which a log has been copied to the next."""
    for event in sorted(acknowledged, key=lambda event: event.acknowledged):
        id, listed = event.id, ledger.listed.get(event.payload)
        if id is None:  # it was acknowledged without one
            continue
        if id.epoch not in ledger.epochs:
            ledger.epochs.append(id.epoch)
        if listed is not None and (listed == id or (losses and listed.seq == id.seq)):
            kept[id.epoch] = max(kept.get(id.epoch, 0), id.seq)
        else:
            lost.append((event, id))
    for event, id in lost:
        if not ledger.may_be_lost(event, event.acknowledged):
            ledger.find(Mistake.LOST, "log", f"{event.payload}, acknowledged as {id}")
        elif id.seq <= (end := kept.get(id.epoch, 0)):
            ledger.find(Mistake.LOST, "log", f"{event.payload}, {id}, and all is kept up to {end}")
        else:
            ledger.verdict.taken_back += 1
    if losses:
        _join_ids(ledger, kept)


def _join_ids(ledger: Ledger, kept: Mapping[str, int]) -> None:
    """Have each event that is in the log know its id there, and the one that it had in each log before."""
    for payload, id in ledger.listed.items():
        ids = ledger.events[payload].ids
        for epoch, end in kept.items():
            if id.seq <= end and epoch != id.epoch:
                ledger.is_that_event("log", ids.setdefault(epoch, Id(epoch, id.seq)), payload)
        ids.setdefault(id.epoch, id)


def _check_numbers(ledger: Ledger) -> None:
    """Check that there is an event of each number, but for those that a promoted standby leaves out."""
    numbers = [0] * ledger.promises.whole + sorted(id.seq for id in ledger.listed.values())
    for before, after in pairwise(numbers):
        if (after - before - 1) % LEFT_OUT:
            ledger.find(Mistake.LOST, "log", f"no event has the numbers from {before + 1} to {after - 1}")


def _check_batches(ledger: Ledger) -> None:
    """Check that of each batch all was stored, in its order, or nothing."""
    for request in ledger.requests.values():
        ids = [ledger.listed[payload] for _, payload in request.events if payload in ledger.listed]
        acknowledged = any(ledger.events[payload].acknowledged for _, payload in request.events)
        if not acknowledged and ids:  # else that was found for each event
            _check_batch(ledger, "log", request, ids)
            if len(ids) < len(request.events):
                ledger.find(Mistake.LOST, "log", f"{request.name}, but for {len(ids)} of its events")


def _check_order(ledger: Ledger) -> None:
    """Check that what was sent after another was acknowledged comes after it."""
    known = [(event, event.id) for event in ledger.events.values() if event.acknowledged and event.id]
    ended = sorted(known, key=lambda one: one[0].acknowledged)
    highest: dict[str, Id] = {}
    place = 0
    for event, id in sorted(known, key=lambda one: one[0].sent):
        while ended[place][0].acknowledged < event.sent:
            before = ended[place][1]
            highest[before.epoch] = max(highest.get(before.epoch, before), before)
            place += 1
        if id <= highest.get(id.epoch, Id(id.epoch, -1)):
            ledger.find(Mistake.MISORDERED, "log", f"{event.payload} is {id}, after {highest[id.epoch]}")


# -- what clients were sent ----------------------------------------------------------------------------------------


def _learn_ids(ledger: Ledger, name: str, records: Sequence[AnyRecord]) -> None:
    """Take the ids of events that are known from what a client was sent alone, or find that it was another's."""
    kept = ledger.promises.kept
    for record in records:
        if not isinstance(record, Received):
            continue
        id, event = Id.of(record.id), ledger.events.get(record.payload)
        if event is None or event.channel != record.channel or event.refused:
            continue  # that is found where the client is followed
        known = event.ids.get(id.epoch, event.id)
        if known is None:
            if ledger.promises.losses or not kept:
                event.ids[id.epoch] = id
        elif ledger.may_be_both(event, known, id):
            event.ids.setdefault(id.epoch, id)
        elif kept or known.epoch == id.epoch:
            ledger.find(Mistake.INVENTED, name, f"{record.payload} as {id}, and it is {known}")


def _check_newest(ledger: Ledger) -> None:
    """Check that the newest events of each channel are there, where not all are kept."""
    epochs = {id.epoch for id in ledger.listed.values()}
    for channel, events in ledger.due.items():
        known = sorted((id, event.payload) for event in events if (id := event.id) and id.epoch in epochs)
        for id, payload in known[max(0, len(known) - ledger.promises.keeps) :]:
            if payload not in ledger.listed:
                ledger.find(Mistake.LOST, "log", f"{payload}, {id}, of the newest on {channel}")
