"""Writes docs/reliability.md from what the runs have found.

python -m tests.faults.report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from tests.faults.bugs import Found
from tests.faults.catalogue import CATALOGUE
from tests.faults.result import Result
from tests.faults.soak import Soak, plot
from tests.faults.verdict import Mistake
from tests.faults.ways import WAYS

RESULTS = Path(__file__).with_name("results")
FAULTS, SOAKS, BUGS = (RESULTS / name for name in ("faults.jsonl", "soaks.jsonl", "bugs.jsonl"))

DOCS = Path(__file__).parents[2] / "docs"
DOCUMENT = DOCS / "reliability.md"

PROMISES: Mapping[str, Sequence[Mistake]] = {
    "An event that was acknowledged is in the log": [Mistake.LOST],
    "A client is sent what follows its position, or is told by `reset` that it cannot be": [
        Mistake.SILENT_GAP,
        Mistake.FALSE_POSITION,
    ],
    "It is sent each event once, in the order of the ids; a request that is repeated with its key is stored once": [
        Mistake.DOUBLED,
        Mistake.MISORDERED,
    ],
    "An id stands for one event for ever": [Mistake.TWO_EVENTS],
    "What was refused, or never published, is neither stored nor sent": [Mistake.INVENTED],
    "A `reset` comes only where something is missing": [Mistake.NEEDLESS_RESET],
    "A stream ends with `closing` where there is time for it": [Mistake.UNTOLD],
    "A stream goes on over a restart by systemd, an upgrade, and the end of a process that was to take it over": [
        Mistake.ENDED
    ],
    "What is sent is as the format says": [Mistake.MALFORMED],
}

APART = (Mistake.LOST, Mistake.DOUBLED, Mistake.SILENT_GAP)
"""The mistakes that have a column of their own."""

HEADER = """# Reliability: what was tried, and what became of each event

Publishers and clients are processes of their own. Each writes down what it sends, what it is answered, and what it is
sent. Meanwhile something is done to the servers. In the end an accountant, which knows nothing of the program, compares
all journals with each other and with what the log has, client by client.

    make test-faults            each fault a few times: some minutes
    make test-faults-long       each many times, an hour of a steady load, and bugs that were put in on purpose

Each run prints its seed; a run with that seed makes the same choices, at moments that are the machine's.
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
    "back after",
    "seed",
)

EXPLAINED = """*Received* is summed over all clients. *Others* are the other broken promises of the table above.
*Resets* are those that had to come. *Back after* is the longest time in which no publisher got an acknowledgement: the
fault itself, and what it takes to serve again. Several runs are made at once, so times are those of a busy machine.
"""

OVERLOAD = """## Overload

What the machine carries is measured in the run; then twice as much is offered, in requests that do not wait for the
answers to earlier ones. *Offered* is what was really sent: who sends it has the same processors.
[The rule](operations.md#overload) says who is refused, delayed and cut off.
"""

WHAT_IS_DONE = """## What is done
"""

STEADY = """## An hour of a steady load

Publishers, and clients that come and go, with nothing done to the servers: what these hold stays as it was. How long an
event takes follows what else the machine does: the faults above are brought about on it at the same time.

    python -m tests.faults.soak --way WAY --seconds SECONDS --seed SEED
"""

ON_PURPOSE = """## Bugs that were put in on purpose

Each is a change of a few lines in a copy of the program. The suite has to find it, by the name of what it leads to.

    python -m tests.faults.bugs --seed SEED 'BUG'
"""

AnyResult = TypeVar("AnyResult", Result, Soak, Found)


def read(path: Path, kind: type[AnyResult]) -> list[AnyResult]:
    """Return the results that a file has; of what was run again the last."""
    last: dict[tuple[str, str], AnyResult] = {}
    decoder = msgspec.json.Decoder(kind)
    for line in path.read_bytes().splitlines():
        result = decoder.decode(line)
        match result:
            case Result():
                key = result.fault, result.way
            case Soak():
                key = "", result.way
            case Found():
                key = result.bug, ""
        last[key] = result
    return list(last.values())


def document(results: Sequence[Result], soaks: Sequence[Soak], bugs: Sequence[Found]) -> str:
    """Return the page."""
    parts = [HEADER, _promises(results)]
    order = {name: number for number, name in enumerate(CATALOGUE)}
    for way in WAYS:
        of_way = sorted(
            (result for result in results if result.way == way), key=lambda result: order[result.fault]
        )
        parts.append(_way(way, of_way))
    measured = [result for result in results if result.figures]
    parts.append(_overload(sorted(measured, key=lambda result: [*WAYS].index(result.way))))
    parts.append(_what_is_done())
    parts.append(_steady(sorted(soaks, key=lambda soak: [*WAYS].index(soak.way))))
    parts.append(_on_purpose(bugs))
    return "\n".join(parts)


def _promises(results: Sequence[Result]) -> str:
    rows = [
        "## The promises",
        "",
        f"Over all runs below: {sum(result.times for result in results):,} faults, "
        f"{sum(result.acknowledged for result in results):,} events acknowledged, "
        f"{sum(result.received for result in results):,} received on "
        f"{sum(result.streams for result in results):,} streams.",
        "",
        "| promise | what the accountant calls it if broken | found |",
        "|---|---|--:|",
    ]
    rows += [
        f"| {promise} | {', '.join(mistakes)} | {_count(results, mistakes):,} |"
        for promise, mistakes in PROMISES.items()
    ]
    return "\n".join([*rows, ""])


def _way(way: str, results: Sequence[Result]) -> str:
    runs = sorted({(result.date, result.commit) for result in results})
    rows = [
        f"## {way[0].upper()}{way[1:]}",
        "",
        f"Run on {'; '.join(f'{date}, commit {commit}' for date, commit in runs)}. A row is run again by",
        "",
        f"    python -m tests.faults --way '{way}' --fault FAULT --times TIMES --seed SEED",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'--:|' * (len(COLUMNS) - 1)}",
    ]
    rows += [
        f"| {result.fault} | {_sums([result])} | {result.silence:.2f} s | {result.seed} |"
        for result in results
    ]
    rows.append(f"| **all** | {_sums(results)} | | |")
    rows += [
        f"\nOf *{result.fault}*, which may lose what was acknowledged last, {result.taken_back:,} acknowledged events "
        "were lost: each the last of the log, in the moment that is asked about, and told to each client by a `reset`."
        for result in results
        if result.taken_back
    ]
    return "\n".join([*rows, "", EXPLAINED] if way == next(iter(WAYS)) else [*rows, ""])


def _overload(results: Sequence[Result]) -> str:
    rows = [
        OVERLOAD,
        f"| | {' | '.join(result.way for result in results)} |",
        f"|---|{'--:|' * len(results)}",
    ]
    rows += [
        f"| {name} | {' | '.join(f'{result.figures[name]:,g}' for result in results)} |"
        for name in results[0].figures
    ]
    return "\n".join([*rows, ""])


def _what_is_done() -> str:
    rows = [f"- **{name}**: {_sentence(fault.bring.__doc__ or '')}" for name, fault in CATALOGUE.items()]
    return "\n".join([WHAT_IS_DONE, *rows, ""])


def _sentence(docstring: str) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join(docstring.partition("\n\n")[0].split()).replace("``", "`")


def _sums(results: Sequence[Result]) -> str:
    others = [mistake for mistake in Mistake if mistake not in APART]
    numbers = (
        sum(result.times for result in results),
        sum(result.acknowledged for result in results),
        sum(result.received for result in results),
        *(_count(results, [mistake]) for mistake in APART),
        _count(results, others),
        sum(result.resets for result in results),
    )
    return " | ".join(f"{number:,}" for number in numbers)


def _count(results: Sequence[Result], mistakes: Sequence[Mistake]) -> int:
    return sum(result.found.get(mistake.value, 0) for result in results for mistake in mistakes)


def _steady(soaks: Sequence[Soak]) -> str:
    rows = [
        STEADY,
        "| servers | minutes | acknowledged | received | streams | mistakes | memory at first | in the end | run |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    rows += [
        f"| {soak.way} | {soak.seconds / 60:.0f} | {soak.acknowledged:,} | {soak.received:,} | {soak.streams:,} | "
        f"{sum(soak.found.values())} | {soak.resident[0]:.0f} MiB | {soak.resident[-1]:.0f} MiB | "
        f"{soak.date}, commit {soak.commit}, seed {soak.seed} |"
        for soak in soaks
    ]
    rows.append("")
    rows += [f"![{soak.way}]({_picture(soak)})\n" for soak in soaks]
    return "\n".join(rows)


def _on_purpose(bugs: Sequence[Found]) -> str:
    rows = [
        ON_PURPOSE,
        "| bug | what was done | servers | times | found | run |",
        "|---|---|---|--:|---|---|",
    ]
    for bug in bugs:
        result = bug.result
        if result is None or not bug.is_found:
            rows.append(f"| {bug.bug} | | | | **not found** | commit {bug.commit} |")
            continue
        found = ", ".join(f"{mistake}: {count:,}" for mistake, count in result.found.items() if count)
        rows.append(
            f"| {bug.bug} | {result.fault} | {result.way} | {result.times} | {found} | "
            f"{result.date}, commit {bug.commit}, seed {result.seed} |"
        )
    return "\n".join([*rows, ""])


def _picture(soak: Soak) -> str:
    return f"images/soak-{soak.way.replace(' ', '-')}.svg"


def main() -> None:
    results, soaks, bugs = read(FAULTS, Result), read(SOAKS, Soak), read(BUGS, Found)
    failed = [f"{result.fault}, {result.way}: {result.failure}" for result in results if result.failure]
    if failed:
        raise SystemExit("\n".join(failed))
    DOCUMENT.write_text(document(results, soaks, bugs))
    for soak in soaks:
        (DOCS / _picture(soak)).write_text(plot(soak))


if __name__ == "__main__":
    main()
