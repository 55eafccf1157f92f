"""Upgrades that follow each other quickly, for longer than systemd's watchdog waits for a sign of life."""

from __future__ import annotations

import time

import pytest

from tests.support.fleet import assert_all_received
from tests.support.service import Service

WATCHDOG = 2.0


@pytest.mark.long
def test_upgrades_that_follow_each_other_quickly_are_not_taken_for_a_hung_process(service: Service) -> None:
    service.configure("watchdog", f"WatchdogSec={WATCHDOG:g}")
    service.restart()
    clients = service.fleet.open(20, service.stream_path())
    publisher = service.publisher()
    begun = time.monotonic()
    upgrades = 0
    while upgrades < 6 or time.monotonic() - begun < 2 * WATCHDOG:
        service.upgrade()
        upgrades += 1
    assert service.manager.show("NRestarts") == "0"
    assert service.manager.show("ActiveState") == "active"
    assert len(service.logged("upgraded")) == upgrades
    assert_all_received(clients, publisher.stop())
    assert not service.fleet.ended
