"""The comparison of a node's clock with the database's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sse_app.cluster.clock import ClockComparison


def test_an_answer_that_takes_long_changes_nothing_that_a_quick_one_said() -> None:
    clocks = ClockComparison()
    clocks.learn(clock=1000.0, asked_at=10.0, answered_at=10.002)
    clocks.learn(clock=1001.0, asked_at=11.0, answered_at=16.0)  # stopped behind the answer
    clocks.learn(clock=1010.0, asked_at=15.0, answered_at=20.0)  # and before it
    assert 989.998 <= clocks.ahead <= 990.0


@pytest.mark.parametrize("by", [-3600.0, -0.1, 0.1, 3600.0])
def test_a_clock_that_was_set_is_followed(by: float) -> None:
    clocks = ClockComparison(990.0)
    clocks.learn(clock=1000.0 + by, asked_at=10.0, answered_at=10.002)
    assert clocks.ahead == pytest.approx(990.0 + by, abs=0.003)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), min_size=1), st.floats(-1e6, 1e6))
def test_it_is_never_further_off_than_the_quickest_answer_took(
    times: list[tuple[float, float]], ahead: float
) -> None:
    clocks, now = ClockComparison(), 0.0
    for before, after in times:
        clocks.learn(now + before + ahead, now, now + before + after)
        now += before + after
    assert abs(clocks.ahead - ahead) <= min(map(sum, times)) + 1e-6
