"""The accountant, with journals that were made up: it finds each kind of fault, and nothing in a run without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.accountant import account
from tests.faults.journal import (
    Answered,
    AnyRecord,
    Asked,
    Ended,
    Journal,
    Left,
    Malformed,
    Opened,
    Pinged,
    Received,
    Reset,
    Sent,
    read,
)
from tests.faults.ledger import Loss, Promises
from tests.faults.verdict import Finding, Mistake

Listing = list[tuple[str, str, str]]


def published(count: int = 4, epoch: str = "e") -> tuple[list[AnyRecord], Listing]:
    """Return the journal of a publisher of events on ``a``, one a second, and what the log has in the end."""
    records: list[AnyRecord] = []
    for number in range(1, count + 1):
        records.append(Sent(at=number, name=f"r{number}", events=[("a", f"p{number}")]))
        records.append(Answered(at=number + 0.5, name=f"r{number}", status=201, ids=[f"{epoch}-{number}"]))
    return records, [(f"{epoch}-{number}", "a", f"p{number}") for number in range(1, count + 1)]


def received(*numbers: int, epoch: str = "e") -> list[AnyRecord]:
    return [
        Received(at=number + 0.6, id=f"{epoch}-{number}", channel="a", payload=f"p{number}")
        for number in numbers
    ]


def stream(
    *records: AnyRecord, position: str = "", at: float = 0.0, recovered: bool = True
) -> list[AnyRecord]:
    """Return a stream of a client; where it has a position it is resumed there."""
    return [
        Asked(at=at, channels=["a"], position=position),
        Opened(at=at, id=position or "e-0", recovered=bool(position) and recovered),
        *records,
        Ended(at=99.0),
    ]


def found(
    publisher: Sequence[AnyRecord],
    listing: Listing,
    client: Sequence[AnyRecord] = (),
    *others: Sequence[AnyRecord],
    kept: bool = True,
    keeps: int = 0,
) -> list[tuple[Mistake, str]]:
    """Return what is found, and where."""
    clients = {"client": client} | {f"client {number}": other for number, other in enumerate(others, 2)}
    verdict = account({"publisher": publisher}, clients, listing, Promises(kept=kept, keeps=keeps))
    return [(finding.mistake, finding.where) for finding in verdict.findings]


def test_a_run_in_which_all_went_well() -> None:
    publisher, listing = published()
    client = [*stream(*received(1, 2)), *stream(Pinged(at=2.9), *received(3, 4), position="e-2")]
    verdict = account({"publisher": publisher}, {"client": client}, listing)
    assert verdict.findings == []
    assert (verdict.acknowledged, verdict.received, verdict.streams, verdict.resets) == (4, 4, 2, 0)
    assert set(verdict.counts().values()) == {0}


def test_an_acknowledged_event_that_the_log_does_not_have() -> None:
    publisher, listing = published()
    assert found(publisher, listing[:-1], stream(*received(1, 2, 3))) == [(Mistake.LOST, "log")]


def test_an_acknowledged_event_that_the_log_has_by_another_id() -> None:
    publisher, listing = published(1)
    assert found(publisher, [("e-2", "a", "p1")]) == [(Mistake.LOST, "log")]
    assert found(publisher, listing) == []


@pytest.mark.parametrize("missing", [1, 2, 4])
def test_an_event_that_a_client_was_not_sent(missing: int) -> None:
    publisher, listing = published()
    numbers = [number for number in (1, 2, 3, 4) if number != missing]
    assert found(publisher, listing, stream(*received(*numbers))) == [(Mistake.SILENT_GAP, "client")]


def test_an_event_that_was_skipped_where_a_client_came_back() -> None:
    publisher, listing = published()
    client = [*stream(*received(1)), *stream(*received(3, 4), position="e-1")]
    assert found(publisher, listing, client) == [(Mistake.SILENT_GAP, "client")]


def test_an_event_that_was_stored_without_an_answer_is_due_too() -> None:
    publisher, listing = published()
    publisher[3] = Answered(at=2.5, name="r2", status=0)
    assert found(publisher, listing, stream(*received(1, 3, 4))) == [(Mistake.SILENT_GAP, "client")]
    assert found(publisher, listing, stream(*received(1, 2, 3, 4))) == []
    publisher[3], publisher[7] = (
        Answered(at=2.5, name="r2", status=201, ids=["e-2"]),
        Answered(at=4.5, name="r4", status=0),
    )
    assert found(publisher, listing[:3], stream(*received(1, 2, 3))) == []


def test_an_event_without_an_answer_may_be_stored_when_the_clients_have_ended() -> None:
    publisher, listing = published()
    publisher[7] = Answered(at=4.5, name="r4", status=503, code="outcome_unknown")
    assert found(publisher, listing, stream(*received(1, 2, 3))) == []
    publisher[7] = Answered(at=4.5, name="r4", status=201, ids=["e-4"])
    assert found(publisher, listing, stream(*received(1, 2, 3))) == [(Mistake.SILENT_GAP, "client")]


def test_a_client_that_leaves_is_due_nothing_more() -> None:
    publisher, listing = published()
    client = stream(*received(1, 2))
    assert found(publisher, listing, [*client, Left(at=3.0)]) == []
    assert found(publisher, listing, client) == [(Mistake.SILENT_GAP, "client")] * 2


def test_an_event_that_came_twice() -> None:
    publisher, listing = published()
    assert found(publisher, listing, stream(*received(1, 2, 2, 3, 4))) == [(Mistake.DOUBLED, "client")]
    again = [*stream(*received(1, 2, 3)), *stream(*received(3, 4), position="e-3")]
    assert found(publisher, listing, again) == [(Mistake.DOUBLED, "client")]


def test_a_request_that_is_in_the_log_twice() -> None:
    publisher, listing = published(1)
    publisher += [
        Sent(at=2.0, name="r1", events=[("a", "p1")]),
        Answered(at=2.5, name="r1", status=201, ids=["e-2"]),
    ]
    assert found(publisher, [*listing, ("e-2", "a", "p1")]) == [
        (Mistake.DOUBLED, "publisher"),
        (Mistake.DOUBLED, "log"),
    ]


def test_events_in_another_order_than_that_of_their_ids() -> None:
    publisher, listing = published()
    assert found(publisher, listing, stream(*received(1, 3, 2, 4))) == [(Mistake.MISORDERED, "client")]


def test_ids_in_another_order_than_that_of_the_acknowledgements() -> None:
    publisher: list[AnyRecord] = [
        Sent(at=1.0, name="r1", events=[("a", "p1")]),
        Answered(at=1.5, name="r1", status=201, ids=["e-2"]),
        Sent(at=2.0, name="r2", events=[("a", "p2")]),
        Answered(at=2.5, name="r2", status=201, ids=["e-1"]),
    ]
    listing = [("e-1", "a", "p2"), ("e-2", "a", "p1")]
    assert found(publisher, listing) == [(Mistake.MISORDERED, "log")]
    publisher[2] = Sent(at=1.4, name="r2", events=[("a", "p2")])  # sent before the first was acknowledged
    assert found(publisher, listing) == []


@pytest.mark.parametrize(
    "invented",
    [
        Received(at=5.0, id="e-5", channel="a", payload="p5"),
        Received(at=5.0, id="e-5", channel="b", payload="p4"),
    ],
    ids=["which nobody published", "of another channel"],
)
def test_an_event_that_is_not_as_it_was_published(invented: Received) -> None:
    publisher, listing = published()
    assert found(publisher, listing, stream(*received(1, 2, 3, 4), invented)) == [
        (Mistake.INVENTED, "client")
    ]


def test_an_event_of_a_channel_that_was_not_asked_for() -> None:
    publisher, listing = published(1)
    publisher += [
        Sent(at=2.0, name="r2", events=[("b", "p2")]),
        Answered(at=2.5, name="r2", status=201, ids=["e-2"]),
    ]
    client = stream(*received(1), Received(at=3.0, id="e-2", channel="b", payload="p2"))
    assert found(publisher, [*listing, ("e-2", "b", "p2")], client) == [(Mistake.INVENTED, "client")]


def test_an_event_that_was_sent_before_it_was_stored_and_never_was() -> None:
    publisher, listing = published()
    publisher[7] = Answered(at=4.5, name="r4", status=0)
    assert found(publisher, listing[:3], stream(*received(1, 2, 3, 4))) == [(Mistake.INVENTED, "client")]


def test_an_event_that_was_refused_and_is_stored() -> None:
    publisher, listing = published(1)
    publisher[1] = Answered(at=1.5, name="r1", status=503)
    assert found(publisher, listing) == [(Mistake.INVENTED, "log")]
    publisher[1] = Answered(at=1.5, name="r1", status=0)
    assert found(publisher, listing) == []


def test_an_event_of_an_unknown_outcome_may_be_stored_or_not_and_is_due_where_it_is() -> None:
    publisher, listing = published(2)
    publisher[1] = Answered(at=1.5, name="r1", status=503, code="outcome_unknown")

    def what(listing: Listing, *received_ids: int) -> list[Mistake]:
        client = stream(*received(*received_ids))
        verdict = account({"p": publisher}, {"c": client}, listing)
        return [finding.mistake for finding in verdict.findings]

    assert what(listing, 1, 2) == []
    assert what(listing, 2) == [Mistake.SILENT_GAP]
    assert what(listing[1:], 2) == []
    assert what(listing[1:], 1, 2) == [Mistake.INVENTED]
    publisher[1] = Answered(at=1.5, name="r1", status=503, code="log_unavailable")
    assert what(listing, 1, 2) == [Mistake.INVENTED] * 2


def test_an_id_that_stands_for_two_events() -> None:
    publisher, listing = published(2)
    publisher[3] = Answered(at=2.5, name="r2", status=201, ids=["e-1"])
    assert (Mistake.TWO_EVENTS, "publisher") in found(publisher, listing[:1])
    publisher, listing = published(2)
    other = [Received(at=1.6, id="e-1", channel="a", payload="p2")]
    assert (Mistake.TWO_EVENTS, "client") in found(publisher, listing, stream(*other, *received(2)))


def test_a_reset_where_all_is_kept() -> None:
    publisher, listing = published()
    reset = Reset(at=2.6, channel="a", reason="history_trimmed")
    client = [*stream(*received(1, 2)), *stream(reset, *received(3, 4), position="e-2", recovered=False)]
    assert found(publisher, listing, client) == [(Mistake.NEEDLESS_RESET, "client")]


def test_a_reset_says_where_the_gap_is_and_all_that_is_sent_later_is_due() -> None:
    publisher, listing = published()
    reset = Reset(at=2.6, channel="a", reason="history_trimmed")
    lost_two = [*stream(*received(1)), *stream(reset, *received(3, 4), position="e-1", recovered=False)]
    assert found(publisher, listing, lost_two, kept=False) == []
    lost_three = [*stream(*received(1)), *stream(reset, *received(4), position="e-1", recovered=False)]
    assert found(publisher, listing, lost_three, kept=False) == [(Mistake.SILENT_GAP, "client")]


def test_a_log_that_was_replaced_is_told_by_a_reset_and_by_nothing_else() -> None:
    publisher, listing = published(2)
    for number in (3, 4):
        publisher.append(Sent(at=10.0 + number, name=f"r{number}", events=[("a", f"p{number}")]))
        publisher.append(Answered(at=10.5 + number, name=f"r{number}", status=201, ids=[f"f-{number}"]))
    after = received(3, 4, epoch="f")
    reset = Reset(at=12.0, channel="a", reason="log_replaced")
    told = [*stream(*received(1, 2)), *stream(reset, *after, position="e-2", recovered=False)]
    assert found(publisher, listing, told, kept=False) == []
    untold = [*stream(*received(1, 2)), *stream(after[1], position="e-2")]
    assert found(publisher, listing, untold, kept=False) == [(Mistake.SILENT_GAP, "client")] * 2


LOSS = Loss(begins=2.9, ends=10.0)
RESET = Reset(at=12.0, channel="a", reason="log_replaced")


def replaced() -> tuple[list[AnyRecord], Listing]:
    """Return what is published while the log is replaced by one without the last of four events, and by two more."""
    publisher, listing = published()
    for number in (5, 6):
        publisher.append(Sent(at=10.0 + number, name=f"r{number}", events=[("a", f"p{number}")]))
        publisher.append(Answered(at=10.5 + number, name=f"r{number}", status=201, ids=[f"f-{number - 1}"]))
    kept = [(id.replace("e", "f"), channel, payload) for id, channel, payload in listing[:3]]
    return publisher, [*kept, ("f-4", "a", "p5"), ("f-5", "a", "p6")]


def in_the_next(*numbers: int) -> list[AnyRecord]:
    """Return that events are received with the ids of the next log; the first of the new ones is 4."""
    return [
        Received(
            at=20.0 + number,
            id=f"f-{number}",
            channel="a",
            payload=f"p{number + 1 if number > 3 else number}",
        )
        for number in numbers
    ]


def found_after(
    publisher: Sequence[AnyRecord], listing: Listing, client: Sequence[AnyRecord], loss: Loss = LOSS
) -> list[Mistake]:
    verdict = account({"p": publisher}, {"client": client}, listing, Promises(losses=[loss]))
    return [finding.mistake for finding in verdict.findings]


def comes_back(*records: AnyRecord, position: str = "e-4") -> list[AnyRecord]:
    return stream(*records, position=position, recovered=False)


def test_what_may_be_lost_with_a_log_that_is_replaced_is_counted() -> None:
    publisher, listing = replaced()
    client = [*stream(*received(1, 2, 3, 4)), *comes_back(RESET, *in_the_next(4, 5))]
    verdict = account({"p": publisher}, {"client": client}, listing, Promises(losses=[LOSS]))
    assert (verdict.findings, verdict.taken_back, verdict.acknowledged) == ([], 1, 6)
    for other in (Loss(begins=4.6, ends=10.0), Loss(begins=2.9, ends=3.9)):
        assert found_after(publisher, listing, client, other) == [Mistake.LOST, Mistake.INVENTED]


@pytest.mark.parametrize(
    ("missing", "loss"),
    [
        (0, Loss(begins=1.0, ends=10.0)),  # later ones are kept
        (1, Loss(begins=1.0, ends=10.0)),
        (4, LOSS),  # it was sent when the next log was there
    ],
)
def test_what_may_not_be_lost_with_a_log_that_is_replaced(missing: int, loss: Loss) -> None:
    publisher, listing = replaced()
    client = [*stream(*received(1, 2, 3, 4)), *comes_back(RESET, *in_the_next(4))]
    assert Mistake.LOST in found_after(publisher, [*listing[:missing], *listing[missing + 1 :]], client, loss)


@pytest.mark.parametrize(
    ("before", "after", "mistakes"),
    [
        ([1, 2, 3], [RESET, *in_the_next(4, 5)], []),
        ([1, 2, 4], [RESET, *in_the_next(4, 5)], [Mistake.SILENT_GAP]),
        ([1, 3, 4], [RESET, *in_the_next(4, 5)], [Mistake.SILENT_GAP]),
        ([1, 2, 3, 4], [RESET, *in_the_next(5)], [Mistake.SILENT_GAP]),
        ([1, 2, 3, 4], [RESET, *in_the_next(1, 4, 5)], [Mistake.DOUBLED]),
        (
            [1, 2, 3, 4],
            [RESET, *in_the_next(4), *comes_back(RESET, *in_the_next(5), position="f-4")],
            [Mistake.NEEDLESS_RESET],
        ),
        ([1, 2, 3], [*in_the_next(4, 5)], [Mistake.FALSE_POSITION, *[Mistake.SILENT_GAP] * 3]),
    ],
    ids=[
        "one that was lost did not come",
        "one that was kept did not come",
        "one that was kept long before did not come",
        "one of the next log did not come",
        "one that was kept came twice",
        "a reset in the next log",
        "no reset",
    ],
)
def test_what_a_client_is_due_of_a_log_that_is_replaced(
    before: list[int], after: list[AnyRecord], mistakes: list[Mistake]
) -> None:
    publisher, listing = replaced()
    client = [*stream(*received(*before)), *comes_back(*after, position=f"e-{before[-1]}")]
    assert found_after(publisher, listing, client) == mistakes


def test_a_reset_before_a_log_was_replaced_is_needless() -> None:
    publisher, listing = replaced()
    early = Reset(at=2.6, channel="a", reason="log_replaced")
    client = [
        *stream(*received(1, 2)),
        *comes_back(early, *received(3, 4), position="e-2"),
        *comes_back(RESET, *in_the_next(4, 5)),
    ]
    assert found_after(publisher, listing, client) == [Mistake.NEEDLESS_RESET]


def test_a_log_that_lost_something_and_goes_on_with_the_same_epoch() -> None:
    publisher, listing = replaced()
    same = [
        Answered(at=record.at, name=record.name, status=201, ids=[record.ids[0].replace("f", "e")])
        if isinstance(record, Answered)
        else record
        for record in publisher
    ]
    listing = [(id.replace("f", "e"), channel, payload) for id, channel, payload in listing]
    assert Mistake.TWO_EVENTS in found_after(same, listing, stream(*received(1, 2, 3, 4)))


@pytest.mark.parametrize(("number", "mistakes"), [(4, set()), (1, {Mistake.DOUBLED, Mistake.LOST})])
def test_a_request_is_stored_anew_only_where_its_events_were_lost(
    number: int, mistakes: set[Mistake]
) -> None:
    publisher, listing = replaced()
    publisher += [
        Sent(at=17.0, name=f"r{number}", events=[("a", f"p{number}")]),
        Answered(at=17.5, name=f"r{number}", status=201, ids=["f-6"]),
    ]
    again = Received(at=27.0, id="f-6", channel="a", payload=f"p{number}")
    client = [*stream(*received(1, 2, 3, 4)), *comes_back(RESET, *in_the_next(4, 5), again)]
    assert {*found_after(publisher, [*listing, ("f-6", "a", f"p{number}")], client)} == mistakes


@pytest.mark.parametrize(
    ("opened", "then", "faults"),
    [
        (Opened(at=2.6, id="e-3", recovered=True), (), [Mistake.FALSE_POSITION]),
        (Opened(at=2.6, id="e-2", recovered=False), (), [Mistake.FALSE_POSITION]),
        (
            Opened(at=2.6, id="e-2", recovered=True),
            [Reset(at=2.6, channel="a", reason="history_trimmed")],
            [Mistake.FALSE_POSITION, Mistake.NEEDLESS_RESET],
        ),
        (Opened(at=2.6, id="e-2", recovered=True), [Pinged(at=2.9)], []),
    ],
    ids=["another position", "not recovered, and no reset", "recovered, and a reset", "as it should be"],
)
def test_what_connected_says(opened: Opened, then: Sequence[AnyRecord], faults: list[Mistake]) -> None:
    publisher, listing = published()
    back: list[AnyRecord] = [Asked(at=2.6, channels=["a"], position="e-2"), opened, *then, *received(3, 4)]
    client = [*stream(*received(1, 2)), *back]
    assert [fault for fault, _ in found(publisher, listing, client, kept=False)] == faults


def test_a_stream_that_ends_without_a_word() -> None:
    publisher, listing = published()
    ends = {
        Ended(at=2.6): [(Mistake.UNTOLD, "client")],
        Ended(at=2.6, reason="shutdown"): [],
        Ended(at=2.6, left=True): [],
    }
    for end, faults in ends.items():
        client = [
            *stream(*received(1, 2))[:-1],
            end,
            *stream(*received(3, 4), position="e-2")[:-1],
            Left(at=9.0),
        ]
        verdict = account({"p": publisher}, {"client": client}, listing, Promises(told=True))
        assert [(finding.mistake, finding.where) for finding in verdict.findings] == faults
    refused = [Asked(at=0.0, channels=["a"]), Ended(at=0.1, status=503), *stream(*received(1, 2, 3, 4))[:-1]]
    assert account({"p": publisher}, {"c": refused}, listing, Promises(told=True)).findings == []


@pytest.mark.parametrize(
    ("end", "ends", "faults"),
    [
        (Ended(at=2.6, left=True), [], 0),
        (Ended(at=2.6), [], 1),
        (Ended(at=2.6, reason="shutdown"), [], 1),
        (Ended(at=2.6), [(2.5, 2.55)], 0),  # something was done while it was open
        (Ended(at=2.6), [(0.4, 1.1)], 0),
        (Ended(at=2.6), [(0.5, 0.9), (2.7, 3.0)], 1),  # that was over before, or came later
        (Ended(at=2.6), None, 0),
    ],
)
def test_a_stream_that_ends_where_it_was_to_go_on(
    end: Ended, ends: Sequence[tuple[float, float]] | None, faults: int
) -> None:
    publisher, listing = published()
    client = [
        *stream(*received(1, 2), at=1.0)[:-1],
        end,
        *stream(*received(3, 4), position="e-2", at=2.8)[:-1],
        Ended(at=99.0, left=True),
    ]
    verdict = account({"p": publisher}, {"c": client}, listing, Promises(ends=ends))
    assert [finding.mistake for finding in verdict.findings] == [Mistake.ENDED] * faults


@pytest.mark.parametrize("status", [0, 503])
def test_a_stream_that_is_not_begun_where_it_was_to_be(status: int) -> None:
    publisher, listing = published()
    client: list[AnyRecord] = [Asked(at=1.0, channels=["a"]), Ended(at=1.1, status=status), Left(at=1.2)]
    (finding,) = account({"p": publisher}, {"c": client}, listing, Promises(ends=[])).findings
    assert finding.mistake is Mistake.ENDED
    assert account({"p": publisher}, {"c": client}, listing, Promises(ends=[(1.0, 1.0)])).findings == []


def test_a_stream_that_is_not_as_the_format_says() -> None:
    publisher, listing = published()
    client = [*stream(*received(1, 2, 3, 4)), Malformed(at=5.0, why="no field")]
    assert found(publisher, listing, client) == [(Mistake.MALFORMED, "client")]


def test_a_request_is_not_repeated_with_other_events() -> None:
    publisher, _ = published(1)
    publisher.append(Sent(at=3.0, name="r1", events=[("a", "other")]))
    with pytest.raises(ValueError, match="r1 twice"):
        found(publisher, [])


def test_a_batch_that_was_acknowledged_with_too_few_ids() -> None:
    publisher: list[AnyRecord] = [
        Sent(at=1.0, name="r1", events=[("a", "p1"), ("a", "p2")]),
        Answered(at=1.5, name="r1", status=201, ids=["e-1"]),
    ]
    assert (Mistake.INVENTED, "publisher") in found(publisher, [("e-1", "a", "p1")])


def test_an_event_that_came_by_an_id_that_is_not_its_own() -> None:
    publisher, listing = published(2)
    other = Received(at=2.6, id="e-7", channel="a", payload="p2")
    assert found(publisher, listing, stream(*received(1), other)) == [(Mistake.INVENTED, "client")]
    replaced = Received(at=2.6, id="f-2", channel="a", payload="p2")
    assert found(publisher, listing, stream(*received(1), replaced)) == [(Mistake.INVENTED, "client")]


@pytest.mark.parametrize("kept", [True, False])
def test_an_event_that_came_to_two_clients_by_two_ids(kept: bool) -> None:
    publisher, listing = published(2)
    publisher[3] = Answered(at=2.5, name="r2", status=0)
    clients = [
        stream(*received(1), Received(at=2.6, id=id, channel="a", payload="p2")) for id in ("e-2", "e-3")
    ]
    assert (Mistake.INVENTED, "client 2") in found(publisher, listing, *clients, kept=kept)
    assert (Mistake.INVENTED, "client 2") in found(publisher, listing[:1], *clients, kept=kept)


def test_an_event_that_was_refused_and_sent_where_not_all_is_kept() -> None:
    publisher, listing = published(2)
    publisher[3] = Answered(at=2.5, name="r2", status=503)
    faults = found(publisher, listing[:1], stream(*received(1, 2)), kept=False)
    assert faults == [(Mistake.INVENTED, "client")]


def test_an_event_that_one_client_was_sent_is_due_to_the_others_also_where_it_was_not_acknowledged() -> None:
    publisher, listing = published(3)
    publisher[3] = Answered(at=2.5, name="r2", status=0)
    clients = [stream(*received(1, 2, 3)), stream(*received(1, 3))]
    assert found(publisher, listing[2:], *clients, kept=False) == [(Mistake.SILENT_GAP, "client 2")]


def test_an_event_that_was_sent_after_a_stream_was_opened_is_due_wherever_the_stream_says_that_it_is() -> (
    None
):
    publisher, listing = published()
    ahead = [Asked(at=0.0, channels=["a"]), Opened(at=0.5, id="e-1", recovered=False), *received(2, 3, 4)]
    assert found(publisher, listing, ahead) == [(Mistake.SILENT_GAP, "client")]
    late = [Asked(at=0.0, channels=["a"]), Opened(at=1.2, id="e-1", recovered=False), *received(2, 3, 4)]
    assert found(publisher, listing, late) == []


def test_after_a_reset_all_is_due_from_the_first_event_on() -> None:
    publisher, listing = published(6)
    reset = Reset(at=7.0, channel="a", reason="history_trimmed")  # read late: its client is slow
    back = [*stream(*received(1)), *stream(reset, *received(3, 5, 6), position="e-1", recovered=False)]
    assert found(publisher, listing, back, kept=False) == [(Mistake.SILENT_GAP, "client")]


def test_a_reset_where_all_that_follows_was_kept() -> None:
    publisher, listing = published(6)
    reset = Reset(at=6.6, channel="a", reason="history_trimmed")
    back = [*stream(*received(1, 2)), *stream(reset, position="e-2", recovered=False)]
    assert found(publisher, listing[2:], back, kept=False, keeps=4) == [(Mistake.NEEDLESS_RESET, "client")]
    assert found(publisher, listing[3:], back, kept=False, keeps=3) == []
    replaced = Reset(at=6.6, channel="a", reason="log_replaced")
    back = [*stream(*received(1, 2)), *stream(replaced, position="e-2", recovered=False)]
    assert found(publisher, listing[2:], back, kept=False, keeps=4) == []


def test_a_reset_amid_a_stream() -> None:
    publisher, listing = published()
    reset = Reset(at=3.6, channel="a", reason="history_trimmed")
    first = [*stream(*received(1, 2), reset, *received(4))]
    assert found(publisher, listing, first, kept=False) == [(Mistake.FALSE_POSITION, "client")]


def test_an_acknowledged_event_that_is_lost_although_the_newest_are_kept() -> None:
    publisher, listing = published()
    assert found(publisher, listing[2:], kept=False, keeps=2) == []
    assert found(publisher, [listing[1], listing[3]], kept=False, keeps=2) == [(Mistake.LOST, "log")]
    assert found(publisher, listing[:3], kept=False, keeps=2) == [(Mistake.LOST, "log")]


def test_a_stream_without_a_beginning() -> None:
    publisher, listing = published(2)
    first = [Asked(at=0.0, channels=["a"]), *received(1, 2)]
    assert (Mistake.MALFORMED, "client") in found(publisher, listing, first)
    later = [*stream(*received(1)), Asked(at=1.7, channels=["a"], position="e-1"), *received(2)]
    assert found(publisher, listing, later) == [(Mistake.MALFORMED, "client")]


def test_a_client_that_never_has_a_stream() -> None:
    publisher, listing = published(2)
    client: list[AnyRecord] = [Asked(at=0.0, channels=["a"]), Ended(at=9.0)]
    assert found(publisher, listing, client) == [(Mistake.SILENT_GAP, "client")]
    assert found(publisher, listing, [*client, Left(at=9.0)]) == []


@pytest.mark.parametrize(("status", "faults"), [(500, 1), (404, 1), (401, 0), (503, 0)])
def test_a_client_that_is_answered_what_no_client_may_be(status: int, faults: int) -> None:
    publisher, listing = published(2)
    client = [Asked(at=0.0, channels=["a"]), Ended(at=0.5, status=status), *stream(*received(1, 2))]
    assert found(publisher, listing, client) == [(Mistake.MALFORMED, "client")] * faults


def batch(*ids: str, status: int = 201) -> list[AnyRecord]:
    return [
        Sent(at=1.0, name="r1", events=[("a", "p1"), ("a", "p2"), ("a", "p3")]),
        Answered(at=1.5, name="r1", status=status, ids=ids),
    ]


def test_a_batch_that_is_not_in_its_order() -> None:
    backwards = [(f"e-{number}", "a", f"p{4 - number}") for number in (1, 2, 3)]
    client: list[AnyRecord] = [
        Received(at=2.0, id=id, channel="a", payload=payload) for id, _, payload in backwards
    ]
    faults = found(batch("e-3", "e-2", "e-1"), backwards, stream(*client))
    assert faults == [(Mistake.MISORDERED, "publisher")]
    assert found(batch(status=0), backwards, stream(*client)) == [(Mistake.MISORDERED, "log")]


def test_a_batch_that_is_stored_in_part() -> None:
    whole = [(f"e-{number}", "a", f"p{number}") for number in (1, 2, 3)]
    assert found(batch(status=0), whole) == []
    assert found(batch(status=0), []) == []
    assert found(batch(status=0), whole[:2]) == [(Mistake.LOST, "log")]


def test_a_number_that_no_event_has() -> None:
    publisher, listing = published()
    publisher[3] = Answered(at=2.5, name="r2", status=0)
    assert found(publisher, [listing[0], *listing[2:]]) == [(Mistake.LOST, "log")]


def test_a_ping_moves_the_position_and_excuses_nothing() -> None:
    publisher, listing = published()
    ping = Pinged(at=2.8, id="e-2")
    back = stream(*received(3, 4), position="e-2")
    assert found(publisher, listing, [*stream(*received(1, 2), ping), *back]) == []
    assert found(publisher, listing, [*stream(*received(1), ping), *back]) == [(Mistake.SILENT_GAP, "client")]
    backwards = [*stream(*received(1, 2), Pinged(at=2.8, id="e-1"))[:-1], *received(3, 4)]
    assert found(publisher, listing, backwards) == [(Mistake.FALSE_POSITION, "client")]


def test_a_journal_is_read_as_it_was_written_but_for_a_line_that_its_writer_was_killed_in(
    tmp_path: Path,
) -> None:
    records, _ = published()
    records += [*stream(*received(1), Reset(at=1.0, channel="a", reason="x"), Pinged(at=1.0)), Left(at=3.0)]
    journal = Journal(tmp_path / "journal")
    for record in records:
        journal.write(record)
    journal.close()
    with (tmp_path / "journal").open("ab") as file:
        file.write(b'{"what":"sent","at":1')
    assert list(read(tmp_path / "journal")) == records


def test_a_finding_says_to_whom_what_happened() -> None:
    assert (
        str(Finding(Mistake.LOST, "log", "p1, acknowledged as e-1")) == "log: lost: p1, acknowledged as e-1"
    )


def test_a_log_whose_first_event_is_missing() -> None:
    publisher, listing = published(2)
    (finding,) = account({"p": publisher[2:]}, {}, listing[1:], Promises(whole=True)).findings
    assert finding.mistake is Mistake.LOST
    assert account({"p": publisher}, {}, listing, Promises(whole=True)).findings == []


def test_a_status_that_may_not_be_answered() -> None:
    publisher, listing = published()
    publisher.append(Answered(at=9.0, name="r4", status=401))
    client = [Asked(at=0.0, channels=["a"]), Ended(at=0.1, status=503), *stream(*received(1, 2, 3, 4))]
    verdict = account({"p": publisher}, {"c": client}, listing, Promises(refusals=()))
    assert [(finding.mistake, finding.where) for finding in verdict.findings] == [
        (Mistake.MALFORMED, "p"),
        (Mistake.MALFORMED, "c"),
    ]


def test_an_event_that_is_another_one_when_it_is_sent_again() -> None:
    publisher, listing = published(1)
    clients = {
        name: stream(Received(at=1.6, id="e-1", channel="a", payload="p1", timestamp=timestamp))
        for name, timestamp in (("1", "10:00"), ("2", "10:01"))
    }
    (finding,) = account({"p": publisher}, clients, listing).findings
    assert finding.mistake is Mistake.TWO_EVENTS
