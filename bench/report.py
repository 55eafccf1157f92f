"""Write BENCHMARKS.md and its plots from the results, and from nothing else."""

# ruff: noqa: RUF001  (the multiplication sign is meant)

from __future__ import annotations

import os
import re
from pathlib import Path

from bench import handover_table, plots
from bench.results import Result, load
from bench.scenarios import SCENARIOS, Scenario
from bench.scenarios.scenario import Column
from bench.servers import SERVERS
from bench.targets import OURS, TARGETS, Target

_NUMBER = re.compile(r"\{[^}]*\}( (×|%|[µm]s|KiB|events/s))?")
_INTRODUCTION = """\
# Benchmarks

Written by `python -m bench` from the JSON files in `{results}`; do not edit. Every figure is the median
of the rounds. In a round the servers run one after the other (A B A B), each started anew and given one
stream and one event to warm up; a ratio is the median of the ratios within a round. All runs over
loopback, and server, client and publisher share the cores, so compare figures within a table, not with
those of other machines.

CPU is user and system time of all processes of a server, as the kernel counts it, from just before the
first request to the moment the last stream has the last event; nothing is subtracted. Events have 200
bytes of data. The client, a C epoll loop, checks that every stream got every event once and in order; a
sample where one did not is a failure and counts nowhere. "Stolen" is the share of the machine's time that
the hypervisor gave to others meanwhile: "others" the share that processes beside server, client and
publisher took. Where they are high, a round is worth less.
"""


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
    missing = [name for name in SCENARIOS if name not in results]
    if missing:
        lines += ["Not run: " + ", ".join(missing) + ".", ""]
    if any(result.quick for result in results.values()):
        lines += [
            "**Some of these are quick runs, far smaller than described: they show that it works, no more.**",
            "",
        ]
    return lines


def _verdict(target: Target, value: float | None, limit: float | None) -> tuple[str, str]:
    if limit is None:
        return "", ""
    number = _NUMBER.search(target.unit)
    shown = number[0].format(limit) if number else str(limit)
    return ("≥ " if target.higher else "≤ ") + shown, "" if value is None else "yes" if target.met(
        value, limit
    ) else "**no**"


def targets_table(results: dict[str, Result]) -> list[str]:
    """Return the table of what must be shown, measured value next to target."""
    lines = [
        "## Must show",
        "",
        "| what | measured | at least | met | aim | met |",
        "|---|---|---|---|---|---|",
    ]
    before = ""
    for target in TARGETS:
        value = target.value(results)
        measured = "not measured" if value is None else target.unit.format(value)
        bound, bound_met = _verdict(target, value, target.bound)
        aim, aim_met = _verdict(target, value, target.aim)
        row = "" if target.row == before else target.row
        before = target.row
        lines.append(f"| {row} | {measured} | {bound} | {bound_met} | {aim} | {aim_met} |")
    return [*lines, ""]


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
    lines = [_INTRODUCTION.format(results=place)]
    lines += [*targets_table(ordered), *_machine(ordered), *_commands(ordered)]
    for name, result in ordered.items():
        scenario, plot = SCENARIOS[name], ""
        if scenario.plot:
            unit = next(column.title for column in scenario.columns if column.metric == scenario.plot)
            svg = plots.bars(scenario.title, unit, result, scenario.plot)
            if svg:
                (directory / f"{name}.svg").write_text(svg)
                plot = f"{place}/{name}.svg"
        lines += _section(scenario, result, plot)
    if (handover := loaded.get(handover_table.SCENARIO)) is not None:
        lines += handover_table.section(handover)
    page.write_text("\n".join(lines).rstrip() + "\n")
