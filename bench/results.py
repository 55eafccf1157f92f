"""Results: what one scenario measured, as JSON, and the medians and ratios of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from bench.measure import Sample


@dataclass
class Result:
    """The samples of every variant of one scenario, in rounds, and how they were taken."""

    scenario: str
    quick: bool
    command: str
    taken: str
    machine: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[Sample | None]] = field(default_factory=dict)
    """One for each round; None where the measurement failed."""
    failures: dict[str, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was seen beside the figures."""

    def median(self, variant: str, metric: str) -> float | None:
        """Return the median of a metric over the rounds, None where there is no sample."""
        values = self.values(variant, metric)
        return median(values) if values else None

    def values(self, variant: str, metric: str) -> list[float]:
        """Return a metric of all rounds in which it was measured."""
        return [sample[metric] for sample in self.samples.get(variant, []) if sample and metric in sample]

    def ratio(self, variant: str, other: str, metric: str) -> float | None:
        """Return the median of the ratios of two variants within the same round."""
        pairs = zip(self.samples.get(variant, []), self.samples.get(other, []), strict=False)
        ratios = [a[metric] / b[metric] for a, b in pairs if a and b and metric in a and b.get(metric)]
        return median(ratios) if ratios else None

    def save(self, directory: Path) -> None:
        """Write it as JSON."""
        directory.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1)
        (directory / f"{self.scenario}.json").write_text(text + "\n")


def load(directory: Path) -> dict[str, Result]:
    """Return the results of a directory by scenario."""
    results = [Result(**json.loads(path.read_text())) for path in sorted(directory.glob("*.json"))]
    return {result.scenario: result for result in results}
