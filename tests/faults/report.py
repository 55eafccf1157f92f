"""Writes docs/reliability.md from what the runs have found.

python -m tests.faults.report
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.faults.accountant import Mistake
from tests.faults.catalogue import CATALOGUE
from tests.faults.run import Result

RESULTS = Path(__file__).with_name("results.jsonl")
DOCUMENT = Path(__file__).parents[2] / "docs/reliability.md"

OTHERS = (
    Mistake.MISORDERED,
    Mistake.INVENTED,
    Mistake.TWO_EVENTS,
    Mistake.NEEDLESS_RESET,
    Mistake.FALSE_POSITION,
    Mistake.UNTOLD,
    Mistake.MALFORMED,
)

HEADER = """# Reliability: what was tried, and what became of each event

Publishers and clients are processes of their own. Each writes down what it sends, what it is answered, and what it is
sent. Meanwhile something is done to the servers. In the end an accountant, which knows nothing of the program, compares
all journals with each other and with what the log has, client by client:

- **lost**: an event was acknowledged, and is not in the log;
- **doubled**: a client was sent an event twice, or a request that was repeated with its key is in the log twice;
- **silent gaps**: a client was not sent an event that was due to it, and no `reset` told it so;
- **others**: an id for two events; an order that is not that of the ids, or of the acknowledgements; an event that
  was not published, or was refused; a `reset` where nothing was missing; a `connected` that is not at the position
  asked for; a stream that ended without `closing` although there was time for it, or is not as the format says.

**Longest silence** is the longest time in which no publisher got an acknowledgement: what a fault costs in time.

    make test-faults            each fault a few times: some minutes
    make test-faults-long       each many times: about an hour
    python -m tests.faults --fault 'kill -9' --way 'one process' --times 20 --seed 42

Each run prints its seed; a run with that seed makes the same choices. `python -m tests.faults.bugs` puts six bugs into
copies of the program, one at a time, and shows that each is found.
"""

COLUMNS = (
    "what was done",
    "times",
    "acknowledged",
    "received",
    "lost",
    "doubled",
    "silent gaps",
    "others",
    "resets",
    "longest silence",
    "run",
)


def read_results() -> list[Result]:
    """Return the results that are kept, of each fault and way the last."""
    last: dict[tuple[str, str], Result] = {}
    decoder = msgspec.json.Decoder(Result)
    for line in RESULTS.read_bytes().splitlines():
        result = decoder.decode(line)
        last[result.fault, result.way] = result
    return list(last.values())


def document(results: Sequence[Result]) -> str:
    """Return the page."""
    lines = [HEADER]
    order = {name: number for number, name in enumerate(CATALOGUE)}
    for way in dict.fromkeys(way for fault in CATALOGUE.values() for way in fault.ways):
        of_way = sorted(
            (result for result in results if result.way == way), key=lambda result: order[result.fault]
        )
        lines += [
            f"## {way[0].upper()}{way[1:]}",
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"|---|{'--:|' * (len(COLUMNS) - 2)}---|",
        ]
        lines += map(_row, of_way)
        lines.append(f"| **all** | {_sums(of_way)} | | |")
        lines.append("")
    return "\n".join(lines)


def _row(result: Result) -> str:
    silence = f"{result.silence:.2f} s"
    run = f"{result.date}, {result.commit}, seed {result.seed}"
    return f"| {result.fault} | {_sums([result])} | {silence} | {run} |"


def _sums(results: Sequence[Result]) -> str:
    def total(*mistakes: Mistake) -> int:
        return sum(result.found.get(mistake.value, 0) for result in results for mistake in mistakes)

    numbers = (
        sum(result.times for result in results),
        sum(result.acknowledged for result in results),
        sum(result.received for result in results),
        total(Mistake.LOST),
        total(Mistake.DOUBLED),
        total(Mistake.SILENT_GAP),
        total(*OTHERS),
        sum(result.resets for result in results),
    )
    return " | ".join(f"{number:,}" for number in numbers)


def main() -> None:
    results = read_results()
    failed = [f"{result.fault}, {result.way}: {result.failure}" for result in results if result.failure]
    if failed:
        raise SystemExit("\n".join(failed))
    DOCUMENT.write_text(document(results))


if __name__ == "__main__":
    main()
