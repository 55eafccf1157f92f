"""What became of a run, as it is told and kept."""

from __future__ import annotations

import subprocess
from argparse import ArgumentParser
from pathlib import Path

import msgspec


class Result(msgspec.Struct, kw_only=True):
    """What became of a run.

    Attributes:
        date, commit: when it was run, and of which program.
        fault: what was done.
        way: how the server was run.
        seed: of what was left to chance.
        times: how often the fault was brought about.
        seconds: that the run took.
        silence: the longest time in which no publisher got an acknowledgement, in seconds.
        acknowledged, received: how many events, the second over all clients.
        streams, resets: how many, over all clients.
        taken_back: acknowledged events that were lost where that may be.
        found: how often each kind of mistake was found.
        findings: the first of them, in words.
        figures: what the fault has measured besides, with the units.
        failure: what has ended the run early: it did not come to an account.
    """

    date: str
    commit: str
    fault: str
    way: str
    seed: int
    times: int
    seconds: float = 0.0
    silence: float = 0.0
    acknowledged: int = 0
    received: int = 0
    streams: int = 0
    resets: int = 0
    taken_back: int = 0
    found: dict[str, int] = msgspec.field(default_factory=dict)
    findings: list[str] = msgspec.field(default_factory=list)
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    failure: str = ""

    @property
    def failed(self) -> bool:
        """Whether something was wrong."""
        return bool(self.failure or any(self.found.values()))


def commit() -> str:
    """Return the commit of the program; empty where there is none."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def add_option(parser: ArgumentParser) -> None:
    """Let the command be given the file that `keep` appends to."""
    parser.add_argument(
        "--results", type=Path, help="a file for the results, as JSON lines; it is appended to"
    )


def keep(result: msgspec.Struct, file: Path | None) -> None:
    """Append a result to a file of JSON lines, if there is one."""
    if file is not None:
        with file.open("ab") as results:
            results.write(msgspec.json.encode(result) + b"\n")
