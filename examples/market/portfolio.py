"""The portfolio of the demo, marked to the bars: the index, cash, and a hedge that a volatility gauge drives.

All of it is arithmetic on the real closes. A trade decided on a day's close is made at that close and earns
from the next day on; the gauge of a day uses nothing later than that day.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Literal

import numpy as np

from .bars import Bar, FloatArray, closes, simple_returns

GaugeSource = Literal["vix", "realised", "none"]

TRADING_DAYS = 252
"""Trading days a year, to annualise with."""

REALISED_DAYS = 21
"""Days of returns behind the realised volatility: a trading month, the horizon of the VIX."""


@dataclass(frozen=True, slots=True)
class Mandate:
    """What the portfolio is told to do.

    Attributes:
        capital: the money it starts with, in US dollars.
        index_weight: the share of its value held in the index, restored on the first trading day of a month.
        hedge_steps: (gauge, ratio) in rising order; from that gauge on this share of the index is hedged.
        cost: what a trade costs, as a share of its notional.
    """

    capital: float = 1_000_000.0
    index_weight: float = 0.8
    hedge_steps: tuple[tuple[float, float], ...] = ((20.0, 0.25), (30.0, 0.5))
    cost: float = 0.0002

    def hedge_ratio(self, gauge: float) -> float:
        """The share of the index position to hedge at this gauge; none where the gauge is not a number."""
        ratio = 0.0
        for bound, step in self.hedge_steps:
            if gauge >= bound:
                ratio = step
        return ratio


@dataclass(frozen=True, slots=True)
class Mark:
    """The portfolio at the close of one day.

    Money in US dollars, `daily_return` as a fraction, `gauge` in percent a year (`nan` with source `none`).
    """

    date: date
    close: float
    total_value: float
    daily_return: float
    index_units: float
    hedge_units: float
    cash: float
    gauge: float
    gauge_source: GaugeSource

    @property
    def positions_count(self) -> int:
        """Open positions: the index, and the hedge while there is one. Cash is none."""
        return int(self.index_units > 0) + int(self.hedge_units > 0)


def realised_volatility(prices: FloatArray, days: int = REALISED_DAYS) -> FloatArray:
    """The annualised volatility of the last `days` returns at each price, in percent; `nan` before that."""
    result = np.full(len(prices), np.nan)
    if len(prices) > days:
        windows = np.lib.stride_tricks.sliding_window_view(simple_returns(prices), days)
        result[days:] = windows.std(axis=1, ddof=1) * math.sqrt(TRADING_DAYS) * 100.0
    return result


def mark_to_market(bars: Sequence[Bar], vix: Mapping[date, float], mandate: Mandate) -> Iterator[Mark]:
    """Carry the portfolio through the bars and yield it at every close.

    The hedge is a short position in the index, settled in cash every day as a future is. The VIX drives it on
    the days that have one, the realised volatility of the index on the others. Cash earns nothing.
    """
    if not bars:
        return
    gauges = realised_volatility(closes(bars))
    units = mandate.capital * mandate.index_weight / bars[0].close
    cash = mandate.capital * (1.0 - mandate.index_weight) - units * bars[0].close * mandate.cost
    value = units * bars[0].close + cash
    yield Mark(bars[0].date, bars[0].close, value, 0.0, units, 0.0, cash, math.nan, "none")

    hedge = 0.0
    for number, (before, bar) in enumerate(pairwise(bars), start=1):
        cash -= hedge * (bar.close - before.close)
        gauge, source = _gauge(bar.date, vix, float(gauges[number]))
        if bar.date.month != before.date.month:
            wanted = (units * bar.close + cash) * mandate.index_weight / bar.close
            cash -= (wanted - units) * bar.close + abs(wanted - units) * bar.close * mandate.cost
            units = wanted
        wanted = mandate.hedge_ratio(gauge) * units
        cash -= abs(wanted - hedge) * bar.close * mandate.cost
        hedge = wanted
        previous, value = value, units * bar.close + cash
        yield Mark(bar.date, bar.close, value, value / previous - 1.0, units, hedge, cash, gauge, source)


def _gauge(day: date, vix: Mapping[date, float], realised: float) -> tuple[float, GaugeSource]:
    if day in vix:
        return vix[day], "vix"
    return (realised, "realised") if math.isfinite(realised) else (math.nan, "none")
