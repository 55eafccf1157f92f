"""The market's data as the tests use it."""

from __future__ import annotations

from examples.market.bars import load_bars, load_vix
from examples.market.events import Event
from examples.market.feeds import Market

BARS = load_bars()
MARKET = Market(BARS, load_vix())
EVENTS: list[Event] = [
    {"channel": "dashboard", "event": "dashboard_update", "data": {"number": number}} for number in range(4)
]
