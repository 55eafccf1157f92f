"""The scenarios, by name, in the order in which they run and are reported."""

from __future__ import annotations

from bench.scenarios import channels, dashboards, fanout, health, idle, publishing, reconnect, stalled
from bench.scenarios.scenario import Scenario, Variant

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for module in (fanout, idle, reconnect, publishing, stalled, health, channels, dashboards)
    for scenario in module.SCENARIOS
}

__all__ = ["SCENARIOS", "Scenario", "Variant"]
