"""A warm successor takes over, or the process before it serves on as if nothing had been."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client, assert_all_received
from tests.support.installation import install
from tests.support.service import Service, managed
from tests.support.waiting import until

STREAMS = 1000


@pytest.mark.slow
def test_a_warm_successor_takes_over_without_a_closed_stream(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher(pause=0.1)
    for _ in range(3):
        service.upgrade()
        service.settle(publisher)
    service.restart()  # the store has come along
    ids = publisher.stop()
    assert not service.fleet.ended
    assert not publisher.retried
    assert_all_received(clients, ids)
    assert service.manager.show("ActiveState") == "active"
    assert service.manager.show("NRestarts") == "0"


FAILING = """
where = {file!r}
point = open(where).read() if os.environ.get('SSE_APP_SUCCESSOR') else ''
def die(*arguments):
    os.kill(os.getpid(), 9)
def at_adoption(name, arguments):
    if name == 'sse_app.adopted':
        die()
if point == 'started':
    die()
elif point == 'adopted':
    sys.addaudithook(at_adoption)
elif point:
    from sse_app.handover.protocol import ControlChannel
    send = ControlChannel.send
    def send_and_die(self, word):
        if word == point == 'serving':
            self._socket.shutdown(0)  # it hears nothing more: so much is sure when it is told to go
        send(self, word)
        if word == point:
            die()
    ControlChannel.send = send_and_die
"""


class Failure:
    """Has successors die at a given place."""

    def __init__(self, service: Service, file: Path) -> None:
        self._service = service
        self._file = file
        file.write_text("")
        service.inject(FAILING.format(file=str(file)))
        service.restart()

    def upgrade(self, point: str) -> None:
        """Try an upgrade whose successor dies there."""
        self._file.write_text(point)
        self._service.expected = {"upgrade_failed"}
        before = len(self._service.logged("upgrade_failed"))
        self._service.signal("USR2")
        self._service.wait_for_log("upgrade_failed", before + 1)
        self._file.write_text("")


@pytest.mark.slow
def test_a_successor_that_dies_leaves_the_old_process_serving(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(SOCKET__USER_TIMEOUT=600)  # one of the clients does not read for a while
    failure = Failure(service, tmp_path / "point")
    slow = Client(service.port, service.stream_path(client_id="slow"), receive_buffer=4096)
    first = service.publish(60, size=10_000)  # so that there are unsent bytes, of which none may go out twice
    clients = service.fleet.open(50, service.stream_path())
    publisher = service.publisher()
    before = service.manager.main_pid
    for point in ("started", "ready", "built", "adopted", "serving"):
        failure.upgrade(point)
        service.settle(publisher, 5)
        assert service.manager.main_pid == before, point
        assert httpx.get(f"{service.url}/readyz").status_code == 200
    service.fleet.open(1, service.stream_path())  # it accepts connections again
    service.upgrade()
    service.settle(publisher)
    service.restart()
    service.settle(publisher)
    ids = publisher.stop()
    assert_all_received(clients, ids)
    slow.read_until(ids[-1])
    assert slow.ids() == first + ids
    assert not service.fleet.ended
    slow.socket.close()


HANGING = """
if os.environ.get('SSE_APP_SUCCESSOR') and os.path.exists({flag!r}):
    import time
    def hang(name, arguments):
        if name == 'sse_app.adopted':
            os.remove({flag!r})
            time.sleep({seconds})
    sys.addaudithook(hang)
"""


@pytest.mark.long
def test_a_restart_while_the_successor_takes_over_comes_first(service: Service, tmp_path: Path) -> None:
    flag = tmp_path / "slow"
    service.inject(HANGING.format(flag=str(flag), seconds=1.5))
    service.restart()
    clients = service.fleet.open(50, service.stream_path())
    publisher = service.publisher()
    service.settle(publisher, 5)
    flag.touch()
    service.expected = {"upgrade_failed"}
    service.signal("USR2")
    until(lambda: not flag.exists(), "the successor has adopted the streams")
    service.restart()
    service.settle(publisher)
    assert [line["detail"] for line in service.logged("upgrade_failed")] == [
        "this process was asked to end meanwhile"
    ]
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    assert service.manager.show("NRestarts") == "0"


@pytest.mark.long
def test_a_successor_that_hangs_while_it_takes_over_is_given_up(service: Service, tmp_path: Path) -> None:
    flag = tmp_path / "hang"
    service.inject(HANGING.format(flag=str(flag), seconds=60))
    service.restart()
    clients = service.fleet.open(50, service.stream_path())
    publisher = service.publisher()
    before = service.manager.main_pid
    service.settle(publisher, 5)
    flag.touch()
    service.expected = {"upgrade_failed"}
    service.signal("USR2")
    service.wait_for_log("upgrade_failed")
    assert not flag.exists()
    service.settle(publisher, 5)
    assert service.manager.main_pid == before
    service.upgrade()
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    assert service.manager.show("NRestarts") == "0"


@pytest.mark.slow
def test_two_upgrades_at_once_are_one(service: Service) -> None:
    clients = service.fleet.open(20, service.stream_path())
    publisher = service.publisher()
    before = service.manager.main_pid
    for _ in range(3):
        os.kill(before, signal.SIGUSR2)
    until(lambda: service.manager.main_pid not in (0, before), "another process serves")
    service.settle(publisher, 30)
    assert len(service.logged("upgraded")) == 1
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


@pytest.mark.slow
@pytest.mark.parametrize(
    "delays",
    [
        pytest.param((0.0, 0.3), id="two moments"),
        pytest.param((0.0, 0.2, 0.4, 0.6), id="four moments", marks=pytest.mark.long),
        pytest.param((0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6), id="seven moments", marks=pytest.mark.long),
    ],
)
def test_a_restart_during_an_upgrade_comes_first(service: Service, delays: tuple[float, ...]) -> None:
    """At whatever moment it comes."""
    clients = service.fleet.open(200, service.stream_path())
    publisher = service.publisher()
    for delay in delays:
        service.settle(publisher, 5)
        service.signal("USR2")
        time.sleep(delay)
        service.manager.systemctl("restart", "sse-app.service")
        service.settle(publisher, 5)
    service.expected = {"upgrade_failed"} if service.logged("upgrade_failed") else set()
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


LATE = """
from sse_app.handover.protocol import ControlChannel
send = ControlChannel.send
def send_and_wait(self, word):
    send(self, word)
    if word == 'go':
        import time
        open({flag!r}, 'w').close()
        end = time.monotonic() + {seconds}
        while os.path.exists({flag!r}) and time.monotonic() < end:
            time.sleep(0.02)
ControlChannel.send = send_and_wait
"""


@pytest.fixture
def late(service: Service, tmp_path: Path) -> Path:
    """A file that the main process makes when its successor serves, a second before systemd is told of that one."""
    return hold_up(service, tmp_path / "gone", 1)


@pytest.fixture
def held(service: Service, tmp_path: Path) -> Path:
    """As `late`, but it waits until the file is removed, for ten seconds at most."""
    return hold_up(service, tmp_path / "gone", 10)


def hold_up(service: Service, flag: Path, seconds: float) -> Path:
    service.inject(LATE.format(flag=str(flag), seconds=seconds))
    service.restart()
    return flag


@pytest.mark.slow
def test_a_restart_that_comes_when_there_is_no_way_back_is_done_by_the_successor(
    service: Service, late: Path
) -> None:
    clients = service.fleet.open(50, service.stream_path())
    publisher = service.publisher()
    service.settle(publisher, 5)
    late.unlink(missing_ok=True)
    service.signal("USR2")
    until(late.exists, "the successor serves")
    service.restart()
    service.settle(publisher)
    assert len(service.logged("upgraded")) == 1
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    assert service.manager.show("ActiveState") == "active"
    assert service.manager.show("NRestarts") == "0"


@pytest.mark.long
def test_a_stop_that_comes_when_there_is_no_way_back_ends_the_successor_and_its_streams(
    service: Service, late: Path
) -> None:
    clients = service.fleet.open(50, service.stream_path())
    late.unlink(missing_ok=True)
    service.signal("USR2")
    until(late.exists, "the successor serves")
    service.manager.systemctl("stop", "sse-app.socket", "sse-app.service")
    until(lambda: len(service.fleet.ended) == len(clients), "all streams have ended")
    assert service.logged("stopped")
    assert service.manager.show("ActiveState") == "inactive"


@pytest.mark.slow
def test_a_reload_during_an_upgrade_is_in_force_in_the_successor(service: Service, late: Path) -> None:
    late.unlink(missing_ok=True)
    service.signal("USR2")
    until(late.exists, "the successor serves")
    before = len(service.logged("reloaded"))
    service.manager.systemctl("reload", "sse-app.service")
    service.wait_for_log("reloaded", before + 1)
    assert service.manager.show("ActiveState") == "active"


@pytest.mark.slow
def test_settings_whose_reload_comes_too_late_for_the_old_process_are_in_force_in_the_successor(
    service: Service, held: Path
) -> None:
    held.unlink(missing_ok=True)
    before = service.manager.main_pid
    service.signal("USR2")
    until(held.exists, "the successor serves, and has read its settings")
    service.manager.config.write_text(f"port = {service.port}\n[limits]\nchannels_per_stream = 1\n")
    held.unlink()
    until(lambda: not Path(f"/proc/{before}").exists(), "the old process has gone, as would be its SIGHUP")

    def status() -> int:
        return httpx.get(f"{service.url}/api/v1/sse/dashboard,alerts?token=x").status_code

    until(lambda: status() == 400, "the settings are in force")


@pytest.mark.long
def test_signals_in_the_middle_of_restarts_and_upgrades_do_no_harm(service: Service) -> None:
    clients = service.fleet.open(50, service.stream_path())
    publisher = service.publisher()
    for _ in range(5):
        before = service.manager.main_pid
        service.manager.systemctl("restart", "--no-block", "sse-app.service")
        while service.manager.main_pid in (0, before):
            for number in (signal.SIGHUP, signal.SIGUSR2):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(before, number)
        service.settle(publisher, 3)
    until(lambda: service.manager.show("ActiveState") == "active", "the service is active")
    service.expected = {"upgrade_failed"} if service.logged("upgrade_failed") else set()
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


@pytest.fixture
def current(tmp_path: Path) -> Path:
    """What an operator switches from one installation to the next."""
    install(tmp_path / "first", version="1.1.1")
    install(tmp_path / "second", version="2.2.2")
    current = tmp_path / "current"
    current.symlink_to(tmp_path / "first")
    return current


@pytest.fixture
def replaceable(current: Path) -> Iterator[Service]:
    """A service whose program is behind a symbolic link."""
    for manager in managed(None, [str(current / "venv/bin/python"), str(current / "program/main.py")]):
        service = Service(manager)
        yield service
        service.close()
        service.check_log()


@pytest.mark.long
def test_another_installation_of_the_program_takes_over_behind_the_same_unit(
    replaceable: Service, current: Path, tmp_path: Path
) -> None:
    service = replaceable

    def version() -> str:
        return str(httpx.get(f"{service.url}/api/v1/sse/status").json()["version"])

    clients = service.fleet.open(50, service.stream_path())
    publisher = service.publisher()
    assert version() == "1.1.1"
    for installation, change, expected in (
        ("second", service.upgrade, "2.2.2"),
        ("first", service.restart, "1.1.1"),
        ("second", service.upgrade, "2.2.2"),
    ):
        (tmp_path / "next").symlink_to(tmp_path / installation)
        (tmp_path / "next").rename(current)
        change()
        service.settle(publisher)
        assert version() == expected
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
