"""Where streams are asked to begin: they begin there, or say that they cannot."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as numbers
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz.conversation import PINGS, Manner, conversing
from tests.faults.fuzz.fuzzed import MARKS, Fuzzed
from tests.faults.fuzz.made_up import manners
from tests.faults.fuzz.servers import SHORT_HISTORY
from tests.support.room import sequence
from tests.support.sse_reader import ReceivedEvent

pytestmark = MARKS


TYPES: Mapping[bytes, frozenset[str]] = {
    value: frozenset(value.decode().split(",")) for value in (b"x,mark", b"mark,y", b"y,x,mark,y", b"mark")
}
"""Lists of event types as a stream may ask for them, all with that of the test's own events."""


_BEGINNINGS: Mapping[str, Sequence[bytes]] = {
    "from": [b"earliest", b"latest"],
    "last": [b"1", b"2", b"3", b"100"],
    "since": [b"-3600", b"2000-01-01T00:00:00Z", b"2999-12-31T23:59:59.5+23:59"],
}


@dataclass(frozen=True)
class Question:
    """What a client asks of a stream's beginning.

    Attributes:
        header: the value of ``Last-Event-ID``; None where there is no such header.
        query: the parameters, each with its raw value.
    """

    header: bytes | None
    query: Sequence[tuple[str, bytes]]

    def bytes(self, channels: str, token: str) -> bytes:
        """Return the bytes of the request."""
        query = "".join(f"&{name}={quote_from_bytes(value)}" for name, value in self.query)
        header = b"" if self.header is None else b"Last-Event-ID: " + self.header + b"\r\n"
        return b"GET /api/v1/sse/%s?token=%s%s HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (
            channels.encode(),
            token.encode(),
            query.encode(),
            header,
        )


@st.composite
def questions(draw: st.DrawFn, epoch: str, head: int, known: Sequence[int]) -> Question:
    """Make up where a stream is to begin.

    Args:
        draw: of hypothesis.
        epoch: of the log.
        head: the number of its last event.
        known: the numbers of events of the channels.
    """
    numbers = st.sampled_from(
        [*known, *known, 0, head, head + 1, head + 1000, 2**31, 2**63 - 1, 2**63, 10**18, 10**40]
    )
    ids = st.builds(
        lambda epoch, number: f"{epoch}-{number}".encode(),
        st.sampled_from([epoch, epoch, epoch, "0" * 8, epoch.upper(), "", "a" * 33]),
        numbers,
    )
    garbage = st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"", b"-", b"null", b"earliest", b"0", b"x" * 200, b"%", f"{epoch}-01".encode()]),
        st.builds(lambda id: id + b" ", ids),
        st.builds(lambda id: b"+" + id, ids),
    )
    positions = st.one_of(ids, ids, ids, garbage)
    values = {
        "last_event_id": positions,
        "from": st.sampled_from([b"earliest", b"latest", b"EARLIEST", b"", b"0"]),
        "last": st.sampled_from(
            [b"1", b"2", b"3", b"100", b"0", b"-1", b"01", b"9" * 18, b"9" * 19, b"1e1", b"", b"\xd9\xa3"]
        ),
        "since": st.sampled_from(
            [
                *(b"-3600", b"-9999999999", b"-1e3", b"2000-01-01T00:00:00Z", b"2999-12-31T23:59:59.5+23:59"),
                b"0001-01-01T00:00:00+23:59",
                b"9999-12-31T23:59:59-23:59",
                b"2000-02-30T00:00:00Z",
                b"now",
                b"",
                b"-",
            ]
        ),
        "types": st.sampled_from(
            [*TYPES, *TYPES, b"", b"x,", b"x,ping", b"x y", b"x" * 129, b",".join([b"x"] * 33)]
        ),
        "rate": st.sampled_from(
            [
                *(b"100", b"100.000000000", b"99.5", b"40", b"000000050"),
                *(b"0", b"0.0", b"100.1", b"-1", b"+5", b"1e1", b"5.", b".5", b"", b"nan", b"\xb2"),
            ]
        ),
    }
    how = draw(
        st.sampled_from(["header", "header", "parameter", "parameter", "beginning", "beginning", "", ""])
    )
    if how:  # one that is right, maybe but for the rate
        header, query = None, []
        good = f"{epoch}-{draw(st.sampled_from(known))}".encode()
        if how == "header":
            header = good
        elif how == "parameter":
            query.append(("last_event_id", good))
        else:
            name, beginnings = draw(st.sampled_from(sorted(_BEGINNINGS.items())))
            query.append((name, draw(st.sampled_from(beginnings))))
        for name, some in (("types", [*TYPES]), ("rate", [b"100", b"99.5"])):
            if draw(st.integers(0, 2)) == 0:
                query.append((name, draw(st.sampled_from(some))))
        return Question(header, query)
    names = draw(st.lists(st.sampled_from(["last_event_id", *values]), max_size=3))
    header = draw(st.one_of(st.none(), st.none(), positions))
    if header is not None:
        header = bytes(byte for byte in header if byte not in b"\r\n")
    return Question(header, [(name, draw(values[name])) for name in names])


KINDS = ("a", "b", "short", "table")
"""The last segments of the channels of a past: ``short`` has a short history, ``table`` is conflated."""

CHOICES = [(), (), ("short", "b"), ("b", "table"), ("table", "b", "short"), ("a", "b"), ("b",), KINDS]
"""Kinds of channels that are asked for by their names; none of them: all, by a pattern."""

MARK = "mark"
"""The type of the event behind which all that a stream begins with has come."""


class Stored(NamedTuple):
    """An event of a past."""

    number: int
    channel: str
    type: str
    key: str


@dataclass
class Past:
    """What some channels have in the log.

    Attributes:
        root: what the names of the channels begin with.
        events: in their order, also those that are no longer kept.
    """

    root: str
    epoch: str = ""
    head: int = 0
    events: list[Stored] = field(default_factory=list)

    def publish(self, fuzzed: Fuzzed, *events: tuple[str, str, str]) -> int:
        """Publish events, each of a kind of channel, a type and a key, and return the number of the last."""
        batch = [
            {"channel": self.root + kind, "event": type, "data": {"key": key}} for kind, type, key in events
        ]
        ids = fuzzed.http.post("/api/v1/sse", json={"events": batch}).raise_for_status().json()["ids"]
        for id, (kind, type, key) in zip(ids, events, strict=True):
            self.epoch, _, number = id.rpartition("-")
            self.head = int(number)
            self.events.append(Stored(self.head, self.root + kind, type, key))
        return self.head

    def kept(self, channel: str) -> list[Stored]:
        """Return the events of a channel that are kept."""
        found = [event for event in self.events if event.channel == channel]
        return found[-SHORT_HISTORY:] if channel.endswith("short") else found


class Due(NamedTuple):
    """What a stream must begin with: the channels that are reset, and the numbers of the events."""

    recovered: bool
    resets: frozenset[str]
    numbers: list[int]


def _due(question: Question, past: Past, channels: Sequence[str], asked_for: Sequence[str]) -> Due | None:
    """Return what a stream must begin with by the contract; None where it must be refused.

    Args:
        question: what is asked.
        past: of the channels.
        channels: that it is asked of.
        asked_for: the names and patterns by which it is asked of them.
    """
    given: dict[str, list[bytes]] = {}
    for name, value in question.query:
        given.setdefault(name, []).append(value)
    control = re.compile(rb"[\x00-\x1f\x7f]")
    asked = given.pop("last_event_id", [])
    header = (question.header or b"").strip(b" \t")
    if len(asked) > 1 or any(map(control.search, [*asked, header])):
        return None
    if any(len(values) > 1 for values in given.values()):
        return None
    types = given.pop("types", None)
    rate = given.pop("rate", None)
    if len(given) > 1 or (types and types[0] not in TYPES) or (rate and not _is_rate(rate[0])):
        return None
    if rate and not any(channel.endswith("table") for channel in channels):
        return None
    taken = TYPES[types[0]] if types else None
    kept = {
        channel: [event for event in past.kept(channel) if taken is None or event.type in taken]
        for channel in channels
    }
    beginning: list[Stored] = []
    for name, (value,) in given.items():
        found = _beginning(name, value, kept)
        if found is None:
            return None
        beginning = found
    position = header or (asked[0] if asked else b"")
    if not position:
        return Due(False, frozenset(), _newest_of_keys(beginning))
    match = re.fullmatch(rb"([A-Za-z0-9]{1,32})-(0|[1-9][0-9]*)", position)
    if match is None or match[1].decode() != past.epoch or int(match[2]) > past.head:
        return Due(False, frozenset(asked_for), [])
    after = int(match[2])
    trimmed = frozenset(
        channel
        for channel in channels
        if any(
            event.number > after and event.channel == channel and event not in past.kept(channel)
            for event in past.events
        )
    )
    missed = [
        event
        for channel, events in kept.items()
        if channel not in trimmed
        for event in events
        if event.number > after
    ]
    return Due(not trimmed, trimmed, _newest_of_keys(missed))


def _is_rate(value: bytes) -> bool:
    return bool(re.fullmatch(rb"[0-9]{1,9}(\.[0-9]{1,9})?", value)) and 0 < float(value) <= 100


def _newest_of_keys(events: Sequence[Stored]) -> list[int]:
    """Return the numbers of events in order: all of a channel, or the newest one of each key where it is conflated."""
    newest = {
        (event.channel, event.key if event.channel.endswith("table") else event.number): event.number
        for event in sorted(events)
    }
    return sorted(newest.values())


def _beginning(name: str, value: bytes, kept: dict[str, list[Stored]]) -> list[Stored] | None:
    """Return the events that a stream begins with by a parameter; None where its value is bad."""
    every = [event for events in kept.values() for event in events]
    if name == "from":
        return {b"earliest": every, b"latest": list[Stored]()}.get(value)
    if name == "since":
        if value in (b"-3600", b"-9999999999", b"2000-01-01T00:00:00Z"):
            return every
        return [] if value == b"2999-12-31T23:59:59.5+23:59" else None
    if not re.fullmatch(rb"0*[1-9][0-9]*", value) or len(value) > 18:
        return None
    return [
        event
        for channel, events in kept.items()
        for event in (events if channel.endswith("table") else events[-int(value) :])
    ]


def test_a_stream_begins_where_it_is_asked_to_or_says_that_it_cannot(fuzzed: Fuzzed) -> None:
    places = numbers()

    def begin() -> Past:
        past = Past(f"user.past{next(places)}.")
        first = [("a", "x", ""), ("b", "x", ""), ("short", "x", ""), ("table", "x", "k"), ("table", "y", "l")]
        past.publish(fuzzed, *first, ("a", "y", ""), ("short", "y", ""), ("table", "y", "k"), ("b", "x", ""))
        return past

    past = begin()
    more = st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from("xy"), st.sampled_from("klm")), max_size=2
    )

    @fuzzed.fuzz(100)
    @given(more, st.data(), st.sampled_from(CHOICES), manners(), st.randoms())
    def ask(
        more: list[tuple[str, str, str]],
        data: st.DataObject,
        kinds: Sequence[str],
        manner: Manner,
        chance: random.Random,
    ) -> None:
        nonlocal past
        if len(past.events) > 60:
            past = begin()
        if more:
            past.publish(fuzzed, *more)
        known = [event.number for event in past.events]  # as many each time: hypothesis counts its choices
        question = data.draw(questions(past.epoch, past.head, [*known[:5], *known[-4:]]))
        names = [past.root + kind for kind in kinds or KINDS]
        asked_for = names if kinds else [past.root + "*"]
        due = _due(question, past, names, asked_for)
        with conversing(fuzzed.port(chance)) as conversation:
            conversation.send(question.bytes(",".join(asked_for), fuzzed.stream), manner)
            answer = conversation.answer()
            assert answer is not None
            if due is None:
                assert answer.names_what_is_wrong(), (question, answer)
            else:
                assert answer.is_stream, (question, answer)
                before = [event.number for event in past.events]
                marker = past.publish(fuzzed, ("b", MARK, ""))
                found = _begun(conversation.events(), marker, question)
                if not (fuzzed.is_one_process and len(fuzzed.ports) == 1):
                    # The head of another process may be a moment older: the last events are new to this one.
                    assert found.numbers == sorted({*found.numbers} & {*before}), question
                    assert {*due.numbers} <= {*found.numbers}, question
                    found = found._replace(numbers=due.numbers)
                assert found == due, (question, past.events)
        look()

    with fuzzed.nothing_is_left(100) as look:
        ask()


def _begun(events: Iterator[ReceivedEvent], marker: int, question: Question) -> Due:
    """Return what a stream has begun with, up to an event that was published after it was opened."""
    connected = next(events)
    assert connected.type == "connected"
    found: list[int] = []
    resets: set[str] = set()
    pings = 0
    for event in events:
        if event.type == "reset":
            assert not found, f"{question}: a reset behind {found}"
            resets.add(event.json()["channel"])
        elif event.type == "ping":
            pings += 1
            assert pings < PINGS, f"{question}: {found} have come, and not {marker}"
        elif sequence(event.id or "") == marker:
            break
        else:
            found.append(sequence(event.id or ""))
    return Due(connected.json()["recovered"], frozenset(resets), found)
