"""Learning of revocations costs what is new; a node counts the streams that another one's revocation will end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sse_app.auth.audit import Audit
from sse_app.auth.records import Revocation
from sse_app.auth.revocations import Revocations
from sse_app.auth.sqlite_store import SqliteAuthStore
from sse_app.auth.tokens.claims import Lease
from sse_app.auth.tokens.issuer import Tokens
from sse_app.auth.tokens.keyring import KeyRing
from sse_app.core.channels import ChannelName
from sse_app.core.framing import CHUNKED
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.streams.enforcement import COUNTED_WITHIN, Enforcement
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Subscriber
from tests.support.cluster_bus import Bus

KNOWN = 40_000
LONGEST = 3600.0


async def cost_of_learning(path: Path, known: int) -> float:
    """Return the processor's time, in seconds, in which 40 revocations are learned one by one beside those known."""
    store = SqliteAuthStore(path)
    await store.open()
    try:
        await store.revoke(Revocation.of_session(f"session{number}") for number in range(known))
        revocations = Revocations(store, LONGEST)
        await revocations.learn()
        assert len(revocations) == known
        cost = 0.0
        for number in range(40):
            await store.revoke([Revocation.of_session(f"other{number}")])
            begun = time.thread_time()
            assert await revocations.learn()
            cost += time.thread_time() - begun
        assert len(revocations) == known + 40
        return cost
    finally:
        await store.close()


@pytest.mark.long
@pytest.mark.gen_test
async def test_learning_one_by_one_is_not_slower_where_very_many_are_known(tmp_path: Path) -> None:
    few = await cost_of_learning(tmp_path / "few.db", 10)
    many = await cost_of_learning(tmp_path / "many.db", KNOWN)
    assert many < 10 * few, (few, many)


class Slow(Bus):
    """A node that looks for revocations in the store just before it hears of one, and is late with all it hears."""

    enforcement: Enforcement
    hub: Hub
    late: bool

    async def _answer_of(self, node: str, kind: str, payload: Any) -> Any:
        await asyncio.sleep(COUNTED_WITHIN / 4)
        await self.enforcement.apply()
        while (
            self.late and kind == "revocations.expect" and not all(each.ending for each in self.hub.streams)
        ):
            await asyncio.sleep(0.01)  # until it is written, however long that takes
            await self.enforcement.apply()
        for stream in [stream for stream in self.hub.streams if stream.ending]:
            self.hub.unregister(stream)
        return await super()._answer_of(node, kind, payload)


@pytest.mark.gen_test
@pytest.mark.parametrize(("late", "counted"), [(False, 2), (True, 1)])
async def test_the_streams_of_all_nodes_are_counted_before_one_ends_them(
    tmp_path: Path, late: bool, counted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is later than that is not waited for: the revocation is in force, and it has counted what is left."""
    if not late:  # also where the machine stands still meanwhile
        monkeypatch.setattr("sse_app.streams.enforcement.COUNTED_WITHIN", 30.0)
    nodes: dict[str, Bus] = {}
    keys = KeyRing.load(tmp_path / "keys", create=True)
    stores = [SqliteAuthStore(tmp_path / "accounts.db") for _ in range(2)]
    for number, store in enumerate(stores):
        await store.open()
        bus = Slow(str(number), nodes)
        hub = Hub(MemoryEventLog(), backlog_limit=1000, retry=1000)
        lease = Lease("ann", "s", f"t{number}", time.time() - 1, time.time() + 600)
        hub.register(Subscriber("c", lease, "10.0.0.1"), (ChannelName("a"),), framing=CHUNKED)
        revocations = Revocations(store, LONGEST)
        tokens = Tokens(keys, issuer="i", audience="a", longest=LONGEST, revocations=revocations)
        bus.enforcement = Enforcement(hub, store, revocations, tokens, tmp_path / "keys", Audit(store), bus)
        bus.hub, bus.late = hub, late
    first = nodes["0"]
    assert isinstance(first, Slow)
    try:
        assert await first.enforcement.revoke(Revocation.of_subject("ann")) == (counted, ())
    finally:
        for store in stores:
            await store.close()


@pytest.mark.gen_test
@pytest.mark.parametrize("make", [partial(Revocation.of_subject, "ann"), Revocation.of_everything])
async def test_a_node_learns_from_the_store_which_tokens_dated_ahead_a_revocation_means(
    tmp_path: Path, make: Callable[[], Revocation]
) -> None:
    """Such a token was issued before the clock was set back, and the node has never seen it, nor heard of it."""
    stores = [SqliteAuthStore(tmp_path / "accounts.db") for _ in range(2)]
    for store in stores:
        await store.open()
    first, second = (Revocations(store, LONGEST) for store in stores)
    ahead = Lease("ann", "s", "of-a-provider", time.time() + 600, time.time() + 1200)
    later = ahead._replace(token_id="later", issued_at=ahead.issued_at + 1)
    try:
        assert not first.covers(ahead)
        keys = tmp_path / "keys"
        tokens = Tokens(
            KeyRing.load(keys, create=True), issuer="i", audience="a", longest=LONGEST, revocations=first
        )
        hub = Hub(MemoryEventLog(), backlog_limit=1000, retry=1000)
        alone = Bus("0", {})
        await Enforcement(hub, stores[0], first, tokens, keys, Audit(stores[0]), alone).revoke(make())
        await second.learn()
        assert [each.covers(ahead) for each in (first, second)] == [True, True]
        assert [each.covers(later) for each in (first, second)] == [False, False]
    finally:
        for store in stores:
            await store.close()
