"""The feeds of the demo: run the computations on and on, and give the events of each tick.

A feed is an iterator. Each item is what belongs together at that tick and is published as one; an empty one
is a pause. The feeds know neither HTTP nor the clock.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import count

from . import backtest, training
from .bars import Bar, closes
from .events import Event, Status, backtest_progress, dashboard_update, quotes, risk_alert, training_progress
from .portfolio import Mandate, mark_to_market
from .risk import RiskMonitor

Tick = list[Event]
"""The events of one tick."""

FIRST_DAY = date(2008, 5, 19)
"""Where the first pass begins to publish: two days before the portfolio crosses a limit again."""

PAUSE = 4
"""Ticks between the end of a run and the start of the next, so that a person sees how it ended."""

PLANS = (
    training.Plan(),
    training.Plan(lags=5, rate=0.005, seed=2),
    training.Plan(lags=21, seed=3),
    training.Plan(rate=0.01, seed=4),
)
RULES = (backtest.Rule(50, 200), backtest.Rule(20, 100), backtest.Rule(100, 250), backtest.Rule(10, 50))

BARS_PER_STEP = 50
"""Bars the backtest runs through between two of its events."""


@dataclass(frozen=True, slots=True)
class Market:
    """The data all feeds work on."""

    bars: Sequence[Bar]
    vix: Mapping[date, float]


def portfolio_feed(
    market: Market, passes: int | None = None, first_day: date = FIRST_DAY, *, quoted: bool = False
) -> Iterator[Tick]:
    """A trading day at each tick: its dashboard update, with it the alerts that day raises, and its quotes if wanted.

    The first pass begins to publish at `first_day`, the later ones at the first bar. The portfolio is carried
    through all the days in either case, so its value and its limits are what they would have been.
    """
    for number in _passes(passes):
        monitor = RiskMonitor()
        before = None
        for mark in mark_to_market(market.bars, market.vix, Mandate()):
            alerts = monitor.update(mark.total_value, mark.daily_return)
            if number or mark.date >= first_day:
                told = [risk_alert(alert, mark.date) for alert in alerts]
                yield [dashboard_update(mark, monitor), *told, *(quotes(mark, before) if quoted else ())]
            before = mark


def training_feed(market: Market, passes: int | None = None) -> Iterator[Tick]:
    """An epoch at each tick, run after run."""
    prices = closes(market.bars)
    for number in _passes(passes):
        plan = PLANS[number % len(PLANS)]
        data = training.split(prices, plan)
        usual = 1.0 - float(data.held_labels.mean())
        task_id = _new_id("train")
        for epoch in training.train(data, plan):
            if epoch.number == 0:
                status: Status = "started"
                message = (
                    f"Will tomorrow move by more than {data.threshold:.2%}? Logistic regression on "
                    f"{plan.lags} lags, {len(data.train_labels)} days to train on, "
                    f"{len(data.held_labels)} later ones held out"
                )
            elif epoch.number < epoch.epochs:
                status = "running"
                message = f"Epoch {epoch.number} of {epoch.epochs}, loss in training {epoch.train_loss:.4f}"
            else:
                status = "completed"
                message = f"Right on {epoch.accuracy:.1%} of the held-out days, a constant no on {usual:.1%}"
            yield [training_progress(task_id, epoch, status, message)]
        yield from ([] for _ in range(PAUSE))


def backtest_feed(market: Market, passes: int | None = None) -> Iterator[Tick]:
    """A stretch of bars at each tick, run after run."""
    held = market.bars[-1].close / market.bars[0].close - 1.0
    for number in _passes(passes):
        rule = RULES[number % len(RULES)]
        backtest_id = _new_id("backtest")
        for step in backtest.run(market.bars, rule):
            if step.number == 1:
                status: Status = "started"
                message = f"Moving averages of {rule.fast} and {rule.slow} days over {step.bars} bars"
            elif step.number == step.bars:
                status = "completed"
                message = f"{step.results.trades} trades; holding the index would have returned {held:.1%}"
            elif step.number % BARS_PER_STEP == 0:
                status = "running"
                where = "in the index" if step.invested else "in cash"
                message = f"{step.date}: {where}, {step.results.trades} trades so far"
            else:
                continue
            yield [backtest_progress(backtest_id, step, status, message)]
        yield from ([] for _ in range(PAUSE))


def _passes(passes: int | None) -> Iterator[int]:
    return count() if passes is None else iter(range(passes))


def _new_id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex[:8]}"
