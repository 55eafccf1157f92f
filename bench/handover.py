"""Measure restarts, upgrades and stops under live streams: ``python -m bench.handover``.

The service runs as its unit under a systemd user manager of its own, which is that of the tests.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench import machine, native, report
from bench.__main__ import HERE, RESULTS
from bench.handover_table import SCENARIO, WORKERS_SCENARIO
from bench.load import LoadFailed, Report, StreamClient
from bench.measure import Sample, machine_time
from bench.payload import SENT_BASE, SEQ_BASE
from bench.processes import free_port, raise_file_limit
from bench.results import Result
from sse_app.auth.tokens.grants import Grants
from sse_app.auth.tokens.issuer import TokenKind, Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.channels import ChannelPatterns
from sse_app.settings.model import Settings
from sse_app.version import VERSION
from tests.support.fleet import SteadyPublisher
from tests.support.systemd_manager import Manager
from tests.support.waiting import until

CHANNEL = "dashboard"
DEADLINE = 120.0
AFTERWARDS = 1.0
"""Seconds for which the clients are watched after a change."""


def _event(number: int) -> dict[str, object]:
    return {"seq": SEQ_BASE + number, "sent": SENT_BASE + time.monotonic_ns() // 1000, "pad": "x" * 200}


class Bench:
    """The service with streams on it, under publishing.

    Args:
        manager: started.
        streams: how many.
        rate: events a second.
        workers: how many; one is the service, several are a target's.
    """

    def __init__(self, manager: Manager, streams: int, rate: float, workers: int) -> None:
        self._manager = manager
        self._streams = streams
        self._workers = workers
        self._rate = rate
        port = free_port()
        limits = ("LIMITS__STREAMS_PER_USER", "LIMITS__STREAMS_PER_ADDRESS", "LIMITS__STREAMS")
        manager.install(port, workers=workers, **dict.fromkeys(limits, streams + 1000))
        auth = Settings().auth
        self._tokens = Tokens(
            KeyRing.load(manager.state_dir / "keys"),
            issuer=auth.issuer,
            audience=auth.audience,
            longest=auth.longest_lifetime,
        )
        paths = [self._path(number) for number in range(streams)]
        self.client = StreamClient(port, paths, streams, ready="connected")
        self.client.open()
        self._publisher = SteadyPublisher(
            f"http://127.0.0.1:{port}", self._token(TokenKind.ACCESS, "publisher"), CHANNEL, 1 / rate, _event
        )

    def _token(self, kind: TokenKind, subject: str) -> str:
        grants = Grants(ChannelPatterns([CHANNEL, f"user.{subject}.**"]), ChannelPatterns([CHANNEL]))
        return self._tokens.issue(kind, subject, subject, grants, 3600)

    def _path(self, number: int) -> str:
        token = self._token(TokenKind.STREAM, f"user-{number}")
        return f"/api/v1/sse/{CHANNEL}?token={token}&client_id=c{number}"

    def measure(self, change: Callable[[], None]) -> Sample:
        """Return what a change costs the clients.

        Raises:
            LoadFailed: a stream was closed or broken.
        """
        time.sleep(2)  # let things settle
        published = len(self._publisher.ids)
        until(lambda: len(self._publisher.ids) > published, "more events are acknowledged", DEADLINE)
        time.sleep(0.4 / self._rate)  # between two events, all of which have arrived
        published, again = len(self._publisher.ids), len(self._publisher.retried)
        self.client.reset()
        self._seen = len(self._manager.server_log.read_text().splitlines())
        time.sleep(random.random() / self._rate)  # not always at the same moment between two events
        before = machine_time()
        change()
        time.sleep(AFTERWARDS)
        after = machine_time()
        events = len(self._publisher.ids) - published
        until(lambda: self.client.ask("stats")["fewest"] >= events, "every client has every event", DEADLINE)
        seen = self.client.ask("stats")
        total, _, stolen = (now - then for now, then in zip(after, before, strict=True))
        return {
            "streams": float(self._streams),
            "workers": float(self._workers),
            "rate": self._rate,
            "longest_wait_ms": seen["longest_wait_us"] / 1e3,
            "closed": float(seen["ended"] + seen["broken"] + self._streams - seen["ready"]),
            "lost": float(seen["gaps"] + max(0, events - seen["fewest"])),
            "doubled": float(seen["duplicates"]),
            "published_again": float(len(self._publisher.retried) - again),
            "stolen_percent": 100 * stolen / max(1, total),
        }

    def nothing(self) -> None:
        """Let the time pass that a restart takes."""
        time.sleep(1)

    def restart(self) -> None:
        """Restart the service as an operator would."""
        self._manager.systemctl("restart", self._unit)

    @property
    def _unit(self) -> str:
        return "sse-app.target" if self._workers > 1 else "sse-app.service"

    def _pids(self) -> list[int]:
        if self._workers == 1:
            return [self._manager.main_pid]
        return [self._manager.pid_of(number) for number in range(1, self._workers + 1)]

    def upgrade(self) -> None:
        """Have warm successors take over, as an operator would.

        Raises:
            LoadFailed: the command failed.
        """
        before = self._pids()
        command = [*self._manager.program, "upgrade", "--state-dir", str(self._manager.state_dir)]
        done = self._manager.run(command)
        if done.returncode != 0:
            raise LoadFailed(f"the upgrade failed: {done.stderr}")
        until(lambda: not {0, *before} & set(self._pids()), "other processes serve", DEADLINE)
        time.sleep(0.2)

    def without_stand_in(self) -> None:
        """Have the unit let no standby live, so that restarts are cold."""
        self._manager.add_to_unit("cold", "[Service]\nKillMode=mixed\n")
        self._manager.systemctl("daemon-reload")

    def pauses(self) -> Sample:
        """Return how long the last change's pauses were, in milliseconds, by the service's own log.

        A restart with a standby has two: until the standby serves, and until the next main process does. Of several
        workers it is those of the one with the longest.
        """
        held: dict[int, float] = {}
        pauses: dict[int, list[float]] = {}
        for line in self._manager.server_log.read_text().splitlines()[self._seen :]:
            entry = json.loads(line)
            at = datetime.fromisoformat(entry["timestamp"]).timestamp()
            worker = entry.get("worker", 0)
            if entry["event"] == "held":
                held[worker] = at
            elif entry["event"] in ("standing_in", "listening"):
                pauses.setdefault(worker, []).append(1000 * (at - held[worker]))
        if len(pauses) != self._workers:
            raise LoadFailed(f"{len(pauses)} of {self._workers} workers have changed")
        longest = max(pauses.values(), key=sum)
        return {"pause_ms": sum(longest), "longest_pause_ms": max(longest)}

    def stop_and_start(self) -> Sample:
        """Stop the service and start it again, and return how its streams ended and came back.

        Raises:
            LoadFailed: not every stream was told, or not every one came back with nothing lost.
        """
        self._publisher.stop()
        self.client.reset()
        began = time.monotonic()
        self._manager.systemctl("stop", self._unit)
        until(
            lambda: not any(self._pids()), "all processes have ended", DEADLINE
        )  # the target's stop waits for none
        took = time.monotonic() - began
        ended = self.client.ask("stats")
        if not ended["ended"] == ended["closings"] == self._streams:
            raise LoadFailed(f"{ended['ended']} streams ended, {ended['closings']} were told")
        self._manager.systemctl("start", *self._manager.units)
        back = self.client.open()
        if back["recovered"] != self._streams:
            raise LoadFailed(f"{back['recovered']} of {self._streams} streams were resumed")
        return {
            "streams": float(self._streams),
            "stop_s": took,
            "told": float(ended["closings"]),
            "resumed": float(back["recovered"]),
            **_spread(ended, "closing"),
            **_spread(ended, "returning"),
        }

    def close(self) -> None:
        """End the clients."""
        self._publisher.stop()
        self.client.__exit__(None, None, None)


def _spread(report: Report, name: str) -> Sample:
    figures = report[f"{name}_us"]
    return {f"{name}_{share}_s": figures[share] / 1e6 for share in ("p50", "p90", "max")}


def run(checkout: Path, streams: int, rate: float, workers: int, rounds: int, result: Result) -> None:
    """Measure all of it, and show it as it comes."""
    manager = Manager(program=(sys.executable, str(checkout / "main.py")))
    try:
        manager.start()
        bench = Bench(manager, streams, rate, workers)
        try:
            for variant, change in (
                ("undisturbed", bench.nothing),
                ("restart", bench.restart),
                ("upgrade", bench.upgrade),
                ("cold", bench.restart),
            ):
                if variant == "cold":
                    bench.without_stand_in()
                result.samples[variant] = []
                for _ in range(rounds):
                    sample = bench.measure(change)
                    if variant != "undisturbed":
                        sample |= bench.pauses()
                    result.samples[variant].append(sample)
                    _show(variant, sample)
            result.samples["stop"] = [bench.stop_and_start()]
            _show("stop", result.samples["stop"][0])
        finally:
            bench.close()
    finally:
        manager.stop()


def _show(variant: str, sample: Sample | None) -> None:
    print(variant, "  ".join(f"{name} {value:.4g}" for name, value in (sample or {}).items()), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.handover", description=__doc__)
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rate", type=float, default=4.0, help="events a second")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go (default bench/results)")
    parser.add_argument(
        "--checkout", type=Path, default=HERE.parent, help="whose sse_app is measured (default this one's)"
    )
    options = parser.parse_args(arguments)
    native.build()
    about = machine.describe(raise_file_limit())
    command = shlex.join(["python", "-m", "bench.handover", *arguments])
    scenario = SCENARIO if options.workers == 1 else WORKERS_SCENARIO
    result = Result(scenario, False, command, datetime.now(UTC).date().isoformat(), about)
    result.versions = {"sse_app": f"sse_app {VERSION}"}
    run(options.checkout.resolve(), options.streams, options.rate, options.workers, options.rounds, result)
    result.save(options.out)
    if options.out.resolve() == RESULTS:
        report.write(RESULTS, HERE.parent / "BENCHMARKS.md")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
