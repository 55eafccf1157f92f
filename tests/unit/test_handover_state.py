"""What one process tells the next, by properties: nothing changes on its way, and what is broken is refused as such."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.auth.tokens.claims import Lease
from sse_app.core.channels import ChannelName
from sse_app.core.framing import CHUNKED, FRAMINGS, UNFRAMED
from sse_app.handover.message import (
    FORMAT,
    IDLE,
    STREAM,
    Message,
    PassedDescriptor,
    State,
    StreamState,
    UnreadableState,
    decode,
    encode,
)
from sse_app.handover.reassembly import Reassembly
from sse_app.streams.stream import Replay, Subscriber

SEQ = st.integers(0, 2**53)
TIME = st.one_of(st.floats(0, 2**40), st.integers(0, 2**40))
MAYBE_TIME = st.none() | TIME
TEXT = st.text(max_size=8)
DATA = st.binary(max_size=60)
CHANNELS = st.lists(
    st.sampled_from(("dashboard", "alerts", "user.ann.orders", "a_b-c.0", "user.*.orders", "**")),
    min_size=1,
    max_size=3,
    unique=True,
).map(tuple)
LEASE = st.builds(Lease, TEXT, TEXT, TEXT, TIME, TIME)
SUBSCRIBER = st.builds(Subscriber, TEXT, LEASE, TEXT, st.lists(LEASE, max_size=2).map(tuple))
REPLAY = st.none() | st.builds(Replay, SEQ, st.dictionaries(TEXT, SEQ, max_size=3))
TYPES = st.none() | st.frozensets(TEXT, max_size=3)
PLACE = st.integers(-1, 5)
FRAMING = st.sampled_from(sorted(FRAMINGS))
PASSED_STREAM = st.builds(PassedDescriptor, st.just(STREAM), FRAMING, st.just(b"") | DATA, PLACE)
PASSED_OTHER = st.builds(
    PassedDescriptor, st.sampled_from([IDLE, "listening", "lock"]), st.just(""), DATA, st.just(-1)
)
CHANNELS_TABLE = st.lists(CHANNELS, min_size=1, max_size=4)


def stream_states(channels: int) -> st.SearchStrategy[StreamState]:
    return st.builds(
        StreamState,
        SEQ,
        SUBSCRIBER,
        st.integers(0, channels - 1),
        TIME,
        SEQ,
        REPLAY,
        MAYBE_TIME,
        MAYBE_TIME,
        TYPES,
    )


@st.composite
def states(draw: st.DrawFn) -> State:
    channels = draw(CHANNELS_TABLE)
    streams = draw(st.lists(stream_states(len(channels)), max_size=5))
    passed = [draw(PASSED_STREAM) for _ in streams] + draw(st.lists(PASSED_OTHER, max_size=4))
    return State(draw(TEXT), draw(SEQ), channels, streams, passed, draw(st.lists(SEQ, max_size=4)))


class Parts(NamedTuple):
    """A handover in two parts, and what has become of each connection of the first."""

    copied: State
    rest: State
    unchanged: list[int]


@st.composite
def parts(draw: st.DrawFn) -> Parts:
    channels = draw(CHANNELS_TABLE)
    streams = draw(st.lists(stream_states(len(channels)), max_size=6))
    copied = State(
        draw(TEXT),
        draw(SEQ),
        channels,
        streams,
        [PassedDescriptor(STREAM, draw(FRAMING), b"") for _ in streams],
    )
    fates = [draw(st.sampled_from(["unchanged", "gone", "changed"])) for _ in streams]

    def places(wanted: str) -> list[int]:
        return [place for place, fate in enumerate(fates) if fate == wanted]

    told = draw(st.permutations([*places("changed"), *[-1] * draw(st.integers(0, 3))]))
    later = draw(CHANNELS_TABLE)
    passed = [draw(PASSED_STREAM)._replace(place=place) for place in told]
    rest = State(
        draw(TEXT),
        draw(SEQ),
        later,
        [draw(stream_states(len(later))) for _ in told],
        passed + draw(st.lists(PASSED_OTHER, max_size=3)),
        draw(st.permutations(places("gone"))),
    )
    return Parts(copied, rest, places("unchanged"))


def carried(state: State) -> Message:
    return decode(encode(state))


def sockets(state: State, first: int) -> list[int]:
    """Return made-up descriptors for those passed of a state that come with one."""
    return [first + number for number in range(sum(one.place < 0 for one in state.passed))]


def spelt_out(state: State) -> list[tuple[object, ...]]:
    """Return the streams with their channels in the place of a number."""
    return [
        (one.number, one.subscriber, state.channels[one.channels], *msgspec.structs.astuple(one)[3:])
        for one in state.streams
    ]


@pytest.mark.slow
@given(states())
def test_a_state_comes_back_as_it_was(state: State) -> None:
    assert carried(state).state() == state


@pytest.mark.slow
@given(parts())
def test_streams_that_were_copied_and_what_has_changed_since_are_one_whole(parts: Parts) -> None:
    copied, rest, unchanged = parts
    first, second = sockets(copied, 100), sockets(rest, 200)
    whole = Reassembly([(carried(copied), first), (carried(rest), second)])

    arrived = iter(second)
    assert whole.descriptors == [first[place] for place in unchanged] + [
        next(arrived) if one.place < 0 else first[one.place] for one in rest.passed
    ]
    assert whole.ended == [first[place] for place in rest.gone]
    assert sorted(whole.descriptors + whole.ended) == first + second

    passed = [copied.passed[place] for place in unchanged]
    passed += [one._replace(place=-1) for one in rest.passed]
    assert whole.passed == passed
    state = whole.state()
    assert (state.epoch, state.head, state.passed, state.gone) == (rest.epoch, rest.head, passed, ())
    before = spelt_out(copied)
    assert spelt_out(state) == [before[place] for place in unchanged] + spelt_out(rest)


@pytest.mark.long
@given(states())
def test_a_handover_in_one_part_is_whole_as_it_is(state: State) -> None:
    alone = state._replace(passed=[one._replace(place=-1) for one in state.passed], gone=[])
    whole = Reassembly([(carried(alone), sockets(alone, 100))])
    assert (whole.state(), whole.passed, whole.ended) == (alone, alone.passed, [])
    assert whole.descriptors == sockets(alone, 100)


def of_another_format(text: bytes, format: int, body: bytes) -> bytes:
    """Return a text with another state behind its header."""
    head, _, rest = text.partition(b"\n")
    header = json.loads(head)
    data = rest[header["bytes"] :]
    return json.dumps(header | {"format": format, "bytes": len(body)}).encode() + b"\n" + body + data


@pytest.mark.long
@given(
    parts(),
    st.tuples(*[st.integers(-(2**31), 2**31).filter(lambda format: format not in (3, FORMAT))] * 2),
    DATA,
    DATA,
)
def test_whose_connections_they_are_can_be_told_whatever_the_format(
    parts: Parts, formats: tuple[int, int], body: bytes, other: bytes
) -> None:
    copied, rest, _ = parts
    mine = [(carried(state), sockets(state, 100 * at)) for at, state in enumerate((copied, rest), 1)]
    theirs = [
        (decode(of_another_format(encode(state), format, text)), descriptors)
        for state, format, text, (_, descriptors) in zip(
            (copied, rest), formats, (body, other), mine, strict=True
        )
    ]
    for readable, foreign in (
        (Reassembly(mine), Reassembly(theirs)),
        (Reassembly(mine), Reassembly([mine[0], theirs[1]])),
        (Reassembly(mine), Reassembly([theirs[0], mine[1]])),
    ):
        assert foreign.passed == readable.passed
        assert foreign.descriptors == readable.descriptors
        assert foreign.ended == readable.ended
        with pytest.raises(UnreadableState, match="is of format"):
            foreign.state()


def test_a_framing_of_another_version_leaves_the_other_connections_known() -> None:
    passed = [PassedDescriptor(STREAM, "gzip", b"12"), PassedDescriptor(STREAM, CHUNKED.name, b"3")]
    message = carried(a_state(-1, -1)._replace(passed=passed))
    assert message.passed == passed


def test_streams_of_a_process_of_format_3_are_adopted() -> None:
    lease = ["ann", "s", "t", 1.0, 2.0]
    streams = [
        [7, ["c", lease, "::1", []], 0, 1.5, 3000, None, 4.0, 5.0],
        [8, ["c", lease, "::1", []], 0, 1.5, 3000, [5, ["alerts"], 9], 4.0, 5.0],
    ]
    body = {"epoch": "e", "head": 9, "channels": [["dashboard", "alerts"]], "streams": streams}
    text = json.dumps(body).encode()
    head = {"format": 3, "bytes": len(text), "parcels": [["stream", "chunked", 0, -1, 2]], "gone": []}
    state = decode(json.dumps(head).encode() + b"\n" + text).state()
    assert [stream.replay for stream in state.streams] == [None, Replay(5, {"alerts": 9})]
    assert [(stream.number, stream.deadline, stream.types) for stream in state.streams] == [
        (7, 5.0, None),
        (8, 5.0, None),
    ]


def test_an_envelope_of_format_2_says_whether_bodies_are_chunked() -> None:
    head = {"format": 2, "bytes": 4, "parcels": [["stream", True, 2, -1, 2], ["stream", False, 1, -1, 1]]}
    message = decode(json.dumps(head | {"gone": []}).encode() + b"\nbody" + b"11223")
    assert message.passed == [
        PassedDescriptor(STREAM, CHUNKED.name, b"11"),
        PassedDescriptor(STREAM, CHUNKED.name, b"22"),
        PassedDescriptor(STREAM, UNFRAMED.name, b"3"),
    ]
    with pytest.raises(UnreadableState, match="is of format 2"):
        message.state()


@pytest.mark.slow
@given(states(), DATA)
def test_a_body_that_is_none_is_refused_and_the_parcels_are_known(state: State, body: bytes) -> None:
    message = decode(of_another_format(encode(state), FORMAT, body))
    assert message.passed == state.passed
    with pytest.raises(UnreadableState, match="is broken"):
        message.state()


@pytest.mark.slow
@given(states(), st.data())
def test_a_text_that_has_lost_its_end_is_refused(state: State, data: st.DataObject) -> None:
    text = encode(state)
    with pytest.raises(UnreadableState):
        decode(text[: data.draw(st.integers(0, len(text) - 1))])


@pytest.mark.long
@given(states(), st.binary(min_size=1, max_size=20))
def test_a_text_with_more_at_its_end_is_refused(state: State, more: bytes) -> None:
    with pytest.raises(UnreadableState):
        decode(encode(state) + more)


@pytest.mark.slow
@given(states(), st.data())
def test_a_text_with_other_bytes_in_it_is_read_or_refused(state: State, data: st.DataObject) -> None:
    text = bytearray(encode(state))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with suppress(UnreadableState):
        decode(bytes(text)).state()


@given(st.binary(max_size=200))
def test_bytes_that_are_no_text_are_refused(text: bytes) -> None:
    with pytest.raises(UnreadableState, match="has no envelope"):
        decode(text)


def a_state(*places: int, gone: Sequence[int] = ()) -> State:
    """Return a state with a stream for each of its passed' places."""
    subscriber = Subscriber("c", Lease("s", "i", "t", 0, 2e9), "x")
    stream = StreamState(1, subscriber, 0, 0.0, 1000, None)
    passed = [PassedDescriptor(STREAM, CHUNKED.name, b"", place) for place in places]
    return State("e", 1, [(ChannelName("a"),)], [stream] * len(places), passed, gone)


@pytest.mark.parametrize(
    ("rest", "arrived"),
    [
        pytest.param(a_state(2), [], id="changed, but never copied"),
        pytest.param(a_state(gone=[2]), [], id="gone, but never copied"),
        pytest.param(a_state(gone=[-1]), [], id="gone, without a place"),
        pytest.param(a_state(0, 0), [], id="changed twice"),
        pytest.param(a_state(gone=[1, 1]), [], id="gone twice"),
        pytest.param(a_state(0, gone=[0]), [], id="changed and gone"),
        pytest.param(a_state(-1), [], id="new, without a socket"),
        pytest.param(a_state(-1, 0, -1), [300], id="two new, with one socket"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(rest: State, arrived: list[int]) -> None:
    with pytest.raises(UnreadableState, match="missing"):
        Reassembly([(carried(a_state(-1, -1)), [100, 101]), (carried(rest), arrived)])


@pytest.mark.parametrize("first", [[100], [100, 101, 102]])
def test_copied_streams_and_their_sockets_must_be_as_many(first: list[int]) -> None:
    with pytest.raises(UnreadableState, match="sockets are missing"):
        Reassembly([(carried(a_state(-1, -1)), first), (carried(a_state()), [])])


def test_sockets_that_belong_to_no_connection_are_refused() -> None:
    with pytest.raises(UnreadableState, match="more sockets"):
        Reassembly([(carried(a_state(-1)), [100, 101])])


def test_a_part_that_refers_to_another_is_nothing_without_it() -> None:
    for rest in (a_state(0), a_state(gone=[0])):
        with pytest.raises(UnreadableState, match="missing"):
            Reassembly([(carried(rest), [])])


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(a_state(-1)._replace(channels=[]), id="channels are missing"),
        pytest.param(a_state(-1)._replace(channels=[(ChannelName("NO"),)]), id="a channel has no name"),
        pytest.param(a_state(-1)._replace(passed=[]), id="more streams than passed"),
        pytest.param(a_state(-1)._replace(streams=[]), id="more passed than streams"),
        pytest.param(a_state(-1)._replace(passed=[PassedDescriptor(IDLE, "", b"")]), id="a stream is none"),
        pytest.param(
            a_state(-1)._replace(passed=[PassedDescriptor(STREAM, "gzip", b"")]),
            id="a framing of another version",
        ),
    ],
)
def test_a_state_whose_pieces_do_not_agree_is_refused(broken: State) -> None:
    with pytest.raises(UnreadableState, match="is broken"):
        carried(broken).state()
