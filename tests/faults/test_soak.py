"""Three minutes of a steady load; an hour is `python -m tests.faults.soak`."""

from __future__ import annotations

import random

import pytest

from tests.faults.soak import soak


@pytest.mark.ci
def test_what_a_server_holds_stays_as_it_was() -> None:
    seed = random.randrange(1, 10**9)
    print(f"python -m tests.faults.soak --seconds 180 --seed {seed}")
    result = soak("one process", 180.0, seed)
    print(result)
    assert not any(result.found.values())
    assert result.is_steady
