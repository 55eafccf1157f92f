"""How large a run is: what the command line asks of the scenarios."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

Value = TypeVar("Value")


class Size(StrEnum):
    """Of a run."""

    TINY = "tiny"
    """Shows that everything works, in a minute or two; its figures say nothing."""
    QUICK = "quick"
    """The lines that matter, once, with as many streams as in the full run and fewer events."""
    FULL = "full"


@dataclass
class Run:
    """One run of the benchmark."""

    size: Size = Size.FULL
    streams: int | None = None
    """How many streams `crowd`, `million` and `storm` open, on how many workers, how long; None: their own number."""
    workers: int | None = None
    minutes: float | None = None
    streams_per_token: int = 1
    notes: list[str] = field(default_factory=list)
    """What a scenario has to say beside its figures."""

    def pick(self, tiny: Value, quick: Value, full: Value) -> Value:
        """Return the value for this run's size."""
        return {Size.TINY: tiny, Size.QUICK: quick, Size.FULL: full}[self.size]
