"""The way from a commit to a follower: nothing is left out or repeated, whatever is committed while the log is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from sse_app.core.channels import ChannelName
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import Event, NewEvent
from sse_app.eventlog.base import Page
from sse_app.eventlog.memory import MemoryEventLog
from sse_app.eventlog.tail import MAX_WAITING_BYTES, Tails


class Log:
    """A list of events that is read two at a time, each time when it is allowed to."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reads = 0
        self.allowed = asyncio.Semaphore(0)
        self.tails = Tails(self.read)

    async def read(self, after: int) -> Page:
        following = self.events[after : after + 2]
        more = len(self.events) > after + 2
        self.reads += 1
        await self.allowed.acquire()  # what is read is of the moment when it began
        return Page(following, more, False)

    def commit(self, *, published: bool, size: int = 1) -> None:
        """Add an event, of this process or of another one."""
        self.events.append(Event(len(self.events) + 1, ChannelName("a"), "t", b"x" * size))
        if published:
            self.tails.publish(self.events[-1:])


async def some_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def numbers(tail: AsyncGenerator[list[Event], None]) -> list[int]:
    return [event.seq for event in await asyncio.wait_for(anext(tail), 10)]


@pytest.mark.gen_test
@pytest.mark.parametrize("published", [True, False])
async def test_the_last_event_that_is_committed_while_the_log_is_read_is_not_forgotten(
    published: bool,
) -> None:
    log = Log()
    log.commit(published=True)
    async with aclosing(log.tails.follow(0)) as tail:
        first = asyncio.create_task(numbers(tail))
        await some_turns()
        log.commit(published=published)
        log.tails.grown_to(2)
        log.allowed.release()
        assert await first == [1]
        log.allowed.release()
        assert await numbers(tail) == [2]
        coming = asyncio.create_task(numbers(tail))
        await some_turns()
        log.commit(published=True)
        assert await coming == [3]
        assert log.reads == 2


@pytest.mark.gen_test
async def test_a_commit_that_does_not_follow_directly_has_what_is_between_read() -> None:
    log = Log()
    async with aclosing(log.tails.follow(0)) as tail:
        coming = asyncio.create_task(numbers(tail))
        await some_turns()
        log.commit(published=True)
        assert await coming == [1]
        log.commit(published=False)
        log.commit(published=True)
        log.allowed.release()
        assert await numbers(tail) == [2, 3]
        assert log.reads == 1


@pytest.mark.gen_test
async def test_a_commit_that_was_read_before_it_was_published_comes_once() -> None:
    log = Log()
    async with aclosing(log.tails.follow(0)) as tail:
        log.commit(published=False, size=MAX_WAITING_BYTES + 1)
        log.tails.grown_to(1)
        log.allowed.release()
        assert await numbers(tail) == [1]
        log.tails.publish(log.events[:1])
        await asyncio.wait_for(log.tails.room(), 10)  # it does not count as waiting
        log.commit(published=True)
        assert await numbers(tail) == [2]


@pytest.mark.gen_test
async def test_there_is_room_again_when_a_follower_that_reads_the_log_has_caught_up() -> None:
    log = Log()
    log.commit(published=True)
    async with aclosing(log.tails.follow(0)) as tail:
        coming = asyncio.create_task(numbers(tail))
        await some_turns()
        log.commit(published=True, size=MAX_WAITING_BYTES + 1)
        waiting = asyncio.create_task(log.tails.room())
        await some_turns()
        assert not waiting.done()
        for _ in range(2):
            log.allowed.release()
        assert await coming == [1]
        assert await numbers(tail) == [2]
        await asyncio.wait_for(waiting, 10)
    assert not log.tails._followers


@pytest.mark.gen_test
async def test_an_append_that_waits_too_long_for_a_follower_is_refused_and_not_stored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sse_app.eventlog.tail.ROOM_TIMEOUT", 0.1)
    log = MemoryEventLog()
    await log.open()
    small, big = (NewEvent(ChannelName("a"), "t", data) for data in (b"{}", b"x" * MAX_WAITING_BYTES))
    async with aclosing(log.tail(0)) as tail:
        await log.append([small])
        await anext(tail)
        await log.append([big])
        with pytest.raises(EventLogUnavailable):
            async with asyncio.timeout(5):
                await log.append([big])
        assert log.head.seq == 2
        await anext(tail)
        await log.append([big])
        assert log.head.seq == 3
    await log.close()
