"""Each fault in one of the ways to run the server, and ``kill -9`` in each of them; under systemd a few of them."""

from __future__ import annotations

import random

import pytest

from tests.faults.catalogue import CATALOGUE, run_once
from tests.faults.ways import BY_HAND

KILL, KILLS = "kill -9", 5
AS_UNITS = [
    ("systemctl restart, twice within a second", "one process under systemd"),
    ("the next process is killed in a restart", "several processes under systemd"),
]


def faults_by_hand() -> list[tuple[str, str]]:
    """Return each fault with one of its ways, so that all ways have about as many; those of a way follow each other."""
    chosen = [
        (name, fault.ways[number % len(fault.ways)])
        for number, (name, fault) in enumerate(CATALOGUE.items())
        if name != KILL
    ]
    return [(name, way) for way in BY_HAND for name, its_way in [(KILL, way), *chosen] if its_way == way]


@pytest.mark.ci
@pytest.mark.parametrize(("name", "way"), [*faults_by_hand(), *AS_UNITS])
def test_every_event_is_accounted_for(name: str, way: str) -> None:
    seed, times = random.randrange(1, 10**9), KILLS if name == KILL else 1
    print(f"python -m tests.faults --fault '{name}' --way '{way}' --times {times} --seed {seed}")
    result = run_once(name, way, times, seed)
    assert not result.failure, result.failure
    assert not result.findings, "\n".join(result.findings)
    assert result.acknowledged > 0
    assert result.received > 0
