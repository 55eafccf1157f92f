"""What nodes tell each other of their streams: whatever of it is lost or late, limits hold over all, and no more."""

from __future__ import annotations

import asyncio
import random
import time
from types import SimpleNamespace

import pytest

from sse_app.auth.tokens.claims import Lease
from sse_app.cluster.base import Alone
from sse_app.core.channels import ChannelName
from sse_app.core.framing import CHUNKED
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.settings.model import Limits
from sse_app.streams import elsewhere as module
from sse_app.streams.elsewhere import HEARTBEAT, SILENT_AFTER, StreamsElsewhere
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Subscriber
from tests.support.cluster_bus import Bus

pytestmark = pytest.mark.gen_test

USERS = ("ann", "bob", "eve")


class Node:
    """A node's part in it: a hub with streams, and what it knows of the others'."""

    def __init__(self, name: str, nodes: dict[str, Bus], limits: Limits) -> None:
        self.bus = Bus(name, nodes)
        self.hub = Hub(MemoryEventLog(), backlog_limit=1000, retry=1000)
        self.limits = limits
        self.elsewhere = StreamsElsewhere(self.bus, self.hub, limits)

    def open(self, user: str) -> None:
        subscriber = Subscriber("c", Lease(user, "s", "t", 0, 1e12), "10.0.0.1")
        self.hub.register(subscriber, (ChannelName("a"),), framing=CHUNKED)
        self.elsewhere.opened(user, "10.0.0.1")

    def close_one(self) -> None:
        if self.hub.streams:
            self.hub.unregister(next(iter(self.hub.streams)))

    def seen(self, user: str) -> int:
        """Return how many streams a user has, as far as this node knows."""
        return len(self.hub.streams_of_subject.get(user)) + self.elsewhere.of_user(user)

    async def replaced(self) -> Node:
        """Return the next process of the node, which has its streams."""
        after = Node(self.bus.name, self.bus.nodes, self.limits)
        for stream in self.hub.streams:
            after.hub.register(stream.subscriber, stream.channels, framing=CHUNKED)
        after.elsewhere.start()
        await after.elsewhere.catch_up()
        self.elsewhere.stop()
        self.elsewhere.beat()  # one last time, late
        await settle([self])
        return after


async def settle(nodes: list[Node]) -> None:
    """Wait until what was told has been received."""
    for node in nodes:
        pending, node.bus.pending = node.bus.pending, []
        await asyncio.gather(*pending)


async def beat(nodes: list[Node]) -> None:
    """Have all nodes tell the others, and all be told."""
    for node in nodes:
        node.elsewhere.beat()
    await settle(nodes)


async def cluster(size: int, limits: Limits) -> list[Node]:
    names: dict[str, Bus] = {}
    nodes = [Node(str(number), names, limits) for number in range(1, size + 1)]
    for node in nodes:
        node.elsewhere.start()
    await settle(nodes)
    return nodes


def truth(nodes: list[Node], user: str) -> int:
    return sum(len(node.hub.streams_of_subject.get(user)) for node in nodes)


def assert_limits_hold(nodes: list[Node], limit: int) -> None:
    """Check that every node refuses a user who has as many streams as allowed, and no other user."""
    for user in USERS:
        count = truth(nodes, user)
        for node in nodes:
            assert (node.seen(user) >= limit) == (count >= limit), (
                user,
                count,
                node.bus.name,
                node.seen(user),
            )
            assert node.seen(user) <= count
    for node in nodes:
        assert node.elsewhere.total == sum(len(other.hub.streams) for other in nodes if other is not node)


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))]
)
@pytest.mark.parametrize("limit", [1, 3, 5, 8, 40])
async def test_whatever_is_lost_and_replaced_all_nodes_agree_two_heartbeats_later(
    limit: int, seed: int
) -> None:
    chance = random.Random(f"{limit} {seed}")
    nodes = await cluster(chance.choice([2, 4, 7]), Limits(streams_per_user=limit))
    for _ in range(60):
        for _ in range(chance.randint(0, 12)):
            node, user = chance.choice(nodes), chance.choice(USERS)
            if node.seen(user) < limit and chance.random() < 0.7:
                node.open(user)
            else:
                node.close_one()
        for node in nodes:
            node.bus.losing = chance.random() < 0.2
        if chance.random() < 0.2:
            place = chance.randrange(len(nodes))
            nodes[place] = await nodes[place].replaced()
        await beat(nodes)
        if chance.random() < 0.5:
            for node in nodes:
                node.bus.losing = False
            for _ in range(3):  # what was lost is asked for, then it is known whom it matters to tell of
                await beat(nodes)
            assert_limits_hold(nodes, limit)
    for node in nodes:
        while node.hub.streams:
            node.close_one()
        node.bus.losing = False
    for _ in range(3):
        await beat(nodes)
    for node in nodes:
        assert (node.elsewhere.total, node.elsewhere.kept) == (0, 0)
        node.elsewhere.stop()


async def test_of_users_with_few_streams_nothing_is_told_or_kept() -> None:
    nodes = await cluster(4, Limits(streams_per_user=100, streams_per_address=1_000_000))
    for node in nodes:
        for number in range(50):
            node.open(f"user{number}")
    await beat(nodes)
    assert {node.elsewhere.kept for node in nodes} == {0}
    for _ in range(25):
        nodes[0].open("user1")
    for _ in range(2):
        await beat(nodes)
    assert [node.seen("user1") for node in nodes] == [29] * 4
    assert [node.elsewhere.kept for node in nodes] == [1] * 4
    for node in nodes:
        node.elsewhere.stop()


async def test_a_node_that_stood_still_forgets_no_other_before_it_has_read_what_was_told_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed = 0.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed))
    one, other = nodes = await cluster(2, Limits(streams_per_user=2))
    for _ in range(2):
        one.open("ann")
    for _ in range(3):
        await beat(nodes)
    passed = 2 * SILENT_AFTER
    other.elsewhere.beat()
    assert other.seen("ann") == 2
    while passed < 3 * SILENT_AFTER + HEARTBEAT:  # it runs, and is told nothing
        passed += HEARTBEAT
        other.elsewhere.beat()
    assert other.seen("ann") == 0
    for node in nodes:
        node.elsewhere.stop()
    await settle(nodes)


async def test_a_limit_that_is_lowered_counts_streams_of_before() -> None:
    nodes = await cluster(2, Limits(streams_per_user=100))
    for node in nodes:
        for _ in range(3):
            node.open("ann")
    await beat(nodes)
    assert [node.seen("ann") for node in nodes] == [3, 3]
    for node in nodes:
        node.elsewhere.use(Limits(streams_per_user=5))
    for _ in range(2):
        await beat(nodes)
    assert [node.seen("ann") for node in nodes] == [6, 6]
    for node in nodes:
        node.elsewhere.stop()


async def test_a_node_alone_tells_nothing_and_counts_nothing() -> None:
    elsewhere = StreamsElsewhere(Alone(), Hub(MemoryEventLog(), backlog_limit=1, retry=1), Limits())
    elsewhere.start()
    elsewhere.opened("ann", "10.0.0.1")
    assert not elsewhere.runs
    assert (elsewhere.total, elsewhere.of_user("ann"), elsewhere.kept) == (0, 0, 0)


async def test_a_node_of_a_version_that_says_it_otherwise_counts_for_nothing() -> None:
    first, second = await cluster(2, Limits())
    second.open("ann")
    for payload in (None, {"began": "long ago"}, [1, 2], {"streams": 5}):
        second.bus.tell("streams", payload)
    await settle([first, second])
    assert first.elsewhere.total == 0
    await beat([first, second])
    assert first.elsewhere.total == 1
    for node in (first, second):
        node.elsewhere.stop()
