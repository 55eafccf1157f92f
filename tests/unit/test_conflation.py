"""The tables of conflated channels, while others publish in the middle of their being read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager

import pytest

from sse_app.core.channel_rules import ChannelRule, ChannelRules
from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.events import Event, NewEvent
from sse_app.core.selection import interest_of
from sse_app.eventlog.base import NO_FLOORS, Beginning, Floors, Page, Retention
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.streams import conflation as conflation_module
from sse_app.streams.conflation import Conflation
from sse_app.streams.hub import Hub
from tests.support.waiting import until_async

RULE = ChannelRule(ChannelPattern("t.*"), conflate="k")
A, B = ChannelName("t.a"), ChannelName("t.b")


class Desk(MemoryEventLog):
    """A log with a table of its events, in the middle of whose answers something is published, once.

    Attributes:
        meanwhile: what is published, by the channel or the pattern whose answer is waited for.
        head_seq: up to which event the table has been given all.
        needed: the names and patterns that streams have asked for.
        reads: how often it has been asked for a page.
    """

    def __init__(self) -> None:
        super().__init__(Retention(10_000, 1000))
        self.needed: set[str] = set()
        self.conflation = Conflation(self, ChannelRules([RULE]), self.needed)
        self.meanwhile: dict[str, list[tuple[ChannelName, str, int]]] = {}
        self.head_seq = 0
        self.reads = 0

    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        self.reads += 1
        page = await super().replay(channels, after, until, limit, floors)
        for _ in channels:
            await asyncio.sleep(0)
        return page

    async def publish(self, channel: ChannelName, key: str, n: int) -> None:
        """Append an event, and fan it out."""
        data = json.dumps({"k": key, "n": n}).encode()
        (id,) = await self.append([NewEvent(channel, "e", data)])
        self.conflation.add([Event(id.seq, channel, "e", data)])
        self.head_seq = id.seq

    async def begin(self, channels: Collection[str], beginning: Beginning) -> Floors:
        begun = await super().begin(channels, beginning)
        await self._go_on(channels)
        return begun

    async def names(self, pattern: str) -> list[ChannelName]:
        found = await super().names(pattern)
        await self._go_on([pattern])
        return found

    async def _go_on(self, asked: Collection[str]) -> None:
        for text in asked:
            for one in self.meanwhile.pop(text, []):
                await self.publish(*one)
            await asyncio.sleep(0)

    async def table(self, *channels: str) -> list[tuple[str, str, int]]:
        """Return channel, key and number of the newest events."""
        interest = interest_of(channels, None)
        await self.conflation.read(interest.selection, lambda: self.head_seq)
        assert self.conflation.is_ready(interest.selection)
        events = self.conflation.newest(interest, 0, self.head_seq, {})
        found = [(event.channel, json.loads(event.data)) for event in sorted(events)]
        return [(channel, data["k"], data["n"]) for channel, data in found]

    @property
    def tables(self) -> int:
        """How many channels have a table."""
        return len(self.conflation.channels_of(interest_of(("t.*",)).selection))


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    log = Desk()
    await log.open()
    yield log
    await log.close()


def run(check: object) -> None:
    asyncio.run(check())  # type: ignore[operator]


@pytest.mark.parametrize("asked", [(A, B), ("t.*",)])
def test_what_is_published_while_the_table_before_is_read_is_in_the_next_one(asked: tuple[str, ...]) -> None:
    async def check() -> None:
        async with desk() as log:
            for channel in (A, B):
                await log.publish(channel, "x", 1)
            both = [(A, "y", 2), (B, "y", 2)]
            log.meanwhile = {A: both, B: [(A, "z", 3), (B, "z", 3)]}
            found = await log.table(*asked)
            assert not log.meanwhile
            assert sorted(found) == [
                (channel, key, n) for channel in (A, B) for key, n in (("x", 1), ("y", 2), ("z", 3))
            ]

    run(check)


def test_of_streams_that_ask_for_a_pattern_at_once_each_has_all_its_channels() -> None:
    async def check() -> None:
        async with desk() as log:
            await log.publish(A, "x", 1)
            await log.publish(B, "x", 2)
            answers = await asyncio.gather(*(log.table("t.*") for _ in range(3)))
            assert answers == [[(A, "x", 1), (B, "x", 2)]] * 3

    run(check)


def test_more_keys_than_a_table_may_grow_by_do_not_push_each_other_out_while_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conflation_module, "GROWTH", 10)

    async def check() -> None:
        async with desk() as log:
            log.meanwhile = {A: [(A, f"k{n}", n) for n in range(25)]}
            assert len(await log.table(A)) == 25

    run(check)


@pytest.mark.parametrize("how", ["other rules", "many keys"])
def test_a_table_that_is_given_up_is_not_taken_for_an_empty_one(how: str) -> None:
    async def check() -> None:
        async with desk() as log:
            await log.publish(A, "x", 1)
            assert await log.table(A) == [(A, "x", 1)]
            selection = interest_of((A, "t.*"), None).selection
            await log.conflation.read(selection, lambda: log.head_seq)
            if how == "other rules":
                log.conflation.use(ChannelRules([RULE]))
            else:
                for n in range(2 * conflation_module.GROWTH):
                    await log.publish(A, f"k{n}", n)
            assert not log.conflation.is_ready(selection)
            assert (A, "x", 1) in await log.table(A)

    run(check)


def test_a_client_that_takes_a_large_table_at_once_lets_others_run_after_each_page() -> None:
    async def check() -> None:
        log = MemoryEventLog(Retention(10_000, 1000))
        await log.open()
        hub = Hub(log, backlog_limit=1 << 20, retry=1000, rules=ChannelRules([RULE]))
        hub.begin()
        events = [
            NewEvent(ChannelName(f"t.c{number}"), "e", b'{"k":1,"filling":"%s"}' % (b"x" * 100))
            for number in range(1000)
        ]
        await log.append(events)
        interest = interest_of(("t.*",), None)
        await until_async(lambda: hub.head.seq == len(events), "the hub has all")
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        for _ in range(2):  # the first time it is read from the log
            task = asyncio.create_task(others())
            after = pages = turns = found = 0
            while after < len(events):
                past, after = await hub.past.read(interest, after, len(events))
                found += past.count(b"\nid: ") + past.startswith(b"id: ")
                pages += 1
            task.cancel()
            assert found == len(events)
            assert turns >= pages > 5
        await hub.close()
        await log.close()

    run(check)


@pytest.mark.gen_test
async def test_tables_that_several_selections_have_are_read_once_and_for_all() -> None:
    async with desk() as log:
        for n in range(20):
            await log.publish(A, f"k{n}", n)
            await log.publish(B, f"k{n}", n)
        log.reads = 0
        asked = [("t.*",), ("t.a",), ("t.a", "t.b"), ("t.a", "news"), ("t.*", "news")]
        begun: list[asyncio.Task[list[tuple[str, str, int]]]] = []
        for channels in asked:  # each begins while those before it are under way
            begun.append(asyncio.create_task(log.table(*channels)))
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            tables = await asyncio.gather(*begun)
        assert [len(table) for table in tables] == [40, 20, 40, 20, 40]
        assert log.reads <= 3


@pytest.mark.gen_test
async def test_channels_that_streams_have_left_leave_no_tables_behind() -> None:
    bound = 2 * (3 + 32) + conflation_module.UNNEEDED_TABLES
    async with desk() as log:
        for channel, key in ((A, "x"), (B, "x"), (B, "y")):
            await log.publish(channel, key, 1)
        log.needed |= {A, "*.b", "t.none"}
        needed = interest_of((A, "*.b", "t.none"))
        assert await log.table(*needed.channels) == [(A, "x", 1), (B, "x", 1), (B, "y", 1)]
        for n in range(0, 2500, 32):
            left = {f"t.left{number}" for number in range(n, n + 32)}
            log.needed |= left
            assert await log.table(A, *left) == [(A, "x", 1)]
            log.needed -= left
            assert log.tables <= bound
        log.reads = 0
        await log.publish(A, "y", 2)
        await log.publish(B, "x", 2)
        found = [(A, "x", 1), (B, "y", 1), (A, "y", 2), (B, "x", 2)]
        assert await log.table(*needed.channels) == found
        assert not log.reads, "they were there all the time"
        await log.publish(ChannelName("t.left0"), "x", 3)
        assert await log.table("t.left0") == [("t.left0", "x", 3)]


@pytest.mark.gen_test
async def test_patterns_that_streams_have_left_give_new_channels_no_tables() -> None:
    async with desk() as log:
        log.needed.add("*.k0")
        for n in range(1000):
            assert await log.table(f"*.k{n}") == []
        for n in range(1000):
            await log.publish(ChannelName(f"t.k{n}"), "x", n)
        assert log.tables <= 2 * 1 + conflation_module.UNNEEDED_PATTERNS
        assert await log.table("*.k0") == [("t.k0", "x", 0)]
        assert await log.table("*.k1") == [("t.k1", "x", 1)]


@pytest.mark.gen_test
async def test_tables_that_are_waited_for_are_not_forgotten_however_many_are_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conflation_module, "UNNEEDED_TABLES", 2)
    monkeypatch.setattr(conflation_module, "UNNEEDED_PATTERNS", 2)
    async with desk() as log:
        log.conflation.clear()  # now with these bounds
        channels = [ChannelName(f"t.c{n}") for n in range(20)]
        for channel in channels:
            await log.publish(channel, "x", 1)
        asked = [text for channel in channels for text in (channel, channel.replace("t.", "*."))]
        async with asyncio.timeout(10):
            tables = await asyncio.gather(*map(log.table, asked))
        assert tables == [[(channel, "x", 1)] for channel in channels for _ in range(2)]
        for n in range(100):
            assert await log.table(f"t.more{n}") == []
        assert log.tables <= 2 * 1 + 2
