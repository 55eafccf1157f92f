"""Restarts of a service that may open few files, while clients connect and send nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fleet import assert_all_received
from tests.support.service import Service
from tests.support.silence import own_address, silent_clients

CROWDED = """
import os, socket, threading, time
if os.path.exists(FILE) and 'SSE_APP_STAND_IN' not in os.environ:
    os.unlink(FILE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for count in (253, 48):
        socket.send_fds(ours, [b'x'], [0] * count)
    def arrive():
        time.sleep(0.3)
        ours.close()
        theirs.close()
    def on_event(event, arguments):
        if event == 'socket.connect' and not threads:
            threads.append(threading.Thread(target=arrive))
            threads[0].start()
    threads = []
    sys.addaudithook(on_event)
"""
"""Has more descriptors on their way than the process may open, when it connects to the standby and 0.3 s longer."""


@pytest.mark.long
@pytest.mark.parametrize("kill_mode", ["process", pytest.param("mixed", marks=pytest.mark.long)])
def test_a_restart_and_an_upgrade_among_silent_clients_end_no_stream(
    start_service: Callable[..., Service], kill_mode: str
) -> None:
    service = start_service()
    service.expected.add("connections_shed")
    service.configure("files", f"LimitNOFILE=300\nKillMode={kill_mode}")
    service.restart()
    streams = service.fleet.open(30, service.stream_path())
    publisher = service.publisher()
    try:
        with silent_clients(service.port, 400, address=own_address):
            service.settle(publisher)
            service.restart()
            service.settle(publisher)
        with silent_clients(service.port, 400):
            service.upgrade()
            service.settle(publisher)
            service.restart()
            service.settle(publisher)
    finally:
        ids = publisher.stop()
    assert service.fleet.ended == []
    assert_all_received(streams, ids)


@pytest.mark.slow
def test_the_next_process_takes_over_although_too_many_sockets_are_on_their_way_when_it_comes(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    service.configure("files", "LimitNOFILE=300\nKillMode=process")
    crowded = service.manager.directory / "crowded"
    service.inject(CROWDED.replace("FILE", repr(str(crowded))))
    service.restart()
    streams = service.fleet.open(3, service.stream_path())
    crowded.touch()
    service.restart()
    assert not crowded.exists()
    ids = service.publish(2)
    assert_all_received(streams, ids)
    assert service.fleet.ended == []
