"""The parts of a parent of workers: its sockets, what workers report to it, and what it knows of each of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sse_app import Settings
from sse_app.core.errors import SettingsError, StateError
from sse_app.process import parent_link
from sse_app.process.children import cause_of
from sse_app.process.listeners import Listeners
from sse_app.process.notifications import Notifications
from sse_app.process.parent_link import ParentLink, ask_to_end, same
from sse_app.process.systemd import Systemd
from sse_app.process.worker_process import FIRST_DELAY, GOOD_START, LONGEST_DELAY, WorkerProcess
from sse_app.settings.workers import require_shareable
from sse_app.storage.state_dir import StateDirectory
from sse_app.storage.unix_sockets import LONGEST_ADDRESS
from tests.support.waiting import until, until_async


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    """The sockets of two workers on a free port."""
    listeners = Listeners.bound(Settings(port=0), 2)
    yield listeners
    listeners.close()


def test_each_worker_has_a_socket_of_its_own_on_the_same_port(listeners: Listeners) -> None:
    (first,), (second,) = listeners.of(1), listeners.of(2)
    assert first is not second
    assert first.getsockname() == second.getsockname()
    listeners.grow(4)
    assert len({sock.fileno() for worker in range(1, 5) for sock in listeners.of(worker)}) == 4
    assert len({sock.getsockname() for sock in listeners.all()}) == 1


def test_of_both_families_each_worker_has_both_on_one_port() -> None:
    listeners = Listeners.bound(Settings(host="::", port=0), 3)
    try:
        for worker in (1, 2, 3):
            assert len({sock.getsockname()[1] for sock in listeners.of(worker)}) == 1
            assert len(listeners.of(worker)) == len(listeners.addresses)
    finally:
        listeners.close()


def _passed(sockets: list[socket.socket]) -> list[tuple[str, int]]:
    return [("any name", sock.detach()) for sock in sockets]


def test_one_inherited_socket_is_shared_and_several_of_an_address_are_one_for_each(tmp_path: Path) -> None:
    shared = socket.socket(socket.AF_UNIX)
    shared.bind(str(tmp_path / "socket"))
    several = [socket.socket() for _ in range(2)]
    for sock in several:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(several[0].getsockname() if sock is not several[0] else ("127.0.0.1", 0))
    listeners = Listeners.inherited(_passed([shared, *several]))
    try:
        own = {worker: {sock.fileno() for sock in listeners.of(worker)} for worker in (1, 2, 3)}
        assert len(own[1] & own[2]) == 1
        assert len(own[1] ^ own[2]) == 2
        assert own[3] == own[1]
        listeners.grow(5)
        assert len(listeners.all()) == 3
    finally:
        listeners.close()


def test_an_address_that_another_server_shares_is_refused(listeners: Listeners) -> None:
    port = listeners.all()[0].getsockname()[1]
    with pytest.raises(StateError, match="cannot listen on"):
        Listeners.bound(Settings(port=port), 2)


def test_reports_come_with_the_process_that_the_kernel_names(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / ("long" * 40)):
        directory.mkdir(exist_ok=True)
        notifications = Notifications.bound(directory)
        try:
            assert len(notifications.address) <= LONGEST_ADDRESS
            program = "from sse_app.process.systemd import Systemd; Systemd().notify('READY=1', 'STATUS=x')"
            child = subprocess.Popen(
                [sys.executable, "-c", program], env={**os.environ, "NOTIFY_SOCKET": notifications.address}
            )
            assert child.wait(60) == 0
            assert list(notifications.read()) == [(child.pid, "READY=1\nSTATUS=x")]
            assert list(notifications.read()) == []
        finally:
            notifications.close()
        assert list(directory.glob("notify")) == []


def test_a_parent_that_reads_no_reports_holds_no_worker_up(tmp_path: Path) -> None:
    notifications = Notifications.bound(tmp_path)
    systemd = Systemd({"NOTIFY_SOCKET": notifications.address})
    try:
        for _ in range(2000):
            systemd.notify("STATUS=many", wait=False)
        assert 0 < len(list(notifications.read())) < 2000
    finally:
        systemd.leave()
        notifications.close()


def test_reports_that_come_faster_than_they_are_read_do_not_keep_the_parent_reading(tmp_path: Path) -> None:
    notifications = Notifications.bound(tmp_path)
    systemd = Systemd({"NOTIFY_SOCKET": notifications.address})
    try:
        systemd.notify("STATUS=first")
        for count, _ in enumerate(notifications.read()):
            systemd.notify("STATUS=one more")
            assert count < 10_000
        assert next(notifications.read())[1] == "STATUS=one more"  # what is left comes the next time
    finally:
        systemd.leave()
        notifications.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_reports_of_other_users_are_passed_over(tmp_path: Path) -> None:
    notifications = Notifications.bound(tmp_path)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.connect(notifications.address)
                    os.setuid(65534)
                    sock.send(b"READY=1")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert list(notifications.read()) == []
    finally:
        notifications.close()


@pytest.mark.gen_test
async def test_a_worker_is_lent_sockets_and_told_to_leave_them_and_to_end(listeners: Listeners) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = ParentLink(theirs.detach())
    lent: list[socket.socket] = []
    happened: list[str] = []

    def leave(sockets: list[socket.socket]) -> None:
        for sock in sockets:
            (found,) = (one for one in lent if same(one, sock))
            lent.remove(found)
            found.close()

    def watch() -> None:
        link.watch(lent.extend, leave, lambda: happened.append("end"), lambda: happened.append("died"))

    watch()
    (first,) = listeners.of(1)
    assert parent_link.send(ours, parent_link.LISTEN, listeners.all())
    await until_async(lambda: len(lent) == 2, "both are lent")
    assert all(not sock.getblocking() and not sock.get_inheritable() for sock in lent)
    link.stop_watching()
    assert parent_link.send(ours, parent_link.LEAVE, [first])
    watch()  # what came meanwhile is not lost
    await until_async(lambda: len(lent) == 1, "one is left")
    assert not same(lent[0], first)
    ask_to_end(ours)
    await until_async(lambda: happened, "it has happened")
    assert happened == ["end"]
    lent[0].close()
    link.close()


@pytest.mark.gen_test
async def test_a_worker_learns_that_its_parent_has_died() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link = ParentLink(theirs.detach())
    happened: list[str] = []
    link.watch(
        lambda sockets: None,
        lambda sockets: None,
        lambda: happened.append("end"),
        lambda: happened.append("died"),
    )
    ours.close()
    await until_async(lambda: happened, "it has happened")
    assert happened == ["died"]
    link.close()


def test_a_worker_that_hangs_holds_its_parent_up_for_no_moment(listeners: Listeners) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        results = [parent_link.send(ours, parent_link.LISTEN, listeners.all()) for _ in range(5000)]
        assert results[0]
        assert not results[-1]


def test_what_dies_soon_is_started_later_each_time_and_what_has_served_at_once() -> None:
    worker = WorkerProcess(1)
    delays = []
    for _ in range(9):
        worker.pid = 1
        delays.append(worker.has_died(100.0))
    assert delays[:5] == [FIRST_DELAY, 0.2, 0.4, 0.8, 1.6]
    assert delays[-1] == LONGEST_DELAY
    worker.serves(200.0)
    assert worker.has_died(200.0 + GOOD_START) == FIRST_DELAY
    assert worker.has_died(300.0) == FIRST_DELAY


def test_what_is_to_be_killed_anyway_is_not_looked_at_again_for_hanging() -> None:
    """Its parent would do nothing about it, and be awake all the time."""
    worker = WorkerProcess(1)
    assert worker.hangs_at is None
    worker.pid = os.getpid()
    worker.serves(100.0)
    assert worker.hangs_at is not None
    worker.kill_at = 200.0
    assert worker.hangs_at is None
    worker.kill_at, worker.killed_for = None, "it hung"
    assert worker.hangs_at is None


def test_a_worker_that_has_handed_over_is_away_only_from_then_on() -> None:
    """Its successor serves in a moment: the others need not be lent its sockets meanwhile."""
    worker = WorkerProcess(1)
    worker.pid = 1
    worker.serves(100.0)
    worker.succeeded_by(2, 200.0)
    assert (worker.pid, worker.ready, worker.down_since) == (2, False, 200.0)
    worker.serves(200.1)
    assert worker.down_since is None
    assert worker.has_died(200.0 + GOOD_START) == FIRST_DELAY  # it has not begun anew


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (0, "exit status 0"),
        (256, "exit status 1"),
        (signal.SIGKILL, "killed by SIGKILL"),
        (40, "killed by signal 40"),
    ],
)
def test_the_cause_of_a_death_is_named(status: int, cause: str) -> None:
    assert cause_of(status) == cause


def test_a_program_is_started_with_descriptors_in_the_order_of_their_names(tmp_path: Path) -> None:
    """Also where their numbers here are those that other ones get there."""
    files = []
    for name in "ab":
        (tmp_path / name).write_text(name)
        files.append((tmp_path / name).open())
    numbers = sorted(file.fileno() for file in files)
    # Each of them where another one is to come: 4 at the first place, 3 at the second.
    script = tmp_path / "show.py"
    script.write_text(
        "import os\n"
        "from sse_app.process.systemd import inherited_descriptors\n"
        "found = [(name, os.read(number, 9).decode()) for name, number in inherited_descriptors()]\n"
        f"open({str(tmp_path / 'found')!r}, 'w').write(repr((found, os.getpgid(0) == os.getpid())) + '.')\n"
    )
    swapped = f"""
import os, sys
sys.path.insert(0, {os.getcwd()!r})
from sse_app.process.spawning import spawn
os.dup2({numbers[0]}, 9); os.dup2({numbers[1]}, 8)
os.dup2(8, 3); os.dup2(9, 4)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(spawn(
    [sys.executable, {str(script)!r}], {{**os.environ, "PYTHONPATH": {os.getcwd()!r}}}, [("first", 4), ("second", 3)]
), 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", swapped], pass_fds=numbers, timeout=60, check=False)
    for file in files:
        file.close()
    assert done.returncode == 0
    until(lambda: (tmp_path / "found").read_text().endswith("."), "it is written")
    assert (tmp_path / "found").read_text() == "([('first', 'a'), ('second', 'b')], True)."


def test_a_log_in_memory_is_one_process_alone() -> None:
    require_shareable(Settings(event_log="memory:", workers=1))
    with pytest.raises(SettingsError, match="event_log"):
        require_shareable(Settings(event_log="memory:", workers=2))


def test_a_lock_that_a_process_only_looks_at_is_had_nevertheless(tmp_path: Path) -> None:
    first = StateDirectory(tmp_path / "state", worker=1)
    looking = f"""
import sys
sys.path.insert(0, {os.getcwd()!r})
from pathlib import Path
from sse_app.storage.state_dir import StateDirectory
state = StateDirectory(Path({str(tmp_path / "state")!r}))
print(flush=True)
while True:
    state.running_workers(), state.holder()
"""
    first.lock()
    first.unlock()
    looker = subprocess.Popen([sys.executable, "-c", looking], stdout=subprocess.PIPE)
    try:
        assert looker.stdout is not None
        looker.stdout.readline()
        for _ in range(100):
            first.lock()
            first.unlock()
    finally:
        looker.kill()
        looker.communicate()
