"""What is done to the server as a unit of systemd, which starts it again: nothing is mended by hand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from tests.faults.run import Run
from tests.support.unit_server import NEXT, STANDBY, SUCCESSOR, UnitServer, runs
from tests.support.waiting import until

STEPS = 1.5
"""Seconds within which a restart or an upgrade has taken all of its steps, unless the machine is busy."""

FAILED = ("stand_in_failed", "handover_failed", "upgrade_failed")
"""What a process logs that has streams, and keeps them, as the one that it was handing them over to has ended."""

TAKEN = ("succeeded", "adopted")
"""What a process logs that has taken the streams over."""


def restart(run: Run) -> None:
    """``systemctl restart``: no stream ends."""
    server = _server(run)
    server.restart()
    server.wait_until_settled()


def restart_twice(run: Run) -> None:
    """A restart, and another one within a second, whether the first is over or not: no stream ends."""
    server = _server(run)
    server.restart("--no-block")
    time.sleep(run.chance.random())
    server.restart("--no-block")
    server.wait_until_settled()


def upgrade(run: Run) -> None:
    """``sse-app upgrade``: no stream ends."""
    server = _server(run)
    server.upgrade()
    server.wait_until_settled()


def restart_amid_upgrade(run: Run) -> None:
    """A restart at any step of an upgrade, which may fail: no stream ends."""
    server = _server(run)
    number = run.chance.choice(server.numbers)
    _ask_to_upgrade(server, number)
    time.sleep(run.chance.random() * STEPS)
    server.restart()
    server.wait_until_settled()


def kill_main(run: Run) -> None:
    """``kill -9`` of a main process."""
    server = _server(run)
    ended_at = _end(run, server.pid_of(run.chance.choice(server.numbers)))
    assert ended_at is not None
    run.ends_streams(ended_at)
    server.wait_until_settled()


def kill_all(run: Run) -> None:
    """``systemctl kill -s KILL`` of all units, every other time at any step of a restart."""
    server = _server(run)
    if run.chance.random() < 0.5:
        server.restart("--no-block")
        time.sleep(run.chance.random() * STEPS)
    ended = [pid for number in server.numbers for pid in server.processes(number)]
    server.kill()
    until(lambda: not any(runs(pid) for pid in ended), "the processes have gone")
    run.ends_streams(time.monotonic())
    server.wait_until_settled()


def kill_standby(run: Run) -> None:
    """The standby is killed at any step of a restart: before it serves, no stream ends."""
    _kill_in_restart(run, STANDBY)


def kill_next(run: Run) -> None:
    """The next main process is killed at any step of a restart: before it serves, no stream ends."""
    _kill_in_restart(run, NEXT)


def _kill_in_restart(run: Run, role: str) -> None:
    server = _server(run)
    number = run.chance.choice(server.numbers)
    before = server.processes(number)
    server.restart("--no-block")
    _kill_one_that_takes_over(run, number, server.wait_for(number, role, before))


def kill_successor(run: Run) -> None:
    """The successor is killed at any step of an upgrade: before it serves, no stream ends."""
    server = _server(run)
    number = run.chance.choice(server.numbers)
    before = server.processes(number)
    _ask_to_upgrade(server, number)
    _kill_one_that_takes_over(run, number, server.wait_for(number, SUCCESSOR, before))


def kill_main_in_upgrade(run: Run) -> None:
    """The main process is killed at any step of an upgrade."""
    server = _server(run)
    number = run.chance.choice(server.numbers)
    before, pid = server.processes(number), server.pid_of(number)
    _ask_to_upgrade(server, number)
    _wait_for_a_step(run, server.wait_for(number, SUCCESSOR, before), before)
    if (ended_at := _end(run, pid)) is not None:
        run.ends_streams(ended_at)
    server.wait_until_settled()


def stop_until_watchdog(run: Run) -> None:
    """A main process is stopped, and the watchdog ends it."""
    server = _server(run)
    pid = server.pid_of(run.chance.choice(server.numbers))
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not runs(pid), "the watchdog has ended it")
    run.ends_streams(time.monotonic())
    server.wait_until_settled()


def _server(run: Run) -> UnitServer:
    """Return the server, after a while that is left to chance, to which something is done now."""
    (server,) = run.servers
    assert isinstance(server, UnitServer)
    time.sleep(run.chance.random() * 0.3)
    run.harmed()
    return server


def _ask_to_upgrade(server: UnitServer, number: int) -> None:
    os.kill(server.pid_of(number), signal.SIGUSR2)


def _kill_one_that_takes_over(run: Run, number: int, pid: int) -> None:
    """Kill a process at any step of a handover to it.

    Its streams end with it, unless the process before says that it has kept them, or the next one that it has them.

    Args:
        run: of the server.
        number: of the process's unit.
        pid: of the process.
    """
    (server,) = run.servers
    assert isinstance(server, UnitServer)
    others = server.processes(number) - {pid}
    _wait_for_a_step(run, pid, others)
    failed = _logged(server, number, FAILED)
    if (ended_at := _end(run, pid)) is not None:
        taken = _logged(server, number, TAKEN)

        def is_kept() -> bool:
            return _logged(server, number, FAILED) > failed or _logged(server, number, TAKEN) > taken

        until(
            lambda: is_kept() or not any(map(runs, others)),
            "the process before keeps the streams, or has ended",
        )
        server.wait_until_settled()
        if not is_kept():
            run.ends_streams(ended_at)
    server.wait_until_settled()


def _wait_for_a_step(run: Run, pid: int, others: set[int]) -> None:
    """Wait for any moment of a handover to a process, every other time for one soon after its streams came."""
    moment = run.chance.random() * STEPS
    if run.chance.random() < 0.5:
        _wait_for_streams(pid, others)
        moment /= 10
    time.sleep(moment)


def _wait_for_streams(pid: int, others: set[int]) -> None:
    """Wait until a process has been passed others' connections; the steps after that take some hundredths of a second.

    It waits no longer than a handover takes: there may be none.
    """
    theirs = set().union(*map(_sockets, others))
    before = len(_sockets(pid) & theirs)
    ends = time.monotonic() + 2 * STEPS
    while runs(pid) and len(_sockets(pid) & theirs) < before + 2 and time.monotonic() < ends:
        time.sleep(0.002)
        theirs |= set().union(*map(_sockets, others))


def _sockets(pid: int) -> set[str]:
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it has just gone
        return set()
    found: set[str] = set()
    for descriptor in descriptors:
        with suppress(OSError):
            found.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return {name for name in found if name.startswith("socket:")}


def _end(run: Run, pid: int) -> float | None:
    """Kill a process, and return when it had ended; None where it was not there."""
    run.harmed()
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    until(lambda: not runs(pid), "the process has gone")
    return time.monotonic()


def _logged(server: UnitServer, number: int, events: Sequence[str]) -> int:
    """Return how many lines with these events the processes of a unit have logged."""
    return sum(line["event"] in events and line.get("worker", 0) == number for line in server.log_lines())
