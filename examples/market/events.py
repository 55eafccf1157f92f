"""The events of the demo: what each computation looks like to a subscriber."""

import math
from datetime import date
from typing import Any, Literal, TypedDict

from .backtest import Step
from .portfolio import Mark
from .risk import Alert, RiskMonitor
from .training import Epoch

Channel = Literal["dashboard", "alerts", "training", "backtest", "quotes"]
Status = Literal["started", "running", "completed", "failed"]

PORTFOLIO = "sp500-hedged"
"""The id of the portfolio in its alerts."""


class Event(TypedDict):
    """An event as the server's batch takes it."""

    channel: Channel
    event: str
    data: dict[str, Any]


def dashboard_update(mark: Mark, monitor: RiskMonitor) -> Event:
    """The portfolio at a close.

    Money in US dollars, volatility in percent a year, all other shares and returns as fractions. What there
    are not yet days enough for is null.
    """
    at_risk = monitor.value_at_risk
    metrics = {
        "total_value": round(mark.total_value, 2),
        "daily_return": round(mark.daily_return, 6),
        "positions_count": mark.positions_count,
        "date": mark.date.isoformat(),
        "index_close": round(mark.close, 2),
        "cash": round(mark.cash, 2),
        "hedge_ratio": round(mark.hedge_units / mark.index_units, 4),
        "volatility": None if math.isnan(mark.gauge) else round(mark.gauge, 2),
        "volatility_source": mark.gauge_source,
        "value_at_risk": None if at_risk is None else round(at_risk, 6),
        "drawdown": round(monitor.drawdown, 6),
    }
    return _event("dashboard", "dashboard_update", {"update_type": "metrics", "data": metrics})


def quotes(mark: Mark, before: Mark | None) -> list[Event]:
    """What is traded and held at a close, each by its symbol, with its change since the close before."""

    def values(at: Mark) -> dict[str, float]:
        gauge = "VIX" if at.gauge_source == "vix" else "VOL"
        found = {"SPX": at.close, gauge: at.gauge, "FUND": at.total_value, "CASH": at.cash}
        return {symbol: value for symbol, value in found.items() if not math.isnan(value)}

    earlier = {} if before is None else values(before)
    events = []
    for symbol, price in values(mark).items():
        last = earlier.get(symbol)
        change = round(price / last - 1, 6) if last else None
        data = {"symbol": symbol, "price": round(price, 2), "change": change, "date": mark.date.isoformat()}
        events.append(_event("quotes", "quote", data))
    return events


def risk_alert(alert: Alert, day: date) -> Event:
    """A limit crossed on that day."""
    data = {
        "alert_type": alert.alert_type,
        "severity": alert.severity,
        "message": f"{day}: {alert.message}",
        "metric_name": alert.metric,
        "metric_value": round(alert.value, 6),
        "threshold": alert.limit,
        "entity_type": "portfolio",
        "entity_id": PORTFOLIO,
    }
    return _event("alerts", "risk_alert", data)


def training_progress(task_id: str, epoch: Epoch, status: Status, message: str) -> Event:
    """A model after an epoch; the metrics are those of the held-out part."""
    data = {
        "task_id": task_id,
        "progress": epoch.progress,
        "status": status,
        "message": message,
        "metrics": {"loss": round(epoch.loss, 6), "accuracy": round(epoch.accuracy, 6)},
    }
    return _event("training", "training_progress", data)


def backtest_progress(backtest_id: str, step: Step, status: Status, message: str) -> Event:
    """A backtest after a bar."""
    data = {
        "backtest_id": backtest_id,
        "progress": step.progress,
        "status": status,
        "message": message,
        "current_date": step.date.isoformat(),
        "results": {
            "total_return": round(step.results.total_return, 6),
            "sharpe_ratio": round(step.results.sharpe_ratio, 4),
            "max_drawdown": round(step.results.max_drawdown, 6),
        },
    }
    return _event("backtest", "backtest_progress", data)


def abandoned(event: Event) -> Event | None:
    """The event that ends the run which `event` belongs to; None where it is no run or has ended already."""
    if event["data"].get("status") not in ("started", "running"):
        return None
    message = "Stopped before the end: the publisher is shutting down"
    return _event(event["channel"], event["event"], {**event["data"], "status": "failed", "message": message})


def _event(channel: Channel, name: str, data: dict[str, Any]) -> Event:
    return {"channel": channel, "event": name, "data": data}
