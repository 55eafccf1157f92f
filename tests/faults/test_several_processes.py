"""Each fault that is brought about where the server is run as several processes."""

from __future__ import annotations

import pytest

from tests.faults.cases import assert_all_is_accounted_for, faults_of

WAY = "several processes"


@pytest.mark.slow
@pytest.mark.parametrize("name", faults_of(WAY))
def test_every_event_is_accounted_for(name: str) -> None:
    assert_all_is_accounted_for(name, WAY)
