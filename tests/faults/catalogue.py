"""The faults, each by its name."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.faults import databases, disks, hostile, overload, processes, surroundings, units
from tests.faults.disk import small
from tests.faults.result import Result, commit
from tests.faults.run import Needs, Run
from tests.faults.ways import BY_HAND, IN_A_FILE, ON_POSTGRES, UNDER_SYSTEMD

QUICK = {"POSTGRES__TIMEOUT": 1.0}
"""Settings of servers that give a query less time than usual, so that they refuse publishes sooner."""

UNREAD = "replay_failed"
"""What servers say of a stream that is replayed to when the database goes, and is ended for that."""


@dataclass(frozen=True)
class Fault:
    """A fault, and what a run needs for it.

    Attributes:
        bring: brings it about, and mends what has to be mended by hand.
        needs: of the run.
        ways: to run the server in which it can be.
        short, long: how often it is brought about in a short and in a long run.
    """

    bring: Callable[[Run], None]
    needs: Needs = field(default_factory=Needs)
    ways: Sequence[str] = BY_HAND
    short: int = 2
    long: int = 20


CATALOGUE: Mapping[str, Fault] = {
    "kill -9": Fault(processes.kill, short=20, long=200),
    "kill -9 on a state of an older version": Fault(
        processes.kill_and_look_back, Needs(state=disks.old_state, database=databases.of_an_older_version)
    ),
    "restart": Fault(processes.restart, Needs(told=True)),
    "two restarts within a second": Fault(processes.restart_twice, Needs(told=True)),
    "SIGSTOP": Fault(processes.stop_for_a_while),
    "upgrade": Fault(processes.upgrade, Needs(told=True)),
    "a successor is killed": Fault(processes.kill_successor, Needs(expected=["upgrade_failed"])),
    "a publisher dies": Fault(processes.publisher_dies, Needs(told=True)),
    "power loss": Fault(disks.power_loss, Needs(disk=True)),
    "failing disk": Fault(disks.failing, Needs(disk=True), IN_A_FILE),
    "read-only disk": Fault(disks.read_only, Needs(disk=True), IN_A_FILE),
    "full disk": Fault(disks.full, Needs(disk=True, state=small), IN_A_FILE),
    "corrupted files": Fault(disks.corrupt, ways=IN_A_FILE),
    "history trimmed": Fault(
        processes.outlive_history,
        Needs(
            kept=False,
            expected=["events_trimmed", "replay_failed"],
            settings={"HISTORY__SIZE": 10},
            publishers={"batch": 100, "pause": 0.1},
            clients={"stays": 1.0, "away": 3.0},
        ),
    ),
    "clients do not read": Fault(
        processes.do_not_read,
        Needs(
            settings={"LIMITS__BACKLOG_BYTES": 65_536, "KEEPALIVE__PING_INTERVAL": 15},
            clients={"stays": 600.0},
        ),
    ),
    "upgrade while clients do not read": Fault(
        processes.upgrade_unread,
        Needs(
            told=True,
            settings={"LIMITS__BACKLOG_BYTES": 50_000_000, "KEEPALIVE__PING_INTERVAL": 15},
            clients={"stays": 600.0},
        ),
    ),
    "the clock is set": Fault(surroundings.set_clock, Needs(clock=True, expected=["clock_changed"])),
    "links that drop": Fault(surroundings.drop_link, Needs(network=True)),
    "the database ends": Fault(surroundings.end_database, Needs(expected=[UNREAD]), ON_POSTGRES),
    "the database is stopped for a while": Fault(
        surroundings.pause_database, Needs(expected=[UNREAD]), ON_POSTGRES
    ),
    "a node and the database end": Fault(
        surroundings.end_node_and_database, Needs(expected=[UNREAD]), ON_POSTGRES
    ),
    "the database's disk is full": Fault(
        surroundings.fill_disk_of_database,
        Needs(database=databases.on_small_disk, settings=QUICK, expected=[UNREAD]),
        ON_POSTGRES,
    ),
    "a machine is cut off from the database": Fault(
        surroundings.cut_off_from_database,
        Needs(told=True, database=databases.beyond_links, settings=QUICK, expected=[UNREAD]),
        ON_POSTGRES,
    ),
    "failover to a standby that is waited for": Fault(
        surroundings.fail_over,
        Needs(
            told=True,
            database=partial(databases.with_standby, synchronous=True),
            settings=QUICK,
            expected=[UNREAD],
        ),
        ON_POSTGRES,
    ),
    "failover to a standby that is not waited for": Fault(
        surroundings.fail_over_with_losses,
        Needs(
            told=True,
            database=partial(databases.with_standby, synchronous=False),
            settings=QUICK,
            expected=["log_replaced", UNREAD],
        ),
        ON_POSTGRES,
    ),
    "no file descriptors": Fault(
        hostile.take_descriptors,
        Needs(settings={"open_files": 300}, expected=["connections_shed", "accept_failed"]),
    ),
    "overload": Fault(overload.overload, overload.NEEDS, short=1, long=10),
    "readers of a byte a second": Fault(hostile.read_slowly, Needs(told=True)),
    "slow heads and bodies": Fault(hostile.write_slowly, Needs(told=True)),
    "connects and closes": Fault(hostile.connect_and_close, Needs(told=True)),
    "garbage": Fault(hostile.send_garbage, Needs(told=True)),
    "systemctl restart": Fault(units.restart, Needs(ended=False), UNDER_SYSTEMD),
    "systemctl restart, twice within a second": Fault(units.restart_twice, Needs(ended=False), UNDER_SYSTEMD),
    "sse-app upgrade": Fault(units.upgrade, Needs(ended=False), UNDER_SYSTEMD),
    "systemctl restart amid an upgrade": Fault(
        units.restart_amid_upgrade,
        Needs(ended=False, expected=["upgrade_failed", "stand_in_failed"]),  # in time, on a busy machine
        UNDER_SYSTEMD,
    ),
    "kill -9 of the main process": Fault(units.kill_main, Needs(ended=False), UNDER_SYSTEMD),
    "systemctl kill -s KILL": Fault(units.kill_all, Needs(ended=False), UNDER_SYSTEMD),
    "the stand-in is killed in a restart": Fault(
        units.kill_standby, Needs(ended=False, expected=["stand_in_failed"]), UNDER_SYSTEMD
    ),
    "the next process is killed in a restart": Fault(
        units.kill_next, Needs(ended=False, expected=["handover_failed"]), UNDER_SYSTEMD
    ),
    "the successor is killed in an upgrade": Fault(
        units.kill_successor, Needs(ended=False, expected=["upgrade_failed"]), UNDER_SYSTEMD
    ),
    "the main process is killed in an upgrade": Fault(
        units.kill_main_in_upgrade,
        Needs(ended=False, expected=["the other process ended", "did not come"]),
        UNDER_SYSTEMD,
    ),
    "SIGSTOP until the watchdog": Fault(
        units.stop_until_watchdog,
        Needs(ended=False, settings={"unit": "WatchdogSec=3"}),
        UNDER_SYSTEMD,
        long=10,
    ),
}


def run_once(name: str, way: str, times: int, seed: int) -> Result:
    """Bring a fault about so many times in one run, and return what became of it."""
    result = Result(
        date=time.strftime("%Y-%m-%d"), commit=commit(), fault=name, way=way, seed=seed, times=times
    )
    begun = time.monotonic()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="sse-faults-") as directory,
            Run(way, Path(directory), seed, CATALOGUE[name].needs) as run,
        ):
            run.advance()
            for _ in range(times):
                run.harm(CATALOGUE[name].bring)
            verdict = run.settle()
            result.silence = round(run.silence, 2)
            result.acknowledged, result.received = verdict.acknowledged, verdict.received
            result.streams, result.resets = verdict.streams, verdict.resets
            result.taken_back = verdict.taken_back
            result.found = verdict.counts()
            result.figures = run.figures
            result.findings = [str(finding) for finding in verdict.findings[:20]]
    except Exception:  # it is told with the others
        result.failure = traceback.format_exc()[-8000:]
    result.seconds = round(time.monotonic() - begun, 1)
    return result
