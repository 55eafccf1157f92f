"""Rules for channels: the first that covers a channel counts; a pattern is public where all its channels are."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app import Settings
from sse_app.core.channel_rules import ChannelRule, ChannelRules
from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.settings.channels import doubts

NAMES = [ChannelName(".".join(parts)) for length in (1, 2, 3) for parts in product("ab", repeat=length)]
"""All channels of up to three segments of two letters."""

texts = st.lists(st.sampled_from(["a", "b", "*"]), max_size=3).flatmap(
    lambda segments: st.sampled_from([".".join([*segments, "**"]), ".".join(segments) or "**"])
)
rules = st.lists(st.tuples(texts, st.booleans()), max_size=6)


@pytest.mark.slow
@given(rules)
def test_the_first_pattern_that_covers_a_channel_counts(given: list[tuple[str, bool]]) -> None:
    made = ChannelRules(ChannelRule(ChannelPattern(text), public=public) for text, public in given)
    for name in NAMES:
        first = next((public for text, public in given if ChannelPattern(text).matches(name)), None)
        rule = made.rule(name)
        assert (None if rule is None else rule.public) == first
        assert made.is_public(name) == bool(first)


@given(rules, texts)
def test_a_pattern_is_public_only_where_every_channel_of_it_is(
    given: list[tuple[str, bool]], asked: str
) -> None:
    made = ChannelRules(ChannelRule(ChannelPattern(text), public=public) for text, public in given)
    if made.is_public(asked):
        pattern = ChannelPattern(asked)
        assert all(made.is_public(name) for name in NAMES if pattern.matches(name))


@given(texts)
def test_where_all_is_public_each_pattern_is_but_nothing_of_the_servers_own(asked: str) -> None:
    made = ChannelRules([ChannelRule(ChannelPattern("**"), public=True)])
    assert made.is_public(asked)
    assert not made.is_public("sse_app.admin")
    assert not made.is_public(f"sse_app.{asked}")


@given(rules)
def test_what_never_counts_by_check_config_is_no_channels_rule(given: list[tuple[str, bool]]) -> None:
    values: dict[str, Any] = {
        "channels": [{"pattern": text, "public": public} for text, public in given],
        "auth": {"own_channels": []},
    }
    never = {int(line.partition("]")[0].removeprefix("channels[")) for line in doubts(Settings(**values))}
    for name in NAMES:
        first = next((n for n, (text, _) in enumerate(given) if ChannelPattern(text).matches(name)), None)
        assert first not in never
