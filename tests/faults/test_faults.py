"""Each fault, brought about a few times, in one of the ways to run the server; ``kill -9`` in each of them."""

from __future__ import annotations

import random

import pytest

from tests.faults.catalogue import CATALOGUE, run_once
from tests.faults.ways import WAYS

TIMES = 2
KILLS = 7
"""In each way."""


def cases() -> list[tuple[str, str, int]]:
    """Return the faults, each with one of its ways, so that all ways have about as many."""
    found = []
    for number, (name, fault) in enumerate(CATALOGUE.items()):
        found.append((name, fault.ways[number % len(fault.ways)], TIMES))
    return [*found, *(("kill -9", way, KILLS) for way in WAYS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "way", "times"), cases())
def test_every_event_is_accounted_for(name: str, way: str, times: int) -> None:
    seed = random.randrange(1, 10**9)
    print(f"python -m tests.faults --fault '{name}' --way '{way}' --times {times} --seed {seed}")
    result = run_once(name, way, times, seed)
    assert not result.failure, result.failure
    assert result.findings == []
    assert result.acknowledged > 0
    assert result.received > 0
