"""Faults of units of a real systemd: a few of them, one with one process and one with several."""

from __future__ import annotations

import pytest

from tests.faults.cases import assert_all_is_accounted_for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("systemctl restart, twice within a second", "one process under systemd"),
        ("the next process is killed in a restart", "several processes under systemd"),
    ],
)
def test_every_event_is_accounted_for(name: str, way: str) -> None:
    assert_all_is_accounted_for(name, way)
