"""What is done to the disk that has the state."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.faults.run import Run
from tests.support.old_state import lay_down
from tests.support.server_process import run_program
from tests.support.waiting import until


def power_loss(run: Run) -> None:
    """All processes end at once, and the files are as they were last synchronised."""
    assert run.disk is not None
    time.sleep(run.chance.random() * 0.5)
    run.harmed()
    for server in run.servers:
        server.kill()
    if (database := run.deployment.database) is not None:
        database.postgres.kill()
        database.postgres.start()
    run.disk.lose_power(run.chance)
    run.restart_all()


def failing(run: Run) -> None:
    """What is written cannot be synchronised (EIO)."""
    assert run.disk is not None
    _refuse_while(run, run.disk.failing())


def read_only(run: Run) -> None:
    """Nothing can be written (EROFS)."""
    assert run.disk is not None
    _refuse_while(run, run.disk.read_only())


def full(run: Run) -> None:
    """There is no room."""
    assert run.disk is not None
    _refuse_while(run, run.disk.full())


def corrupt(run: Run) -> None:
    """A database is overwritten in part while nothing runs: a start says so, and what to do; a copy is put back."""
    run.harmed()
    for server in run.servers:
        assert server.stop() == 0
    server = run.chance.choice(run.servers)
    path = server.state_dir / run.chance.choice(("events.db", "accounts.db"))
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    begin = run.chance.randrange(100)  # in the header: what is damaged elsewhere is found when it is read
    spoilt[begin : begin + 2048] = run.chance.randbytes(2048)
    path.write_bytes(spoilt)
    alone = {name: value for name, value in server.environment.items() if "WORKER" not in name}
    done = run_program("serve", environment=alone)
    assert done.returncode == 1, done
    assert str(path) in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    path.write_bytes(whole)
    run.restart_all()


@contextmanager
def old_state(state: Path) -> Iterator[None]:
    """Lay down what an older version has stored."""
    state.mkdir(mode=0o700)
    lay_down(state, "events-1", "accounts-2")
    yield


def _refuse_while(run: Run, trouble: AbstractContextManager[None]) -> None:
    """Wait until a publish is refused, and have the trouble last for a while."""
    run.harmed()
    with trouble:
        until(run.refuses, "a publish is refused")
        time.sleep(run.chance.random())
