"""Events that are not stored, on their way from one node to the streams of another."""

from __future__ import annotations

import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.events import NewEvent
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.streams.hub import Hub
from sse_app.streams.passing_on import PassingOn
from tests.support.cluster_bus import Bus
from tests.support.waiting import until_async
from tests.unit.test_hub import Client

A = ChannelName("a")


@pytest.mark.gen_test
@pytest.mark.parametrize("seconds", [3600, -3600], ids=lambda seconds: f"{seconds:+} s")
async def test_streams_of_other_nodes_are_given_events_also_after_the_shared_clock_was_set(
    seconds: float,
) -> None:
    log, nodes = MemoryEventLog(), dict[str, Bus]()
    await log.open()
    buses = [Bus(name, nodes) for name in ("1", "2")]
    hubs = [Hub(log, backlog_limit=1 << 20, retry=1000) for _ in buses]
    one, other = (PassingOn(hub, bus) for hub, bus in zip(hubs, buses, strict=True))
    for hub in hubs:
        hub.begin()
    client = Client(hubs[1], (A,))

    def received() -> list[bytes]:
        client.read()
        return [event.data.encode() for event in client.received if event.type == "e"]

    await one.publish([NewEvent(A, "e", b"too early")])
    for passing_on in (one, other):
        passing_on.start()
    await one.publish([NewEvent(A, "e", b"first")])
    await until_async(lambda: received() == [b"first"], "the event has come")
    for bus in buses:
        bus.ahead += seconds
    await one.publish([NewEvent(A, "e", b"second")])
    await until_async(lambda: received() == [b"first", b"second"], "the other one, too")
    client.leave()
    for hub in hubs:
        hub.end_all("shutdown")
        await hub.close()
    await log.close()
