"""The pure core: channels, patterns, event ids, the wire format; by properties and by the standard's examples."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.auth.tokens.grants import Grants
from sse_app.core.channels import (
    ChannelName,
    ChannelPattern,
    ChannelPatterns,
    own_patterns,
    parse_channel,
    parse_channels,
)
from sse_app.core.distinct import MOST, distinct, sample
from sse_app.core.errors import InvalidChannel, InvalidInput
from sse_app.core.events import FINAL, RESERVED_TYPES, TEXT, Event, EventId, new_event
from sse_app.core.framing import CHUNKED, FRAMINGS, UNFRAMED, framed, framing_for
from sse_app.core.selection import interest_of
from sse_app.core.sse import encode, encode_text_event
from sse_app.handlers.parsing import parse_json
from sse_app.streams.replay_cache import ReplayCache
from tests.support.sse_reader import EventStreamReader

SEGMENT = st.text("abcdefghijklmnopqrstuvwxyz0123456789_-", min_size=1, max_size=64)
NAME = st.lists(SEGMENT, min_size=1, max_size=3).map(".".join)
TYPE = st.from_regex(r"[A-Za-z0-9_.:-]{1,128}", fullmatch=True).filter(
    lambda type: type not in RESERVED_TYPES
)
CIRCULAR: list[object] = []
CIRCULAR.append(CIRCULAR)


def parse(stream: bytes, *cuts: int) -> list[tuple[str, str, str]]:
    reader = EventStreamReader(strict=False)
    pieces = [stream[start:stop] for start, stop in zip((0, *cuts), (*cuts, len(stream)), strict=True)]
    return [(event.type, event.data, event.last_id) for piece in pieces for event in reader.feed(piece)]


@pytest.mark.parametrize(
    "text", ["a", "dashboard", "user.ann.orders", "a_b-c.0", "a" * 64, ".".join(["ab"] * 80)]
)
def test_channel_names_are_dotted_segments(text: str) -> None:
    assert parse_channel(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "A",
        "ä",
        "a b",
        "a/b",
        "a\n",
        "*",
        "a.*",
        "a" * 65,
        "status",
        ".".join(["a"] * 200),
    ],
)
def test_other_texts_are_no_channel_names(text: str) -> None:
    with pytest.raises(InvalidChannel):
        parse_channel(text)


def test_a_list_of_channels_keeps_its_order_and_names_each_once() -> None:
    assert parse_channels("b,a,b", 3) == ("b", "a")
    with pytest.raises(InvalidChannel):
        parse_channels("a,b,c", 2)
    with pytest.raises(InvalidChannel):
        parse_channels("a,,b", 5)


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        ("dashboard", ["dashboard"], ["dashboards", "dashboard.x"]),
        ("*", ["a"], ["a.b"]),
        ("**", ["a", "a.b", "a.b.c"], []),
        ("user.*", ["user.ann"], ["user", "user.ann.x"]),
        ("user.**", ["user", "user.ann", "user.ann.x"], ["users", "userx.ann"]),
        ("user.*.orders", ["user.ann.orders"], ["user.orders", "user.ann.x.orders", "user.ann.ordersx"]),
        ("*.a.**", ["x.a", "x.a.b"], ["a", "x.b"]),
    ],
)
def test_patterns_match_by_segments(pattern: str, matching: list[str], others: list[str]) -> None:
    for name in matching:
        assert ChannelPattern(pattern).matches(name)
    for name in others:
        assert not ChannelPattern(pattern).matches(name)


@pytest.mark.parametrize(
    "text", ["", "**.a", "a.**.b", "a*", "***", "a.**x", "A.*", ".*", "user.{sub}", "a.\n"]
)
def test_other_texts_are_no_patterns(text: str) -> None:
    with pytest.raises(InvalidChannel):
        ChannelPattern(text)


@given(NAME)
def test_a_name_is_a_pattern_for_itself_and_two_stars_cover_it(name: str) -> None:
    assert ChannelPattern(name).matches(name)
    assert ChannelPattern("**").matches(name)
    assert ChannelPatterns([name + ".**"]).matches(name + ".x")


def test_a_star_and_two_stars_cover_all_that_two_stars_cover() -> None:
    assert ChannelPattern("*.**").covers(ChannelPattern("**"))
    assert ChannelPattern("**").covers(ChannelPattern("*.**"))
    assert not ChannelPattern("*").covers(ChannelPattern("**"))
    assert not ChannelPattern("*.*.**").covers(ChannelPattern("**"))


def test_own_channels_belong_only_to_subjects_that_are_one_segment() -> None:
    assert own_patterns(["user.{sub}.**"], "ann") == ("user.ann.**",)
    for subject in ("ann.b", "*", "**", "Ann", "", "a b", "a" * 65):
        assert own_patterns(["user.{sub}.**"], subject) == ()


def test_grants_survive_being_a_claim() -> None:
    grants = Grants.of(["a.*"], ["b"], True)
    assert Grants.from_claim(json.loads(json.dumps(grants.to_claim()))) == grants
    bad: list[object] = [
        None,
        [],
        {"subscribe": "a"},
        {"subscribe": [1]},
        {"publish": ["**.a"]},
        {"admin": 1},
    ]
    for claim in bad:
        with pytest.raises(InvalidChannel):
            Grants.from_claim(claim)


@pytest.mark.slow
@given(st.from_regex(r"[A-Za-z0-9]{1,32}", fullmatch=True), st.integers(0, 10**18))
def test_event_ids_survive_being_text(epoch: str, seq: int) -> None:
    assert EventId.parse(str(EventId(epoch, seq))) == (epoch, seq)


@pytest.mark.parametrize(
    "text", ["", "a", "a-", "-1", "a-01", "a-1 ", "a--1", "a-1-1", "a-٣", "ä-1", "a-1\n", "a-" + "9" * 40]
)
def test_other_texts_are_no_event_ids(text: str) -> None:
    assert EventId.parse(text) is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.slow
@given(TYPE, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=5), st.data())
def test_any_event_comes_back_equal_however_the_stream_is_cut(
    type: str, data: dict[str, object], draw: st.DataObject
) -> None:
    event = new_event(ChannelName("a"), type, data, now="1970-01-01T00:00:00.000Z")
    stream = encode(event.data, event=event.type, id="e-1")
    cut = draw.draw(st.integers(0, len(stream)))
    ((parsed_type, parsed_data, id),) = parse(stream, cut)
    assert (parsed_type, id) == (type, "e-1")
    assert json.loads(parsed_data) == {"timestamp": "1970-01-01T00:00:00.000Z", **data, "channel": "a"}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")), st.data())
def test_every_line_break_in_data_becomes_a_new_line(text: str, draw: st.DataObject) -> None:
    breaks = draw.draw(st.lists(st.sampled_from(["\n", "\r", "\r\n"]), max_size=4))
    data = text + "".join(f"{ending}x" for ending in breaks)
    ((_, parsed, _),) = parse(encode(data.encode()))
    assert parsed == text + "\nx" * len(breaks)


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b"])
def test_fields_with_line_breaks_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        encode(b"", event=bad)
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        encode(b"", id=bad)


@pytest.mark.parametrize(
    ("stream", "events"),
    [  # WHATWG HTML §9.2.6 and §9.2.7
        ("data: YHOO\ndata: +2\ndata: 10\n\n", [("message", "YHOO\n+2\n10", "")]),
        (
            ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [
                ("message", "first event", "1"),
                ("message", "second event", ""),
                ("message", " third event", ""),
            ],
        ),
        ("data\n\ndata\ndata\n\ndata:", [("message", "", ""), ("message", "\n", "")]),
        ("data:test\n\ndata: test\n\n", [("message", "test", ""), ("message", "test", "")]),
        ("event: add\ndata: 73857293\n\nevent: remove\n\n", [("add", "73857293", "")]),
        ("\ufeffdata: a\r\rdata: b\r\n\r\n", [("message", "a", ""), ("message", "b", "")]),
        ("id: a\0b\ndata: x\n\nid: 2\n\ndata: y\n\n", [("message", "x", ""), ("message", "y", "2")]),
        ("retry: 10\nretry: x\nfoo: bar\ndata: x\n\n", [("message", "x", "")]),
    ],
)
def test_the_parser_does_what_the_standard_says_wherever_the_stream_is_cut(
    stream: str, events: list[tuple[str, str, str]]
) -> None:
    encoded = stream.encode()
    for cut in range(len(encoded) + 1):
        assert parse(encoded, cut) == events
    assert parse(encoded, *range(1, len(encoded))) == events


def test_a_long_event_takes_the_parser_time_in_proportion_to_its_length() -> None:
    parser = EventStreamReader()
    pieces = [b"data: ", *[b"x" * 4096] * 4096, b"\n\n"]
    begun = time.process_time()
    (event,) = [event for piece in pieces for event in parser.feed(piece)]
    assert len(event.data) == 4096 * 4096
    assert (
        time.process_time() - begun < 10
    )  # it is a tenth of a second; a parser that looks back takes minutes


@given(st.binary(min_size=1, max_size=300))
def test_a_chunk_says_its_length(payload: bytes) -> None:
    size, _, rest = CHUNKED.frame(payload).partition(b"\r\n")
    assert (int(size, 16), rest) == (len(payload), payload + b"\r\n")


@pytest.mark.parametrize(
    ("http_version", "body"), [("HTTP/1.1", b"3\r\nabc\r\n0\r\n\r\n"), ("HTTP/1.0", b"abc")]
)
def test_a_body_is_framed_as_the_clients_http_version_understands(http_version: str, body: bytes) -> None:
    framing = framing_for(http_version)
    assert framing.frame(b"abc") + framing.end == body
    assert FRAMINGS[framing.name] is framing
    assert framing.headers == ({"Transfer-Encoding": "chunked"} if http_version == "HTTP/1.1" else {})


def test_a_payload_is_framed_once_for_all_streams_of_a_framing() -> None:
    ping = framed(b"abc")
    assert ping(CHUNKED) is ping(CHUNKED)
    assert ping(UNFRAMED) == b"abc"


@pytest.mark.parametrize("type", [*sorted(RESERVED_TYPES), "", "a b", "a\n", "ä", "a" * 129, None, 1])
def test_bad_event_types_are_refused_by_name(type: object) -> None:
    with pytest.raises(InvalidInput, match=r"^events\[1\]\.event "):
        new_event(ChannelName("a"), type, {}, now="", field="events[1].")


@given(JSON.filter(lambda value: not isinstance(value, str | dict)))
def test_to_data_that_is_neither_object_nor_text_nothing_is_added(value: object) -> None:
    event = new_event(ChannelName("a"), "e", value, now="-")
    assert event.flags == 0
    assert json.loads(event.data) == json.loads(json.dumps(value))
    assert not {b"\n", b"\r"} & {event.data[at : at + 1] for at in range(len(event.data))}, "one line"


@given(
    st.lists(
        st.sampled_from(
            ["\n", "\r", "\r\n", "\0", "\ufeff", " ", ":", "data: ", "id: 1", "é", "😀", "\u2028"]
        )
    ),
    st.data(),
)
def test_any_text_is_received_as_it_was_published_and_is_all_that_is(
    parts: list[str], draw: st.DataObject
) -> None:
    text = "".join(parts)
    event = new_event(ChannelName("a"), "e", text, now="-")
    assert (event.data.decode(), event.flags) == (text, TEXT)
    stream = encode_text_event(b"e-1", b"e", event.data, event.retry)
    cut = draw.draw(st.integers(0, len(stream)))
    seen = text.replace("\r\n", "\n").replace("\r", "\n")
    parser = EventStreamReader(texts=True)
    received = [each for piece in (stream[:cut], stream[cut:]) for each in parser.feed(piece)]
    parser.end()
    assert [(each.type, each.data, each.id, each.retry) for each in received] == [("e", seen, "e-1", None)]


@pytest.mark.parametrize("data", ["\ud800", "a\udcff", object(), b"x", {1, 2}, [object()]])
def test_data_that_cannot_be_written_is_refused(data: object) -> None:
    with pytest.raises(InvalidInput, match=r"^data cannot be written"):
        new_event(ChannelName("a"), "e", data, now="-")


@pytest.mark.parametrize("final", [None, 1, 0, "true", [], {}])
def test_the_mark_of_an_end_is_true_or_false(final: object) -> None:
    with pytest.raises(InvalidInput, match=r"^final must be"):
        new_event(ChannelName("a"), "e", {}, None, final, now="-")
    assert new_event(ChannelName("a"), "e", "", None, True, now="-").flags == TEXT | FINAL


def test_a_whole_number_is_a_retry_however_json_writes_it() -> None:
    event = new_event(ChannelName("a"), "e", {}, 3000.0, now="1970-01-01T00:00:00.000Z")
    assert (event.retry, type(event.retry)) == (3000, int)


@pytest.mark.parametrize("retry", [-1, 1.5, 1e300, float("inf"), True, "1", 86_400_001])
def test_a_bad_retry_is_refused(retry: object) -> None:
    with pytest.raises(InvalidInput, match=r"^retry must be"):
        new_event(ChannelName("a"), "e", {}, retry, now="1970-01-01T00:00:00.000Z")


@pytest.mark.parametrize("long", [2**64, -(2**63) - 1, 10**30])
@pytest.mark.parametrize(
    "nest", [lambda x: x, lambda x: [x], lambda x: ({"b": x},), lambda x: [[1], {"b": [x]}]]
)
def test_integers_beyond_64_bits_are_written_exactly(long: int, nest: Callable[[object], object]) -> None:
    event = new_event(ChannelName("a"), "e", {"a": nest(long)}, now="1970-01-01T00:00:00.000Z")
    assert json.loads(event.data)["a"] == json.loads(json.dumps(nest(long)))


@pytest.mark.parametrize("long", [1, 2**64])
@pytest.mark.parametrize("bad", ["\udcff", object(), CIRCULAR])
def test_data_that_json_cannot_say_is_refused_also_beside_long_integers(long: int, bad: object) -> None:
    with pytest.raises(InvalidInput, match=r"^data cannot be written as JSON: "):
        new_event(ChannelName("a"), "e", {"a": long, "b": bad}, now="1970-01-01T00:00:00.000Z")


@pytest.mark.slow
@given(JSON)
def test_json_from_outside_keeps_every_digit(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize(
    "body", [b"", b"{", b"NaN", b'{"a": Infinity}', b'"\xff"', b'"\\ud800"', b"1" * 5000, b"[" * 9000]
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_json(body)


def test_recent_events_know_where_they_begin() -> None:
    recent = ReplayCache("e", max_bytes=4000)
    only_a, both = interest_of(("a",)), interest_of(("a", "b"))
    assert recent.between(0, 0, only_a, {}) is None
    events = [Event(seq, ChannelName("a" if seq % 2 else "b"), "t", b"{}") for seq in range(1, 30)]
    for event in events:
        recent.add([event])
    encoded = [recent.encode(event) for event in events]
    first = next(after for after in range(30) if recent.between(after, 29, only_a, {}) is not None)
    assert 10 < first < 29
    assert recent.between(first - 1, 29, only_a, {}) is None
    for after in range(first, 30):
        for until in range(after, 30):
            assert recent.between(after, until, both, {}) == (b"".join(encoded[after:until]), until)
            odd = b"".join(encoded[seq - 1] for seq in range(after + 1, until + 1) if seq % 2)
            assert recent.between(after, until, only_a, {}) == (odd, until)


@pytest.mark.parametrize("together", [True, False])
def test_recent_events_begin_anew_after_numbers_that_are_left_out(together: bool) -> None:
    recent, interest = ReplayCache("e", max_bytes=10**7), interest_of(("a",))
    hole = 10**9
    events = [Event(seq, ChannelName("a"), "t", b"{}") for seq in (5, 6, 7 + hole, 8 + hole, 9 + hole)]
    for added in [events] if together else [[event] for event in events]:
        recent.add(added)
    encoded = [recent.encode(event) for event in events]
    assert recent.between(4, 9 + hole, interest, {}) is None
    assert recent.between(6, 9 + hole, interest, {}) is None
    assert recent.between(6 + hole, 9 + hole, interest, {}) == (b"".join(encoded[2:]), 9 + hole)
    assert recent.between(7 + hole, 8 + hole, interest, {}) == (encoded[3], 8 + hole)
    recent.add([Event(10 + hole, ChannelName("a"), "t", b"{}")])
    page = recent.page(8 + hole, 10 + hole, interest, {})
    assert page is not None
    assert [event.seq for event in page.events] == [9 + hole, 10 + hole]


def test_a_long_past_comes_in_pieces() -> None:
    recent = ReplayCache("e", max_bytes=10**7)
    channel = ChannelName("a")
    events = [Event(seq, channel, "t", b"x" * 10_000) for seq in range(1, 31)]
    recent.add(events)
    encoded = [recent.encode(event) for event in events]
    after, pieces = 0, []
    while after < 30:
        answer = recent.between(after, 30, interest_of((channel,)), {})
        assert answer is not None
        piece, after = answer
        assert len(piece) < 80_000
        pieces.append(piece)
    assert b"".join(pieces) == b"".join(encoded)
    assert len(pieces) == 5


def test_event_data_is_compact_json_with_the_channel_set() -> None:
    event = new_event(
        ChannelName("real"), "e", {"channel": "fake", "timestamp": "t"}, now="1970-01-01T00:00:00.000Z"
    )
    assert orjson.loads(event.data) == {"channel": "real", "timestamp": "t"}


def test_distinct_names_of_several_nodes_are_counted_once_and_very_many_nearly_so() -> None:
    few = [sample([f"user-{number}" for number in range(first, first + 3000)]) for first in (0, 1000, 2000)]
    assert distinct(few) == 5000
    assert distinct([]) == distinct([sample([])]) == 0
    assert distinct([sample(["ann", "é", "\ud800"]), sample(["ann"])]) == 3
    many = [sample([f"user-{number}" for number in range(first, first + 50_000)]) for first in (0, 30_000)]
    assert max(len(checksums) for _, checksums in many) <= 4 * MOST
    assert abs(distinct([*many, *few]) - 80_000) < 4000
