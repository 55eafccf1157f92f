"""Several workers on one state directory and one port: started, watched, restarted, upgraded and ended by a parent."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import pytest

from sse_app.auth.tokens.keyring import KeyRing
from tests.support.fleet import Client, Fleet, assert_all_received
from tests.support.programs import require
from tests.support.server_process import PROGRAM, ROOT, ServerProcess, run_program
from tests.support.service import Service
from tests.support.supervised import ServerWithWorkers, come_back, is_running, starting_workers
from tests.support.waiting import DEADLINE, until

Start = Callable[..., ServerWithWorkers]

SOON = "sse_app.process.worker_process.GOOD_START"
HANG = "sse_app.process.worker_process.HANG_TIMEOUT"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A function that starts a server with workers."""
    yield from starting_workers(tmp_path / "state")


@contextmanager
def fleet_of(server: ServerWithWorkers) -> Iterator[Fleet]:
    """Clients of a server."""
    fleet = Fleet(server.port)
    try:
        yield fleet
    finally:
        fleet.close()


@pytest.mark.slow
def test_streams_of_one_address_spread_over_the_workers(start: Start) -> None:
    server = start(workers=4)
    with fleet_of(server) as fleet:
        shares = server.by_worker(fleet.open(400, server.path()))
        assert set(shares) == {1, 2, 3, 4}
        assert all(len(clients) > 40 for clients in shares.values()), {k: len(v) for k, v in shares.items()}
    lines = server.logged("listening")
    assert [line["workers"] for line in lines] == [4]
    assert {line.get("worker") for line in server.logged("stream_opened")} <= {1, 2, 3, 4}


@pytest.mark.long
def test_keys_that_are_there_before_the_first_start_are_used(start: Start, tmp_path: Path) -> None:
    keys = KeyRing.load(_private(tmp_path / "brought"))
    _private(tmp_path / "state")
    (tmp_path / "brought").rename(tmp_path / "state/keys")
    server = start(state_dir=tmp_path / "state", workers=2)
    assert [key.id for key in KeyRing.load(tmp_path / "state/keys")] == [key.id for key in keys]
    assert server.stop() == 0
    (tmp_path / "state/accounts.db").unlink()
    (tmp_path / "state/events.db").unlink()
    refused = run_program("serve", environment=server.environment)
    assert refused.returncode == 1
    assert "accounts.db is missing or empty" in refused.stderr
    shutil.rmtree(tmp_path / "state/keys")
    server.start()


def _private(directory: Path) -> Path:
    directory.mkdir(mode=0o700)
    return directory


@pytest.mark.ci
def test_a_killed_worker_ends_its_own_streams_alone_and_their_clients_miss_nothing(start: Start) -> None:
    server = start(workers=3, expected=("worker_died",))
    with fleet_of(server) as fleet:
        clients = fleet.open(60, server.path())
        publisher = server.steady()
        until(lambda: len(publisher.ids) > 10, "events are published")
        cut_off = server.by_worker(clients)[2]
        server.kill_worker(2)
        until(lambda: all(client.ended for client in cut_off), "its clients are cut off")
        again = [(client, come_back(fleet, server, client)) for client in cut_off]
        server.wait_for_log("worker_started", 2, worker=2)
        goal = len(publisher.ids) + 10
        until(lambda: len(publisher.ids) > goal, "more events are published")
        ids = publisher.stop()
        assert_all_received([client for client in clients if client not in cut_off], ids)
        until(lambda: all(ids[-1] in client.ids()[-1:] for _, client in again), "the last event has come")
        for before, after in again:
            assert before.ids() + after.ids() == ids
        assert len(fleet.ended) == len(cut_off)
    (line,) = server.logged("worker_died")
    assert (line["worker"], line["cause"]) == (2, "killed by SIGKILL")


@pytest.mark.long
def test_what_waits_on_a_dead_workers_socket_is_served_by_its_successor(start: Start) -> None:
    server = start(workers=2, expected=("worker_died",))
    path = server.path()
    server.signal(signal.SIGSTOP)  # so that it starts no successor yet
    server.kill_worker(1)
    clients = [Client(server.port, path) for _ in range(40)]
    server.signal(signal.SIGCONT)
    for client in clients:
        client.read_until("event: connected")
        client.socket.close()


@pytest.mark.long
def test_the_others_serve_what_waits_on_the_socket_of_one_that_cannot_start(start: Start) -> None:
    server = start(workers=2, expected=("worker_died",))
    with (server.state_dir / "workers/2/lock").open("r+") as lock, fleet_of(server) as fleet:
        server.kill_worker(2)
        fcntl.flock(lock, fcntl.LOCK_EX)
        clients = fleet.open(40, server.path())
        server.wait_for_log("worker_died", 4, worker=2)
        assert all("runs already" in line for line in server.refusals()), server.refusals()
        delays = [line["restart_in"] for line in server.logged("worker_died", worker=2)]
        assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
        assert len(server.by_worker(clients)[1]) == 40
        assert server.listening_sockets(server.workers()[1]) == 2
        fcntl.flock(lock, fcntl.LOCK_UN)
        server.wait_for_log("worker_started", 2, worker=2)
        until(lambda: server.listening_sockets(server.workers()[1]) == 1, "each has its own socket again")
        shares = server.by_worker(fleet.open(60, server.path()))
        assert shares[1]
        assert shares[2]
        assert not fleet.ended


@pytest.mark.slow
def test_a_worker_that_hangs_is_killed_and_replaced(start: Start) -> None:
    server = start(workers=2, expected=("worker_hung", "worker_died"), constants={HANG: 4})
    with fleet_of(server) as fleet:
        shares = server.by_worker(fleet.open(40, server.path()))
        os.kill(server.workers()[2], signal.SIGSTOP)
        server.wait_for_log("worker_started", 2, worker=2)
        until(lambda: all(client.ended for client in shares[2]), "its streams have ended")
        assert not any(client.ended for client in shares[1])
    (line,) = server.logged("worker_died")
    assert (line["worker"], line["cause"]) == (2, "it hung")
    assert [line["worker"] for line in server.logged("worker_hung")] == [2]


@pytest.mark.slow
def test_a_parent_that_was_stopped_for_a_while_takes_no_worker_for_hung(start: Start) -> None:
    server = start(workers=2, constants={HANG: 4})
    with fleet_of(server) as fleet:
        fleet.open(10, server.path())
        server.signal(signal.SIGSTOP)
        time.sleep(6)
        fleet.open(10, server.path())  # nor do the workers wait for it
        server.signal(signal.SIGCONT)
        time.sleep(1)
        assert not fleet.ended
    assert not server.logged("worker_hung")


@pytest.mark.ci
def test_when_the_parent_is_killed_the_workers_end_and_the_next_one_starts_at_once(start: Start) -> None:
    server = start(workers=3, expected=("parent_died",))
    with fleet_of(server) as fleet:
        clients = fleet.open(30, server.path())
        publisher = server.steady()
        until(lambda: len(publisher.ids) > 5, "events are published")
        before = server.workers()
        server.kill()
        server.start()
        assert not any(is_running(pid) for pid in before.values())
        until(lambda: all(client.ended for client in clients), "their streams have ended")
        for client in clients:
            assert client.ended == "end of file"
            assert b"event: closing" in client.received[-200:]
        again = [(client, come_back(fleet, server, client)) for client in clients]
        goal = len(publisher.ids) + 5
        until(lambda: len(publisher.ids) > goal, "more events are published")
        ids = publisher.stop()
        until(lambda: all(ids[-1] in client.ids()[-1:] for _, client in again), "the last event has come")
        for ended, after in again:
            assert ended.ids() + after.ids() == ids
    assert len(server.logged("parent_died")) == 3


SLOW_TO_START = """
import time
if os.environ.get('SSE_APP_WORKER') == '2':
    time.sleep(3)
"""


@pytest.mark.long
def test_a_worker_that_is_just_being_started_when_the_parent_is_killed_does_not_keep_the_next_one_from_the_port(
    start: Start,
) -> None:
    server = start(workers=2, expected=("worker_died", "parent_died"))
    children = Path(f"/proc/{server.parent}/task/{server.parent}/children")
    server.inject(SLOW_TO_START)
    before = server.kill_worker(2)
    until(
        lambda: str(before) not in (now := children.read_text().split()) and len(now) == 2, "another begins"
    )
    server.kill()
    server.inject("")
    server.start()
    assert set(server.workers()) == {1, 2}


ORPHAN = """
import os, sys
from sse_app.process.spawning import spawn
from sse_app.process.parent_link import PARENT_LINK
listening, link, *command = sys.argv[1:]
passed = [("listening", int(listening)), (PARENT_LINK, int(link))]
status = os.waitpid(spawn(command, {**os.environ, "SSE_APP_WORKER": "1"}, passed), 0)[1]
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.slow
def test_a_worker_whose_parent_has_died_before_it_was_ready_keeps_no_worker_of_the_next_one_out(
    tmp_path: Path,
) -> None:
    server = ServerProcess(state_dir=tmp_path / "state", WORKERS=2)
    link, of_parent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    of_parent.close()
    with link, socket.create_server(("127.0.0.1", 0)) as listening:
        passed = (listening.fileno(), link.fileno())
        done = subprocess.run(
            [sys.executable, "-c", ORPHAN, *map(str, passed), *PROGRAM, "serve"],
            env=server.environment,
            cwd=ROOT,
            pass_fds=passed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "the parent of worker 1 has ended" in done.stderr


@pytest.mark.long
def test_parent_and_workers_killed_at_once_start_again(start: Start) -> None:
    server = start(workers=2, expected=("parent_died",))
    with server.publisher() as http:
        id = http.post("/api/v1/sse/dashboard", json={"event": "e", "data": {}}).json()["id"]
    server.kill_all()
    server.start()
    assert server.command("eventlog", "show", "--state-dir", str(server.state_dir))
    with server.publisher() as http:
        events = http.get("/api/v1/sse/dashboard/history").json()["events"]
    assert [event["id"] for event in events] == [id]


@pytest.mark.long
def test_a_reload_changes_the_number_of_workers(start: Start) -> None:
    server = start(workers=3)
    with fleet_of(server) as fleet:
        clients = fleet.open(60, server.path())
        publisher = server.steady()
        shares = server.by_worker(clients)
        server.configure(2)
        server.signal(signal.SIGHUP)
        server.until_workers(1, 2)
        until(lambda: all(client.ended for client in shares[3]), "the streams of the surplus one end")
        for client in shares[3]:
            assert client.ended == "end of file"
            assert b'event: closing\ndata: {"reason":"shutdown"' in client.received[-200:]
        kept = shares[1] + shares[2]
        new = [come_back(fleet, server, client) for client in shares[3]]
        more = fleet.open(60, server.path())  # some of them by the socket that was the third one's
        server.configure(4)
        server.signal(signal.SIGHUP)
        server.until_workers(1, 2, 3, 4)
        server.wait_for_log("worker_started", 5)
        until(
            lambda: [server.listening_sockets(pid) for pid in server.workers().values()] == [1] * 4,
            "each has its own socket",
        )
        assert all(server.by_worker(fleet.open(80, server.path())).values())
        ids = publisher.stop()
        assert_all_received(kept, ids)
        for before, after in zip(shares[3], new, strict=True):
            until(lambda after=after: ids[-1] in after.ids()[-1:], "the last event has come")  # type: ignore[misc]
            assert before.ids() + after.ids() == ids
        assert not any(client.ended for client in [*kept, *new, *more])
    assert [line["workers"] for line in server.logged("reloaded") if "worker" not in line] == [2, 4]


@pytest.mark.long
def test_of_connections_opened_while_the_number_shrinks_none_is_reset(start: Start) -> None:
    server = start(workers=3)
    path = server.path()
    clients = []
    for number in range(200):
        if number == 50:
            server.configure(1)
            server.signal(signal.SIGHUP)
        clients.append(Client(server.port, path))
        time.sleep(0.005)
    server.until_workers(1)
    for client in clients:
        until(
            lambda client=client: (client.read(), client.ended or b"connected" in client.received)[1],  # type: ignore[misc]
            "it is served",
        )
        assert client.ended in (None, "end of file")
        assert b"HTTP/1.1 200" in client.received
        client.socket.close()


@pytest.mark.slow
def test_a_mistake_in_the_settings_at_a_reload_is_one_line_and_changes_nothing(start: Start) -> None:
    server = start(workers=2, expected=("reload_refused",))
    before = server.workers()
    for count, text in enumerate(("nonsense = 1\n", '[limits]\nstreams = "many"\n', "workers = 3\n"), 1):
        server.configure(3, text)
        server.signal(signal.SIGHUP)
        server.wait_for_log("reload_refused", count)
    server.configure(2)
    server.signal(signal.SIGHUP)
    server.wait_for_log("reloaded", 3)
    assert len(server.logged("reload_refused")) == 3
    assert server.workers() == before


@pytest.mark.long
def test_another_state_directory_or_log_in_the_settings_does_not_split_the_workers(
    start: Start, tmp_path: Path
) -> None:
    server = start(workers=2, expected=("worker_died",))
    del server.environment["SSE_APP_STATE_DIR"]
    server.stop()
    name = f'state_dir = "{server.state_dir}"\n'
    server.configure(2, name)
    server.start()
    server.configure(2, f'state_dir = "{tmp_path / "other"}"\nevent_log = "memory:"\n')
    server.signal(signal.SIGHUP)
    server.wait_for_log("reloaded", 3)
    assert server.logged("reloaded", workers=2)[0]["needs_restart"] == "state_dir,event_log"
    server.kill_worker(1)
    server.wait_for_log("worker_started", 5)
    assert set(server.workers()) == {1, 2}
    assert not (tmp_path / "other").exists()
    for state_dir in (
        f'"{tmp_path / "other"}"',
        '"/dev/null/other"',
        "5",
    ):  # usable, unusable, and no setting
        server.configure(2, f'state_dir = {state_dir}\nevent_log = "memory:"\n')
        replaced = len(server.logged("parent_replaced"))
        server.signal(signal.SIGUSR2)
        server.wait_for_log("parent_replaced", replaced + 1)
        assert set(server.workers()) == {1, 2}
    assert not (tmp_path / "other").exists()
    server.configure(2, f'state_dir = "{tmp_path / "other"}"\n')
    server.signal(signal.SIGHUP)
    until(lambda: server.logged("reloaded", workers=2)[1:], "the parent has read them again")
    assert server.logged("reloaded", workers=2)[1]["needs_restart"] == "state_dir"


LATE = """
if os.environ.get('SSE_APP_SUCCESSOR') and os.environ.get('SSE_APP_WORKER') == '2':
    import time
    open({begun!r}, 'w').close()
    while not os.path.exists({go_on!r}):
        time.sleep(0.01)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_reload_during_an_upgrade_that_fails_reaches_every_worker(start: Start, tmp_path: Path) -> None:
    server = start(workers=2, expected=("upgrade_failed",))
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    server.inject(LATE.format(begun=str(begun), go_on=str(go_on)))
    server.signal(signal.SIGUSR2)
    until(begun.exists, "the second one is being upgraded")
    server.signal(signal.SIGHUP)
    until(lambda: server.logged("reloaded", workers=2), "the parent has read the settings")
    assert not server.logged("reloaded", worker=2)
    go_on.touch()
    until(lambda: server.logged("reloaded", worker=2), "the second one has read them too")


ENDED_BEFORE_EXEC = """
from sse_app.process.supervisor import Supervisor
lend = Supervisor._lend_sockets
def end(self):
    lend(self)
    if self._replace_program and not self._ending:
        os.kill(os.getpid(), 15)
Supervisor._lend_sockets = end
"""


@pytest.mark.slow
def test_a_signal_that_comes_just_before_the_parent_becomes_the_new_program_is_not_lost(start: Start) -> None:
    server = start(workers=2)
    server.stop()
    server.inject(ENDED_BEFORE_EXEC)
    server.start()
    server.signal(signal.SIGUSR2)
    assert server.process is not None
    assert server.process.wait(DEADLINE) == 0
    assert not server.logged("parent_replaced")


@pytest.mark.ci
def test_a_rolling_upgrade_under_publishing_closes_no_stream_and_loses_and_repeats_nothing(
    start: Start,
) -> None:
    server = start(workers=3)
    with fleet_of(server) as fleet:
        clients = fleet.open(120, server.path())
        publisher = server.steady()
        started = Path(f"/proc/{server.parent}/stat").read_text().rpartition(")")[2].split()[19]
        for number in (1, 2):
            before = server.workers()
            printed = server.command("upgrade")
            assert printed.count("worker ") == 3
            server.wait_for_log("parent_replaced", number)
            after = server.workers()
            assert set(after) == {1, 2, 3}
            assert not set(before.values()) & set(after.values())
        goal = len(publisher.ids) + 10
        until(lambda: len(publisher.ids) > goal, "more events are published")
        assert_all_received(clients, publisher.stop())
        assert not fleet.ended
        assert not publisher.retried
        # No worker was lent the socket of one that was just being upgraded.
        assert not any("," in str(line["address"]) for line in server.logged("serving"))
        assert Path(f"/proc/{server.parent}/stat").read_text().rpartition(")")[2].split()[19] == started
        # The parent of after the upgrade watches as the one before did.
        server.expected += ("worker_died",)
        server.kill_worker(2)
        server.wait_for_log("worker_started", 4)
        server.configure(2)
        server.signal(signal.SIGHUP)
        server.until_workers(1, 2)


FAILING = """
if os.environ.get('SSE_APP_SUCCESSOR') and os.environ.get('SSE_APP_WORKER') == '2':
    os.kill(os.getpid(), 9)
"""


@pytest.mark.long
def test_a_worker_whose_upgrade_fails_stops_the_rolling_and_all_serve_on(start: Start) -> None:
    server = start(workers=3, expected=("upgrade_failed",))
    with fleet_of(server) as fleet:
        clients = fleet.open(30, server.path())
        publisher = server.steady()
        before = server.workers()
        server.inject(FAILING)
        server.signal(signal.SIGUSR2)
        until(lambda: len(server.logged("upgrade_failed")) == 2, "the worker and the parent say so")
        after = server.workers()
        assert after[1] != before[1]
        assert (after[2], after[3]) == (before[2], before[3])
        (line,) = (line for line in server.logged("upgrade_failed") if "worker" not in line)
        assert str(line["detail"]).startswith("worker 2 ")
        assert not server.logged("parent_replaced")
        server.inject("")
        server.command("upgrade")
        server.wait_for_log("parent_replaced")
        goal = len(publisher.ids) + 5
        until(lambda: len(publisher.ids) > goal, "more events are published")
        assert_all_received(clients, publisher.stop())
        assert not fleet.ended


@pytest.mark.long
@pytest.mark.parametrize(
    ("workers", "complaint"),
    [
        pytest.param(
            1,
            "process {} still serves: the other process ended before 'ready'",
            id="one process",
            marks=pytest.mark.long,
        ),
        pytest.param(
            2,
            "worker 1 (process {}), worker 2 (process {}) still serve: worker 1 could not be upgraded, "
            "its log lines say why; the rest were not tried",
            id="workers",
        ),
    ],
)
def test_who_asks_for_an_upgrade_that_fails_is_told_why_and_need_not_wait(
    start: Start, workers: int, complaint: str
) -> None:
    server = start(workers=workers, expected=("upgrade_failed",))
    before = list(server.workers().values()) or [server.parent]
    left = server.state_dir / ("workers" if workers > 1 else "") / "upgrade-failed"
    server.inject("if os.environ.get('SSE_APP_SUCCESSOR'): os._exit(1)")
    for _ in range(2):
        done = run_program("upgrade", environment=server.environment)
        assert (done.returncode, done.stderr) == (1, f"sse-app: {complaint.format(*before)}\n")
        assert left.stat().st_mode & 0o777 == 0o600
    if workers > 1:
        server.inject("")
        server.command("upgrade")
        server.wait_for_log("parent_replaced")
        assert not left.exists()


@pytest.mark.long
def test_signals_in_the_middle_of_an_upgrade_do_no_harm(start: Start) -> None:
    server = start(workers=2)
    with fleet_of(server) as fleet:
        clients = fleet.open(30, server.path())
        publisher = server.steady()
        server.signal(signal.SIGUSR2)
        while not server.logged("parent_replaced"):
            for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGUSR1):
                server.signal(number)
            time.sleep(0.02)
        goal = len(publisher.ids) + 5
        until(lambda: len(publisher.ids) > goal, "more events are published")
        assert_all_received(clients, publisher.stop())
        assert not fleet.ended
    assert server.logged("signal_ignored", signal="SIGUSR1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "killed", [pytest.param(False, id="stopped", marks=pytest.mark.long), pytest.param(True, id="killed")]
)
def test_the_state_of_one_process_is_taken_by_several_and_back(tmp_path: Path, killed: bool) -> None:
    alone = ServerProcess(state_dir=tmp_path / "state", expected=("refresh_refused",))
    several = ServerWithWorkers(
        state_dir=tmp_path / "state", expected=("refresh_refused", *(("parent_died",) if killed else ()))
    )
    ids: list[str] = []
    refresh = ended = ""

    def post(path: str, body: Mapping[str, object], access: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {access}"} if access else {}
        return httpx.post(f"{server.url}/api/v1/{path}", json=body, headers=headers, timeout=30)

    for server in (alone, several, alone, several):
        try:
            server.start()
            if not ids:
                server.add_user("ada", "correct horse", subscribe="dashboard", publish="dashboard")
                login = {"username": "ada", "password": "correct horse", "cookie": False}
                refresh, ended = (post("auth/login", login, "").json()["refresh_token"] for _ in range(2))
                other_session = post("auth/refresh", {"refresh_token": ended}, "").json()
                ended = other_session["refresh_token"]
                post("auth/logout", {}, other_session["access_token"]).raise_for_status()
            session = post("auth/refresh", {"refresh_token": refresh}, "").raise_for_status().json()
            refresh, access = session["refresh_token"], session["access_token"]
            assert post("auth/refresh", {"refresh_token": ended}, "").status_code == 401
            body = {"event": "e", "data": {"number": len(ids)}}
            ids.append(post("sse/dashboard", body, access).raise_for_status().json()["id"])
            client = Client(
                server.port,
                server.stream_url("dashboard", session["stream_token"], last_event_id=ids[0]).removeprefix(
                    server.url
                ),
            )
            if ids[1:]:
                client.read_until(ids[-1])
            assert client.ids() == ids[1:]
            client.socket.close()
            other = run_program("serve", environment=(several if server is alone else alone).environment)
            assert other.returncode == 1
            assert f"in use by another server (process {server.process.pid})" in other.stderr  # type: ignore[union-attr]
            if not killed:
                assert server.stop() == 0
        finally:
            if isinstance(server, ServerWithWorkers):
                server.kill_all()
            else:
                server.kill()
        server.check_log()
    assert [int(id.rpartition("-")[2]) for id in ids] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers", "0"], "workers"),
        (["--workers", "-1"], "workers"),
        (["--workers", "many"], "workers"),
        (["--workers", "2.5"], "workers"),
        (["--workers", "100000"], "workers"),
        (["--workers", "2", "--event-log", "memory:"], 'event_log: "memory:" is one process\'s alone'),
        (["--workers", "2", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_be_is_refused_with_one_line(tmp_path: Path, words: list[str], said: str) -> None:
    server = ServerProcess(state_dir=tmp_path / "state")
    done = run_program("serve", *words, environment=server.environment)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_state_that_cannot_be_used_is_refused_with_one_line(tmp_path: Path) -> None:
    server = ServerProcess(state_dir=tmp_path / "state")
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/events.db").write_bytes(b"not a database" * 100)
    (tmp_path / "state/events.db").chmod(0o600)
    done = run_program("serve", "--workers", "3", environment=server.environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "events.db" in done.stderr
    assert not list((tmp_path / "state/workers").glob("notify"))


@pytest.mark.long
def test_a_port_that_another_parents_workers_share_is_not_shared_with_them(
    start: Start, tmp_path: Path
) -> None:
    server = start(workers=2)
    other = server.environment | {"SSE_APP_STATE_DIR": str(tmp_path / "other")}
    done = run_program("serve", environment=other)
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1:{server.port}" in done.stderr


@pytest.mark.long
def test_a_free_port_is_taken_once_and_by_all(start: Start) -> None:
    server = start(workers=2)
    server.stop()
    server.environment["SSE_APP_PORT"] = "0"
    with server.log_path.open("ab") as log:
        server.process = subprocess.Popen(
            [*PROGRAM, "serve", "--workers", "3"], cwd=ROOT, env=server.environment, stderr=log
        )
    server.wait_for_log("listening", 2)
    address = str(server.logged("listening")[-1]["address"])
    assert httpx.get(f"{address}/readyz").status_code == 200
    server.port = int(address.rpartition(":")[2])
    assert [server.listening_sockets(pid) for pid in server.workers().values()] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        pytest.param(signal.SIGQUIT, marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_all_and_streams_are_told(start: Start, number: signal.Signals) -> None:
    server = start(workers=2)
    pids = server.workers().values()
    with fleet_of(server) as fleet:
        clients = fleet.open(20, server.path())
        server.signal(number)
        assert server.process is not None
        assert server.process.wait(60) == 0
        until(lambda: all(client.ended for client in clients), "the streams have ended")
        assert all(b"event: closing" in client.received for client in clients)
    assert not any(map(is_running, pids))


@pytest.mark.long
def test_a_second_signal_ends_all_at_once(start: Start) -> None:
    server = start(workers=2, STREAM__DRAIN_TIME=3600)
    pids = server.workers().values()
    with fleet_of(server) as fleet:
        fleet.open(20, server.path())
        server.signal(signal.SIGTERM)
        server.wait_for_log("stopping", 3)
        server.signal(signal.SIGTERM)
        assert server.process is not None
        assert server.process.wait(60) == -signal.SIGTERM
    until(lambda: not any(map(is_running, pids)), "the workers have gone")
    server.start()


@pytest.mark.long
def test_a_signal_to_all_processes_of_a_group_is_one(start: Start) -> None:
    """As systemd sends it with KillMode=control-group."""
    server = start(workers=3)
    with fleet_of(server) as fleet:
        clients = fleet.open(30, server.path())
        for pid in (server.parent, *server.workers().values()):
            os.kill(pid, signal.SIGTERM)
        assert server.process is not None
        assert server.process.wait(60) == 0
        until(lambda: all(client.ended for client in clients), "the streams have ended")
        assert all(b"event: closing" in client.received for client in clients)


@pytest.mark.long
def test_a_worker_that_does_not_end_in_time_is_killed(start: Start) -> None:
    server = start(
        workers=2, expected=("worker_killed",), constants={"sse_app.process.worker_process.ENDING_GRACE": 2}
    )
    pid = server.workers()[2]
    os.kill(pid, signal.SIGSTOP)
    assert server.stop() == 1
    assert not is_running(pid)
    server.start()  # the fixture stops it


@pytest.mark.slow
def test_a_worker_that_does_not_serve_yet_ends_at_once(start: Start) -> None:
    server = start(workers=2)
    server.inject("if os.environ.get('SSE_APP_WORKER') == '3':\n    import time\n    time.sleep(300)\n")
    server.configure(3)
    server.signal(signal.SIGHUP)
    until(lambda: len(_children(server.parent)) == 3, "the third one has been started")
    slow = max(_children(server.parent))
    assert server.stop() == 0
    assert not is_running(slow)
    assert not server.logged("worker_killed")
    assert server.logged("worker_ended", worker=3)[0]["cause"] == "killed by SIGTERM"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_ends_all_with_tidy_output(tmp_path: Path) -> None:
    server = ServerWithWorkers(state_dir=tmp_path / "state", workers=2)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "serve"],
        cwd=ROOT,
        env=server.environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, 0x540E, 0),  # TIOCSCTTY: the terminal is its own
    )
    os.close(terminal)
    shown = bytearray()
    os.set_blocking(controller, False)

    def read() -> bytes:
        with suppress(OSError):  # nothing there, or no process has it open any more
            shown.extend(os.read(controller, 65536))
        return bytes(shown)

    try:
        until(lambda: b"listening" in read(), "it serves")
        pids = server.workers().values()
        os.write(controller, b"\x03")
        until(lambda: (read(), process.poll() is not None)[1], "it has ended")
        read()
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    assert process.returncode == 0
    assert not any(map(is_running, pids))
    text = shown.decode()
    assert "Traceback" not in text
    assert "warning" not in text
    assert "error" not in text
    assert text.count("  listening  ") == 1
    assert text.rstrip().endswith("stopped")


@pytest.mark.long
@pytest.mark.parametrize("restarts", [4, pytest.param(20, marks=pytest.mark.long)])
def test_many_restarts_leave_no_zombie_and_no_descriptor(start: Start, restarts: int) -> None:
    server = start(workers=2, expected=("worker_died",), constants={SOON: 0})

    def descriptors() -> int:
        return len(list(Path(f"/proc/{server.parent}/fd").iterdir()))

    def children() -> list[str]:
        return Path(f"/proc/{server.parent}/task/{server.parent}/children").read_text().split()

    before = descriptors()
    for count in range(restarts):
        server.kill_worker(1 + count % 2)
        server.wait_for_log("worker_started", 3 + count)
    assert descriptors() == before
    assert sorted(map(int, children())) == sorted(server.workers().values())
    server.command("upgrade")
    server.wait_for_log("parent_replaced")
    until(lambda: descriptors() == before, "the program has the same descriptors after an upgrade")
    until(lambda: sorted(map(int, children())) == sorted(server.workers().values()), "the others have gone")


def test_one_worker_is_no_parent(start: Start, tmp_path: Path) -> None:
    server = ServerProcess(state_dir=tmp_path / "state", WORKERS=1)
    try:
        server.start()
        assert not (tmp_path / "state/workers").exists()
    finally:
        assert server.stop() == 0
    (line,) = (line for line in server.log_lines() if line["event"] == "listening")
    assert "workers" not in line


@pytest.mark.long
def test_check_config_says_how_many_workers_and_who_they_are(start: Start) -> None:
    server = start(workers=2)
    found = server.workers()
    text = server.command("check-config")
    assert "# workers: 2, and their parent" in text
    assert (
        f"is in use by process {server.parent}, the parent of workers, worker 1 (process {found[1]}), "
        f"worker 2 (process {found[2]})"
    ) in text
    assert f"127.0.0.1:{server.port} is in use by process {server.parent}" in text
    assert "workers: one process serves alone" in server.command("check-config", "--workers", "1")
    bad = run_program("check-config", "--event-log", "memory:", environment=server.environment)
    assert bad.returncode == 1
    assert "memory:" in bad.stderr


@pytest.mark.long
def test_as_process_one_of_a_container_it_reaps_and_ends(tmp_path: Path) -> None:
    require("unshare")
    server = ServerWithWorkers(state_dir=tmp_path / "state", workers=2)
    with server.log_path.open("ab") as log:
        outside = subprocess.Popen(
            ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *PROGRAM, "serve"],
            cwd=ROOT,
            env=server.environment,
            stderr=log,
        )
    try:
        server.wait_for_log("listening")
        assert server.logged("listening")[0]["pid"] == 1
        (inside,) = Path(f"/proc/{outside.pid}/task/{outside.pid}/children").read_text().split()
        os.kill(int(inside), signal.SIGUSR2)
        server.wait_for_log("parent_replaced")
        assert len(server.logged("worker_succeeded")) == 2
        assert httpx.get(f"{server.url}/readyz").status_code == 200
        os.kill(int(inside), signal.SIGTERM)
        assert outside.wait(60) == 0
    finally:
        outside.kill()
        outside.wait()
    server.check_log()


def _listens_with(service: Service, workers: int) -> bool:
    return bool(service.logged("listening")[-1].get("workers", 1) == workers)


@pytest.mark.long
def test_a_restart_of_a_unit_leads_from_one_process_to_several_and_back(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(STREAM__DRAIN_TIME=0)
    clients = service.fleet.open(20, service.stream_path())
    ids = service.publish(3)
    for workers in (3, 1, 2):
        service.configure("workers", f"Environment=SSE_APP_WORKERS={workers}")
        service.restart()
        until(lambda: all(client.ended for client in service.fleet.clients), "the streams have ended")
        assert all(b"event: closing" in client.received for client in clients)
        until(partial(_listens_with, service, workers), "the log says how many workers there are")
        path = service.stream_path()
        clients = service.fleet.open(20, f"{path}&last_event_id={ids[0]}")
        assert_all_received(clients, ids[1:])
        assert service.manager.show("NRestarts") == "0"


@pytest.mark.long
def test_a_unit_of_systemd_may_have_workers_of_its_own(start_service: Callable[..., Service]) -> None:
    service = start_service(WORKERS=3)
    clients = service.fleet.open(60, service.stream_path())
    main = service.manager.main_pid
    until(lambda: service.manager.show("StatusText").startswith("3 of 3 workers, 60"), "it says so")
    assert service.manager.show("NFileDescriptorStore") == "0"
    publisher = service.publisher()
    service.settle(publisher)
    service.manager.systemctl("reload", "sse-app.service")
    service.command("upgrade")
    until(lambda: len(service.logged("parent_replaced")) == 1, "the parent has the new program")
    service.settle(publisher)
    assert service.manager.main_pid == main
    assert service.manager.show("NRestarts") == "0"
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    service.manager.systemctl("stop", "sse-app.socket", "sse-app.service")
    assert service.manager.show("Result") == "success"
    until(lambda: len(service.fleet.ended) == 60, "the streams have ended")
    assert all(b"event: closing" in client.received for client in clients)
