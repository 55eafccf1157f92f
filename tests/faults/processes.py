"""What is done to the processes of the server, and of publishers."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx

from tests.faults.run import Run
from tests.support.supervised import is_running
from tests.support.upgradable import Upgradable
from tests.support.waiting import until


def a_server(run: Run) -> Upgradable:
    """Return one of the servers, by chance, after a while that is left to chance."""
    time.sleep(run.chance.random() * 0.3)
    return run.chance.choice(run.servers)


def kill(run: Run) -> None:
    """``kill -9`` at any moment, and the start that systemd would make."""
    server = a_server(run)
    run.harmed()
    server.kill()
    time.sleep(run.chance.random() * 0.2)
    server.start()


def kill_and_look_back(run: Run) -> None:
    """``kill -9``, and what an older version has stored is there as it was before."""
    before = run.oldest("alerts")
    assert before
    kill(run)
    assert run.oldest("alerts") == before


def restart(run: Run) -> None:
    """A stop by SIGTERM, and a start."""
    server = a_server(run)
    run.harmed()
    server.stop()
    server.start()


def restart_twice(run: Run) -> None:
    """A restart, and another one as soon as the server serves."""
    server = a_server(run)
    run.harmed()
    for _ in range(2):
        server.stop()
        server.start()


def stop_for_a_while(run: Run) -> None:
    """SIGSTOP, some seconds in which the others store as much as they can, SIGCONT."""
    server = a_server(run)
    pid, others = server.pid, [other.port for other in run.servers if other is not server]
    names = [f"publisher-at-others-{run.chance.getrandbits(60)}" for _ in others]
    busy = [run.traffic.launch_publisher(name, batch=1, pause=0.0, ports=others) for name in names]
    until(lambda: all(run.traffic.answered(201, name) for name in names), "the others store")
    run.harmed()
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.5 + 2 * run.chance.random())
    os.kill(pid, signal.SIGCONT)
    for process in busy:
        process.terminate()
    for process in busy:
        assert process.wait(timeout=60) == 0


def upgrade(run: Run) -> None:
    """A handover to a successor, which keeps the streams."""
    server = a_server(run)
    run.harmed()
    server.upgrade()


def kill_successor(run: Run) -> None:
    """``kill -9`` of the successor at any step of an upgrade."""
    server = a_server(run)
    before = server.pid
    run.harmed()
    os.kill(before, signal.SIGUSR2)
    until(lambda: _children(before) or server.pid != before, "there is a successor")
    successors = _children(before)
    time.sleep(run.chance.random() * 0.8)
    for pid in successors:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if server.pid in successors:  # it served already
        until(lambda: not is_running(server.pid), "it has gone")
        server.start()
    httpx.get(f"{server.url}/readyz", timeout=60)


def publisher_dies(run: Run) -> None:
    """A publisher is killed in the middle of what it sends."""
    name = f"publisher-that-dies-{run.chance.getrandbits(60)}"
    process = run.traffic.launch_publisher(name, batch=100, pause=0.0, size=2000)
    time.sleep(0.5 + run.chance.random())
    run.harmed()
    process.kill()
    process.wait()


def do_not_read(run: Run) -> None:
    """Clients read nothing while more is published than may wait for them, and then come back."""
    run.harmed()
    with run.traffic.unread(run.chance):
        _publish_much(run)


def upgrade_unread(run: Run) -> None:
    """A handover to a successor while much waits for clients that read nothing."""
    server = a_server(run)
    run.harmed()
    with run.traffic.unread(run.chance):
        _publish_much(run)
        server.upgrade()


def outlive_history(run: Run) -> None:
    """More is published than is kept while clients are away, and what is in memory goes with a process."""
    time.sleep(2)
    kill(run)


def _publish_much(run: Run) -> None:
    """Publish a few megabytes."""
    name = f"publisher-of-much-{run.chance.getrandbits(60)}"
    process = run.traffic.launch_publisher(name, batch=100, pause=0.0, size=4000)
    until(lambda: run.traffic.answered(201, name) >= 30, "much is published")
    process.terminate()
    assert process.wait(timeout=60) == 0


def _children(parent: int) -> list[int]:
    """Return the processes that a process has started, and that run."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    with suppress(OSError):
        return [int(pid) for pid in children.read_text().split() if is_running(int(pid))]
    return []
