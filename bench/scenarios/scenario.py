"""What a scenario is: variants measured in turn, and how its figures are shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.measure import Sample
from bench.run import Run

STREAM_SERVERS = (
    "sse_app",
    "floor",
    "nchan",
    "tornado-queue",
    "better-sse",
    "aiohttp-sse",
    "sse-starlette",
    "pushpin",
)


@dataclass(frozen=True)
class Variant:
    """One of the things compared: a server, and what sets it apart from others with the same server."""

    server: str
    label: str = ""
    measure: Callable[[str, Run], Sample] | None = None
    """Takes the server's name and the run. None: the scenario's own."""
    once: bool = False
    """Measured in the first round only, and not in a quick run: a peer that no bound is set against."""

    @property
    def key(self) -> str:
        """Its name in results and tables."""
        return f"{self.server}, {self.label}" if self.label else self.server


@dataclass(frozen=True)
class Column:
    """A column of a table: a metric of the samples and how it is written."""

    metric: str
    title: str
    digits: int = 1


@dataclass(frozen=True)
class Scenario:
    """Variants that run one after the other in each round, and the columns of their table."""

    name: str
    title: str
    what: str
    variants: tuple[Variant, ...]
    columns: tuple[Column, ...]
    measure: Callable[[str, Run], Sample]
    plot: str = ""
    """The metric that is drawn; none when empty."""
    rounds: int = 2
    """In a full run, where none are asked for."""
    quick: bool = False
    """Whether it is part of a quick run: it has lines that matter."""
    on_demand: bool = False
    """Whether it runs only when it is named."""
    default: tuple[str, ...] = STREAM_SERVERS
    """Servers that take part unless peers are named."""


def servers(*names: str, once: bool = False) -> tuple[Variant, ...]:
    """Return one plain variant for each server."""
    return tuple(Variant(name, once=once) for name in names)
