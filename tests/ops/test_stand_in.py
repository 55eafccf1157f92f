"""A standby serves while a restarted server loads: what becomes of its streams when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client, assert_all_received
from tests.support.service import Service
from tests.support.waiting import until

STREAMS = 50

CRASHING = """
counter = {counter!r}
left = int(open(counter).read())
def crash(name, arguments):
    if name == 'sse_app.adopted':
        os.kill(os.getpid(), 9)
if left and 'SSE_APP_SUCCESSOR' not in os.environ:
    open(counter, 'w').write(str(left - 1))
    sys.addaudithook(crash)
"""


def restart(service: Service) -> None:
    """Ask for a restart, and come back when the standby serves."""
    before = len(service.logged("standing_in"))
    service.manager.systemctl("restart", "--no-block", "sse-app.service")
    service.wait_for_log("standing_in", before + 1)


def standby(service: Service) -> int:
    """Return the process id of the last standby."""
    return int(str(service.logged("standing_in")[-1]["pid"]))


@pytest.mark.slow
def test_it_is_gone_when_the_restart_is_over(service: Service) -> None:
    service.fleet.open(STREAMS, service.stream_path())
    service.restart()
    until(lambda: not Path(f"/proc/{standby(service)}").exists(), "the stand-in has gone")
    assert len(service.logged("standing_in")) == 1
    assert not (service.manager.state_dir / "stand-in").exists()


@pytest.mark.slow
def test_it_serves_on_when_the_next_process_crashes_over_taking_over(
    service: Service, tmp_path: Path
) -> None:
    crashes = tmp_path / "crashes"
    crashes.write_text("2")
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher()
    service.inject(CRASHING.format(counter=str(crashes)))
    service.expected = {"handover_failed"}
    restart(service)
    service.wait_for_log("listening", 2)
    assert crashes.read_text() == "0"
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    assert len(service.logged("handover_failed")) == 2


LATE = """
if os.path.exists({flag!r}):
    import time
    from sse_app.handover import protocol
    protocol.TAKEOVER_TIMEOUT = 1.5
    def late(name, arguments):
        if name == 'sse_app.adopted' and os.path.exists({flag!r}):
            os.remove({flag!r})
            time.sleep(4)
    if 'SSE_APP_SUCCESSOR' not in os.environ:
        sys.addaudithook(late)
"""


@pytest.mark.slow
def test_it_serves_on_when_the_next_process_takes_over_too_late_and_no_byte_goes_out_twice(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(SOCKET__USER_TIMEOUT=600)  # the client does not read for a while
    flag = tmp_path / "late"
    service.expected = {"handover_failed"}
    service.inject(LATE.format(flag=str(flag)))
    service.restart()
    slow = Client(service.port, service.stream_path(), receive_buffer=4096)
    ids = service.publish(60, size=10_000)
    flag.touch()
    restart(service)
    until(lambda: not flag.exists(), "the next process takes over")
    slow.read_until(ids[-1])  # while that one stands still, and this one writes again
    service.wait_for_log("listening", 3)
    ids += service.publish(1)
    slow.read_until(ids[-1])
    assert slow.ids() == ids
    slow.socket.close()


@pytest.mark.long
def test_it_serves_on_while_the_next_process_cannot_start(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher()
    service.configure("bad", "ExecStartPre=/bin/false")
    restart(service)
    service.settle(publisher, 50)
    assert len(service.logged("listening")) == 1
    service.configure("bad", "")
    service.wait_for_log("listening", 2)
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


@pytest.mark.slow
def test_nobody_takes_over_and_it_ends_its_streams(service: Service) -> None:
    service.inject("from sse_app.handover import standby\nstandby.TAKEOVER_DEADLINE = 1.0")
    service.restart()
    clients = service.fleet.open(STREAMS, service.stream_path())
    service.configure("bad", "ExecStartPre=/bin/false")
    service.expected = {"stand_in_alone"}
    restart(service)
    until(lambda: all(client.ended for client in clients), "the streams have ended")
    for client in clients:
        assert client.ended == "end of file"
        assert b'event: closing\ndata: {"reason":"shutdown"' in client.body()
    until(lambda: not Path(f"/proc/{standby(service)}").exists(), "the stand-in has gone")
    service.configure("bad", "")
    service.wait_for_log("listening", 3)
    service.fleet.open(STREAMS, service.stream_path())


@pytest.mark.slow
def test_it_is_killed_and_nothing_acknowledged_is_lost(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    ids = service.publish(20)
    gate = service.manager.directory / "gate"
    service.configure("late", f"ExecStartPre=/bin/sh -c 'until [ -e {gate} ]; do sleep 0.05; done'")
    restart(service)
    ids += service.publish(20)
    os.kill(standby(service), signal.SIGKILL)
    until(lambda: all(client.ended for client in clients), "the streams have ended")
    gate.touch()
    service.wait_for_log("listening", 2)
    (back,) = service.fleet.open(1, f"{service.stream_path()}&last_event_id={ids[4]}")
    until(lambda: back.ids() == ids[5:], "the missed events have come")


def test_a_stop_in_the_middle_of_a_restart_ends_the_streams(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    # So that the stop, which ends it, comes while nobody else is there.
    service.configure("late", "ExecStartPre=/bin/sleep 25")
    service.expected = {"stand_in_alone"}
    restart(service)
    service.manager.systemctl("stop", "sse-app.service", "sse-app.socket")
    until(lambda: all(client.ended for client in clients), "the streams have ended")
    assert {client.ended for client in clients} == {"end of file"}
    until(lambda: not Path(f"/proc/{standby(service)}").exists(), "the stand-in has gone")


@pytest.mark.slow
def test_a_successor_that_cannot_be_started_leaves_the_cold_way(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher()
    good = service.manager.config.read_text()
    service.manager.config.write_text("nonsense")
    service.expected = {"stand_in_failed"}
    subprocess.Popen(
        ["systemctl", "--user", "restart", "sse-app.service"],
        env=service.manager.environment,
        stderr=subprocess.DEVNULL,
    ).wait()
    service.manager.config.write_text(good)
    service.wait_for_log("listening", 2)
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    assert httpx.get(f"{service.url}/readyz").status_code == 200


@pytest.mark.slow
def test_one_that_hangs_is_given_up(service: Service) -> None:
    service.inject(
        "import time\n"
        "from sse_app.handover import standby\n"
        "standby.STANDBY_TIMEOUT = 1.0\n"
        "if 'SSE_APP_STAND_IN' in os.environ:\n"
        "    time.sleep(60)"
    )
    service.restart()
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher()
    service.expected = {"stand_in_failed"}
    service.restart()
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


@pytest.mark.slow
def test_restarts_on_each_other_s_heels_lose_nothing(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher()
    for _ in range(6):
        service.manager.systemctl("restart", "--no-block", "sse-app.service")
        service.settle(publisher, 10)
    until(lambda: service.manager.show("ActiveState") == "active", "the service is active")
    service.settle(publisher)
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended


@pytest.mark.slow
def test_a_restart_of_the_socket_too_keeps_the_streams_and_opens_the_socket_anew(service: Service) -> None:
    clients = service.fleet.open(STREAMS, service.stream_path())
    publisher = service.publisher()
    for listening, units in enumerate((["sse-app.socket", "sse-app.service"], ["sse-app.socket"]), 2):
        service.manager.systemctl("restart", *units)
        service.manager.systemctl("start", "sse-app.service")
        service.wait_for_log("listening", listening)
        service.settle(publisher)
    assert service.manager.show("ActiveState") == "active"
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
    assert not service.logged("standing_in")
