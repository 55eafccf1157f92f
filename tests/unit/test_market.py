"""The market of the demo: data, portfolio, risk, training and backtest agree with plain calculations."""

from __future__ import annotations

import gzip
import statistics
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from examples.market import backtest, training
from examples.market.bars import BadBars, Bar, FloatArray, closes, load_bars, simple_returns
from examples.market.portfolio import Mandate, mark_to_market, realised_volatility
from examples.market.risk import BACK, SEVERITIES, STEPS, Limit, RiskMonitor, value_at_risk
from tests.support.market_data import BARS, MARKET

PRICES = closes(BARS)
MARKS = list(mark_to_market(BARS, MARKET.vix, Mandate()))
VALUES = np.array([mark.total_value for mark in MARKS])


def altered(bars: tuple[Bar, ...], first: int) -> tuple[Bar, ...]:
    """The same bars up to `first`, wildly different ones from there on."""
    factors = (0.4, 3.0)
    later = (replace(bar, close=bar.close * factors[n % 2]) for n, bar in enumerate(bars[first:]))
    return (*bars[:first], *later)


# The data


def test_all_bars_and_volatilities_are_read() -> None:
    assert len(BARS) == 5031
    assert (str(BARS[0].date), BARS[0].close) == ("1999-01-04", 1228.099976)
    assert (str(BARS[-1].date), BARS[-1].close) == ("2018-12-31", 2506.850098)
    assert len(MARKET.vix) == 1259  # 1,305 lines, 46 of them days without a value
    assert MARKET.vix[BARS[-1].date] == 25.42


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its columns are"),
        ("Date,Close\n", "its columns are"),
        ("1/4/1999,9,9,9,9,9\n", "line 2: 6 fields"),
        ("4.1.1999,9,9,9,9,9,1\n", "line 2: '4.1.1999' is not a date"),
        ("1/4/1999,9,9,9,nan,9,1\n", "line 2: 'nan' is not a positive number"),
        ("1/4/1999,9,9,9,,9,1\n", "line 2: '' is not a positive number"),
        ("1/4/1999,9,9,8,7,9,1\n", "line 2: open and close must lie between"),
        ("1/5/1999,9,9,9,9,9,1\n1/4/1999,9,9,9,9,9,1\n", "line 3: 1999-01-04 does not come after 1999-01-05"),
        ("\n", "line 2: 0 fields"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    header = "" if message.startswith("its") else "Date,Open,High,Low,Close,Adj Close,Volume\n"
    path = tmp_path / "bars.csv.gz"
    path.write_bytes(gzip.compress((header + text).encode()))
    with pytest.raises(BadBars, match=message):
        load_bars(path)


def test_a_file_that_is_missing_or_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bars.csv.gz"
    with pytest.raises(BadBars, match=r"bars\.csv\.gz: cannot be read"):
        load_bars(path)
    path.write_bytes(gzip.compress(b"Date,Open,High,Low,Close,Adj Close,Volume\n" * 9)[:-12])
    with pytest.raises(BadBars, match=r"bars\.csv\.gz: cannot be read"):
        load_bars(path)


# The portfolio


def test_every_change_in_value_is_explained_by_the_positions_and_the_costs() -> None:
    units = np.array([mark.index_units for mark in MARKS])
    hedge = np.array([mark.hedge_units for mark in MARKS])
    traded = (np.abs(np.diff(units)) + np.abs(np.diff(hedge))) * PRICES[1:]
    explained = (units[:-1] - hedge[:-1]) * np.diff(PRICES) - Mandate().cost * traded
    np.testing.assert_allclose(np.diff(VALUES), explained, atol=1e-6)
    np.testing.assert_allclose(units * PRICES + [mark.cash for mark in MARKS], VALUES)


def test_a_portfolio_of_the_index_alone_moves_as_the_index() -> None:
    mandate = Mandate(index_weight=1.0, hedge_steps=(), cost=0.0)
    values = [mark.total_value for mark in mark_to_market(BARS, {}, mandate)]
    np.testing.assert_allclose(values, mandate.capital * PRICES / PRICES[0])


def test_the_hedge_follows_the_gauge() -> None:
    for day in range(21, 200):
        returns = [PRICES[n] / PRICES[n - 1] - 1.0 for n in range(day - 20, day + 1)]
        expected = statistics.stdev(returns) * 252**0.5 * 100
        assert realised_volatility(PRICES[: day + 1])[-1] == pytest.approx(expected)
    sources = {mark.date.year: mark.gauge_source for mark in MARKS}
    assert (sources[2008], sources[2015]) == ("realised", "vix")
    for mark in MARKS:
        wanted = 0.5 if mark.gauge >= 30 else 0.25 if mark.gauge >= 20 else 0.0
        assert mark.hedge_units == pytest.approx(wanted * mark.index_units)
        assert mark.positions_count == (2 if wanted else 1)


def test_the_future_does_not_change_past_marks() -> None:
    known = {day: value for day, value in MARKET.vix.items() if day < BARS[4500].date}
    again = mark_to_market(altered(BARS, 4500), known, Mandate())
    # Compared as text, because the gauge of the first days is not a number, and that equals nothing.
    assert str(list(islice(again, 4500))) == str(MARKS[:4500])


# The risk


@pytest.mark.slow
def test_value_at_risk_and_drawdown_agree_with_numpy_every_day() -> None:
    monitor = RiskMonitor(window=100)
    returns = np.array([mark.daily_return for mark in MARKS])
    np.testing.assert_allclose(returns[1:], simple_returns(VALUES), atol=1e-12)
    windows = np.lib.stride_tricks.sliding_window_view(returns, 100)
    at_risk = -np.quantile(windows, 0.05, axis=1)
    drawdown = 1.0 - VALUES / np.maximum.accumulate(VALUES)
    for number, mark in enumerate(MARKS):
        monitor.update(mark.total_value, mark.daily_return)
        assert monitor.drawdown == pytest.approx(drawdown[number])
        expected = None if number < 99 else pytest.approx(at_risk[number - 99])
        assert monitor.value_at_risk == expected


def test_value_at_risk_is_the_loss_of_the_fifth_worst_day_in_a_hundred() -> None:
    returns = np.random.default_rng(1).permutation(np.arange(-50, 51)) / 1000.0
    assert value_at_risk(list(returns)) == pytest.approx(0.045)


def test_a_limit_alerts_on_crossings_only() -> None:
    limit = Limit("drawdown", 0.10)
    values = [0.09, 0.10, 0.11, 0.124, 0.21, 0.30, 0.16, 0.15, 0.20, 0.096, 0.10, 0.094, 0.08, 0.13]
    alerts = [limit.watch(value) for value in values]
    assert [(alert.value, alert.severity, alert.cleared) for alert in alerts if alert] == [
        (0.10, "low", False),
        (0.21, "critical", False),
        (0.20, "critical", False),
        (0.094, "low", True),
        (0.13, "medium", False),
    ]


@pytest.mark.slow
def test_every_alert_of_the_twenty_years_is_a_crossing() -> None:
    monitor = RiskMonitor()
    count = 0
    before: dict[str, float] = {"drawdown": 0.0, "value_at_risk": 0.0}
    for mark in MARKS:
        for alert in monitor.update(mark.total_value, mark.daily_return):
            count += 1
            step = STEPS[SEVERITIES.index(alert.severity)] * alert.limit
            if alert.cleared:
                assert alert.value < BACK * alert.limit <= before[alert.metric]
            else:
                assert before[alert.metric] < step <= alert.value
        before = {"drawdown": monitor.drawdown, "value_at_risk": monitor.value_at_risk or 0.0}
    assert count > 50


# The training


def test_training_lowers_the_loss_and_beats_a_constant_answer_on_the_held_out_part() -> None:
    for plan in (training.Plan(), training.Plan(lags=5, rate=0.005, seed=2)):
        data = training.split(PRICES, plan)
        epochs = list(training.train(data, plan))
        losses = [epoch.train_loss for epoch in epochs]
        assert losses[0] == pytest.approx(np.log(2.0))
        assert losses == sorted(losses, reverse=True)
        assert epochs[-1].loss < epochs[0].loss
        assert epochs[-1].accuracy > max(data.held_labels.mean(), 1.0 - data.held_labels.mean())


def test_the_split_is_in_time_and_asks_about_the_next_day() -> None:
    plan = training.Plan()
    data = training.split(PRICES, plan)
    moves = np.abs(np.diff(np.log(PRICES)))
    moves = np.abs(np.exp(moves * np.sign(np.diff(PRICES))) - 1.0)[21:]
    labels = np.concatenate([data.train_labels, data.held_labels])
    assert data.threshold == pytest.approx(np.median(moves[: len(data.train_labels)]))
    np.testing.assert_array_equal(labels, moves > data.threshold)
    np.testing.assert_allclose(data.train_features.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(data.train_features.std(axis=0), 1.0)


def test_the_held_out_part_is_never_trained_on() -> None:
    plan = training.Plan(epochs=5)
    data = training.split(PRICES, plan)
    first = len(PRICES) - len(data.held_labels)
    other = training.split(closes(altered(BARS, first)), plan)
    np.testing.assert_array_equal(data.train_features, other.train_features)
    np.testing.assert_array_equal(data.train_labels, other.train_labels)
    pairs = list(zip(training.train(data, plan), training.train(other, plan), strict=True))
    assert all(epoch.train_loss == changed.train_loss for epoch, changed in pairs)
    assert pairs[-1][0].loss != pairs[-1][1].loss


def test_the_gradient_agrees_with_differences_of_the_loss() -> None:
    data = training.split(PRICES, training.Plan(lags=3))
    features, labels = data.train_features[:200], data.train_labels[:200]
    start: FloatArray = np.linspace(-1.0, 1.0, features.shape[1])

    def loss(weights: FloatArray) -> float:
        margins = (2.0 * labels - 1.0) * (features @ weights)
        return float(np.logaddexp(0.0, -margins).mean())

    model = training.Model(features.shape[1])
    model.weights = start.copy()
    assert model.score(features, labels)[0] == pytest.approx(loss(start))
    model.step(features, labels, rate=1.0, l2=0.0)
    slopes = [(loss(start + 1e-6 * row) - loss(start - 1e-6 * row)) / 2e-6 for row in np.eye(len(start))]
    np.testing.assert_allclose(start - model.weights, slopes, atol=1e-7)


# The backtest


@pytest.mark.parametrize("rule", [backtest.Rule(50, 200), backtest.Rule(10, 50, cost=0.0)])
def test_the_final_figures_agree_with_whole_arrays(rule: backtest.Rule) -> None:
    sums = np.concatenate([[0.0], np.cumsum(PRICES)])
    ends = np.arange(rule.slow, len(PRICES) + 1)
    fast = (sums[ends] - sums[ends - rule.fast]) / rule.fast
    slow = (sums[ends] - sums[ends - rule.slow]) / rule.slow
    position = np.concatenate([np.zeros(rule.slow - 1), fast > slow])
    switched = np.abs(np.diff(position, prepend=0.0))
    returns = (1.0 + position[:-1] * simple_returns(PRICES)) * (1.0 - rule.cost * switched[:-1]) - 1.0
    equity = np.concatenate([[1.0], np.cumprod(1.0 + returns)])

    final = list(backtest.run(BARS, rule))[-1]
    assert final.progress == 100.0
    assert final.results.trades == switched.sum()
    assert final.results.total_return == pytest.approx(equity[-1] - 1.0)
    assert final.results.sharpe_ratio == pytest.approx(returns.mean() / returns.std(ddof=1) * 252**0.5)
    assert final.results.max_drawdown == pytest.approx((1.0 - equity / np.maximum.accumulate(equity)).max())


def test_the_future_does_not_change_past_signals() -> None:
    rule = backtest.Rule()
    again = list(islice(backtest.run(altered(BARS, 3000), rule), 3000))
    assert again == list(islice(backtest.run(BARS, rule), 3000))
    # The close of a day decides about the next one: a jump earns nothing for a position taken at its end.
    jump = tuple(replace(BARS[n], close=price) for n, price in enumerate([10.0, 10.0, 10.0, 20.0, 20.0]))
    steps = list(backtest.run(jump, backtest.Rule(1, 3, cost=0.0)))
    assert [step.invested for step in steps] == [False, False, False, True, True]
    assert steps[-1].results.total_return == 0.0
