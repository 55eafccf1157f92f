"""A handover while another process appends to the same event log: each event reaches each stream once, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.support.appender import Appender
from tests.support.fleet import SteadyPublisher, assert_all_received
from tests.support.room import sequence
from tests.support.service import Service
from tests.support.waiting import until

STREAMS = 200


@pytest.fixture
def appender(service: Service) -> Iterator[Appender]:
    """A process beside the server that appends all the while."""
    appender = Appender(service.manager.state_dir / "events.db", "dashboard", 0.002)
    try:
        until(lambda: len(appender.ids) > 5, "others append")
        yield appender
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
    until(lambda: len(appender.ids) >= goal, "others have appended more")


def from_the_first_event(service: Service, appender: Appender) -> str:
    """Return the path of a stream that begins with the first event of the log."""
    return f"{service.stream_path()}&last_event_id={appender.ids[0].rpartition('-')[0]}-0"


def hand_over_three_times(service: Service, appender: Appender, change: Callable[[Service], None]) -> None:
    """Have streams go through three handovers, and check that they have had every event once and in order."""
    clients = service.fleet.open(STREAMS, from_the_first_event(service, appender))
    publisher = service.publisher()
    for _ in range(3):
        change(service)
        service.settle(publisher)
        grow(appender)
    assert_all_received(clients, in_log_order(publisher, appender))
    assert not service.fleet.ended


@pytest.mark.long
def test_upgrades_while_another_process_appends_lose_and_repeat_nothing(
    service: Service, appender: Appender
) -> None:
    hand_over_three_times(service, appender, Service.upgrade)
    assert len(service.logged("upgraded")) == 3


@pytest.mark.long
def test_restarts_with_a_standby_while_another_process_appends_lose_and_repeat_nothing(
    service: Service, appender: Appender
) -> None:
    hand_over_three_times(service, appender, Service.restart)
    assert len(service.logged("standing_in")) == 3


@pytest.mark.long
def test_cold_restarts_while_another_process_appends_lose_and_repeat_nothing(
    service: Service, appender: Appender
) -> None:
    service.configure("cold", "KillMode=mixed")
    hand_over_three_times(service, appender, Service.restart)
    assert not service.logged("standing_in")
    assert len(service.logged("adopted")) == 3
