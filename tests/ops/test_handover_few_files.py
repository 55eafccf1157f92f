"""Restarts of a service that may open few files, while clients connect and send nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fleet import assert_all_received
from tests.support.service import Service
from tests.support.silence import own_address, silent_clients


@pytest.mark.parametrize("kill_mode", ["process", "mixed"])
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
