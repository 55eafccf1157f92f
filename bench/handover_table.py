"""The section of the report on restarts and upgrades under live streams."""

from __future__ import annotations

from bench.results import Result

SCENARIO = "handover"
WORKERS_SCENARIO = "handover-workers"
"""The same with several workers."""
BOUNDS = {"restart": 400.0, "upgrade": 50.0}
"""How long the pause may be, in milliseconds."""

_TITLES = {
    "undisturbed": "nothing happens",
    "restart": "`systemctl restart`",
    "upgrade": "`sse-app upgrade`",
    "cold": "`systemctl restart` without a standby (`KillMode=mixed`)",
}
_WHAT = """\
{streams:,.0f} streams, each with a user and a token of its own, are on the service as `sse-app systemd install` \
writes it, under a real systemd user manager{workers}, with the SQLite log and uvloop. {rate:.0f} events a second are \
published all the while.

The pause is the time in which nothing is served: from the moment the last event of the old process is out, to READY \
of the new one. A restart has two, until the standby serves and until the next main process does, and this is their \
sum{longest}. The longest wait is that of any client between two of its reads; beside it stands the same over as long \
a time in which nothing happens, for events are {apart:.0f} ms apart. Each figure is the median, with the highest in \
brackets. Then come streams closed, events lost, events received twice, and publishes that had to be sent again. \
{rounds}, {taken}."""
_STOP = """\
`systemctl stop` of the same {streams:,.0f} streams took {stop_s:.1f} s. {told:,.0f} were told `closing`, spread over \
the drain time: half of them after {closing_p50_s:.1f} s, nine of ten after {closing_p90_s:.1f} s, the last after \
{closing_max_s:.1f} s. By the `retry` that each was told, they would have been back after {returning_p50_s:.1f}, \
{returning_p90_s:.1f} and {returning_max_s:.1f} s. After `systemctl start` {resumed:,.0f} came back and were resumed."""


def section(result: Result) -> list[str]:
    """Return the section's lines."""
    first = next(iter(result.samples.values()))[0]
    assert first is not None
    rounds = max(len(samples) for samples in result.samples.values())
    workers = int(first.get("workers", 1))
    several = workers > 1
    what = _WHAT.format(
        workers=f", with {workers} workers" if several else "",
        longest=", of the worker with the longest" if several else "",
        streams=first["streams"],
        rate=first["rate"],
        apart=1000 / first["rate"],
        rounds=f"{rounds} of each",
        taken=result.taken,
    )
    lines = [
        f"## Restarts and upgrades under live streams{f', with {workers} workers' if several else ''}",
        "",
        what,
        "",
        "|  | pause, ms | at most | met | longest wait, ms | closed | lost | twice | sent again |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for variant in _TITLES:
        bound = BOUNDS.get(variant)
        pauses = result.values(variant, "pause_ms")
        met = "" if bound is None else "yes" if max(pauses) <= bound else "**no**"
        cells = [
            _TITLES[variant],
            _figure(result, variant, "pause_ms") if pauses else "",
            f"{bound:.0f}" if bound else "",
            met,
            _figure(result, variant, "longest_wait_ms"),
            *(
                f"{sum(result.values(variant, name)):.0f}"
                for name in ("closed", "lost", "doubled", "published_again")
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    (stop,) = result.samples["stop"]
    assert stop is not None
    return [*lines, "", _STOP.format(**stop), "", f"`{result.command}`", ""]


def _figure(result: Result, variant: str, metric: str) -> str:
    return f"{result.median(variant, metric):.0f} ({max(result.values(variant, metric)):.0f})"
