"""The section of the report on restarts and upgrades under live streams."""

from __future__ import annotations

from bench.results import Result

SCENARIO = "handover"
BOUNDS = {"restart": 400.0, "upgrade": 50.0}
"""How long the pause may be, in milliseconds."""

_TITLES = {
    "undisturbed": "nothing happens",
    "restart": "`systemctl restart`",
    "upgrade": "`sse-app upgrade`",
}
_WHAT = """\
{streams:,.0f} streams, each with a user and a token of its own, on the service as `sse-app systemd install` \
writes it, under a real systemd user manager, with the SQLite log and uvloop; {rate:.0f} events a second are \
published all the while. The pause is the time in which nothing is served: from the moment the old process \
accepts and reads nothing more, to READY of the new one. The longest wait is that of any client between two of \
its reads, beside the same over as long a time in which nothing happens. Each figure is the median, with the \
highest in brackets; then streams closed, events lost, events received twice, and publishes that had to be sent \
again. {rounds}, {taken}."""


def section(result: Result) -> list[str]:
    """Return the section's lines."""
    first = next(iter(result.samples.values()))[0]
    assert first is not None
    rounds = max(len(samples) for samples in result.samples.values())
    what = _WHAT.format(
        streams=first["streams"], rate=first["rate"], rounds=f"{rounds} of each", taken=result.taken
    )
    lines = [
        "## Restarts and upgrades under live streams",
        "",
        what,
        "",
        "|  | pause, ms | at most | met | longest wait, ms | closed | lost | twice | sent again |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for variant in result.samples:
        bound = BOUNDS.get(variant)
        pauses = result.values(variant, "pause_ms")
        met = "" if bound is None else "yes" if max(pauses) <= bound else "**no**"
        cells = [
            _TITLES[variant],
            _figure(result, variant, "pause_ms") if bound else "",
            f"{bound:.0f}" if bound else "",
            met,
            _figure(result, variant, "longest_wait_ms"),
            *(
                f"{sum(result.values(variant, name)):.0f}"
                for name in ("closed", "lost", "doubled", "published_again")
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, "", f"`{result.command}`", ""]


def _figure(result: Result, variant: str, metric: str) -> str:
    return f"{result.median(variant, metric):.0f} ({max(result.values(variant, metric)):.0f})"
