"""What a running server does when its files are taken away, replaced, cut short, or when the disk is full."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.server_process import ServerProcess, run_program
from tests.support.waiting import until

Start = Callable[..., ServerProcess]
PASSWORD = "correct horse battery"
EXPECTED = ("unavailable", "login_refused", "keys_refused")


@pytest.fixture
def server(start_server: Start) -> ServerProcess:
    """A server with the account ann, which has published."""
    server = start_server(expected=EXPECTED)
    server.add_user("ann", PASSWORD, subscribe="**")
    assert publish(server).status_code == 201
    assert login(server) == 200
    return server


def publish(server: ServerProcess, text: str = "") -> httpx.Response:
    with server.publisher() as client:
        return client.post("/api/v1/sse/alerts", json={"event": "e", "data": {"text": text}})


def login(server: ServerProcess) -> int:
    body = {"username": "ann", "password": PASSWORD, "cookie": False}
    return httpx.post(f"{server.url}/api/v1/auth/login", json=body, timeout=30).status_code


def ready(server: ServerProcess) -> bool:
    """Return whether the server is ready, on which ``/readyz`` and the metric must agree."""
    while True:
        before, metrics, after = (
            httpx.get(f"{server.url}/{path}") for path in ("readyz", "metrics", "readyz")
        )
        if before.status_code == after.status_code:
            assert f"\nsse_app_ready {float(before.status_code == 200)}\n" in metrics.text
            return before.status_code == 200


def lines(server: ServerProcess, event: str) -> list[str]:
    return [str(line.get("detail")) for line in server.log_lines() if line["event"] == event]


def remove(state: Path, name: str) -> None:
    for path in state.glob(f"{name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def replace(state: Path, name: str) -> None:
    shutil.copy(state / name, state / "copy")
    (state / "copy").rename(state / name)


def remove_wal(state: Path, name: str) -> None:
    (state / f"{name}-wal").unlink()


def remove_directory(state: Path, name: str) -> None:
    state.rename(state.with_name("gone"))


@pytest.mark.parametrize(
    "take_away",
    [
        pytest.param(remove, marks=pytest.mark.slow),
        replace,
        remove_wal,
        pytest.param(remove_directory, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_acknowledged_once_the_event_log_is_not_at_its_place(
    server: ServerProcess, take_away: Callable[[Path, str], None]
) -> None:
    token = server.access_token()
    take_away(server.state_dir, "events.db")
    headers = {"Authorization": f"Bearer {token}"}
    for _ in range(3):
        answer = httpx.post(
            f"{server.url}/api/v1/sse/alerts", json={"event": "e", "data": {}}, headers=headers
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")
    assert not ready(server)


@pytest.mark.slow
@pytest.mark.parametrize("take_away", [remove, replace, remove_wal])
def test_a_log_that_is_not_at_its_place_is_noticed_without_a_publish(
    server: ServerProcess, take_away: Callable[[Path, str], None]
) -> None:
    take_away(server.state_dir, "events.db")
    until(lambda: not ready(server), "the server is not ready")
    until(lambda: len(lines(server, "event_log_unavailable")) == 1, "the log says so")
    assert "events.db" in lines(server, "event_log_unavailable")[0]


@pytest.mark.slow
def test_a_log_that_comes_back_to_its_place_is_used_again(server: ServerProcess) -> None:
    aside = server.state_dir.with_name("aside")
    server.state_dir.rename(aside)
    until(lambda: not ready(server), "the server is not ready")
    aside.rename(server.state_dir)
    until(lambda: ready(server), "the server is ready")
    assert publish(server).json()["id"].endswith("-2")


@pytest.mark.parametrize(
    "take_away",
    [pytest.param(remove, marks=pytest.mark.slow), replace, pytest.param(remove_wal, marks=pytest.mark.slow)],
)
def test_nobody_logs_in_once_the_accounts_are_not_at_their_place(
    server: ServerProcess, take_away: Callable[[Path, str], None]
) -> None:
    take_away(server.state_dir, "accounts.db")
    until(lambda: not ready(server), "the server is not ready")
    assert login(server) == 503
    assert publish(server).status_code == 201


@pytest.mark.slow
def test_a_log_that_is_removed_under_a_server_begins_anew_after_a_restart(server: ServerProcess) -> None:
    before = publish(server).json()["id"]
    remove(server.state_dir, "events.db")
    until(lambda: not ready(server), "the server is not ready")
    assert server.stop() == 0
    server.start()
    after = publish(server).json()["id"]
    assert after.partition("-")[0] != before.partition("-")[0]
    assert login(server) == 200


@pytest.mark.slow
@pytest.mark.parametrize("name", ["events.db", "accounts.db"])
def test_a_file_that_is_cut_under_a_server_stops_it_until_a_backup_is_there(
    server: ServerProcess, name: str
) -> None:
    for _ in range(30):
        assert publish(server, "x" * 4000).status_code == 201
    path = server.state_dir / name
    with closing(
        sqlite3.connect(path, isolation_level=None)
    ) as database:  # as if much of it had been checkpointed
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        database.execute("VACUUM INTO ?", (str(server.state_dir / "backup"),))
    assert publish(server).status_code == 201  # with a look at the file
    assert login(server) == 200
    os.truncate(path, path.stat().st_size // 2)
    until(lambda: not ready(server), "the server is not ready")
    assert (publish(server).status_code if name == "events.db" else login(server)) == 503
    event = "event_log_unavailable" if name == "events.db" else "accounts_unavailable"
    until(lambda: lines(server, event), "the log says so")
    assert f"{name} is damaged" in lines(server, event)[0]
    assert server.stop() == 0
    refused = run_program("serve", environment=server.environment)
    assert refused.returncode == 1
    assert f"{name} is damaged" in refused.stderr
    remove(server.state_dir, name)
    (server.state_dir / "backup").rename(path)
    path.chmod(0o600)
    if name == "events.db":
        server.command("eventlog", "new-epoch")
    server.start()
    assert publish(server).status_code == 201
    assert login(server) == 200


def test_a_file_that_another_program_has_made_smaller_is_not_taken_for_damaged(server: ServerProcess) -> None:
    for _ in range(30):
        assert publish(server, "x" * 4000).status_code == 201
    with closing(sqlite3.connect(server.state_dir / "events.db", isolation_level=None)) as database:
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        before = (server.state_dir / "events.db").stat().st_size
        database.execute("DELETE FROM events WHERE seq > 1 AND seq < 30")
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        assert (server.state_dir / "events.db").stat().st_size < before
    assert publish(server).status_code == 201
    assert ready(server)
    assert lines(server, "event_log_unavailable") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["events.db", "accounts.db"])
@pytest.mark.parametrize("left", [0, 0.5, 0.99])
def test_nothing_is_acknowledged_once_the_write_ahead_log_is_cut(
    server: ServerProcess, name: str, left: float
) -> None:
    for number in range(10):
        assert publish(server, "x" * 4000).status_code == 201
        server.add_user(f"user{number}", PASSWORD)
    wal = server.state_dir / f"{name}-wal"
    size = wal.stat().st_size
    assert publish(server).status_code == 201  # with a look at the log
    assert login(server) == 200  # and one at the accounts
    assert ready(server)
    os.truncate(wal, int(size * left))
    for _ in range(3):
        assert (publish(server).status_code if name == "events.db" else login(server)) == 503
    assert not ready(server)
    event = "event_log_unavailable" if name == "events.db" else "accounts_unavailable"
    until(lambda: lines(server, event), "the log says so")
    assert f"{name} is damaged" in lines(server, event)[0]


def test_a_write_ahead_log_that_another_program_has_emptied_is_not_taken_for_damaged(
    server: ServerProcess,
) -> None:
    for _ in range(10):
        assert publish(server, "x" * 4000).status_code == 201
    time.sleep(1.5)  # with a look at the file
    for name in ("events.db", "accounts.db"):
        with closing(sqlite3.connect(server.state_dir / name, isolation_level=None)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert (server.state_dir / f"{name}-wal").stat().st_size == 0
    assert publish(server).json()["id"].endswith("-12")
    assert login(server) == 200
    assert ready(server)
    assert lines(server, "event_log_unavailable") == lines(server, "accounts_unavailable") == []


@contextmanager
def no_more_space(server: ServerProcess) -> Iterator[None]:
    """Let no file of the server grow beyond the write-ahead logs as they are: EFBIG for ENOSPC, until the end."""
    assert server.process is not None
    for _ in range(10):  # the server's own log is shorter then
        assert publish(server, "x" * 40_000).status_code == 201
        server.add_user(f"user{_}", PASSWORD, subscribe="**")
    size = min((server.state_dir / f"{name}.db-wal").stat().st_size for name in ("events", "accounts"))
    assert server.log_path.stat().st_size < size / 2
    pid = server.process.pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.slow
def test_readiness_stays_down_for_as_long_as_every_write_fails(server: ServerProcess) -> None:
    with no_more_space(server):
        assert publish(server).status_code == 503
        assert not ready(server)
        for _ in range(30):  # for three intervals of the probe
            time.sleep(0.1)
            assert not ready(server)
        assert login(server) == 503
        assert publish(server).status_code == 503
    until(lambda: ready(server), "the server is ready")
    assert publish(server).json()["id"].endswith("-12")
    assert login(server) == 200


@pytest.mark.slow
def test_accounts_that_cannot_be_written_are_tried_again_by_themselves(server: ServerProcess) -> None:
    with no_more_space(server):
        assert login(server) == 503
        assert not ready(server)
    until(lambda: ready(server), "the server is ready")
    assert login(server) == 200
