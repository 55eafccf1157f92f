"""The faults as cases of the tests: each in one of the ways to run the server, and ``kill -9`` in each of them."""

from __future__ import annotations

import random

from tests.faults.catalogue import CATALOGUE, run_once

TIMES, KILLS = 1, 5


def faults_of(way: str) -> list[str]:
    """Return the faults that are brought about in a way: each in one, so that all ways have about as many."""
    chosen = {
        name: fault.ways[number % len(fault.ways)] for number, (name, fault) in enumerate(CATALOGUE.items())
    }
    return [name for name in CATALOGUE if name == "kill -9" or chosen[name] == way]


def assert_all_is_accounted_for(name: str, way: str) -> None:
    """Bring a fault about a few times, and fail where an event is not accounted for."""
    seed, times = random.randrange(1, 10**9), KILLS if name == "kill -9" else TIMES
    print(f"python -m tests.faults --fault '{name}' --way '{way}' --times {times} --seed {seed}")
    result = run_once(name, way, times, seed)
    assert not result.failure, result.failure
    assert not result.findings, "\n".join(result.findings)
    assert result.acknowledged > 0
    assert result.received > 0
