"""The index of patterns finds what a look at each pattern finds, and keeps nothing of what has been removed."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.core.channels import ChannelPattern
from sse_app.core.pattern_index import PatternIndex

segments = st.sampled_from(["a", "b", "c"])
channels = st.lists(segments, min_size=1, max_size=4).map(".".join)
patterns = st.builds(
    lambda parts, is_open: ".".join([*parts, "**"] if is_open else parts),
    st.lists(segments | st.just("*"), max_size=4),
    st.booleans(),
).filter(bool)
values = st.integers(0, 3)


@pytest.mark.slow
@given(
    st.lists(st.tuples(patterns, values), max_size=30), st.data(), st.lists(channels, min_size=1, max_size=10)
)
def test_what_is_found_is_what_each_pattern_matches(
    added: list[tuple[str, int]], data: st.DataObject, asked: list[str]
) -> None:
    index: PatternIndex[int] = PatternIndex()
    for pattern, value in added:
        index.add(pattern, value)
    kept = set(added)
    removed = data.draw(
        st.lists(st.sampled_from(added) | st.tuples(patterns, values)) if added else st.just([])
    )
    for pattern, value in removed:
        index.discard(pattern, value)
        kept.discard((pattern, value))
    for channel in asked:
        wanted = [value for pattern, value in kept if ChannelPattern(pattern).matches(channel)]
        assert Counter(index.matching(channel)) == Counter(wanted)
    assert bool(index) == bool(kept)
    for pattern, value in kept:
        index.discard(pattern, value)
    assert not index, "no place is left in the tree"
