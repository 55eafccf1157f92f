"""What the log on PostgreSQL says of the past of many channels, by their names and by patterns."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.events import FINAL, TEXT, Event, EventId, NewEvent
from sse_app.eventlog.base import Beginning, EventLog, Retention, RetentionRules
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.eventlog.postgres import log as postgres_log
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.storage.postgres.database import Database

SEGMENTS = ("a", "b", "ab", "a-b", "a_1", "sse_app", "z" * 64)
PATTERNS = (
    "**",
    "*",
    "*.*",
    "a.**",
    "a.*",
    "a.*.b",
    "*.b",
    "*.b.**",
    "ab.**",
    "a-b.*",
    "sse_app.**",
    "a.b.**",
    "*.*.*",
)


def a_name(chance: random.Random) -> ChannelName:
    return ChannelName(".".join(chance.choices(SEGMENTS, k=chance.choice((1, 1, 2, 2, 2, 3)))))


@asynccontextmanager
async def opened(
    url: str, retention: Retention | RetentionRules | None = None
) -> AsyncIterator[PostgresEventLog]:
    log = PostgresEventLog(Database(url, timeout=30.0), retention)
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def all_pages(
    log: EventLog, channels: list[str], after: int, floors: dict[str, int], limit: int
) -> list[Event]:
    """Return what a stream gets that replays from a position."""
    events: list[Event] = []
    head = log.head.seq
    while True:
        page = await log.replay(channels, after, head, limit, floors)
        assert not page.gap
        assert len(page.events) <= limit
        assert all(after < event.seq <= head for event in page.events)
        events += page.events
        if not page.more:
            return events
        assert page.reached > after
        after = page.reached


@pytest.mark.gen_test
@pytest.mark.parametrize("budget", [20_000, 7])
@pytest.mark.parametrize("seed", range(2))
async def test_it_says_of_patterns_what_the_log_in_memory_says(
    database_url: str, monkeypatch: pytest.MonkeyPatch, seed: int, budget: int
) -> None:
    monkeypatch.setattr(postgres_log, "SCANNED_EVENTS", budget)
    chance = random.Random(seed)
    size = 5
    memory = MemoryEventLog(Retention(size))
    async with opened(database_url, Retention(size)) as log:
        names = [a_name(chance) for _ in range(120)]
        for _ in range(15):
            some = chance.choices(names, k=chance.randrange(1, 40))
            events = [
                NewEvent(name, "t", b"%d" % chance.randrange(99), None, chance.choice((0, 0, TEXT, FINAL)))
                for name in some
            ]
            await memory.append(events)
            await log.append(events)
        assert await log.ended() == await memory.ended()
        for _ in range(25):
            channels: list[str] = chance.choices(PATTERNS, k=chance.choice((1, 1, 2))) + chance.choices(
                [*names, ChannelName("none")], k=chance.choice((0, 0, 1, 3))
            )
            beginning = Beginning(last=chance.choice((None, 1, 2, 4)))
            begun, expected = await log.begin(channels, beginning), await memory.begin(channels, beginning)
            assert begun[1:] == expected[1:]
            limit = chance.choice((1, 3, 50, 1000))
            replayed = await all_pages(log, channels, begun.first - 1, begun.floors, limit)
            assert replayed == await all_pages(memory, channels, begun.first - 1, begun.floors, limit)
            assert await log.latest(channels, limit) == await memory.latest(channels, limit)
            position = chance.randrange(memory.head.seq + 1)
            lost = await log.lost(channels, EventId(log.head.epoch, position))
            assert lost == await memory.lost(channels, EventId(memory.head.epoch, position))
            floors = dict.fromkeys(lost, memory.head.seq)
            assert await all_pages(log, channels, position, floors, limit) == await all_pages(
                memory, channels, position, floors, limit
            )
            page = await log.replay(channels, position, memory.head.seq, limit)
            assert page.gap == (await memory.replay(channels, position, memory.head.seq, limit)).gap
