"""Requests that publish: what is acknowledged is read back byte for byte, and what is refused is not stored."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NamedTuple

import httpx
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz.conversation import Answer, Conversation, Manner, converse, conversing, request_of
from tests.faults.fuzz.fuzzed import MARKS, Fuzzed
from tests.faults.fuzz.made_up import ALPHABET, CUTS, JSON, manners, mutated
from tests.support.room import sequence
from tests.support.sse_reader import ReceivedEvent

pytestmark = MARKS


CHANNELS = ("user.fuzz.a", "user.fuzz.b", "dashboard", "alerts")
TYPES_OF_EVENTS = st.sampled_from(["e", "order.filled", "A_b-c:d", "x" * 128])
STRANGE = st.sampled_from(
    [
        b'{"event":"e","data":"\\ud800"}',
        b'{"event":"e","data":1e400}',
        b'{"event":"e","data":-0.0}',
        b'{"event":"e","data":12345678901234567890123}',
        b'{"event":"e","data":{"channel":"x","timestamp":null,"channel":"y"}}',
        b'{"event":"e","event":"f","data":[]}',
        b'{"event":"e","data":"\\u0000\\r\\n\\u2028"}',
        b'{"event":"e","data":NaN}',
        b'{"event":"ping","data":1}',
        b'{"event":"e","data":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"event":"e","data":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"\xef\xbb\xbf" + b'{"event":"e","data":1}',
        b'{"event":"e","data":"\xff"}',
        b'["events"]',
        b"",
    ]
)


@dataclass(frozen=True)
class Posting:
    """A request that publishes.

    Attributes:
        path: its path, with the query.
        content_type: None where there is no such header.
        body: what is meant to be the body.
        framed: the headers and bytes that carry the body.
        well_framed: whether these are as HTTP says; None where they may be, or are another request's too.
        key: the idempotency key; empty where there is none.
        allowed: whether its token is one.
    """

    path: str
    content_type: str | None
    body: bytes
    framed: tuple[bytes, bytes]
    well_framed: bool | None = True
    key: str = ""
    allowed: bool = True

    @property
    def channel(self) -> str | None:
        """The channel that it names; None of a batch."""
        return self.path.partition("?")[0].removeprefix("/api/v1/sse").removeprefix("/") or None

    @property
    def takes_one_more(self) -> bool:
        """Whether it says that its body is one byte longer than it is: the first one of the next request."""
        return self.framed[0] == _length(len(self.body) + 1)

    def bytes(self, access: str) -> bytes:
        """Return the bytes of the request."""
        token = access if self.allowed else "x.y.z"
        headers = [b"Host: localhost", b"Authorization: Bearer " + token.encode()]
        if self.content_type is not None:
            headers.append(b"Content-Type: " + self.content_type.encode())
        if self.key:
            headers.append(b"Idempotency-Key: " + self.key.encode())
        framing, body = self.framed
        return b"POST %s HTTP/1.1\r\n%s\r\n%s\r\n%s" % (
            self.path.encode(),
            b"\r\n".join(headers),
            framing,
            body,
        )


def _length(size: int) -> bytes:
    return b"Content-Length: %d\r\n" % size


@st.composite
def postings(draw: st.DrawFn) -> Posting:
    """Make up a request that publishes, some with a bad body, type or framing."""
    channel = draw(st.sampled_from([*CHANNELS, *CHANNELS, "unknown", "status", "user.*", "A"]))
    kind = draw(st.sampled_from(["one", "one", "text", "batch"]))
    content_type = draw(
        st.sampled_from(["application/json", "application/json; charset=utf-8", None, "a/b", "TEXT"])
    )
    path = f"/api/v1/sse/{channel}"
    body: bytes
    if kind == "text":
        content_type = draw(
            st.sampled_from(
                ["text/plain", "text/plain; charset=UTF-8", "text/csv", "text/plain;charset=utf-16"]
            )
        )
        query = draw(
            st.sampled_from(["event=e", "event=e", "event=e&retry=10", "event=ping", "", "event=e&x=1"])
        )
        path = f"{path}?{query}"
        body = draw(st.one_of(st.text(ALPHABET).map(str.encode), st.binary(max_size=60)))
    elif kind == "batch":
        path = "/api/v1/sse"
        items = draw(st.lists(st.tuples(st.sampled_from(CHANNELS), TYPES_OF_EVENTS, JSON), max_size=4))
        events: list[dict[str, Any]] = [
            {"channel": name, "event": type, "data": data} for name, type, data in items
        ]
        if events and draw(st.integers(0, 5)) == 0:
            events[-1] |= draw(
                st.sampled_from(
                    [{"channel": "A"}, {"event": "ping"}, {"retry": -1}, {"id": "x"}, {"data": "\0"}]
                )
            )
        body = json.dumps({"events": events}, ensure_ascii=draw(st.booleans())).encode()
    else:
        event: dict[str, Any] = {"event": draw(TYPES_OF_EVENTS), "data": draw(JSON)}
        event |= draw(st.sampled_from([{}, {}, {"retry": 1000}, {"retry": 3.0}, {"retry": "1"}, {"x": 1}]))
        body = json.dumps(event, ensure_ascii=draw(st.booleans())).encode()
        body = draw(st.one_of(st.just(body), STRANGE))
    if kind != "text" and draw(st.integers(0, 3)) == 0:
        body = mutated(draw, body)
    framed, well = draw(framings(body, broken=kind != "text" and body.endswith(b"}")))
    key = draw(st.sampled_from(["", "", "k"]))
    allowed = draw(st.integers(0, 9)) > 0
    return Posting(path, content_type, body, framed, well, key and f"k{time.monotonic_ns()}", allowed)


@st.composite
def framings(draw: st.DrawFn, body: bytes, *, broken: bool) -> tuple[tuple[bytes, bytes], bool | None]:
    """Make up headers and bytes that carry a body, and say whether that is as HTTP says; see `Posting`.

    Args:
        draw: of hypothesis.
        body: what is to be carried.
        broken: whether the framing may be broken.
    """
    how = draw(
        st.sampled_from(["length", "chunked", "chunked", *(["broken", "broken", "odd"] if broken else [])])
    )
    if how == "length":
        return (_length(len(body)), body), True
    pieces = [*Manner(draw(CUTS)).pieces(body)]
    extensions = draw(
        st.lists(st.sampled_from([b"", b";a", b";a=b", b';a="b;c"', b";" + b"x" * 200]), min_size=1)
    )
    chunks = []
    for number, piece in enumerate(pieces):
        size = draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(piece)
        chunks.append(b"%s%s\r\n%s\r\n" % (size, extensions[number % len(extensions)], piece))
    trailers = draw(st.sampled_from([b"", b"", b"X-Sum: 1\r\n"]))
    chunked = b"Transfer-Encoding: chunked\r\n"
    whole = b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"
    if how == "chunked":
        return (chunked, whole), True
    if how == "odd":  # the content stays as it is
        first, _, rest = whole.partition(b"\r\n")
        content, end = b"".join(chunks), whole[len(b"".join(chunks)) :]
        return draw(
            st.sampled_from(
                [
                    (_length(len(body) + 1), body),
                    (chunked, mutated(draw, first) + b"\r\n" + rest),
                    (chunked, content + mutated(draw, end)),
                ]
            )
        ), None
    return draw(
        st.sampled_from(
            [
                (_length(len(body) - 1), body),
                (b"Content-Length: +%d\r\n" % len(body), body),
                (b"Content-Length: %d\r\nContent-Length: %d\r\n" % (len(body), len(body) + 1), body),
                (_length(len(whole)) + chunked, whole),
                (b"Transfer-Encoding: chunked, chunked\r\n", whole),
                (b"Transfer-Encoding: gzip, chunked\r\n", whole),
                (b"Transfer-Encoding: \x0bchunked\r\n", whole),
                (chunked, whole.replace(b"\r\n", b"\n")),
                (chunked, b";" + whole),
                (chunked, b"-" + whole),
                (chunked, b"0x" + whole),
                (chunked, b"fffffffffffffffff\r\n" + whole),
                (chunked, b"%x;a=\x00\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                (chunked, b"%x;a\rb\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                (chunked, b'%x;a="b\r\n%s\r\n0\r\n\r\n' % (len(body), body)),
                (chunked, b"%x \r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                (chunked, b"%x\r\n%sXX0\r\n\r\n" % (len(body), body)),
                (chunked, b"%x\r\n%s\r\n0\r\nbad trailer\r\n\r\n" % (len(body), body)),
                (chunked, b"%x\r\n%s\r\n0\r\n\r" % (len(body), body)),
                (chunked, whole.removesuffix(b"\r\n") + b"Content-Length: 3\r\n\r\n"),
            ]
        )
    ), False


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


class Published(NamedTuple):
    """An event as the history has it."""

    id: str
    channel: str
    type: str
    data: Any

    def holds(self, expected: Expected) -> bool:
        """Return whether this is an event as it was sent: without what was added to that."""
        data = self.data
        if isinstance(data, dict) and '"timestamp": ' not in expected.data:
            data = {name: value for name, value in data.items() if name != "timestamp"}
        return _expected(self.channel, self.type, data) == expected


@dataclass
class Account:
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
        assert [id for id, _ in acknowledged] == sorted(due, key=sequence), acknowledged
        stored = list(self._new())
        rest = stored
        while rest:
            expected = due.pop(rest[0].id, None)
            if expected is None:
                rest = rest[self._take_unanswered([*takewhile(lambda one: one.id not in due, rest)]) :]
            else:
                assert rest[0].holds(expected), rest[0]
                rest = rest[1:]
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

    def _take_unanswered(self, stored: Sequence[Published]) -> int:
        """Note that the first events are there of a request that no answer came to, and return how many it has.

        All that one request publishes is stored at once, or nothing. What begins like one may be another one.

        Args:
            stored: up to the next event that is acknowledged.
        """
        for events in sorted(self._maybe, key=len, reverse=True):
            if 0 < len(events) <= len(stored) and all(map(Published.holds, stored, events)):
                self._maybe.remove(events)
                return len(events)
        raise AssertionError(f"stored, and not acknowledged: {stored[0]}; there may be {self._maybe}")

    @staticmethod
    def _compare(received: ReceivedEvent, event: Published) -> None:
        """Check that a stream has brought an event as the history has it, byte for byte."""
        assert (received.id, received.type) == (event.id, event.type), (received, event)
        if isinstance(event.data, str):
            assert received.data == re.sub("\r\n|\r", "\n", event.data)
        else:
            assert json.dumps(received.json()) == json.dumps(event.data)


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
            broken = broken or over or posting.well_framed is False
    return acknowledged, maybe


def test_a_published_event_is_read_back_byte_for_byte_or_refused_and_not_stored(fuzzed: Fuzzed) -> None:

    @fuzzed.fuzz(120)
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
                    if more:  # one of those, for another request may be just like it
                        maybe.remove([event for _, event in more])
        acknowledged.sort(key=lambda one: sequence(one[0]))
        look()
        account.balance(acknowledged, maybe)

    with ExitStack() as ends:
        streams = [_listen(ends.enter_context(conversing(port)), fuzzed) for port in fuzzed.ports]
        account = Account(fuzzed, streams, fuzzed.mark())
        for stream in streams:
            assert next(event for event in stream if event.type != "ping").id == account.reached
        with fuzzed.nothing_is_left(120) as look:
            publish()
            account.balance([], [])


def _listen(conversation: Conversation, fuzzed: Fuzzed) -> Iterator[ReceivedEvent]:
    """Open a stream of all channels, also of those whose names are made up, and return what follows ``connected``."""
    target = f"/api/v1/sse/**?token={fuzzed.stream}"
    conversation.send(request_of("GET", target), Manner())
    assert (conversation.answer() or Answer(0, {})).is_stream
    events = conversation.events()
    assert next(events).type == "connected"
    return events
