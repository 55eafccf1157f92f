"""The backtest of the demo: a moving-average crossover run bar by bar over the twenty years.

No look-ahead by construction: the strategy is handed one close at a time, and the position it takes at a
close earns from the next day on.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from .bars import Bar
from .portfolio import TRADING_DAYS


@dataclass(frozen=True, slots=True)
class Rule:
    """Hold the index while the `fast` average of closes is above the `slow` one, else cash.

    Attributes:
        fast: days of the fast average.
        slow: days of the slow average; no position is taken before there are so many closes.
        cost: what getting in or out costs, as a share of the value.
    """

    fast: int = 50
    slow: int = 200
    cost: float = 0.0005


@dataclass(frozen=True, slots=True)
class Results:
    """Where the backtest stands; returns and the drawdown as fractions, the Sharpe ratio a year.

    The ratio is against cash that earns nothing, over all days so far with or without a position. While there
    is no spread to divide by it is 0.
    """

    total_return: float
    sharpe_ratio: float
    max_drawdown: float
    trades: int


@dataclass(frozen=True, slots=True)
class Step:
    """The backtest after one bar."""

    number: int
    bars: int
    date: date
    invested: bool
    results: Results

    @property
    def progress(self) -> float:
        """Percent of the bars done."""
        return round(100.0 * self.number / self.bars, 1)


class Crossover:
    """Turns closes, one at a time, into whether to hold the index over the next day."""

    def __init__(self, rule: Rule) -> None:
        if not 0 < rule.fast < rule.slow:
            raise ValueError(f"{rule.fast} days must be fewer than {rule.slow}, and above 0")
        self._fast: deque[float] = deque(maxlen=rule.fast)
        self._slow: deque[float] = deque(maxlen=rule.slow)

    def signal(self, close: float) -> bool:
        """Take the close of the day and decide."""
        self._fast.append(close)
        self._slow.append(close)
        if len(self._slow) < (self._slow.maxlen or 0):
            return False
        # fsum rounds once; a running sum would drift over twenty years and depend on where it began.
        return math.fsum(self._fast) / len(self._fast) > math.fsum(self._slow) / len(self._slow)


class Performance:
    """The figures of a track record, updated return by return."""

    def __init__(self) -> None:
        self._equity = 1.0
        self._peak = 1.0
        self._max_drawdown = 0.0
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, daily_return: float) -> None:
        """Take the return of the next day."""
        self._equity *= 1.0 + daily_return
        self._peak = max(self._peak, self._equity)
        self._max_drawdown = max(self._max_drawdown, 1.0 - self._equity / self._peak)
        # Welford's method: variance in one pass, without the cancellation of sums of squares.
        self._count += 1
        delta = daily_return - self._mean
        self._mean += delta / self._count
        self._squares += delta * (daily_return - self._mean)

    def results(self, trades: int) -> Results:
        """The figures so far."""
        sharpe = 0.0
        if self._count > 1 and self._squares > 0:
            sharpe = self._mean / math.sqrt(self._squares / (self._count - 1)) * math.sqrt(TRADING_DAYS)
        return Results(self._equity - 1.0, sharpe, self._max_drawdown, trades)


def run(bars: Sequence[Bar], rule: Rule) -> Iterator[Step]:
    """Run the rule over the bars and yield where it stands after each."""
    crossover, performance = Crossover(rule), Performance()
    invested, trades = False, 0
    owed = 0.0
    before: float | None = None
    for number, bar in enumerate(bars, start=1):
        if before is not None:
            earned = bar.close / before - 1.0 if invested else 0.0
            performance.add((1.0 + earned) * (1.0 - owed) - 1.0)
        wanted = crossover.signal(bar.close)
        # A trade is made at the close; its cost falls into the first day that the new position counts for.
        owed = rule.cost if wanted != invested else 0.0
        trades += wanted != invested
        invested, before = wanted, bar.close
        yield Step(number, len(bars), bar.date, invested, performance.results(trades))
