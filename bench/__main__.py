"""The command: run the scenarios in rounds, show what comes out, write the results and the report."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench import installation, machine, native, report
from bench.load import LoadFailed
from bench.processes import ServerFailed, raise_file_limit
from bench.results import Result
from bench.run import Run, Size
from bench.scenarios import SCENARIOS, Scenario, Variant
from bench.servers import SERVERS, SseApp, SseAppBefore

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure sse_app beside its peers.")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument(
        "--quick",
        dest="size",
        action="store_const",
        const=Size.QUICK,
        default=Size.FULL,
        help="the lines that matter, once, under five minutes",
    )
    sizes.add_argument(
        "--tiny",
        dest="size",
        action="store_const",
        const=Size.TINY,
        help="far smaller: only shows that everything works",
    )
    parser.add_argument(
        "--scenario", action="append", choices=list(SCENARIOS), help="this one only; may be repeated"
    )
    parser.add_argument("--peers", help="the servers that take part, with commas: " + ",".join(SERVERS))
    parser.add_argument(
        "--rounds", type=int, default=0, help="rounds of each scenario (default 1 to 3, quick and tiny 1)"
    )
    crowds = parser.add_argument_group("the scenarios crowd, million and storm")
    crowds.add_argument("--streams", type=int, help="how many streams (default 100,000; million: 1,000,000)")
    crowds.add_argument("--workers", type=int, help="of the server (default 6; million: 56)")
    crowds.add_argument(
        "--minutes", type=float, help="for how long streams are held (default 10; million: 2)"
    )
    crowds.add_argument(
        "--streams-per-token", type=int, default=1, help="streams that share a user and a token (default 1)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=None,
        help="where results go (default bench/results; with --quick, --tiny or --before a folder in bench/.build)",
    )
    parser.add_argument(
        "--install", action="store_true", help="install the peers from PyPI and npm, then end"
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="CHECKOUT",
        help="measure another checkout of sse_app beside this one (with --peers sse_app: these two only)",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="only write the report from the results there are, and show its table",
    )
    options = parser.parse_args(arguments)
    unknown = set((options.peers or "").split(",")) - set(SERVERS) - {""}
    if unknown:
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    if options.before:
        SseAppBefore.checkout = options.before.resolve()
        if missing := SseAppBefore.missing():
            parser.error(missing)
    return options


def _chosen(
    scenario: Scenario, peers: list[str], hints: dict[str, str], before: bool, quick: bool
) -> tuple[list[Variant], list[str]]:
    """Return the variants that take part, and a line for each server that is left out.

    With ``before`` each variant of ours is followed by the same one on the other checkout.
    """
    wanted = peers or list(scenario.default)
    variants = []
    for variant in scenario.variants:
        if variant.server in wanted and not (quick and variant.once):
            variants.append(variant)
            if before and variant.server == SseApp.name:
                variants.append(replace(variant, server=SseAppBefore.name))
    absent = dict.fromkeys(variant.server for variant in variants if hints[variant.server])
    unasked = dict.fromkeys(variant.server for variant in scenario.variants if variant.server not in wanted)
    lines = [f"{name}: {hints[name]}" for name in absent] + [f"{name}: not asked for" for name in unasked]
    return [variant for variant in variants if variant.server not in absent], lines


def _without_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the directory of the results, which says nothing about them."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--out"):
            kept.append(argument)
        skip = argument == "--out"
    return kept


def _run(scenario: Scenario, variants: list[Variant], rounds: int, run: Run, result: Result) -> None:
    """Measure all variants in turn, round after round. A failure is shown, kept, and does not end the run."""
    result.versions = {variant.server: SERVERS[variant.server].version() for variant in variants}
    result.samples = {variant.key: [] for variant in variants}
    first = scenario.columns[0]
    for number in range(1, rounds + 1):
        for variant in variants:
            if variant.once and number > 1:
                continue
            began = time.monotonic()
            try:
                sample = (variant.measure or scenario.measure)(variant.server, run)
            except (LoadFailed, ServerFailed, OSError) as error:
                result.samples[variant.key].append(None)
                result.failures.setdefault(variant.key, []).append(f"round {number}: {error}")
                shown = f"failed: {error}"
            else:
                result.samples[variant.key].append(sample)
                shown = "  ".join(
                    f"{column.title} {sample[column.metric]:,.{column.digits}f}"
                    for column in scenario.columns
                    if column.metric in sample
                )
            took = time.monotonic() - began
            print(f"  round {number}/{rounds}  {variant.key:<28} {shown}  ({took:.0f} s)", flush=True)
    for variant in variants:
        value = result.median(variant.key, first.metric)
        if value is not None:
            ratio = result.ratio(variant.key, variants[0].key, first.metric)
            shown = f"{first.title} {value:,.{first.digits}f}  ratio {ratio or 0:.2f}"
            print(f"  median      {variant.key:<28} {shown}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; return the exit status."""
    options = _arguments(arguments)
    if options.install:
        installation.install()
        return 0
    directory: Path = options.out or RESULTS
    if options.out is None and (options.size != Size.FULL or options.before):  # not to be published
        directory = HERE / ".build" / ("before" if options.before else options.size)
    page = HERE.parent / "BENCHMARKS.md" if directory.resolve() == RESULTS else directory / "BENCHMARKS.md"
    if options.report:
        report.write(directory, page)
        print("\n".join(report.summary(directory)))
        return 0
    native.build()
    about = machine.describe(raise_file_limit())
    hints = {name: server.missing() for name, server in SERVERS.items()}
    command = shlex.join(["python", "-m", "bench", *_without_out(arguments)])
    failed = False
    asked = options.scenario or [
        name
        for name, scenario in SCENARIOS.items()
        if not scenario.on_demand and (options.size != Size.QUICK or scenario.quick)
    ]
    began = time.monotonic()
    for name in asked:
        scenario = SCENARIOS[name]
        variants, left_out = _chosen(
            scenario,
            (options.peers or "").split(",") if options.peers else [],
            hints,
            options.before is not None,
            options.size == Size.QUICK,
        )
        rounds = options.rounds or (scenario.rounds if options.size == Size.FULL else 1)
        print(f"{scenario.title}", flush=True)
        for line in left_out:
            print(f"  left out: {line}")
        if not variants:
            continue
        taken = datetime.now(UTC).date().isoformat()
        run = Run(options.size, options.streams, options.workers, options.minutes, options.streams_per_token)
        result = Result(
            name, options.size != Size.FULL, command, taken, about, left_out=left_out, notes=run.notes
        )
        _run(scenario, variants, rounds, run, result)
        for line in run.notes:
            print(f"  {line}")
        result.save(directory)
        report.write(directory, page)
        failed = failed or bool(result.failures)
    print("\n".join(["", *report.summary(directory), ""]))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; results in {directory}, report in {page}")
    return 1 if failed else 0


def _interrupt(number: int, frame: object) -> None:
    for one in _INTERRUPTS:
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt  # so that the servers are ended on the way out, which is not to be interrupted


if __name__ == "__main__":
    for one in _INTERRUPTS:
        signal.signal(one, _interrupt)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
