"""Three minutes of a steady load; an hour is `python -m tests.faults.soak`."""

from __future__ import annotations

import random

import pytest

from tests.faults.soak import soak


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [180.0, pytest.param(3600.0, marks=pytest.mark.long)])
def test_what_a_server_holds_stays_as_it_was(seconds: float) -> None:
    seed = random.randrange(1, 10**9)
    print(f"python -m tests.faults.soak --seconds {seconds} --seed {seed}")
    result = soak("one process", seconds, seed)
    print(result)
    assert not any(result.found.values())
    assert result.growth(result.resident) < 6.0
    assert abs(result.growth(result.descriptors)) <= 5  # clients come and go
    assert result.growth(result.threads) <= 1
    assert result.growth(result.tasks) <= 5
