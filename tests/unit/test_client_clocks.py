"""The Python client goes by no clock that is set: neither its own machine's nor the server's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx

from sse_app.client.http import retry_after
from sse_app.client.watch import SILENCE_INTERVALS, Pace


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
