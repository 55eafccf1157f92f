"""What is done to the server as a unit of systemd, which starts it again: nothing is mended by hand."""

from __future__ import annotations

import os
import signal
import time

from tests.faults.run import Run
from tests.support.unit_server import NEXT, STANDBY, SUCCESSOR, UnitServer, runs
from tests.support.waiting import until

STEPS = 1.5
"""Seconds within which a restart or an upgrade has taken all of its steps, unless the machine is busy."""

FAILED = ("stand_in_failed", "handover_failed", "upgrade_failed")
"""What a process logs that has streams, and keeps them, as the one that it was handing them over to has ended."""


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
    _end(run, server.pid_of(run.chance.choice(server.numbers)))
    run.ends_streams()
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
    run.ends_streams()
    server.wait_until_settled()


def kill_standby(run: Run) -> None:
    """The standby is killed at any step of a restart: before it serves, no stream ends."""
    server = _server(run)
    number = run.chance.choice(server.numbers)
    before = server.processes(number)
    server.restart("--no-block")
    _kill_one_that_takes_over(run, number, server.wait_for(number, STANDBY, before), before)


def kill_next(run: Run) -> None:
    """The next main process is killed at any step of a restart: before it serves, no stream ends."""
    server = _server(run)
    number = run.chance.choice(server.numbers)
    before = server.processes(number)
    server.restart("--no-block")
    _kill_one_that_takes_over(run, number, server.wait_for(number, NEXT, before))


def kill_successor(run: Run) -> None:
    """The successor is killed at any step of an upgrade: before it serves, no stream ends."""
    server = _server(run)
    number = run.chance.choice(server.numbers)
    before = server.processes(number)
    _ask_to_upgrade(server, number)
    _kill_one_that_takes_over(run, number, server.wait_for(number, SUCCESSOR, before), before)


def stop_until_watchdog(run: Run) -> None:
    """A main process is stopped, and the watchdog ends it."""
    server = _server(run)
    pid = server.pid_of(run.chance.choice(server.numbers))
    os.kill(pid, signal.SIGSTOP)
    until(lambda: not runs(pid), "the watchdog has ended it")
    run.ends_streams()
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


def _kill_one_that_takes_over(run: Run, number: int, pid: int, others: set[int] | None = None) -> None:
    """Kill a process at any step of a handover to it.

    Args:
        run: of the server.
        number: of the process's unit.
        pid: of the process.
        others: of which one hands over to it; None for all that are there. That one says that it keeps the streams, or
            it has ended, and they end with the process that is killed.
    """
    (server,) = run.servers
    assert isinstance(server, UnitServer)
    time.sleep(run.chance.random() * STEPS)
    if others is None:
        others = server.processes(number) - {pid}
    failed = _failures(server, number)
    if _end(run, pid):
        until(
            lambda: _failures(server, number) > failed or not any(map(runs, others)),
            "the process before has noticed, or has ended",
        )
        if _failures(server, number) == failed:
            run.ends_streams()
    server.wait_until_settled()


def _end(run: Run, pid: int) -> bool:
    """Kill a process, and return whether it was there."""
    run.harmed()
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    until(lambda: not runs(pid), "the process has gone")
    return True


def _failures(server: UnitServer, number: int) -> int:
    """Return how often a process of a unit has kept its streams, as the next one has ended."""
    return sum(line["event"] in FAILED and line.get("worker", 0) == number for line in server.log_lines())
