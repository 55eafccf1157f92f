"""The scenarios, by name, in the order in which they run and are reported."""

from __future__ import annotations

from bench.scenarios import (
    channels,
    conflated,
    crowd,
    dashboards,
    fanout,
    health,
    idle,
    patterns,
    postgres,
    publishing,
    reconnect,
    stalled,
    steady,
    storm,
    workers,
)
from bench.scenarios.scenario import Scenario, Variant

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for module in (
        fanout,
        steady,
        workers,
        publishing,
        idle,
        reconnect,
        stalled,
        health,
        channels,
        patterns,
        conflated,
        dashboards,
        crowd,
        storm,
        postgres,
    )
    for scenario in module.SCENARIOS
}

__all__ = ["SCENARIOS", "Scenario", "Variant"]
