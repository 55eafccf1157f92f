"""The risk of the portfolio: rolling value at risk, drawdown, and alerts when one of them crosses its limit.

An alert tells of a crossing, not of a state: a metric that stays beyond its limit is silent until it gets
worse by a whole step, and one that wavers about the limit is silent until it has clearly gone back.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Severity = Literal["low", "medium", "high", "critical"]
Metric = Literal["value_at_risk", "drawdown"]

SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")

STEPS = (1.0, 1.25, 1.5, 2.0)
"""Multiples of the limit at which each severity begins."""

BACK = 0.95
"""A step counts as left only below this share of where it begins."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One crossing. `value` and `limit` are fractions (0.02 is two percent)."""

    metric: Metric
    severity: Severity
    value: float
    limit: float
    cleared: bool

    @property
    def alert_type(self) -> str:
        """`value_at_risk_breach`, `drawdown_cleared` and so on."""
        return f"{self.metric}_{'cleared' if self.cleared else 'breach'}"

    @property
    def message(self) -> str:
        """The crossing as a sentence."""
        name = "95 % value at risk" if self.metric == "value_at_risk" else "Drawdown"
        if self.cleared:
            return f"{name} {self.value:.2%} is back within its limit of {self.limit:.2%}"
        return f"{name} {self.value:.2%} is {self.value / self.limit:.2f} times its limit of {self.limit:.2%}"


@dataclass(slots=True)
class Limit:
    """Watches one metric against its limit."""

    metric: Metric
    limit: float
    _level: int = 0

    def watch(self, value: float) -> Alert | None:
        """Take the metric's next value; return an alert if it crossed the limit or a further step beyond."""
        reached = sum(value >= step * self.limit for step in STEPS)
        if reached > self._level:
            self._level = reached
            return Alert(self.metric, SEVERITIES[reached - 1], value, self.limit, cleared=False)
        breached = self._level > 0
        while self._level > 0 and value < BACK * STEPS[self._level - 1] * self.limit:
            self._level -= 1
        if breached and self._level == 0:
            return Alert(self.metric, "low", value, self.limit, cleared=True)
        return None


def value_at_risk(returns: Sequence[float], confidence: float = 0.95) -> float:
    """The historical one-day value at risk: the loss that was not exceeded on `confidence` of the days.

    A positive fraction of the value; negative where even the bad days were gains.
    """
    return -float(np.quantile(np.asarray(returns, dtype=np.float64), 1.0 - confidence))


class RiskMonitor:
    """Follows the portfolio day by day.

    Args:
        window: trading days of returns behind the value at risk, which is None before there are so many.
        var_limit: limit of the one-day 95 % value at risk, as a fraction of the portfolio's value.
        drawdown_limit: limit of the fall from the highest value so far, as a fraction of that.
    """

    def __init__(self, window: int = 100, var_limit: float = 0.015, drawdown_limit: float = 0.10) -> None:
        self.value_at_risk: float | None = None
        self.drawdown = 0.0
        self._returns: deque[float] = deque(maxlen=window)
        self._window = window
        self._peak = 0.0
        self._var_limit = Limit("value_at_risk", var_limit)
        self._drawdown_limit = Limit("drawdown", drawdown_limit)

    def update(self, total_value: float, daily_return: float) -> list[Alert]:
        """Take the close of the next day and return the alerts it raises."""
        self._peak = max(self._peak, total_value)
        self.drawdown = 1.0 - total_value / self._peak
        self._returns.append(daily_return)
        alerts = [self._drawdown_limit.watch(self.drawdown)]
        if len(self._returns) == self._window:
            self.value_at_risk = value_at_risk(self._returns)
            alerts.append(self._var_limit.watch(self.value_at_risk))
        return [alert for alert in alerts if alert is not None]
