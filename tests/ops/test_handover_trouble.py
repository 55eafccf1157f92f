"""What may go wrong in a restart: the process dies amid it, the next one knows another format, the disk is full."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client, assert_all_received
from tests.support.full_disk import fill_up
from tests.support.service import Service
from tests.support.systemd_manager import Manager
from tests.support.waiting import until

DIE_UPGRADED = """
from sse_app.process.systemd import Systemd
notify = Systemd.notify
def die(self, *assignments, **more):
    if assignments[0].startswith("MAINPID=") and {before}:
        os.kill(os.getpid(), 9)
    notify(self, *assignments, **more)
    if assignments[0].startswith("MAINPID="):
        os.kill(os.getpid(), 9)
Systemd.notify = die
"""

DIE_PAUSING = """
from sse_app.handover.sender import HandoverSender
pause = HandoverSender.pause
async def die(self):
    if os.path.exists({flag!r}):
        os.remove({flag!r})
        os.kill(os.getpid(), 9)
    await pause(self)
HandoverSender.pause = die
"""


@pytest.mark.slow
def test_a_process_that_dies_amid_a_handover_leaves_nothing_half_said(cold: Service, tmp_path: Path) -> None:
    flag = tmp_path / "die"
    cold.inject(DIE_PAUSING.format(flag=str(flag)))
    cold.restart()
    clients = cold.fleet.open(50, cold.stream_path())
    publisher = cold.publisher()
    cold.settle(publisher, 20)
    flag.touch()
    cold.restart()
    assert not flag.exists()
    until(lambda: len(cold.fleet.ended) == len(clients), "the streams have ended")
    assert set(cold.fleet.ended) == {"end of file"}
    assert [line["detail"] for line in cold.logged("handover_lost")] == ["the handover has no end"]
    cold.expected = {"handover_lost"}

    path = cold.stream_path()
    again = [cold.fleet.open(1, f"{path}&last_event_id={client.ids()[-1]}")[0] for client in clients[:10]]
    cold.settle(publisher)
    cold.restart()  # the store is as good as new
    cold.settle(publisher)
    ids = publisher.stop()
    for before, after in zip(clients, again, strict=False):
        until(lambda after=after: ids[-1].encode() in after.received[-4096:], "the event has come")  # type: ignore[misc]
        assert before.ids() + after.ids() == ids
        assert after.ended is None


def read_to_the_end(client: Client) -> None:
    def ended() -> bool:
        client.read()
        return client.ended is not None

    until(ended, "the streams have ended", pause=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("http", ["1.1", pytest.param("1.0", marks=pytest.mark.long)])
def test_a_client_that_is_slow_gets_whole_events_and_closing_from_a_version_that_knows_another_format(
    cold: Service, http: str
) -> None:
    slow = Client(cold.port, cold.stream_path(client_id="slow"), receive_buffer=4096, http=http)
    ids = cold.publish(60, size=10_000)  # more than the kernel takes for a client that does not read
    cold.inject("import sse_app.handover.message as state\nstate.FORMAT += 1")
    cold.expected = {"handover_refused"}
    cold.restart()
    read_to_the_end(slow)
    assert slow.ended == "end of file"
    body = slow.body()
    assert b'event: closing\ndata: {"reason":"shutdown"' in body[-300:]
    assert body.endswith(b"}\n\n")
    if http == "1.1":
        assert slow.received.endswith(b"\r\n0\r\n\r\n")
    assert slow.ids() == ids[: len(slow.ids())]
    slow.socket.close()


@pytest.fixture
def small_disk(manager: Manager) -> Iterator[Path]:
    """The state directory, on a file system of its own with little room."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = manager.state_dir
    folder.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "small_disk", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr}")
    yield folder
    manager.systemctl("stop", "sse-app.service", "sse-app.socket", check=False)
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_restart_while_the_disk_is_full_keeps_the_streams_and_refuses_events_until_there_is_room(
    small_disk: Path, start_service: Callable[..., Service]
) -> None:
    service = start_service()
    clients = service.fleet.open(20, service.stream_path())
    ids = service.publish(20)
    bearer = {"Authorization": f"Bearer {service.access_token()}"}

    def publish(size: int = 10) -> int:
        event = {"event": "e", "data": {"pad": "x" * size}}
        url = f"{service.url}/api/v1/sse/dashboard"
        answer = httpx.post(url, json=event, headers=bearer, timeout=30)
        if answer.status_code == 201:
            ids.append(answer.json()["id"])
        return answer.status_code

    full = small_disk / "full"
    fill_up(full)
    until(lambda: publish(100_000) == 503, "the disk is full", pause=0)
    service.restart()
    assert publish(100_000) == 503
    assert httpx.get(f"{service.url}/healthz", timeout=30).status_code == 200
    assert not service.fleet.ended
    full.unlink()
    until(lambda: publish() == 201, "there is room again")
    service.restart()
    assert publish() == 201
    assert_all_received(clients, ids)
    assert not service.fleet.ended
    service.expected = {"event_log_unavailable"}


@pytest.mark.parametrize("verb", ["restart", pytest.param("stop", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "unit",
    ["KillMode=mixed", pytest.param("KillMode=mixed\nEnvironment=SYSTEMD_UNIT=", marks=pytest.mark.slow)],
)
def test_where_systemd_stores_nothing_streams_end_with_closing(
    service: Service, unit: str, verb: str
) -> None:
    service.configure("plain", f"{unit}\nFileDescriptorStoreMax=0")  # as in a unit that is not ours
    service.manager.systemctl("stop", "sse-app.service")
    service.manager.systemctl("start", "sse-app.service")
    clients = service.fleet.open(50, service.stream_path())
    service.manager.systemctl(verb, "sse-app.service")
    until(lambda: len(service.fleet.ended) == len(clients), "the streams have ended")
    assert all(b'event: closing\ndata: {"reason":"shutdown"' in client.body() for client in clients)
    assert not service.logged("handed_over")


@pytest.mark.parametrize("before", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_process_that_dies_once_its_successor_serves_leaves_no_process_that_systemd_does_not_know(
    service: Service, before: bool
) -> None:
    service.inject(DIE_UPGRADED.format(before=before))  # before systemd is told of the successor, or after
    service.restart()
    clients = service.fleet.open(50, service.stream_path())
    publisher = service.publisher()
    service.settle(publisher)
    first, taken = service.manager.main_pid, len(service.logged("succeeded"))
    os.kill(first, signal.SIGUSR2)
    service.wait_for_log("succeeded", taken + 2 if before else taken + 1)
    until(lambda: service.manager.show("ActiveState") == "active", "the service is active")
    until(
        lambda: service.manager.processes("sse-app.service") == {service.manager.main_pid},
        "the main process is the only one",
    )
    assert service.manager.main_pid != first
    service.settle(publisher)
    service.restart()  # it is as good as new
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
