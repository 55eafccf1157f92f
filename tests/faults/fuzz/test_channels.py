"""Channels and patterns: a stream has just the events of those that are asked for, and only what is granted."""

from __future__ import annotations

import random
from itertools import count as numbers
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.fuzz.conversation import PINGS, Manner, conversing, request_of
from tests.faults.fuzz.fuzzed import MARKS, Fuzzed
from tests.faults.fuzz.made_up import manners, mutated
from tests.faults.fuzz.reference import covers, is_channel, is_pattern, matches, overlap

pytestmark = MARKS


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


def test_a_stream_has_just_the_events_of_its_channels_and_only_what_is_granted(fuzzed: Fuzzed) -> None:
    batches = numbers()
    known = ("dashboard", "alerts", "training", "backtest", "user.**")

    @fuzzed.fuzz(100)
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

    with fuzzed.nothing_is_left(100) as look:
        ask()
