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
        reads: how often it has been asked for a page.
    """

    def __init__(self) -> None:
        super().__init__(Retention(10_000, 1000))
        self.conflation = Conflation(self, ChannelRules([RULE]))
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
