"""What the server and the commands do at their start with files that are not theirs, damaged, cut short or missing."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from tests.support.preloaded import start
from tests.support.server_process import ServerProcess, clean_environment, run_program, running
from tests.support.waiting import until

Start = Callable[..., ServerProcess]
PASSWORD = "correct horse battery"
COMMANDS = {
    "events.db": [["serve"], ["eventlog", "show"], ["eventlog", "new-epoch"]],
    "accounts.db": [
        ["serve"],
        ["user", "list"],
        ["user", "add", "bob", "--password-stdin"],
        ["user", "add", "bob", "--password-stdin", "--init"],
        ["revoke", "--all"],
        ["audit"],
        ["keys", "rotate"],
    ],
}


def refused(state: Path, *arguments: str) -> str:
    """Return the one line in which a command that must not succeed says why."""
    environment = clean_environment(SSE_APP_STATE_DIR=str(state), SSE_APP_PORT="0")
    done = run_program(*arguments, environment=environment, input=f"{PASSWORD}\n")
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("sse-app: ")
    return done.stderr.strip()


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory in which an account has been made, and events been published; to be copied."""
    state = tmp_path_factory.mktemp("used") / "state"
    with running(state_dir=state) as server:
        server.add_user("ann", PASSWORD, subscribe="**")
        with server.publisher() as client:
            for number in range(40):
                data = {"number": number, "text": "x" * 400}
                client.post("/api/v1/sse/alerts", json={"event": "e", "data": data}).raise_for_status()
        login = {"username": "ann", "password": PASSWORD, "cookie": False}
        httpx.post(f"{server.url}/api/v1/auth/login", json=login).raise_for_status()
    return state


@pytest.fixture
def state(used: Path, tmp_path: Path) -> Path:
    """A copy of the used state directory."""
    subprocess.run(["cp", "-a", str(used), str(tmp_path / "state")], check=True)
    return tmp_path / "state"


def contents(directory: Path) -> dict[str, tuple[bytes, int]]:
    """Return what stands in each file of a directory, the server's own lock and keys aside, and when it was changed."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in directory.iterdir()
        if path.is_file() and path.name != "lock"
    }


def plain(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.executescript("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine');")
    return database


def marked(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.execute("PRAGMA application_id = 77")
    return database


def in_wal(path: Path) -> sqlite3.Connection:
    """A database whose tables its own program, which still runs, has so far written only to the write-ahead log."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine');")
    return database


def locked(path: Path) -> sqlite3.Connection:
    database = plain(path)
    database.execute("BEGIN EXCLUSIVE")
    return database


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "make",
    [
        plain,
        pytest.param(marked, marks=pytest.mark.slow),
        in_wal,
        pytest.param(locked, marks=pytest.mark.slow),
    ],
)
def test_a_database_of_another_application_is_refused_and_left_as_it_was(
    tmp_path: Path, name: str, make: Callable[[Path], sqlite3.Connection]
) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with closing(make(state / name)):
        for path in state.iterdir():
            path.chmod(0o600)
        for command in COMMANDS[name][:3]:
            before = contents(state)
            line = refused(state, *command)
            assert "is not a database of this kind" in line
            assert name in line
            after = contents(state)
            assert {file: after[file] for file in before} == before
            assert {file for file in after if file.startswith(name)} == {
                file for file in before if file.startswith(name)
            }


def test_a_database_in_wal_mode_that_nobody_has_open_gets_no_files_beside_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    in_wal(state / "accounts.db").close()
    os.chmod(state / "accounts.db", 0o600)
    before = contents(state)
    assert "is not a database of this kind" in refused(state, "serve")
    assert contents(state) == before


def test_the_two_databases_are_not_taken_for_each_other(state: Path) -> None:
    (state / "events.db").rename(state / "other.db")
    (state / "accounts.db").rename(state / "events.db")
    (state / "other.db").rename(state / "accounts.db")
    assert "is not a database of this kind" in refused(state, "serve")
    assert "is not a database of this kind" in refused(state, "eventlog", "show")


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "what",
    [
        "text",
        pytest.param("directory", marks=pytest.mark.slow),
        "pipe",
        pytest.param("dangling", marks=pytest.mark.slow),
    ],
)
def test_what_is_no_database_is_refused_in_one_line(state: Path, name: str, what: str) -> None:
    path = state / name
    path.unlink()
    if what == "text":
        path.write_text("no database, but much longer than the header of one is: " * 100)
        path.chmod(0o600)
    elif what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.symlink_to(state / "nowhere/x.db")
    for command in COMMANDS[name][:3]:
        assert name in refused(state, *command)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_a_flipped_page_is_refused_in_one_line_or_found_when_it_is_read(
    used: Path, tmp_path: Path, name: str
) -> None:
    whole = (used / name).read_bytes()
    refusals = 0
    for page in range(0, len(whole), 4096):
        state = tmp_path / f"state{page}"
        subprocess.run(["cp", "-a", str(used), str(state)], check=True)
        flipped = bytes(byte ^ 0xFF for byte in whole[page : page + 4096])
        (state / name).write_bytes(whole[:page] + flipped + whole[page + 4096 :])
        server = ServerProcess(state_dir=state, expected=("unavailable", "login_refused"))
        if not serves(server):
            text = server.log_path.read_text()
            assert "Traceback" not in text
            (line,) = [line for line in text.splitlines() if not line.startswith("{")]
            assert re.search(rf"{name}\b.* is damaged", line)
            refusals += 1
            continue
        try:
            asked = [use(server, name) for _ in range(3)]
            assert 500 not in [status for statuses in asked for status in statuses]
            if 503 in asked[0]:
                assert httpx.get(f"{server.url}/readyz").status_code == 503
                assert asked[1:] == [[503] * len(asked[0])] * 2
        finally:
            server.stop()
        server.check_log()
    assert refusals


def serves(server: ServerProcess) -> bool:
    """Start a server, and return whether it answers; else it has ended."""

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{server.url}/healthz").status_code == 200
        return False

    with server.log_path.open("ab") as log:
        process = server.process = start(["serve"], environment=server.environment, stderr=log)
    until(lambda: process.poll() is not None or answers(), "the server answers or has ended")
    return process.poll() is None


def use(server: ServerProcess, name: str) -> list[int]:
    if name == "accounts.db":
        login = {"username": "ann", "password": PASSWORD, "cookie": False}
        return [httpx.post(f"{server.url}/api/v1/auth/login", json=login).status_code]
    with server.publisher() as client:
        return [
            client.get("/api/v1/sse/alerts/history", params={"limit": 1000}).status_code,
            client.post("/api/v1/sse/alerts", json={"event": "e", "data": {}}).status_code,
        ]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_schema_that_is_damaged_into_what_is_no_text_is_refused_in_one_line(state: Path, name: str) -> None:
    whole = (state / name).read_bytes()
    assert b"CREATE TABLE" in whole
    (state / name).write_bytes(whole.replace(b"CREATE TABLE", b"CR\x96ATE TABLE", 1))
    for command in COMMANDS[name][:3]:
        line = refused(state, *command)
        assert f"{name} is damaged" in line
        assert "docs/operations.md" in line


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_database_that_is_cut_to_half_is_refused(state: Path, name: str, killed: bool) -> None:
    if killed:  # a write-ahead log lies beside it then
        server = ServerProcess(state_dir=state)
        server.start()
        with server.publisher() as client:
            client.post("/api/v1/sse/alerts", json={"event": "e", "data": {}}).raise_for_status()
        server.add_user("carol", PASSWORD)
        server.kill()
        assert (state / f"{name}-wal").stat().st_size
    os.truncate(state / name, (state / name).stat().st_size // 2)
    for command in COMMANDS[name][:3]:
        line = refused(state, *command)
        assert f"{name} is damaged" in line
        assert "docs/operations.md" in line


@pytest.mark.slow
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_accounts_that_are_lost_are_not_made_anew_in_silence(state: Path, how: str) -> None:
    def lose() -> None:
        for path in state.glob("accounts.db*"):
            path.unlink()
        if how == "empty":
            (state / "accounts.db").touch(0o600)

    lose()
    for command in [*COMMANDS["accounts.db"], ["check-config"]]:
        if "--init" not in command:
            line = refused(state, *command)
            assert f"{state}/accounts.db is missing or empty" in line
            assert "sse-app user add NAME --init" in line
    assert not (state / "accounts.db").exists() or (state / "accounts.db").stat().st_size == 0
    (state / "events.db").unlink()
    assert "is missing or empty, but" in refused(state, "serve")  # for the keys are there
    server = ServerProcess(state_dir=state)
    before = server.access_token()
    server.command(
        "user", "add", "bob", "--password-stdin", "--init", "--subscribe", "alerts", input=f"{PASSWORD}\n"
    )
    with running(state_dir=state) as server:
        login = {"username": "bob", "password": PASSWORD, "cookie": False}
        assert httpx.post(f"{server.url}/api/v1/auth/login", json=login).status_code == 200
        me = httpx.get(f"{server.url}/api/v1/auth/me", headers={"Authorization": f"Bearer {before}"})
        assert me.status_code == 401  # it may have been revoked


@pytest.mark.slow
@pytest.mark.parametrize("files", range(1, 9))
def test_a_first_start_that_is_cut_short_anywhere_does_not_look_like_lost_accounts(
    tmp_path: Path, files: int
) -> None:
    state = tmp_path / "state"
    server = ServerProcess(state_dir=state)
    with server.log_path.open("ab") as log:
        server.process = start(["serve"], environment=server.environment, stderr=log)
    until(lambda: state.exists() and len(os.listdir(state)) >= files, "so many files are there", pause=0)
    server.kill()
    with running(state_dir=state):
        pass


def test_an_event_log_that_is_gone_begins_anew_under_another_epoch(state: Path) -> None:
    with running(state_dir=state) as server, server.publisher() as client:
        id = client.post("/api/v1/sse/alerts", json={"event": "e", "data": {}}).json()["id"]
    (state / "events.db").unlink()
    with running(state_dir=state) as server, server.publisher() as client:
        history = client.get("/api/v1/sse/alerts/history", params={"after": id}).json()
        assert history == {"events": [], "complete": False}
        new = client.post("/api/v1/sse/alerts", json={"event": "e", "data": {}}).json()["id"]
    assert new.partition("-")[0] != id.partition("-")[0]


def test_a_write_ahead_log_whose_database_is_missing_is_not_deleted(state: Path) -> None:
    server = ServerProcess(state_dir=state)
    server.start()
    with server.publisher() as client:
        client.post("/api/v1/sse/alerts", json={"event": "e", "data": {}}).raise_for_status()
    server.kill()
    (state / "events.db").rename(state / "aside.db")
    before = (state / "events.db-wal").read_bytes()
    assert "events.db-wal is there" in refused(state, "serve")
    assert (state / "events.db-wal").read_bytes() == before
    (state / "aside.db").rename(state / "events.db")
    with running(state_dir=state) as server, server.publisher() as client:
        assert len(client.get("/api/v1/sse/alerts/history").json()["events"]) == 41
