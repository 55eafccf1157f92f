"""Workers and their parent are killed, stopped, upgraded and resized at random: every event is accounted for.

What is left to chance comes from a seed, which a failing test shows; ``KILLS_SEED`` in the environment sets it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.faults.journal import payload_of
from tests.faults.ledger import Promises
from tests.faults.traffic import Traffic, history_of
from tests.support.programs import compiled
from tests.support.supervised import ServerWithWorkers, is_running, starting_workers
from tests.support.waiting import until

Start = Callable[..., ServerWithWorkers]

SLOW_DISK = Path(support.__file__).with_name("slow_disk.c")
LOCK_TIMEOUT = 1.0
HANG_TIMEOUT = 4.0
SMALL_PAGES = {
    "sse_app.eventlog.sqlite.bells.EVENTS_PER_BELL": 6,
    "sse_app.eventlog.sqlite.log.TAIL_EVENTS": 5,
    "sse_app.streams.past.REPLAY_PAGE_EVENTS": 5,
    "sse_app.streams.past.REPLAY_CACHE_BYTES": 20_000,
    "sse_app.streams.replay_cache.ANSWER_BYTES": 500,
}
"""So that a stream that resumes comes over many of their edges."""
LOST_BELLS = """
import random
from sse_app.eventlog.sqlite.bells import Bells
ring = Bells.ring
Bells.ring = lambda *values: random.random() < 0.1 or ring(*values)
"""
"""As of processes that are killed between a commit and its bell."""
CONSTANTS = {
    **SMALL_PAGES,
    "sse_app.eventlog.sqlite.writer.LOCK_TIMEOUT": LOCK_TIMEOUT,
    "sse_app.eventlog.sqlite.log.LOCK_TIMEOUT": LOCK_TIMEOUT,
    "sse_app.process.worker_process.GOOD_START": 0,
    "sse_app.process.worker_process.HANG_TIMEOUT": HANG_TIMEOUT,
}
EXPECTED = (
    "worker_died",
    "worker_hung",
    "worker_silent",
    "parent_died",
    "systemd_unreachable",  # so a worker sees the death of its parent where it reports at that moment
    "upgrade_failed",
    "event_log_unavailable",
)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a server with workers."""
    yield from starting_workers(tmp_path / "state")


@pytest.fixture(scope="module")
def slow_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes commits take a while, so that most kills come amid one."""
    return compiled(SLOW_DISK, tmp_path_factory.mktemp("disk"))


SETTINGS: dict[str, Any] = {
    "workers": 4,
    "constants": CONSTANTS,
    "code": LOST_BELLS,
    "expected": EXPECTED,
    "HISTORY__SIZE": 1_000_000,
    "KEEPALIVE__PING_INTERVAL": 1,
}


@pytest.fixture
def chance() -> random.Random:
    """What is left to chance."""
    seed = int(os.environ.get("KILLS_SEED", 0)) or random.randrange(1, 1_000_000)
    print(f"KILLS_SEED={seed}")
    return random.Random(seed)


def processes_of(server: ServerWithWorkers) -> list[int]:
    """Return all processes of a server, also those that are just taking over from others."""
    mark = f"SSE_APP_STATE_DIR={server.state_dir}".encode()
    found = []
    for directory in Path("/proc").glob("[1-9]*"):
        with suppress(OSError):
            if mark in (directory / "environ").read_bytes().split(b"\0") and is_running(int(directory.name)):
                found.append(int(directory.name))
    return found


def kill(*pids: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def has_lock(pid: int, path: Path) -> bool:
    """Return whether a process has the lock of a file (flock(2))."""
    file = path.stat()
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    held = (line.split() for line in Path("/proc/locks").read_text().splitlines())
    return any(
        row[1] == "FLOCK" and row[4] == str(pid) and row[5] == place for row in held if "->" not in row
    )


def state_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"


def stop(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until it has stopped; it may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        until(lambda: state_of(pid) in "TXZ", f"process {pid} is stopped")


def resume(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def stop_with_the_lock(server: ServerWithWorkers, chance: random.Random) -> int:
    """Stop a worker at a moment when it has the lock of the event log, and return its process id."""
    lock = Path(f"{server.state_dir}/events.db-lock")
    stopped = 0

    def has_it() -> bool:
        nonlocal stopped
        stopped = chance.choice([*server.workers().values()] or [0])
        if not stopped:
            return False
        stop(stopped)
        if has_lock(stopped, lock):
            return True
        resume(stopped)
        return False

    until(has_it, "a worker is stopped while it has the lock", pause=0.001)
    return stopped


class Trouble:
    """What happens to a server.

    Args:
        server: it runs.
        traffic: of what is published and received meanwhile.
        chance: when and to whom it happens.
    """

    def __init__(self, server: ServerWithWorkers, traffic: Traffic, chance: random.Random) -> None:
        self._server = server
        self._traffic = traffic
        self._chance = chance
        self.kills = 0

    def happens(self, acts: list[str]) -> None:
        """Do these things in some order, and wait after most of them until the server has recovered."""
        self._chance.shuffle(acts)
        for act in acts:
            print(f"{time.monotonic():.2f} {act}")
            getattr(self, act)()
            if self._chance.random() < 0.6:
                self._traffic.advance()
            else:
                time.sleep(self._chance.random() * 0.3)

    def kill_one(self) -> None:
        """Kill a worker."""
        self._kill_workers(1)

    def kill_two(self) -> None:
        """Kill two workers at once."""
        self._kill_workers(2)

    def kill_workers(self) -> None:
        """Kill all workers at once; their parent starts others."""
        self._kill_workers(256)

    def kill_parent(self) -> None:
        """Kill the parent, and start it again: its workers end by themselves."""
        self.kills += 1
        self._server.kill()
        self._server.start()

    def kill_all(self) -> None:
        """Kill parent and workers at once, and start again."""
        self.kills += 1
        kill(self._server.parent, *processes_of(self._server))
        self._server.kill()
        until(lambda: not processes_of(self._server), "all have gone")
        self._server.start()

    def kill_in_upgrade(self) -> None:
        """Kill some amid an upgrade, in which workers hand over to others, one after the other."""
        self._server.signal(signal.SIGUSR2)
        time.sleep(self._chance.random() * 2)
        self._chance.choice((self.kill_one, self.kill_two, self.kill_parent, self.kill_all))()

    def kill_in_resize(self) -> None:
        """Kill some while the number of workers changes."""
        self._server.configure(self._chance.randint(2, 6))
        self._server.signal(signal.SIGHUP)
        time.sleep(self._chance.random() * 0.5)
        self._chance.choice((self.kill_one, self.kill_two, self.kill_parent, self.kill_all))()

    def stop_one(self) -> None:
        """Stop a worker for a while: it lags behind the others when it runs again."""
        if workers := [*self._server.workers().values()]:
            pid = self._chance.choice(workers)
            stop(pid)
            time.sleep(self._chance.random() * 1.5)
            resume(pid)

    def stop_one_with_the_lock(self) -> None:
        """Stop a worker that has the lock for longer than the others wait for it, then resume or kill it."""
        pid = stop_with_the_lock(self._server, self._chance)
        time.sleep(LOCK_TIMEOUT * (0.5 + self._chance.random()))
        if self._chance.random() < 0.5:
            self.kills += 1
            kill(pid)
        resume(pid)

    def _kill_workers(self, most: int) -> None:
        workers = [*self._server.workers().values()]
        self._chance.shuffle(workers)
        if workers:
            self.kills += 1
            kill(*workers[:most])


@contextmanager
def traffic_of(server: ServerWithWorkers, chance: random.Random) -> Iterator[Traffic]:
    """Publishers and clients, whose account has to balance in the end."""
    traffic = Traffic(
        Path(server.state_dir).parent / "journals", [server], chance.randrange(1_000_000), clients=10
    )
    with closing(traffic):
        traffic.open()
        traffic.advance()
        yield traffic
        traffic.settle()
        history = history_of(server)
        shown = server.command("eventlog", "show")
    verdict = traffic.account(history, Promises(whole=True, refusals=()))
    print(verdict)
    assert verdict.findings == []
    assert f"head {len(history)}\n" in shown
    assert server.stop() == 0
    assert sorted(listing_of(server.state_dir)) == sorted(history)
    assert not processes_of(server)


def listing_of(state_dir: Path) -> list[tuple[str, str, str]]:
    """Return the id, the channel and the payload of each event in the file; no process has it open."""
    with closing(sqlite3.connect(state_dir / "events.db")) as database:
        ((epoch,),) = database.execute("SELECT epoch FROM log").fetchall()
        rows = database.execute("SELECT seq, name, data FROM events JOIN channels ON channels.id = channel")
        return [(f"{epoch}-{seq}", name, payload_of(json.loads(data))) for seq, name, data in rows]


FEW = [
    "kill_one",
    "kill_one",
    "kill_two",
    "kill_workers",
    "kill_parent",
    "kill_all",
    "kill_in_upgrade",
    "kill_in_resize",
    "stop_one",
]
MANY = [*FEW, "kill_one", "kill_two", "stop_one", "stop_one_with_the_lock"]


@pytest.mark.long
@pytest.mark.slow
def test_whichever_process_is_killed_no_acknowledged_event_is_lost_and_every_client_is_sent_each_once(
    start: Start, chance: random.Random, slow_disk: Path
) -> None:
    server = start(**SETTINGS, variables={"LD_PRELOAD": str(slow_disk)})
    with traffic_of(server, chance) as traffic:
        trouble = Trouble(server, traffic, chance)
        trouble.happens([*FEW])
        traffic.advance()


@pytest.mark.long
def test_of_a_hundred_kills_none_loses_an_acknowledged_event_or_sends_one_twice(
    start: Start, chance: random.Random, slow_disk: Path
) -> None:
    server = start(**SETTINGS, variables={"LD_PRELOAD": str(slow_disk)})
    with traffic_of(server, chance) as traffic:
        trouble = Trouble(server, traffic, chance)
        while trouble.kills < 100:
            trouble.happens([*MANY])
        traffic.advance()


@pytest.mark.ci
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(resume, id="resumed", marks=pytest.mark.long),
        pytest.param(kill, id="killed", marks=pytest.mark.long),
        pytest.param(None, id="found to hang"),
    ],
)
def test_a_worker_stopped_with_the_lock_costs_the_others_a_bounded_time_and_nothing_false_is_acknowledged(
    start: Start, chance: random.Random, slow_disk: Path, end: Callable[[int], None] | None
) -> None:
    server = start(**SETTINGS, variables={"LD_PRELOAD": str(slow_disk)})
    with traffic_of(server, chance) as traffic:
        pid = stop_with_the_lock(server, chance)
        before = traffic.answered(503)
        until(lambda: traffic.answered(503) > before, "others are refused")
        if end is None:
            server.wait_for_log("worker_hung")
        else:
            end(pid)
        traffic.advance()
