"""Measure restarts and upgrades under live streams: ``python -m bench.handover``.

The service runs as its unit under a systemd user manager of its own, which is that of the tests.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import machine, report
from bench.__main__ import HERE, RESULTS
from bench.handover_table import SCENARIO
from bench.measure import Sample
from bench.processes import free_port, raise_file_limit
from bench.results import Result
from sse_app.auth.grants import Grants
from sse_app.auth.keys import KeyRing
from sse_app.auth.tokens import TokenKind, Tokens
from sse_app.channels import ChannelPatterns
from sse_app.settings import Settings
from sse_app.version import VERSION
from tests.fleet import Client, Fleet, SteadyPublisher, wait_until
from tests.systemd_manager import Manager

CHANNEL = "dashboard"
DEADLINE = 120.0
AFTERWARDS = 1.0
"""Seconds for which the clients are watched after a change."""


class Bench:
    """The service with streams on it, under publishing.

    Args:
        manager: started.
        streams: how many.
        rate: events a second.
    """

    def __init__(self, manager: Manager, streams: int, rate: float) -> None:
        self._manager = manager
        self._rate = rate
        port = free_port()
        limits = ("LIMITS__STREAMS_PER_USER", "LIMITS__STREAMS_PER_ADDRESS", "LIMITS__STREAMS")
        manager.install(port, **dict.fromkeys(limits, streams + 1000))
        auth = Settings().auth
        self._tokens = Tokens(
            KeyRing.load(manager.state_dir / "keys"),
            issuer=auth.issuer,
            audience=auth.audience,
            longest=auth.longest_lifetime,
        )
        self.fleet = Fleet(port)
        self.clients: list[Client] = []
        for start in range(0, streams, 1000):
            self.clients += self.fleet.open(
                min(1000, streams - start),
                lambda number, start=start: self._path(start + number),  # type: ignore[misc]
            )
        self.publisher = SteadyPublisher(
            f"http://127.0.0.1:{port}", self._token(TokenKind.ACCESS, "publisher"), CHANNEL, pause=1 / rate
        )

    def _token(self, kind: TokenKind, subject: str) -> str:
        patterns = ChannelPatterns([CHANNEL])
        return self._tokens.issue(kind, subject, subject, Grants(patterns, patterns), 3600)

    def _path(self, number: int) -> str:
        token = self._token(TokenKind.STREAM, f"user-{number}")
        return f"/api/v1/sse/{CHANNEL}?token={token}&client_id=c{number}"

    def measure(self, change: Callable[[], None]) -> Sample:
        """Return what a change costs the clients."""
        time.sleep(2)  # let things settle
        published, again, ended = len(self.publisher.ids), len(self.publisher.retried), len(self.fleet.ended)
        for client in self.clients:
            client.longest_wait, client.last_at = 0.0, time.monotonic()
        change()
        time.sleep(AFTERWARDS)
        ids = list(self.publisher.ids)
        last = ids[-1].encode()
        wait_until(lambda: all(last in client.received[-8192:] for client in self.clients), DEADLINE)
        wanted = ids[published:]
        lost = doubled = 0
        for client in self.clients:
            got = client.ids()
            lost += len(set(wanted) - set(got))
            doubled += len(got) - len(set(got))
        return {
            "streams": float(len(self.clients)),
            "rate": self._rate,
            "longest_wait_ms": 1000 * max(client.longest_wait for client in self.clients),
            "closed": float(len(self.fleet.ended) - ended),
            "lost": float(lost),
            "doubled": float(doubled),
            "published_again": float(len(self.publisher.retried) - again),
        }

    def nothing(self) -> None:
        """Let the time pass that a restart takes."""
        time.sleep(1)

    def restart(self) -> None:
        """Restart the service as an operator would."""
        self._manager.systemctl("restart", "sse-app.service")

    def upgrade(self) -> None:
        """Have a warm successor take over."""
        before = self._manager.main_pid
        self._manager.systemctl("kill", "--signal=USR2", "--kill-who=main", "sse-app.service")
        wait_until(lambda: self._manager.main_pid not in (0, before), DEADLINE)
        time.sleep(0.2)

    def pause(self) -> float:
        """Return how long the last pause was, in milliseconds, by the service's own log."""
        at: dict[str, float] = {}
        for line in self._manager.server_log.read_text().splitlines():
            entry = json.loads(line)
            at[entry["event"]] = datetime.fromisoformat(entry["timestamp"]).timestamp()
        return 1000 * (at["listening"] - at["holding"])


def run(streams: int, rate: float, rounds: int, result: Result) -> None:
    """Measure all of it, and show it as it comes."""
    manager = Manager()
    try:
        manager.start()
        bench = Bench(manager, streams, rate)
        try:
            for variant, change in (
                ("undisturbed", bench.nothing),
                ("restart", bench.restart),
                ("upgrade", bench.upgrade),
            ):
                result.samples[variant] = []
                for _ in range(rounds):
                    sample = bench.measure(change)
                    if variant != "undisturbed":
                        sample["pause_ms"] = bench.pause()
                    result.samples[variant].append(sample)
                    print(
                        variant,
                        "  ".join(f"{name} {value:.0f}" for name, value in sample.items()),
                        flush=True,
                    )
            bench.publisher.stop()
        finally:
            bench.fleet.close()
    finally:
        manager.stop()


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.handover", description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=4.0, help="events a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go (default bench/results)")
    options = parser.parse_args(arguments)
    about = machine.describe(raise_file_limit())
    command = shlex.join(["python", "-m", "bench.handover", *arguments])
    result = Result(SCENARIO, False, command, datetime.now(UTC).date().isoformat(), about)
    result.versions = {"sse_app": f"sse_app {VERSION}"}
    run(options.streams, options.rate, options.rounds, result)
    result.save(options.out)
    if options.out.resolve() == RESULTS:
        report.write(RESULTS, HERE.parent / "BENCHMARKS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
