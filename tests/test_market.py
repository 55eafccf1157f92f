"""The market demo: its figures against independent formulas on the real data, its events, its client.

The formulas here are written another way than in the demo (whole arrays where the demo goes day by day), so
that one mistake is not made twice.
"""

import asyncio
import gzip
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.market import backtest, training
from examples.market.bars import BadBars, Bar, FloatArray, closes, load_bars, load_vix, simple_returns
from examples.market.events import Event, abandoned
from examples.market.feeds import FIRST_DAY, Market, backtest_feed, portfolio_feed, training_feed
from examples.market.portfolio import Mandate, mark_to_market, realised_volatility
from examples.market.risk import BACK, SEVERITIES, STEPS, Limit, RiskMonitor, value_at_risk
from sse_app.client import Backoff, ClientError, Forbidden, Publisher, Refused, Session, Unauthorized

ROOT = Path(__file__).resolve().parents[1]
BARS = load_bars()
MARKET = Market(BARS, load_vix())
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


# The events


def test_every_event_has_the_fields_that_subscribers_rely_on() -> None:
    feeds = (portfolio_feed(MARKET, 1), training_feed(MARKET, 1), backtest_feed(MARKET, 1))
    events = [event for feed in feeds for tick in feed for event in tick]
    json.dumps(events, allow_nan=False)
    runs = {"started", "running", "completed"}
    for event in events:
        data = event["data"]
        if event["channel"] == "dashboard":
            assert (event["event"], data["update_type"]) == ("dashboard_update", "metrics")
            assert {"total_value", "daily_return", "positions_count", "date"} <= data["data"].keys()
        elif event["channel"] == "alerts":
            assert event["event"] == "risk_alert"
            assert set(data) == {
                *("alert_type", "severity", "message", "metric_name", "metric_value", "threshold"),
                *("entity_type", "entity_id"),
            }
            assert data["severity"] in SEVERITIES
        elif event["channel"] == "training":
            assert event["event"] == "training_progress"
            assert set(data) == {"task_id", "progress", "status", "message", "metrics"}
            assert set(data["metrics"]) == {"loss", "accuracy"}
            assert data["status"] in runs
            assert 0 <= data["progress"] <= 100
        else:
            assert (event["channel"], event["event"]) == ("backtest", "backtest_progress")
            assert set(data) == {
                *("backtest_id", "progress", "status", "message", "current_date", "results"),
            }
            assert set(data["results"]) == {"total_return", "sharpe_ratio", "max_drawdown"}
            assert data["status"] in runs
            assert 0 <= data["progress"] <= 100


def test_the_first_alert_comes_with_the_third_day_and_the_data_goes_round() -> None:
    ticks = list(portfolio_feed(MARKET, 1))
    assert ticks[0][0]["data"]["data"]["date"] == str(FIRST_DAY)
    assert [event["channel"] for event in ticks[2]] == ["dashboard", "alerts"]
    second = next(islice(portfolio_feed(MARKET), len(ticks), None))
    assert second[0]["data"]["data"]["date"] == str(BARS[0].date)


def test_each_run_has_an_id_of_its_own_and_an_end() -> None:
    for feed, name in ((training_feed(MARKET, 2), "task_id"), (backtest_feed(MARKET, 2), "backtest_id")):
        events = [event for tick in feed for event in tick]
        ids = list(dict.fromkeys(event["data"][name] for event in events))
        assert len(ids) == 2
        for run in ids:
            mine = [event for event in events if event["data"][name] == run]
            assert [mine[0]["data"]["status"], mine[-1]["data"]["status"]] == ["started", "completed"]
            assert [event["data"]["progress"] for event in mine] == sorted(
                event["data"]["progress"] for event in mine
            )
            cut = abandoned(mine[5])
            assert cut
            assert cut["data"]["status"] == "failed"
            assert {**cut["data"], "status": 0, "message": 0} == {
                **mine[5]["data"],
                "status": 0,
                "message": 0,
            }
            assert abandoned(mine[-1]) is None


# The client, against a server on a real socket


class Backend:
    """As much of the server as a publisher meets, with faults to order.

    Attributes:
        faults: what to do instead with the next requests: a status, or `lose` to take the events and drop the
            connection without an answer; 0 for nothing.
        valid: the access tokens that have not expired.
        log: every event taken, once for each idempotency key.
    """

    def __init__(self) -> None:
        self.faults: list[int | str] = []
        self.log: list[Event] = []
        self.bodies: dict[str, bytes] = {}
        self.valid: set[str] = set()
        self.logins = 0
        self.url = ""
        self.lock = threading.Lock()

    def answer(self, path: str, body: bytes, token: str, key: str) -> tuple[int, dict[str, Any]] | None:
        """The status and the JSON for a request, or None to drop it."""
        value = json.loads(body)
        if path == "/api/v1/auth/login":
            if value != {"username": "market", "password": "right", "cookie": False}:
                return 401, {"error": {"code": "bad_credentials", "message": "No."}}
            self.logins += 1
            self.valid.add(f"Bearer token-{self.logins}")
            return 200, {"access_token": f"token-{self.logins}", "expires_in": 3600}
        if token not in self.valid:
            return 401, {"error": {"code": "invalid_token", "message": "Expired."}}
        fault = self.faults.pop(0) if self.faults else 0
        if isinstance(fault, int) and fault:
            return fault, {"error": {"code": f"code_{fault}", "message": "Not now."}}
        if key not in self.bodies:
            self.bodies[key] = body
            channel = path.removeprefix("/api/v1/sse").strip("/")
            events: list[Event] = [value | {"channel": channel}] if channel else value["events"]
            self.log += events
        assert self.bodies[key] == body
        if fault == "lose":
            return None
        ids = [f"e-{number}" for number, _ in enumerate(value.get("events", [value]))]
        return 201, {"id": ids[-1], "ids": ids}


@contextmanager
def backend() -> Iterator[Backend]:
    """Serve a `Backend` on a socket of this machine."""
    state = Backend()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            token, key = self.headers.get("Authorization", ""), self.headers.get("Idempotency-Key", "")
            with state.lock:
                answer = state.answer(self.path, body, token, key)
            if answer is None:
                self.close_connection = True
                return
            content = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


EVENTS: list[Event] = [
    {"channel": "dashboard", "event": "dashboard_update", "data": {"number": number}} for number in range(4)
]


def test_events_arrive_once_whatever_happens_to_the_answers() -> None:
    reports: list[str] = []

    async def publish(url: str) -> None:
        async with (
            Session(url, "market", "right") as session,
            Publisher(url, session, report=reports.append, backoff=Backoff(0.002)) as client,
        ):
            await client.publish(**EVENTS[0])
            server.faults = ["lose", 503, 429, 500, "lose"]
            await client.publish(**EVENTS[1])
            server.valid.clear()
            server.faults = ["lose"]
            await client.publish_batch(EVENTS[2:])

    with backend() as server:
        asyncio.run(publish(server.url))
    assert server.log == EVENTS
    assert server.logins == 2
    assert len(reports) == 4
    assert reports[1::2] == ["the server is back"] * 2


def test_tasks_that_meet_an_expired_token_together_log_in_once() -> None:
    async def publish(url: str) -> None:
        async with Session(url, "market", "right") as session, Publisher(url, session) as client:
            await client.publish(**EVENTS[0])
            server.valid.clear()
            await asyncio.gather(*(client.publish(**event) for event in EVENTS[1:]))

    with backend() as server:
        asyncio.run(publish(server.url))
    assert server.logins == 2
    assert sorted(event["data"]["number"] for event in server.log) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("password", "fault", "error", "message"),
    [
        ("wrong", 0, Unauthorized, "login as market: 401 bad_credentials: No."),
        ("right", 403, Forbidden, "403 code_403: Not now."),
        ("right", 422, Refused, "422 code_422: Not now."),
    ],
)
def test_a_refusal_is_final(password: str, fault: int, error: type[ClientError], message: str) -> None:
    async def publish(url: str) -> None:
        async with Session(url, "market", password) as session, Publisher(url, session) as client:
            await client.publish(**EVENTS[0])

    with backend() as server:
        server.faults = [fault]
        with pytest.raises(error, match=message):
            asyncio.run(publish(server.url))
    assert server.log == []


def test_the_publisher_fills_all_channels_and_ends_cleanly_on_a_signal() -> None:
    with backend() as server:
        publisher = subprocess.Popen(
            [sys.executable, "-m", "examples.market.publisher", "--url", server.url, "--speed", "20"],
            cwd=ROOT,
            env=os.environ | {"MARKET_PASSWORD": "right"},
            stderr=subprocess.PIPE,
        )
        with publisher:
            while len({event["channel"] for event in server.log}) < 4 and publisher.poll() is None:
                time.sleep(0.01)
            publisher.send_signal(signal.SIGTERM)
            _, printed = publisher.communicate(timeout=10)
    assert (publisher.returncode, printed) == (0, b"")
    last = {event["channel"]: event["data"].get("status") for event in server.log}
    assert (last["training"], last["backtest"]) == ("failed", "failed")
