"""Runs the faults, and says what became of each.

python -m tests.faults [--fault NAME] [--way NAME] [--times N | --long] [--seed N] [--at-once N] [--results FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.faults.catalogue import CATALOGUE, run_once
from tests.faults.result import Result, add_option, keep
from tests.faults.ways import WAYS


def tell(result: Result) -> None:
    """Print what became of a run."""
    found = {mistake: count for mistake, count in result.found.items() if count}
    outcome = "FAILED" if result.failure else found or "all accounted for"
    lost = f", {result.taken_back} lost where that may be" * bool(result.taken_back)
    print(
        f"{result.fault}, {result.way}, {result.times} times in {result.seconds} s, --seed {result.seed}: "
        f"{result.acknowledged} acknowledged, {result.received} received on {result.streams} streams with "
        f"{result.resets} resets, at most {result.silence} s without an acknowledgement{lost}: {outcome}"
    )
    if result.figures:
        print("    " + ", ".join(f"{name}: {value:g}" for name, value in result.figures.items()))
    for finding in result.findings:
        print(f"    {finding}")
    print(result.failure, end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--fault", choices=CATALOGUE, help="only this one")
    parser.add_argument("--way", choices=WAYS, help="only this way to run the server")
    parser.add_argument("--times", type=int, help="how often a fault is brought about in a run")
    parser.add_argument("--long", action="store_true", help="bring each about many times")
    parser.add_argument("--seed", type=int, help="that of a run that is to be run again")
    parser.add_argument("--at-once", type=int, default=1, help="how many runs there are at a time")
    add_option(parser)
    options = parser.parse_args()
    failed = False
    with ProcessPoolExecutor(options.at_once, multiprocessing.get_context("spawn")) as pool:
        runs = [
            pool.submit(
                run_once,
                name,
                way,
                options.times or (fault.long if options.long else fault.short),
                random.randrange(1, 10**9) if options.seed is None else options.seed,
            )
            for name, fault in CATALOGUE.items()
            for way in fault.ways
            if options.fault in (None, name) and options.way in (None, way)
        ]
        for run in as_completed(runs):
            result = run.result()
            tell(result)
            failed = failed or result.failed
            keep(result, options.results)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
