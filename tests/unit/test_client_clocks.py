"""The Python client goes by no clock that is set: neither its own machine's nor the server's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx

from sse_app.client.http import retry_after
from sse_app.client.watch import LONGEST, SILENCE_INTERVALS, Pace


def test_a_date_to_come_back_at_is_understood_by_the_clock_of_the_server_that_set_it() -> None:
    for years in (-30, 0, 2):
        now = datetime.now(UTC) + timedelta(days=365 * years)
        headers = {
            "Date": format_datetime(now, usegmt=True),
            "Retry-After": format_datetime(now + timedelta(seconds=90), usegmt=True),
        }
        assert retry_after(httpx.Headers(headers)) == 90


def test_the_pace_of_pings_is_learned_although_the_clock_of_the_server_is_set() -> None:
    for step in (-3600, -0.5, 30, 1800, 86_400):
        pace = Pace(30)
        pace.begin()
        now = datetime.now(UTC)
        for number in range(12):
            if number == 6:
                now += timedelta(seconds=step)
            now += timedelta(seconds=1)
            pace.ping(now.isoformat())
            if number:
                assert abs(pace.limit - SILENCE_INTERVALS) < 0.01, (step, number)


def test_a_pace_much_slower_than_the_one_learned_is_learned_after_a_few_silences() -> None:
    """As after a server is set to ping less often: no connection lives to see two pings before that."""
    pace, now, slower = Pace(30), datetime.now(UTC), 100.0
    pace.begin()
    for _ in range(3):
        now += timedelta(seconds=10)
        pace.ping(now.isoformat())
    assert pace.limit == SILENCE_INTERVALS * 10
    for _ in range(4):
        pace.doubt()
        pace.begin()
        pace.ping(now.isoformat())
    assert pace.limit > slower, "it is never learned"
    now += timedelta(seconds=slower)
    pace.ping(now.isoformat())
    assert pace.limit == SILENCE_INTERVALS * slower


def test_silences_alone_make_no_pace_slower_than_a_server_can_be_set_to() -> None:
    pace = Pace(30)
    for _ in range(20):
        pace.begin()
        pace.doubt()
    assert pace.limit == SILENCE_INTERVALS * LONGEST


def test_a_silence_on_a_connection_that_has_shown_its_pace_changes_nothing() -> None:
    """It is dead, and not slow: the next one is to be found dead as soon."""
    pace, now = Pace(30), datetime.now(UTC)
    for _ in range(5):
        pace.begin()
        for _ in range(2):
            now += timedelta(seconds=10)
            pace.ping(now.isoformat())
        pace.doubt()
    assert pace.limit == SILENCE_INTERVALS * 10
