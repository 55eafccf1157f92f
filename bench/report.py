"""Write BENCHMARKS.md and its plots from the results, and from nothing else."""

# ruff: noqa: RUF001  (the multiplication sign is meant)

from __future__ import annotations

import os
import textwrap
from pathlib import Path

from bench import handover_table, plots
from bench.results import Result, load
from bench.scenarios import SCENARIOS, Scenario
from bench.scenarios.scenario import Column
from bench.servers import SERVERS
from bench.targets import GROUPS, OURS, Measured, Target

WIDTH = 118
"""Characters of a line of text."""

_HEADS = ("line", "measured", "at least", "aim", "met")
_INTRODUCTION = """\
# Benchmarks

What a stream, an event and a publish cost, on one machine with two cores that server, clients and publisher \
share. Less is better. **nchan** is the nginx module for server-sent events, in C. sse_app checks a token for \
each stream, and has each event on disk before it is sent; nchan does neither. Other machines have other \
figures; ratios travel better.

{costs}
What nchan leaves out is part of the difference where a stream opens or resumes (the token), and where an event \
is published (the disk). An empty cell was not measured. Each line has its section below, with what else was \
measured. The [targets](#what-was-to-be-shown) at the end say what was set as a goal, and where it is missed.
"""
_TARGETS = """\
## What was to be shown

"0.85 × nchan" is what sse_app took, divided by what nchan took in the same round for the same work. "At least" \
and "aim" are what was set for it.

{table}
"""
_COSTS = (
    ("CPU to deliver an event to a stream, of 1,000, µs", "fanout-1000", OURS, "cpu_us", 2),
    ("the same, of 10,000, µs", "fanout-10000", OURS, "cpu_us", 2),
    ("the same of 1,000, in batches of 100 events, µs", "fanout-1000-batch", OURS, "cpu_us", 2),
    (
        "from publish to receipt, 99 of 100, of 50 events a second to 1,000 streams, ms",
        "steady",
        OURS,
        "p99_ms",
        1,
    ),
    ("memory of an idle stream (RSS), KiB", "idle", OURS, "rss_kib_per_stream", 2),
    ("CPU of 10,000 idle streams, a ping every 30 s, % of a core", "idle", OURS, "cpu_percent", 2),
    ("CPU to open a stream, µs", "connect", OURS, "connect_cpu_us", 0),
    ("CPU to resume a stream that has missed nothing, µs", "reconnect", OURS, "plain_cpu_us", 0),
    ("CPU for each event that a stream has missed, µs", "reconnect", OURS, "replay_cpu_us", 2),
    ("CPU of a lone publish, ten a second, µs", "lone", f"{OURS}, ten a second", "cpu_us_per_request", 0),
)
"""What a thing costs: the line, the scenario, our variant in it, the metric, and how many digits it has."""

_METHOD = """\
## How it is measured

`python -m bench` writes this page from the JSON files in `{results}`; do not edit it. Every figure is the \
median of the rounds. In a round the servers run one after the other (A B A B). Each is started anew, and given \
streams and events to warm up. A ratio is the median of the ratios within a round. All runs over loopback.

CPU is user and system time of all processes of a server, as the kernel counts it. It is counted from just \
before the first request to the moment the last stream has the last event; nothing is subtracted. Events have \
200 bytes of data. The client is a C epoll loop, in several processes for a crowd. It checks that every stream \
got every event once and in order; a sample where one did not is a failure and counts nowhere.

"Stolen" is the share of the machine's time that the hypervisor gave to others meanwhile; "others" is the share \
that processes beside server, client and publisher took. Where they are high, a round is worth less.

`make bench` runs everything but restarts and upgrades, which are `make bench-handover`; `make bench-quick` the \
lines that matter most, and `python -m bench --scenario NAME` one scenario. `crowd`, `storm` and `million` take \
`--streams`, `--workers` and `--minutes`; `million` runs only when it is named. A crowd needs some 10 KB of memory \
for each stream. A process can hold no more streams than it may open files (`ulimit -n -H`), so take as many \
workers as that asks for.
"""


def costs_table(results: dict[str, Result]) -> list[str]:
    """Return what a stream, an event and a publish cost, beside what they cost in servers measured with them."""
    peers = ("nchan", "sse-starlette")
    lines = ["| | sse_app | " + " | ".join(peers) + " |", "|---" + "|---:" * (len(peers) + 1) + "|"]
    for line, name, ours, metric, digits in _COSTS:
        if (result := results.get(name)) is not None:
            variants = (ours, *(ours.replace(OURS, peer) for peer in peers))
            values = [result.median(variant, metric) for variant in variants]
            cells = ["" if value is None else f"{value:,.{digits}f}" for value in values]
            lines.append("| " + " | ".join([line, *cells]) + " |")
    return [*lines, ""]


def _machine(results: dict[str, Result]) -> list[str]:
    lines = ["## Machine and versions", ""]
    machines = [result.machine for result in results.values()]
    same = all(machine == machines[0] for machine in machines)
    if not same:
        lines += ["The scenarios were not all run on the same machine; this is that of the first.", ""]
    lines += [f"- {name}: {value}" for name, value in machines[0].items()]
    versions = {name: version for result in results.values() for name, version in result.versions.items()}
    lines += [f"- {name}: {versions[name]}" for name in SERVERS if name in versions]
    return [*lines, ""]


def _commands(results: dict[str, Result]) -> list[str]:
    lines = ["## Commands", "", "```sh"]
    lines += dict.fromkeys(result.command for result in results.values())
    lines += ["```", ""]
    missing = [name for name, scenario in SCENARIOS.items() if name not in results and not scenario.on_demand]
    if missing:
        lines += ["Not run: " + ", ".join(missing) + ".", ""]
    if any(result.quick for result in results.values()):
        lines += [
            "**Some of these are quick runs, far smaller than described: they show that it works, no more.**",
            "",
        ]
    return lines


def _cells(target: Target, measured: Measured | None) -> list[str]:
    shown = "not measured" if measured is None else measured.text
    return [
        target.line,
        shown,
        target.shown(target.bound),
        target.shown(target.aim),
        target.verdict(measured),
    ]


def targets_table(results: dict[str, Result]) -> list[str]:
    """Return the table of what must be shown, with what was measured beside its bound and its aim."""
    lines = ["| " + " | ".join(_HEADS) + " |", "|---" * len(_HEADS) + "|"]
    for group in GROUPS:
        lines.append(f"| **{group.title}** |" + " |" * (len(_HEADS) - 1))
        lines += ["| " + " | ".join(_cells(target, target.value(results))) + " |" for target in group.targets]
    return [*lines, ""]


def summary(directory: Path) -> list[str]:
    """Return the lines of that table that were measured, as text for a terminal."""
    results = load(directory)
    rows: list[list[str]] = [list(_HEADS)]
    for group in GROUPS:
        known = [(target, target.value(results)) for target in group.targets]
        cells = [_cells(target, measured) for target, measured in known if measured is not None]
        rows += [[group.title], *cells] if cells else []
    widths = [max(len(row[column]) for row in rows if len(row) > 1) for column in range(len(_HEADS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        if len(row) > 1
        else f"\n{row[0]}"
        for row in rows
    ]


def _cell(result: Result, variant: str, column: Column) -> str:
    value = result.median(variant, column.metric)
    return "-" if value is None else f"{value:,.{column.digits}f}"


def table(scenario: Scenario, result: Result) -> list[str]:
    """Return the medians of a scenario, with the ratio to ours of its first column."""
    first = scenario.columns[0]
    ours = next((variant for variant in result.samples if variant.startswith(OURS)), "")
    heads = ["", *(column.title for column in scenario.columns), "ratio to sse_app"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for variant in result.samples:
        server, _, label = variant.partition(", ")
        title = SERVERS[server].title + (f", {label}" if label else "")
        cells = [_cell(result, variant, column) for column in scenario.columns]
        ratio = result.ratio(variant, ours, first.metric)
        cells.append("-" if ratio is None else f"{ratio:.2f}")
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return lines


def _section(scenario: Scenario, result: Result, plot: str) -> list[str]:
    rounds = max((len(samples) for samples in result.samples.values()), default=0)
    said = f"{rounds} rounds" if rounds != 1 else "1 round"
    lines = [f"## {scenario.title}", "", f"{scenario.what} {said}, {result.taken}.", ""]
    lines += [*table(scenario, result), ""]
    if plot:
        lines += [f"![{scenario.title}]({plot})", ""]
    if result.left_out:
        lines += ["Left out: " + "; ".join(result.left_out) + ".", ""]
    if result.notes:
        lines += ["Seen beside the figures: " + "; ".join(result.notes) + ".", ""]
    failures = [f"- {variant}: {text}" for variant, texts in result.failures.items() for text in texts]
    if failures:
        lines += ["Failed measurements:", "", *failures, ""]
    return lines


def write(directory: Path, page: Path) -> None:
    """Write the plots into the directory of the results, and the page that shows all of it."""
    loaded = load(directory)
    results = {name: result for name, result in loaded.items() if name in SCENARIOS}
    if not results:
        return
    place = Path(os.path.relpath(directory, page.parent)).as_posix()
    ordered = {name: results[name] for name in SCENARIOS if name in results}
    lines = [_INTRODUCTION.format(costs="\n".join(costs_table(loaded)))]
    lines += [_METHOD.format(results=place), *_machine(ordered), *_commands(ordered)]
    for name, result in ordered.items():
        scenario, plot = SCENARIOS[name], ""
        if scenario.plot:
            unit = next(column.title for column in scenario.columns if column.metric == scenario.plot)
            svg = plots.bars(scenario.title, unit, result, scenario.plot)
            if svg:
                (directory / f"{name}.svg").write_text(svg)
                plot = f"{place}/{name}.svg"
        lines += _section(scenario, result, plot)
    for name in (handover_table.SCENARIO, handover_table.WORKERS_SCENARIO):
        if (handover := loaded.get(name)) is not None:
            lines += handover_table.section(handover)
    lines.append(_TARGETS.format(table="\n".join(targets_table(loaded))))
    page.write_text("\n".join(map(_wrapped, "\n".join(lines).split("\n"))).rstrip() + "\n")


def _wrapped(line: str) -> str:
    """Return a line of text in several of one width; a table, a heading, a command or a picture as it is."""
    if line.startswith(("|", "#", "!", "python ")):
        return line
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(
        line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
