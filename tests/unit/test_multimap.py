"""The dictionary with several values under a key says what a dictionary of sets would."""

from __future__ import annotations

import random
import sys

import pytest

from sse_app.core.multimap import Multimap


@pytest.mark.parametrize("seed", range(10))
def test_it_says_what_a_dictionary_of_sets_would(seed: int) -> None:
    chance = random.Random(seed)
    ours: Multimap[str, int] = Multimap()
    sets: dict[str, set[int]] = {}
    for _ in range(2000):
        key, value = chance.choice("abcd"), chance.randrange(4)
        if chance.random() < 0.5:
            ours.add(key, value)
            sets.setdefault(key, set()).add(value)
        else:
            ours.discard(key, value)
            sets.get(key, set()).discard(value)
            if not sets.get(key, True):
                del sets[key]
        assert len(ours) == len(sets)
        for each in "abcd":
            assert sorted(ours.get(each)) == sorted(sets.get(each, ()))
            assert len(ours.get(each)) == len(sets.get(each, ()))
            assert (each in ours) == (each in sets)


def test_a_lone_value_takes_no_set() -> None:
    map: Multimap[str, object] = Multimap()
    value = object()
    map.add("a", value)
    (kept,) = map.get("a")
    assert kept is value
    assert sys.getsizeof(map.get("a")) < 64
