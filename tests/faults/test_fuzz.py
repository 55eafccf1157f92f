"""Made up requests to real servers: no 5xx, no traceback, nothing is opened or stored that must not be, and nothing is
left behind.

The short forms are for one process, here and elsewhere. The long ones ask as often as they can in some minutes, in
each way to run the server.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import count as numbers
from itertools import islice
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from tests.faults.conversation import Answer, Conversation, Manner, converse, conversing
from tests.faults.fuzzed import PASSWORD, SHORT_HISTORY, USER, WAYS, Fuzzed
from tests.faults.made_up import (
    CUTS,
    JSON,
    TYPES,
    Posting,
    Question,
    Token,
    manners,
    mutated,
    postings,
    questions,
    quoted_cookies,
    requests,
    tokens,
)
from tests.faults.reference import covers, is_channel, is_pattern, matches, overlap
from tests.support.sse_reader import ReceivedEvent

LONG = 40
"""How many times as often as in the short form something is asked in the long one."""

PINGS = 30
"""After so many of them, one a second, an event that is due has not come."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.expects_logs("login_refused", "proxy_not_trusted", "refresh_reused"),
]


class Ground(NamedTuple):
    """Servers, and how often something is asked of them."""

    fuzzed: Fuzzed
    times: int

    def fuzz(self, count: int) -> hypothesis:
        """Return how hypothesis is to make something up, so many times in the short form."""
        return hypothesis(
            max_examples=count * self.times,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[Phase.generate],  # a smaller example would be waited for again and again
            suppress_health_check=[*HealthCheck],
        )


def _grounds() -> Iterator[Any]:
    for number, way in enumerate(WAYS):
        if number < 2:
            yield pytest.param((way, 1), id=way)
        yield pytest.param((way, LONG), id=f"{way}, long", marks=pytest.mark.long)


@pytest.fixture(scope="module", params=_grounds())
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The servers, in each way to run them."""
    way, times = request.param
    with WAYS[way](tmp_path_factory.mktemp("fuzz")) as fuzzed:
        yield Ground(fuzzed, times)


def request_of(method: str, target: str, *headers: str, body: bytes | None = None) -> bytes:
    """Return the bytes of a request."""
    framing = [] if body is None else [f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *headers, *framing, "", ""])
    return head.encode("latin-1") + (body or b"")


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


# -- anything at all ------------------------------------------------------------------------------------------


def test_no_made_up_request_is_a_5xx_or_leaves_anything(ground: Ground) -> None:
    fuzzed = ground.fuzzed
    stand_ins = {b"STREAM": fuzzed.stream.encode(), b"ACCESS": fuzzed.access.encode()}

    @ground.fuzz(150)
    @given(
        st.lists(requests(), min_size=1, max_size=3),
        manners("half-close", "half-close", "close", "reset"),
        st.randoms(),
    )
    def ask(made: list[bytes], manner: Manner, chance: random.Random) -> None:
        for name, token in stand_ins.items():
            made = [request.replace(name, token) for request in made]
        heard = converse(fuzzed.port(chance), made, manner)
        for answer in heard.answers:
            assert answer.status < 500, (made, answer)
            assert (
                not answer.is_stream or not answer.events or answer.events[0].type in ("connected", "closing")
            )
        look()

    with fuzzed.nothing_is_left(150 * ground.times) as look:
        ask()
    fuzzed.assert_streams_are_counted()


# -- tokens ---------------------------------------------------------------------------------------------------

EVENT = b'{"event":"forged","data":1}'


def _doors(token: Token) -> dict[str, tuple[str, str, list[str], bytes | None]]:
    """Return where a token of its kind may be tried: method, target, headers and body."""
    there, query = (
        [bearer(token.text)],
        f"/api/v1/sse/dashboard?token={httpx.QueryParams({'token': token.text})['token']}",
    )
    query = "/api/v1/sse/dashboard?" + str(httpx.QueryParams({"token": token.text}))
    if token.kind == "stream":
        return {
            "stream by query": ("GET", query, [], None),
            "stream by header": ("GET", "/api/v1/sse/dashboard", there, None),
            "head": ("HEAD", query, [], None),
            "renew": ("POST", "/api/v1/sse/connections/c/renew", there, b""),
        }
    return {
        "publish": ("POST", "/api/v1/sse/dashboard", there, EVENT),
        "history": ("GET", "/api/v1/sse/dashboard/history", there, None),
        "me": ("GET", "/api/v1/auth/me", there, None),
        "stream token": ("POST", "/api/v1/auth/stream-token", there, b'{"channels":["dashboard"]}'),
        "administration": ("GET", "/api/v1/admin/connections", there, None),
        "logout": ("POST", "/api/v1/auth/logout", there, b""),
    }


def test_no_token_with_anything_wrong_opens_anything(ground: Ground) -> None:
    fuzzed = ground.fuzzed

    @ground.fuzz(150)
    @given(tokens(fuzzed.forges), st.data(), manners(), st.randoms())
    def ask(token: Token, data: st.DataObject, manner: Manner, chance: random.Random) -> None:
        doors = _doors(token)
        door = data.draw(st.sampled_from(sorted(doors)))
        method, target, headers, body = doors[door]
        if token.claims is not None and door in ("publish", "logout"):
            return  # it may do that
        request = request_of(method, target, *headers, body=body)
        (answer,) = converse(fuzzed.port(chance), [request], manner).answers
        assert answer.status < 500, (token, answer)
        if token.claims is None:
            assert 400 <= answer.status < 500, (door, token, answer)
            assert method == "HEAD" or answer.names_what_is_wrong(), answer
        elif answer.status == 200 and door in ("stream by query", "stream by header", "head", "history"):
            granted = token.claims["sse"].get("subscribe", [])
            assert any(matches(pattern, "dashboard") for pattern in granted), token
        elif answer.status == 200 and door == "administration":
            assert token.claims["sse"]["admin"] is True
        look()

    before = _last_id(fuzzed)
    with fuzzed.nothing_is_left(150 * ground.times) as look:
        ask()
    stored = fuzzed.http.get("/api/v1/sse/dashboard/history", params={"after": before}).json()["events"]
    assert not [event for event in stored if event["event"] == "forged"]


def _last_id(fuzzed: Fuzzed, channel: str = "dashboard") -> str:
    """Publish an event, and return its id."""
    body = {"event": "mark", "data": 0}
    id: str = fuzzed.http.post(f"/api/v1/sse/{channel}", json=body).raise_for_status().json()["id"]
    return id


# -- publishing -----------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """An event as it must be read back."""

    channel: str
    type: str
    data: str
    """A text as it is, after a ``t``; other JSON, without what the server adds, in one form after a ``j``."""


def _expected(channel: str, type: str, data: Any) -> Expected:
    if isinstance(data, str):
        return Expected(channel, type, f"t{data}")
    if isinstance(data, dict):
        data = {**data, "channel": channel}
    return Expected(channel, type, f"j{json.dumps(data, sort_keys=True)}")


def _events_of(posting: Posting) -> list[Expected]:
    """Return what a request publishes that is well-formed; by the standard library, not by the server's own reader.

    Raises:
        ValueError, LookupError, TypeError: it publishes nothing.
    """
    if not posting.allowed:
        raise ValueError("its token is none")
    is_text = (posting.content_type or "").lower().startswith("text/")
    if is_text:
        query = httpx.QueryParams(posting.path.partition("?")[2])
        return [_expected(str(posting.channel), query["event"], posting.body.decode())]
    request = json.loads(posting.body)
    if posting.channel is not None:
        return [_expected(posting.channel, request["event"], request["data"])]
    return [_expected(item["channel"], item["event"], item["data"]) for item in request["events"]]


def _stored(channel: str, type: str, data: Any, expected: Expected) -> Expected:
    """Return an event that was read back in the form of one that was sent: without what was added to that."""
    if isinstance(data, dict) and '"timestamp": ' not in expected.data:
        data = {name: value for name, value in data.items() if name != "timestamp"}
    return _expected(channel, type, data)


class Published(NamedTuple):
    """An event as the history has it."""

    id: str
    channel: str
    type: str
    data: Any


@dataclass
class Books:
    """What must be stored, what may be stored because no answer came, and what is.

    Attributes:
        fuzzed: the servers.
        streams: a stream of all channels on each of them, opened before the first request.
        reached: the last event that has been looked at.
    """

    fuzzed: Fuzzed
    streams: Sequence[Iterator[ReceivedEvent]]
    reached: str
    _maybe: list[list[Expected]] = field(default_factory=list)

    def balance(self, acknowledged: list[tuple[str, Expected]], maybe: list[list[Expected]]) -> None:
        """Compare what has been acknowledged since the last time with what the log and the streams have."""
        self._maybe += maybe
        due = dict(acknowledged)
        assert [id for id, _ in acknowledged] == sorted(due, key=_number), acknowledged
        stored = list(self._new())
        for event in stored:
            expected = due.pop(event.id, None)
            if expected is None:
                self._take_unanswered(event)
            else:
                assert _stored(*event[1:], expected) == expected, event
        assert not due, f"acknowledged, and not stored: {due}"
        for stream in self.streams:
            for event in stored:
                self._compare(next(each for each in stream if each.type != "ping"), event)

    def _new(self) -> Iterator[Published]:
        """Yield the events of the log that are new.

        All channels are read at once: what a client published that has left may be stored between two reads.
        """
        while True:
            url = f"/api/v1/sse/**/history?after={self.reached}&limit=1000"
            page = self.fuzzed.http.get(url).raise_for_status().json()
            assert page["complete"]
            if not page["events"]:
                break
            self.reached = page["events"][-1]["id"]
            for one in page["events"]:
                yield Published(one["id"], one["channel"], one["event"], one["data"])

    def _take_unanswered(self, event: Published) -> None:
        """Note that an event is there for which no answer came."""
        for events in self._maybe:
            if events and _stored(*event[1:], events[0]) == events[0]:
                del events[0]
                return
        raise AssertionError(f"stored, and not acknowledged: {event}; there may be {self._maybe}")

    @staticmethod
    def _compare(received: ReceivedEvent, event: Published) -> None:
        """Check that a stream has brought an event as the history has it, byte for byte."""
        assert (received.id, received.type) == (event.id, event.type), (received, event)
        if isinstance(event.data, str):
            assert received.data == re.sub("\r\n|\r", "\n", event.data)
        else:
            assert json.dumps(received.json()) == json.dumps(event.data)


def _number(id: str) -> int:
    return int(id.rpartition("-")[2])


def _take(
    answers: Sequence[Answer], made: Sequence[Posting], *, cut: bool
) -> tuple[list[tuple[str, Expected]], list[list[Expected]]]:
    """Return what must be stored by the answers to requests, and what may be because one has none."""
    acknowledged: list[tuple[str, Expected]] = []
    maybe: list[list[Expected]] = []
    broken = over = False
    for number, posting in enumerate(made):
        if number >= len(answers):
            # What never ends is not answered; what is refused before its body has come is the last that is read.
            over = over or not posting.well_framed
            assert cut or over, f"no answer to {posting}"
            if cut:
                with suppress(ValueError, LookupError, TypeError, RecursionError):
                    maybe.append(_events_of(posting))
            continue
        answer = answers[number]
        assert not over, f"an answer behind the last one: {answer}"
        if answer.status == 201:
            assert not broken, f"{posting} stands behind what is not HTTP"
            assert number == 0 or not made[number - 1].takes_one_more, f"{posting} has no method"
            document = answer.json()
            ids = document["ids"] if posting.channel is None else [document["id"]]
            acknowledged += zip(ids, _events_of(posting), strict=True)
        elif answer.status == 202:
            assert json.loads(posting.body) == {"events": []}
        else:
            assert answer.names_what_is_wrong(), (posting, answer)
            over = answer.headers.get("connection") == "close"
            broken = broken or over or not (posting.well_framed or posting.takes_one_more)
    return acknowledged, maybe


def test_a_published_event_is_read_back_byte_for_byte_or_refused_and_not_stored(ground: Ground) -> None:
    fuzzed = ground.fuzzed

    @ground.fuzz(120)
    @given(
        st.lists(postings(), min_size=1, max_size=3),
        manners("half-close", "half-close", "half-close", "close", "reset"),
        st.randoms(),
    )
    def publish(made: list[Posting], manner: Manner, chance: random.Random) -> None:
        port = fuzzed.port(chance)
        heard = converse(port, [posting.bytes(fuzzed.access) for posting in made], manner)
        acknowledged, maybe = _take(heard.answers, made, cut=heard.cut)
        if heard.cut:  # what has a key is asked again, as a publisher does; it is stored once
            for posting in made[len(heard.answers) :]:
                if posting.key and posting.well_framed:
                    again = converse(port, [posting.bytes(fuzzed.access)], Manner())
                    more, _ = _take(again.answers, [posting], cut=again.cut)
                    acknowledged += more
                    maybe = [events for events in maybe if not more or events != [event for _, event in more]]
        acknowledged.sort(key=lambda one: _number(one[0]))
        look()
        books.balance(acknowledged, maybe)

    with ExitStack() as ends:
        streams = [_listen(ends.enter_context(conversing(port)), fuzzed) for port in fuzzed.ports]
        books = Books(fuzzed, streams, _last_id(fuzzed))
        for stream in streams:
            assert next(event for event in stream if event.type != "ping").id == books.reached
        with fuzzed.nothing_is_left(120 * ground.times) as look:
            publish()
            books.balance([], [])


def _listen(conversation: Conversation, fuzzed: Fuzzed) -> Iterator[ReceivedEvent]:
    """Open a stream of all channels that are published on, and return what follows ``connected``."""
    target = f"/api/v1/sse/user.fuzz.*,dashboard,alerts?token={fuzzed.stream}"
    conversation.send(request_of("GET", target), Manner())
    assert (conversation.answer() or Answer(0, {})).is_stream
    events = conversation.events()
    assert next(events).type == "connected"
    return events


@st.composite
def large_posts(draw: st.DrawFn) -> tuple[str, bytes, bytes]:
    """Make up what is put in the place of a token, and the head and the beginning of a body, maybe all of it."""
    token = draw(st.sampled_from(["ACCESS", "ACCESS", "ACCESS", "STREAM", "x.y.z", ""]))
    size = draw(st.sampled_from([200_000, 1_048_576, 65_536, 65_537, 1_048_577, 1_500_000]))
    path = draw(st.sampled_from(["/api/v1/sse/dashboard?event=large", "/api/v1/sse", "/api/v1/sse/A"]))
    body = b"x" * size
    framing = f"Content-Length: {size}"
    if draw(st.booleans()):
        framing = "Transfer-Encoding: chunked"
        pieces = Manner(draw(CUTS)).pieces(body)
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        if draw(st.integers(0, 3)) == 0:
            body = mutated(draw, body)
    sent = int(len(body) * draw(st.sampled_from([1.0, 0.99, 1.0, 0.5, 0.06, 0.0])))
    headers = [
        "Content-Type: text/plain",
        *draw(st.lists(st.just("Expect: 100-continue"), max_size=1)),
        framing,
    ]
    return token, request_of("POST", path, "Authorization: Bearer TOKEN", *headers), body[:sent]


def test_a_large_body_is_counted_no_more_once_its_request_has_ended(ground: Ground) -> None:
    fuzzed = ground.fuzzed
    there = {"ACCESS": fuzzed.access, "STREAM": fuzzed.stream}

    @ground.fuzz(40)
    @given(large_posts(), manners("half-close", "close", "reset"), st.randoms())
    def ask(made: tuple[str, bytes, bytes], manner: Manner, chance: random.Random) -> None:
        token, head, body = made
        head = head.replace(b"TOKEN", there.get(token, token).encode())
        for answer in converse(fuzzed.port(chance), [head + body], manner).answers:
            assert answer.status == 201 or answer.names_what_is_wrong(), (head, answer)
            assert answer.status != 201 or token == "ACCESS"
        look()

    with fuzzed.nothing_is_left(40 * ground.times) as look:
        ask()


# -- positions ------------------------------------------------------------------------------------------------


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


def test_a_stream_begins_where_it_is_asked_to_or_says_that_it_cannot(ground: Ground) -> None:
    fuzzed, places = ground.fuzzed, numbers()

    def begin() -> Past:
        past = Past(f"user.past{next(places)}.")
        first = [("a", "x", ""), ("b", "x", ""), ("short", "x", ""), ("table", "x", "k"), ("table", "y", "l")]
        past.publish(fuzzed, *first, ("a", "y", ""), ("short", "y", ""), ("table", "y", "k"), ("b", "x", ""))
        return past

    past = begin()
    more = st.lists(
        st.tuples(st.sampled_from(KINDS), st.sampled_from("xy"), st.sampled_from("klm")), max_size=2
    )

    @ground.fuzz(100)
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

    with fuzzed.nothing_is_left(100 * ground.times) as look:
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
        elif _number(event.id or "") == marker:
            break
        else:
            found.append(_number(event.id or ""))
    return Due(connected.json()["recovered"], frozenset(resets), found)


# -- channels and patterns ------------------------------------------------------------------------------------

SEGMENTS = st.sampled_from(["a", "b-1", "x_y"])
PLACES = st.lists(SEGMENTS, max_size=2).map(lambda more: ".".join(["user", *more]))
PATTERNS = st.lists(SEGMENTS | st.just("*"), max_size=2).map(lambda more: ".".join(["user", *more]))
WILD = st.one_of(PATTERNS, PATTERNS.map(lambda text: f"{text}.**"), st.just("**"))
MARKER = "alerts"
MOST_PLACES = 6
"""How many events a batch has, at most, besides that on the marker."""


@st.composite
def lists_of_channels(draw: st.DrawFn) -> list[str]:
    """Make up what stands in the path of a stream, some of it neither name nor pattern."""
    chosen = draw(st.lists(st.one_of(PLACES, WILD), min_size=1, max_size=4))
    if draw(st.integers(0, 4)) == 0:
        raw = mutated(draw, ",".join(chosen).encode(), most=2)
        chosen = [part.decode("latin-1") for part in raw.split(b",")]
    return chosen


def test_a_stream_has_just_the_events_of_its_channels_and_only_what_is_granted(ground: Ground) -> None:
    fuzzed, batches = ground.fuzzed, numbers()
    known = ("dashboard", "alerts", "training", "backtest", "user.**")

    @ground.fuzz(100)
    @given(
        lists_of_channels(),
        st.lists(WILD, max_size=3),
        st.lists(PLACES, min_size=1, max_size=MOST_PLACES),
        manners(),
        st.randoms(),
    )
    def ask(
        chosen: list[str], granted: list[str], places: list[str], manner: Manner, chance: random.Random
    ) -> None:
        chosen = [*chosen, MARKER]
        token = fuzzed.token_for(*granted, MARKER) if granted else fuzzed.stream
        target = "/api/v1/sse/" + "".join(f"%{byte:02x}" for byte in ",".join(chosen).encode("latin-1"))
        with conversing(fuzzed.port(chance)) as conversation:
            conversation.send(request_of("GET", f"{target}?token={token}"), manner)
            answer = conversation.answer()
            assert answer is not None
            if not all(is_channel(text) or is_pattern(text) for text in chosen):
                assert answer.status in (400, 404), (chosen, answer)
                assert answer.names_what_is_wrong()
            elif granted and not all(
                any(covers(mine, text) for mine in [*granted, MARKER]) for text in chosen
            ):
                assert answer.status == 403, (chosen, granted, answer)
            elif not all(any(overlap(there, text) for there in known) for text in chosen):
                assert answer.status == 404, (chosen, answer)
            else:
                assert answer.is_stream, (chosen, granted, answer)
                number = next(batches)
                batch = [{"channel": name, "event": "e", "data": {"n": number}} for name in [*places, MARKER]]
                fuzzed.http.post("/api/v1/sse", json={"events": batch}).raise_for_status()
                found = []
                for event in islice(conversation.events(), PINGS + 2 * MOST_PLACES + len(batch)):
                    if event.type != "e":
                        continue
                    data = event.json()
                    assert any(matches(text, data["channel"]) for text in chosen)
                    # The head of another process may be a moment older: the batch before may be new to this one.
                    if data["n"] == number:
                        found.append(data["channel"])
                        if found[-1] == MARKER:
                            break
                assert found == [
                    name for name in [*places, MARKER] if any(matches(text, name) for text in chosen)
                ]
        look()

    with fuzzed.nothing_is_left(100 * ground.times) as look:
        ask()


# -- sessions -------------------------------------------------------------------------------------------------


class Session(NamedTuple):
    """What a login gives."""

    access: str
    refresh: str


def _log_in(fuzzed: Fuzzed) -> Session:
    body = {"username": USER, "password": PASSWORD, "cookie": False}
    tokens = fuzzed.http.post("/api/v1/auth/login", json=body).raise_for_status().json()
    return Session(tokens["access_token"], tokens["refresh_token"])


def _bodies(refresh: str) -> st.SearchStrategy[bytes]:
    """Make up the bodies of a refresh or a logout, in which the token may be."""
    texts = st.sampled_from(
        [refresh, refresh, refresh[1:], refresh + " ", refresh.lower(), "", "\0", "x" * 9000]
    )
    members = st.dictionaries(
        st.sampled_from(["refresh_token", "refresh_token", "token", "cookie"]), texts | JSON, max_size=2
    )
    return st.one_of(
        st.just(b""),
        st.just(b""),
        members.map(lambda body: json.dumps(body).encode()),
        st.binary(max_size=20),
    )


def _is_presented(refresh: str, cookies: str, body: bytes) -> bool:
    """Return whether a request has the refresh token where it is read: in the body, or else in the one cookie."""
    try:
        request = json.loads(body) if body else {}
    except ValueError:
        return False
    if not isinstance(request, dict):
        return False
    token = request.get("refresh_token")
    return refresh in (token, *re.findall(r"[^;=\" \t]+", cookies)) if token in (None, refresh) else False


def test_no_cookie_or_body_but_the_right_one_goes_on_with_a_session(ground: Ground) -> None:
    fuzzed = ground.fuzzed
    session = _log_in(fuzzed)

    @ground.fuzz(60)
    @given(
        st.sampled_from(["refresh"] * 5 + ["logout"]),
        st.data(),
        manners("half-close", "half-close", "reset"),
        st.randoms(),
    )
    def ask(what: str, data: st.DataObject, manner: Manner, chance: random.Random) -> None:
        nonlocal session
        cookies = data.draw(quoted_cookies(session.refresh))
        body = data.draw(_bodies(session.refresh))
        presented = _is_presented(session.refresh, cookies, body)
        if presented and manner.end == "reset":
            return  # it may be spent, and its answer is lost
        headers = [f"Cookie: {cookies}"] if cookies else []
        request = request_of("POST", f"/api/v1/auth/{what}", *headers, body=body)
        heard = converse(fuzzed.port(chance), [request], manner)
        if heard.cut:
            pass  # nothing of it was right
        elif heard.answers[0].status in (200, 204):
            (answer,) = heard.answers
            assert presented, (cookies, body, answer)
            if what == "logout":
                session = _log_in(fuzzed)
            else:
                document = answer.json()
                cookie = re.match(r"[^=]+=([^;]+)", answer.headers.get("set-cookie", ""))
                refresh = document.get("refresh_token") or (cookie and cookie[1]) or ""
                session = Session(document["access_token"], refresh)
        else:
            assert heard.answers[0].names_what_is_wrong(), heard.answers[0]
        me = fuzzed.http.get("/api/v1/auth/me", headers={"Authorization": f"Bearer {session.access}"})
        assert me.status_code == 200, (cookies, body)
        look()

    with fuzzed.nothing_is_left(60 * ground.times) as look:
        ask()


def test_no_made_up_login_is_a_5xx_or_a_login(ground: Ground) -> None:
    fuzzed = ground.fuzzed
    members = st.sampled_from(["username", "password", "cookie"])
    values = st.one_of(st.sampled_from([USER, PASSWORD + " ", "x" * 2000, "\0", True]), JSON)

    @ground.fuzz(25)
    @given(
        st.dictionaries(members, values, max_size=3).map(lambda body: json.dumps(body).encode())
        | st.binary(max_size=30),
        manners("half-close", "half-close", "reset"),
        st.randoms(),
    )
    def ask(body: bytes, manner: Manner, chance: random.Random) -> None:
        request = request_of("POST", "/api/v1/auth/login", "Content-Type: application/json", body=body)
        for answer in converse(fuzzed.port(chance), [request], manner).answers:
            assert answer.names_what_is_wrong(), (body, answer)
        look()

    with fuzzed.nothing_is_left(25 * ground.times) as look:
        ask()
