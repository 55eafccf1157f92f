"""A steady load for a long time: what the servers hold, and how long events take, stays as it was.

python -m tests.faults.soak [--way NAME] [--seconds N] [--seed N] [--results FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from html import escape
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import httpx
import msgspec

from tests.faults.journal import AnyRecord, Opened, Received, Sent
from tests.faults.result import add_option, commit, keep
from tests.faults.run import Needs, Run
from tests.faults.ways import BY_HAND
from tests.support.upgradable import Upgradable
from tests.support.usage import MEBIBYTE, Usage

PARTS = 20
"""Into so many parts the time is divided, and each part has one value."""

LOAD = Needs(
    settings={"HISTORY__SIZE": 500},
    kept=False,
    publishers={"pause": 0.4, "batch": 4, "size": 8000},
    clients={"stays": 5.0, "away": 0.2},
)
"""Some ten events a second, and clients that come and go; the history has its size soon."""


class Soak(msgspec.Struct, kw_only=True):
    """What became of it. Lists have one value for each part of the time.

    Attributes:
        resident: memory of all servers, in MiB.
        descriptors, threads, tasks: in all of them.
        median, p99: of the time from the sending of an event to its receipt, in ms.
        found: how often each mistake was found.
    """

    date: str
    commit: str
    way: str
    seed: int
    seconds: float
    acknowledged: int
    received: int
    streams: int
    resident: list[float]
    descriptors: list[float]
    threads: list[float]
    tasks: list[float]
    median: list[float]
    p99: list[float]
    found: dict[str, int]

    def growth(self, values: Sequence[float]) -> float:
        """Return by how much the last quarter is more than the second one."""
        quarter = len(values) // 4
        return median(values[-quarter:]) - median(values[quarter : 2 * quarter])

    @property
    def is_steady(self) -> bool:
        """Whether the servers hold what they held: of descriptors and tasks about that, as clients come and go."""
        return (
            self.growth(self.resident) < 6.0
            and abs(self.growth(self.descriptors)) <= 5
            and self.growth(self.threads) <= 1
            and self.growth(self.tasks) <= 5
        )


class _Held(NamedTuple):
    """What all servers hold at a moment."""

    resident: float
    """In MiB."""
    descriptors: int
    threads: int
    tasks: float


def soak(way: str, seconds: float, seed: int) -> Soak:
    """Keep up the load for so many seconds."""
    held: list[_Held] = []
    with (
        tempfile.TemporaryDirectory(prefix="sse-soak-") as directory,
        Run(way, Path(directory), seed, LOAD) as run,
    ):
        run.advance(100)
        begun = time.monotonic()
        while (now := time.monotonic()) < begun + seconds:
            held.append(_measure(run.servers))
            time.sleep(min(1.0, seconds / 100, begun + seconds - now))
        verdict = run.settle()
        latencies = _latencies(run.traffic.journals(), begun, seconds)
    return Soak(
        date=time.strftime("%Y-%m-%d"),
        commit=commit(),
        way=way,
        seed=seed,
        seconds=seconds,
        acknowledged=verdict.acknowledged,
        received=verdict.received,
        streams=verdict.streams,
        resident=[median(one.resident for one in part) for part in _parts(held)],
        descriptors=[median(one.descriptors for one in part) for part in _parts(held)],
        threads=[median(one.threads for one in part) for part in _parts(held)],
        tasks=[median(one.tasks for one in part) for part in _parts(held)],
        median=[1000 * median(part) for part in latencies],
        p99=[1000 * quantiles(part, n=100)[-1] for part in latencies],
        found=verdict.counts(),
    )


def _measure(servers: Sequence[Upgradable]) -> _Held:
    usages = [Usage(server.pid) for server in servers]
    tasks: dict[str, str] = {}
    for server in servers:  # the answer of a worker has the tasks of all workers
        metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
        tasks |= dict(re.findall(r"^(sse_app_tasks\S*) (\S+)$", metrics, re.MULTILINE))
    return _Held(
        sum(usage.resident for usage in usages) / MEBIBYTE,
        sum(usage.descriptors for usage in usages),
        sum(usage.threads for usage in usages),
        sum(map(float, tasks.values())),
    )


def _parts(held: list[_Held]) -> list[list[_Held]]:
    size = len(held) / PARTS
    return [held[int(part * size) : int((part + 1) * size)] for part in range(PARTS)]


def _latencies(journals: dict[str, list[AnyRecord]], begun: float, seconds: float) -> list[list[float]]:
    """Return how long events took from a publisher to a client that was there, in seconds, in each part of the time."""
    sent: dict[str, float] = {}
    for records in journals.values():
        for record in records:
            if isinstance(record, Sent):
                for _, payload in record.events:
                    sent.setdefault(payload, record.at)
    parts: list[list[float]] = [[] for _ in range(PARTS)]
    for records in journals.values():
        there = 0.0  # what is older was replayed
        for record in records:
            if isinstance(record, Opened):
                there = record.at
            elif isinstance(record, Received) and (at := sent[record.payload]) > max(there, begun):
                part = int((at - begun) / seconds * PARTS)
                if part < PARTS:
                    parts[part].append(record.at - at)
    return parts


def plot(result: Soak) -> str:
    """Return the values over the time, as SVG."""
    charts = {
        "memory, MiB": result.resident,
        "file descriptors": result.descriptors,
        "tasks": result.tasks,
        "event to client, median, ms": result.median,
        "event to client, p99, ms": result.p99,
    }
    width, height, left = 720, 110, 210
    minutes = f"{result.seconds / 60:.0f} minutes"
    title = f"{result.way}: {minutes}, {result.acknowledged:,} events, {result.streams:,} streams"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{40 + height * len(charts)}" '
        f'role="img" aria-label="{escape(title)}">',
        "<style>text { font: 13px system-ui, sans-serif; fill: #57606a } "
        "polyline { fill: none; stroke: #0969da; stroke-width: 2 } line { stroke: #8c959f; stroke-width: 0.5 } "
        "@media (prefers-color-scheme: dark) { text { fill: #b0b8c1 } polyline { stroke: #6cb6ff } }</style>",
        f'<text x="8" y="24">{escape(title)}</text>',
    ]
    for number, (name, values) in enumerate(charts.items()):
        top, bottom = 40 + height * number, 40 + height * (number + 1) - 30
        largest = max(values) or 1.0
        points = " ".join(
            f"{left + (width - left - 20) * place / (len(values) - 1):.1f},"
            f"{bottom - (bottom - top) * value / largest:.1f}"
            for place, value in enumerate(values)
        )
        parts += [
            f'<text x="8" y="{bottom}">{escape(name)}</text>',
            f'<text x="{left - 10}" y="{top + 10}" text-anchor="end">{largest:,.3g}</text>',
            f'<text x="{left - 10}" y="{bottom}" text-anchor="end">0</text>',
            f'<line x1="{left}" y1="{bottom}" x2="{width - 20}" y2="{bottom}"/>',
            f'<polyline points="{points}"/>',
        ]
    return "\n".join([*parts, "</svg>\n"])


def tell(result: Soak) -> None:
    """Print what became of it."""
    print(f"{result.way}, {result.seconds:g} s, --seed {result.seed}: ", end="")
    print(
        f"{result.acknowledged} acknowledged, {result.received} received on {result.streams} streams: ",
        end="",
    )
    print({mistake: count for mistake, count in result.found.items() if count} or "all accounted for")
    for name in ("resident", "descriptors", "threads", "tasks", "median", "p99"):
        values = getattr(result, name)
        shown = " ".join(f"{value:.1f}" for value in values)
        print(f"    {name}: {shown} ({result.growth(values):+.2f})")
    if not result.is_steady:
        print("    they hold more than before")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--way", choices=BY_HAND, help="only this way to run the server; without it all are at once"
    )
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 10**9))
    add_option(parser)
    options = parser.parse_args()
    ways = [options.way] if options.way else [*BY_HAND]
    wrong = False
    with ProcessPoolExecutor(len(ways), multiprocessing.get_context("spawn")) as pool:
        for run in as_completed([pool.submit(soak, way, options.seconds, options.seed) for way in ways]):
            result = run.result()
            tell(result)
            wrong = wrong or any(result.found.values()) or not result.is_steady
            keep(result, options.results)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
