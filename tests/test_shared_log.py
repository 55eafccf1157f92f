"""A handover while another process appends to the same event log: each event reaches each stream once, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.appender import Appender
from tests.fleet import SteadyPublisher, assert_all_received, wait_until
from tests.room import sequence
from tests.service import Service

STREAMS = 200


@pytest.fixture
def shared(service: Service) -> Iterator[tuple[Service, Appender]]:
    """The server as a unit, and a process beside it that appends all the while."""
    appender = Appender(service.manager.state_dir / "events.db", "dashboard", 0.002)
    try:
        wait_until(lambda: len(appender.ids) > 5)
        yield service, appender
    finally:
        appender.kill()


def in_log_order(publisher: SteadyPublisher, appender: Appender) -> list[str]:
    """Stop both, and return the ids of all that they have published."""
    ids = sorted(publisher.stop() + appender.stop(), key=sequence)
    assert [sequence(id) for id in ids] == list(range(1, len(ids) + 1))
    return ids


def grow(appender: Appender, events: int = 20) -> None:
    """Wait until so many further events are in the log."""
    goal = len(appender.ids) + events
    wait_until(lambda: len(appender.ids) >= goal)


@pytest.mark.parametrize("change", [Service.upgrade, Service.restart])
def test_a_handover_under_the_publishing_of_others_loses_and_repeats_nothing(
    shared: tuple[Service, Appender], change: Callable[[Service], None]
) -> None:
    service, appender = shared
    path = f"{service.stream_path()}&last_event_id={appender.ids[0].rpartition('-')[0]}-0"
    clients = service.fleet.open(STREAMS, path)
    publisher = service.publisher()
    for _ in range(3):
        change(service)
        service.settle(publisher)
        grow(appender)
    assert_all_received(clients, in_log_order(publisher, appender))
    assert not service.fleet.ended
    if change is Service.upgrade:
        assert len(service.logged("upgraded")) == 3


def test_a_cold_restart_under_the_publishing_of_others_loses_and_repeats_nothing(
    shared: tuple[Service, Appender],
) -> None:
    service, appender = shared
    service.configure("cold", "KillMode=mixed")
    path = f"{service.stream_path()}&last_event_id={appender.ids[0].rpartition('-')[0]}-0"
    clients = service.fleet.open(STREAMS, path)
    publisher = service.publisher()
    for _ in range(3):
        service.restart()
        service.settle(publisher)
        grow(appender)
    assert_all_received(clients, in_log_order(publisher, appender))
    assert not service.fleet.ended
    assert not service.logged("standing_in")
