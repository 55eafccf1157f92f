"""Where a stream begins, what of patterns is replayed and lost, what is kept of each channel: on every event log."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import given as given_steps
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.events import FINAL, TEXT, Event, EventId, NewEvent
from sse_app.core.selection import Selection
from sse_app.eventlog import memory
from sse_app.eventlog.base import (
    EMPTY_CHANNELS,
    NO_FLOORS,
    Beginning,
    EventLog,
    Floors,
    LogClock,
    Retention,
    RetentionRules,
)
from sse_app.eventlog.sqlite import expiry, reader
from sse_app.eventlog.sqlite.log import SqliteEventLog
from tests.support.log_processes import log_at, until_told
from tests.support.waiting import until_async

A, B, C = (ChannelName(f"room.{letter}") for letter in "abc")
OTHER = ChannelName("other")

Make = Callable[..., EventLog]


def new(channel: str, text: str = "{}", flags: int = 0, type: str = "t") -> NewEvent:
    return NewEvent(ChannelName(channel), type, text.encode(), None, flags)


@asynccontextmanager
async def opened(log: EventLog) -> AsyncIterator[EventLog]:
    await log.open()
    try:
        yield log
    finally:
        await log.close()


async def pages(
    log: EventLog,
    texts: Collection[str],
    after: int,
    until: int,
    floors: Mapping[str, int] = NO_FLOORS,
    limit: int = 3,
) -> tuple[list[Event], bool]:
    """Read a part of the past to its end, as a stream does, and return its events and whether any page had a gap."""
    events: list[Event] = []
    gap = False
    while True:
        page = await log.replay(texts, after, until, limit, floors)
        events += page.events
        gap = gap or page.gap
        if not page.more:
            return events, gap
        assert after < page.reached <= until
        after = page.reached


async def begun(
    log: EventLog, texts: Collection[str], beginning: Beginning | None = None
) -> tuple[list[int], bool]:
    """Return the numbers of the events with which a stream begins, and whether it is told of a gap."""
    beginning = beginning or Beginning()
    floors = await log.begin(texts, beginning)
    events, gap = await pages(log, texts, floors.first - 1, floors.head.seq, floors.floors)
    seqs = [event.seq for event in events if beginning.types is None or event.type in beginning.types]
    assert floors.first == (seqs[0] if seqs else floors.head.seq + 1)
    return seqs, gap


@pytest.mark.gen_test
async def test_a_beginning_has_the_last_events_of_each_channel_by_name_and_by_pattern(make: Make) -> None:
    async with opened(make(size=4)) as log:
        assert await begun(log, ["room.*", OTHER]) == ([], False)
        await log.append([new(channel) for channel in (A, B, OTHER, A, A, B, A, A, A, C)])
        # Kept are: a 4 5 7 8 9 less the first, b 2 6, other 3, c 10
        assert await begun(log, [A]) == ([5, 7, 8, 9], False)
        assert await begun(log, ["room.*"]) == ([2, 5, 6, 7, 8, 9, 10], False)
        assert await begun(log, ["**"], Beginning(last=1)) == ([3, 6, 9, 10], False)
        assert await begun(log, ["room.*"], Beginning(last=2)) == ([2, 6, 8, 9, 10], False)
        assert await begun(log, [A, "room.*", OTHER], Beginning(last=1)) == ([3, 6, 9, 10], False)
        assert await begun(log, [A, B], Beginning(last=99)) == ([2, 5, 6, 7, 8, 9], False)
        assert await begun(log, ["never", "never.*"], Beginning(last=1)) == ([], False)


@pytest.mark.gen_test
async def test_of_the_last_events_those_count_that_are_of_the_types_asked_for(make: Make) -> None:
    async with opened(make(size=5)) as log:
        # Of a there are: alerts 1 5 6 8, notes 3 7 9; of b: an alert 2, a note 10; of the other channel a note 4.
        types = ["alert", "alert", "note", "note", "alert", "alert", "note", "alert", "note", "note"]
        channels = [A, B, A, OTHER, A, A, A, A, A, B]
        await log.append(
            [new(channel, type=type) for channel, type in zip(channels, types, strict=True)]
        )  # of a 1 and 3 are over its size

        async def last(count: int, *types: str, of: Sequence[str] = (A,)) -> list[int]:
            seqs, gap = await begun(log, of, Beginning(last=count, types=frozenset(types)))
            assert not gap
            return seqs

        assert await last(1, "alert") == [8]
        assert await last(2, "alert") == [6, 8]
        assert await last(5, "alert") == [5, 6, 8]
        assert await last(1, "note") == [9]
        assert await last(3, "note", "alert") == [7, 8, 9]
        assert await last(3, "none") == []
        assert await last(1, "alert", of=["room.*"]) == [2, 8]
        assert await last(2, "note", of=["**"]) == [4, 7, 9, 10]
        assert await last(1, "alert", of=[B, OTHER, "never"]) == [2]
        # A channel that has none of the types is not read for them.
        floors = await log.begin(["**"], Beginning(last=1, types=frozenset(["alert"])))
        events, _ = await pages(log, ["**"], floors.first - 1, floors.head.seq, floors.floors)
        assert [event.seq for event in events] == [2, 8, 9, 10]
        # What comes later follows, also on channels that had none.
        await log.append([new(OTHER, type="alert"), new(A, type="alert"), new(A)])
        events, gap = await pages(log, ["**"], floors.first - 1, log.head.seq, floors.floors)
        assert ([event.seq for event in events], gap) == ([2, 8, 9, 10, 11, 12, 13], False)


@pytest.mark.gen_test
async def test_what_is_trimmed_after_a_beginning_is_a_gap_of_its_channel_alone(make: Make) -> None:
    async with opened(make(size=3)) as log:
        await log.append([new(channel) for channel in (A, B, A, A, A)])
        for texts in ([A, B], ["room.*"]):
            floors = await log.begin(texts, Beginning())
            assert (floors.first, floors.head.seq) == (2, 5)
            assert not (await log.replay(texts, 1, 5, 9, floors.floors)).gap
        last = await log.begin(["room.*"], Beginning(last=1))
        await log.append([new(A)])
        assert (await log.replay(["room.*"], 1, 6, 9, floors.floors)).gap
        assert not (await log.replay(["room.b"], 1, 6, 9, floors.floors)).gap
        assert not (await log.replay(["room.*"], last.first - 1, 6, 9, last.floors)).gap
        position = EventId(floors.head.epoch, 1)
        assert await log.lost(["room.*", OTHER], position) == {A: "history_trimmed"}
        assert await log.lost(["room.*"], EventId(floors.head.epoch, 9)) == {"room.*": "position_ahead"}
        assert await log.lost(["room.*"], EventId("other", 1)) == {"room.*": "log_replaced"}


@pytest.mark.gen_test
async def test_a_beginning_by_time_has_what_was_stored_from_then_on(make: Make) -> None:
    async with opened(make()) as log:
        await log.append([new(A), new(B)])
        await asyncio.sleep(0.3)
        between = time.time()
        await asyncio.sleep(2)  # as long may pass between this clock and the log's
        await log.append([new(A), new(C)])
        for texts in ([A, B, C], ["room.*"]):
            assert await begun(log, texts, Beginning(since=between)) == ([3, 4], False)
            assert await begun(log, texts, Beginning(ago=time.time() - between)) == ([3, 4], False)
            assert await begun(log, texts, Beginning(since=between - 60)) == ([1, 2, 3, 4], False)
            assert await begun(log, texts, Beginning(ago=3600)) == ([1, 2, 3, 4], False)
            assert await begun(log, texts, Beginning(since=between + 3600)) == ([], False)
            assert await begun(log, texts, Beginning(ago=0)) == ([], False)


@pytest.mark.gen_test
async def test_a_pattern_covers_no_more_channels_than_it_says(make: Make) -> None:
    names = ["a", "a.b", "a.b.c", "a.bc", "ab", "b.a", "sse_app.a", "a-b", "a_b.c"]
    async with opened(make()) as log:
        await log.append([new(name) for name in names])
        for text in ("a.*", "a.**", "a.b.**", "*", "**", "*.*", "*.a", "a.*.c", "a.*.**", "*.b.*", "*.**"):
            covers = ChannelPattern(text).matches
            expected = [name for name in names if covers(name) and name != "sse_app.a"]
            events, _ = await pages(log, [text], 0, log.head.seq)
            assert [event.channel for event in events] == expected, text
            assert [event.channel for event in await log.latest([text], 99)] == expected, text
        assert [event.seq for event in await log.latest(["a.**", "b.a"], 3)] == [3, 4, 6]


@pytest.mark.gen_test
async def test_flags_are_kept_and_a_channel_has_ended_while_its_last_event_is_final(make: Make) -> None:
    async with opened(make(size=3)) as log:
        assert await log.ended() == {}
        await log.append(
            [
                new(A, "one\r\ntwo\n", TEXT),
                new(A, "end", TEXT | FINAL),
                new(B, "{}", FINAL),
                new(C, "{}", FINAL),
                new(C),
            ]
        )
        stored, _ = await pages(log, ["room.*"], 0, 5)
        assert [event.flags for event in stored] == [TEXT, TEXT | FINAL, FINAL, FINAL, 0]
        assert stored[0].data == b"one\r\ntwo\n"
        assert stored == await log.latest(["room.*"], 9) == (await log.replay([A, B, C], 0, 5, 9)).events
        tail = log.tail(0)
        assert stored == (await asyncio.wait_for(anext(tail), 20))
        assert await log.ended() == {A: 2, B: 3}
        await log.append([new(A), new(B, "{}", FINAL)])
        assert [event.flags for event in await asyncio.wait_for(anext(tail), 20)] == [0, FINAL]
        await tail.aclose()
        assert await log.ended() == {B: 7}


@pytest.mark.gen_test
async def test_each_channel_is_kept_by_the_first_rule_that_covers_it(make: Make) -> None:
    rules = RetentionRules(
        Retention(size=4),
        [
            (ChannelPattern("room.a"), Retention(size=1)),
            (ChannelPattern("room.*"), Retention(size=2)),
            (ChannelPattern("room.b"), Retention(size=3)),
        ],
    )
    async with opened(make(rules=rules)) as log:
        for _ in range(6):
            await log.append([new(A), new(B), new(OTHER)])
        assert await begun(log, [A]) == ([16], False)
        assert await begun(log, ["room.*"]) == ([14, 16, 17], False)
        assert await begun(log, [OTHER]) == ([9, 12, 15, 18], False)
        epoch = log.head.epoch
        assert await log.lost([A, B, OTHER], EventId(epoch, 15)) == {}
        assert await log.lost([A, B, OTHER], EventId(epoch, 12)) == {A: "history_trimmed"}
        assert await log.lost(["**"], EventId(epoch, 8)) == dict.fromkeys([A, B], "history_trimmed")
        assert await log.published(A) == (6, 16)


async def until_kept(log: EventLog, texts: list[str], seqs: list[int]) -> None:
    async def kept() -> bool:
        return [event.seq for event in await log.latest(texts, 999)] == seqs

    await until_async(kept, f"no more than {seqs} are kept")
    assert await begun(log, texts) == (seqs, False)


async def until_lost(log: EventLog, channels: list[ChannelName], position: EventId, lost: set[str]) -> None:
    """Wait until the log says so: a page of the past may know of a trim before the event loop has heard of it."""

    async def is_lost() -> bool:
        return await log.lost(channels, position) == dict.fromkeys(lost, "history_trimmed")

    await until_async(is_lost, f"no more than {lost} have lost events")


@pytest.mark.gen_test
async def test_what_is_kept_for_less_long_goes_before_the_others_and_is_told_to_be_gone(make: Make) -> None:
    rules = RetentionRules(
        Retention(),
        [
            (ChannelPattern("room.a"), Retention(age=0.4)),
            (ChannelPattern("room.b"), Retention(age=0.8)),
        ],
    )
    async with opened(make(rules=rules)) as log:
        await log.append([new(OTHER), new(A), new(B), new(OTHER), new(A)])
        await until_kept(log, ["room.a", "other"], [1, 4])
        await until_kept(log, ["**"], [1, 4])
        position = EventId(log.head.epoch, 2)
        await until_lost(log, [A, B, OTHER], position, {A, B})
        appended = time.monotonic()
        await log.append([new(A), new(OTHER)])
        found = await begun(log, [A, OTHER])
        assert found == ([1, 4, 6, 7], False) or time.monotonic() - appended > 0.4, found
        await until_kept(log, ["**"], [1, 4, 7])
        assert await log.published(A) == (3, 6)
        assert await log.lost([A], EventId(log.head.epoch, 6)) == {}


@pytest.mark.gen_test
async def test_another_retention_is_in_force_at_once(make: Make) -> None:
    log = make()
    async with opened(log):
        await log.append([new(A), new(B), new(A), new(B), new(OTHER)])
        log.use(RetentionRules(Retention(size=4), [(ChannelPattern("room.a"), Retention(size=1))]))
        await until_kept(log, ["**"], [2, 3, 4, 5])
        await until_told(log)
        log.use(Retention(size=3))
        await log.append([new(A)] * 5)
        await until_kept(log, ["**"], [2, 4, 5, 8, 9, 10])
        log.use(Retention(age=0.1))
        await until_kept(log, ["**"], [])
        await until_lost(log, [A], EventId(log.head.epoch, 9), {A})


WIDE = 150
"""More channels than are each read by an index."""


@pytest.mark.gen_test
async def test_a_wide_pattern_has_each_event_once_and_in_order_while_others_append_and_trim(
    make: Make,
) -> None:
    async with opened(make(size=20)) as log:
        names = [f"user.{number}.orders" for number in range(WIDE)]
        for _ in range(3):
            await log.append([new(name) for name in names] + [new("user.0.mail")] * 50)
        appending = True

        async def append() -> None:
            number = 0
            while appending:
                number += 1
                await log.append(
                    [new(names[number % WIDE]), new("user.0.mail"), new(f"user.n{number}.orders")]
                )

        task = asyncio.create_task(append())
        try:
            floors = await log.begin(["user.*.orders"], Beginning(last=2))
            events, gap = await pages(
                log, ["user.*.orders"], floors.first - 1, floors.head.seq, floors.floors, limit=40
            )
            assert not gap
            listed = await log.latest(["**"], 100_000)
        finally:
            appending = False
            await task
        of_channel: dict[str, list[int]] = {}
        for event in listed:
            if event.seq <= floors.head.seq and event.channel.endswith(".orders"):
                of_channel.setdefault(event.channel, []).append(event.seq)
        expected = sorted(seq for seqs in of_channel.values() for seq in seqs[-2:])
        assert [event.seq for event in events] == expected
        # What comes later, on channels that are new too, follows on from there.
        more, gap = await pages(
            log, ["user.*.orders"], floors.head.seq, log.head.seq, floors.floors, limit=40
        )
        later = [event for event in await log.latest(["**"], 100_000) if event.seq > floors.head.seq]
        assert more == [event for event in later if event.channel.endswith(".orders")]
        assert not gap


@pytest.mark.gen_test
async def test_a_pattern_is_lost_as_a_whole_where_a_channel_was_forgotten_and_begins_without_a_gap(
    make: Make,
) -> None:
    rules = RetentionRules(Retention(), [(ChannelPattern("once.*"), Retention(age=0.3))])
    async with opened(make(rules=rules)) as log:
        (first, *_) = await log.append([new(A), new(OTHER)])
        await log.append([new(f"once.{number}") for number in range(EMPTY_CHANNELS + 20)])
        (last,) = await log.append([new(A)])

        async def forgotten() -> bool:
            await log.append([new(OTHER)])  # a log in memory looks around when something is appended
            return "room.*" in await log.lost(["room.*"], first)

        deadline = asyncio.get_running_loop().time() + 60
        while not await forgotten():
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.1)
        assert await log.lost(["room.*", A, "never"], first) == {
            "room.*": "history_trimmed",
            "never": "history_trimmed",
        }
        assert (await log.replay(["room.*"], 1, log.head.seq, 10)).gap
        assert await log.lost(["room.*", A, "never"], last) == {}
        # The events of a channel that is older than what was forgotten are there from the beginning.
        assert await begun(log, ["room.*"]) == ([1, last.seq], False)
        assert await begun(log, ["room.*"], Beginning(last=1)) == ([last.seq], False)
        assert (await begun(log, ["**"], Beginning(last=1)))[0][0] == last.seq


@pytest.mark.gen_test
async def test_a_channel_of_a_pattern_that_is_forgotten_after_a_beginning_is_a_gap(make: Make) -> None:
    once = (ChannelPattern("once.*"), Retention(age=0.3))
    async with opened(make(rules=RetentionRules(Retention(), [once]))) as log:
        (first,) = await log.append([new(A)])
        await log.append([new(f"once.{number}") for number in range(EMPTY_CHANNELS + 20)])

        async def is_forgotten(name: str) -> bool:
            await log.append([new(OTHER)])  # a log in memory looks around when something is appended
            return await log.published(ChannelName(name)) == (0, 0)

        await until_async(lambda: is_forgotten("once.0"), "a channel that was used later is forgotten")
        floors = await log.begin(["room.*"], Beginning())
        assert floors.first == 1
        assert not (await log.replay(["room.*"], 0, floors.head.seq, 9, floors.floors)).gap
        log.use(RetentionRules(Retention(), [once, (ChannelPattern("room.*"), Retention(age=0.3))]))
        await until_async(lambda: is_forgotten(A), "the channel is forgotten that the stream begins with")
        assert (await log.replay(["room.*"], 0, floors.head.seq, 9, floors.floors)).gap
        assert await log.lost(["room.*"], first._replace(seq=0)) == {"room.*": "history_trimmed"}


@pytest.mark.gen_test
async def test_beginnings_are_the_same_after_the_log_was_closed(place: Path | str) -> None:
    rules = RetentionRules(Retention(size=3), [(ChannelPattern("room.b"), Retention(size=1))])
    asked: list[tuple[list[str], Beginning]] = [
        (["room.*"], Beginning()),
        (["**"], Beginning(last=1)),
        ([A, B], Beginning(ago=3600.0)),
        (["**"], Beginning(last=2, types=frozenset("t"))),
    ]

    async def answers(log: EventLog) -> list[object]:
        floors: list[Floors] = [await log.begin(*one) for one in asked]
        lost = await log.lost(["**"], EventId(log.head.epoch, 1))
        return [*floors, lost, await log.ended(), *[await begun(log, *one) for one in asked]]

    async with opened(log_at(place, rules)) as log:
        await log.append([new(channel) for channel in (A, B, A, A, B, A, OTHER)])
        await log.append([new(OTHER, "bye", TEXT | FINAL, "bye")])
        before = await answers(log)
        assert before[-4:] == [
            ([3, 4, 5, 6], False),
            ([5, 6, 8], False),
            ([3, 4, 5, 6], False),
            ([4, 5, 6, 7], False),
        ]
        async with opened(log_at(place, rules)) as other:
            assert await answers(other) == before
    async with opened(log_at(place, rules)) as log:
        assert await answers(log) == before


@pytest.mark.gen_test
async def test_a_narrow_pattern_looks_at_its_own_channels_and_a_wide_one_asks_for_no_more_than_its_page(
    tmp_path: Path,
) -> None:
    async with opened(SqliteEventLog(tmp_path / "e.db", Retention(size=2))) as log:
        assert isinstance(log, SqliteEventLog)
        for _ in range(3):
            await log.append([new(f"user.{number}.orders") for number in range(3000)])
        epoch, head = log.head
        database = log._reader._database
        statements: list[str] = []
        instructions = 0

        def step() -> int:
            nonlocal instructions
            instructions += 100
            return 0

        database.set_trace_callback(statements.append)
        database.set_progress_handler(step, 100)

        async def cost(asked: Awaitable[object]) -> tuple[int, int]:
            nonlocal instructions
            statements.clear()
            instructions = 0
            await asked
            return len(statements), instructions

        for asked in (
            log.lost(["user.7.*"], EventId(epoch, 10)),
            log.begin(["user.7.*"], Beginning(last=1)),
            log.replay(["user.7.**"], 3000, head, 50),
            log.latest(["user.7.*"], 50),
        ):
            sent, executed = await cost(asked)
            assert sent < 15
            assert executed < 2 * 3000
        sent, executed = await cost(log.replay(["user.*.orders"], 3000, head, 50))
        assert sent < 300
        assert executed < 100 * 3000
        sent, _ = await cost(log.latest(["user.*.orders"], 50))
        assert sent < 100
        sent, _ = await cost(log.begin(["user.*.orders"], Beginning(last=1)))
        assert sent < 15


NAMES = ["a", "a.x", "a.y", "a.x.z", "b", "b.x", "c"]
TEXTS = [*NAMES, "a.*", "a.**", "*.x", "**", "b.*", "*.x.*", "never"]
SIZES = RetentionRules(
    Retention(size=5),
    [(ChannelPattern("*.*.x"), Retention(size=1)), (ChannelPattern("*.b.**"), Retention(size=2))],
)


class Model:
    """What a log should do: a list of events, of which each channel keeps the last.

    Args:
        head: of the log, when this begins.
    """

    def __init__(self, head: int) -> None:
        self.head = head
        self.given: dict[str, list[int]] = {}
        self.type: dict[int, str] = {}

    def append(self, events: Sequence[NewEvent]) -> None:
        for event in events:
            self.head += 1
            self.given.setdefault(event.channel, []).append(self.head)
            self.type[self.head] = event.type

    def kept(self, name: str) -> list[int]:
        return self.given[name][-SIZES.of(name).size :]

    def trimmed(self, name: str) -> int:
        return ([0] + self.given[name])[-1 - len(self.kept(name))]

    def covered(self, texts: Collection[str]) -> list[str]:
        selection = Selection(texts)
        return [name for name in self.given if selection.covers(ChannelName(name))]

    def begun(
        self, texts: Collection[str], last: int | None, types: Collection[str] | None = None
    ) -> list[int]:
        found = (
            [seq for seq in self.kept(name) if types is None or self.type[seq] in types][-(last or 99) :]
            for name in self.covered(texts)
        )
        return sorted(seq for seqs in found for seq in seqs)


STEPS = st.lists(
    st.one_of(
        st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from("tu")), min_size=1, max_size=8),
        st.tuples(
            st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3, unique=True),
            st.one_of(
                st.just(Beginning()),
                st.tuples(
                    st.integers(1, 6),
                    st.sampled_from([None, frozenset("t"), frozenset("u"), frozenset("tu")]),
                ).map(lambda asked: Beginning(last=asked[0], types=asked[1])),
            ),
            st.integers(0, 30),
            st.integers(1, 4),
        ),
    ),
    max_size=20,
)


async def _is_as_the_model(log: EventLog, prefix: str, steps: list[Any]) -> None:
    """Append and ask as the steps say: channels are all under a prefix, so that the log may have others."""
    model = Model(log.head.seq)
    start = model.head
    begun_before: list[tuple[list[str], Floors, list[int]]] = []
    for step in steps:
        if isinstance(step, list):
            given = [new(f"{prefix}.{name}", type=type) for name, type in step]
            await log.append(given)
            model.append(given)
            continue
        texts, beginning, back, limit = step
        texts = [f"{prefix}.{text}" for text in texts]
        floors = await log.begin(texts, beginning)
        expected = model.begun(texts, beginning.last, beginning.types)
        assert floors.head.seq == model.head
        events, gap = await pages(log, texts, floors.first - 1, floors.head.seq, floors.floors, limit)
        seqs = [event.seq for event in events]
        wanted = [seq for seq in seqs if beginning.types is None or model.type[seq] in beginning.types]
        assert (wanted, gap) == (expected, False)
        assert floors.first == (expected or [model.head + 1])[0]
        begun_before.append((texts, floors, seqs))
        position = max(start, model.head - back)
        lost = {name for name in model.covered(texts) if position < model.trimmed(name)}
        assert await log.lost(texts, EventId(log.head.epoch, position)) == dict.fromkeys(
            lost, "history_trimmed"
        )
        events, gap = await pages(log, texts, position, model.head, limit=limit)
        assert gap == bool(lost)
        kept = sorted(seq for name in model.covered(texts) for seq in model.kept(name) if seq > position)
        assert [event.seq for event in events] == kept
        page = await log.latest(texts, limit)
        assert [event.seq for event in page] == model.begun(texts, None)[-limit:]
    # A stream that began before has its events and all that came since, or is told of a gap.
    for texts, floors, expected in begun_before:
        events, gap = await pages(log, texts, floors.first - 1, model.head, floors.floors)
        since = (seq for name in model.covered(texts) for seq in model.given[name] if seq > floors.head.seq)
        complete = sorted([*expected, *since])
        seqs = [event.seq for event in events]
        assert gap == (seqs != complete)
        assert set(seqs) <= set(complete)
        assert seqs == sorted(seqs)


@pytest.mark.slow
def test_whatever_is_appended_and_asked_a_log_answers_as_a_plain_list_would(make: Make) -> None:
    numbers = iter(range(1_000_000))
    with asyncio.Runner() as runner:
        log = make(rules=SIZES)
        runner.run(log.open())

        @hypothesis(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given_steps(STEPS)
        def as_the_model(steps: list[Any]) -> None:
            runner.run(_is_as_the_model(log, f"n{next(numbers)}", steps))

        try:
            as_the_model()
        finally:
            runner.run(log.close())


AGES = RetentionRules(
    Retention(size=4, age=100_000.0),
    [(ChannelPattern("*.s.*"), Retention(3, 5_000.0)), (ChannelPattern("*.l.*"), Retention(1, 50_000.0))],
)
AGED_NAMES = [f"{kind}.{number}" for kind in "slx" for number in range(4)]
AGED_TEXTS = ["s.*", "l.*", "x.*", "**", "*.1", "s.1", "x.2", "l.3", "*.*"]
AGED_STEPS = st.lists(
    st.one_of(
        st.lists(st.sampled_from(AGED_NAMES), min_size=1, max_size=4),
        st.sampled_from([1_000.0, 6_000.0, 30_000.0, 60_000.0]),
        st.tuples(
            st.lists(st.sampled_from(AGED_TEXTS), min_size=1, max_size=3, unique=True),
            st.sampled_from([None, 1, 2]),
            st.integers(0, 20),
        ),
    ),
    min_size=4,
    max_size=50,
)


class Aging:
    """A log whose time passes only when it is told, and which has forgotten all but two empty channels then.

    Args:
        kind: of the log.
        path: a file for it.
        monkeypatch: undoes what this does to its clock.
    """

    def __init__(self, kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.is_done = threading.Event()
        """Set when what was due has been done."""
        step = expiry.Expiry.step

        def noted(one: expiry.Expiry) -> bool:
            more = step(one)
            if not more:
                self.is_done.set()
            return more

        monkeypatch.setattr(memory, "EMPTY_CHANNELS", 2)
        monkeypatch.setattr(expiry, "EMPTY_CHANNELS", 2)
        monkeypatch.setattr(expiry.Expiry, "step", noted)
        monkeypatch.setattr(LogClock, "now", lambda _: self.now)
        self.log: EventLog
        if kind == "memory":
            self.log = memory.MemoryEventLog(AGES, clock=lambda: self.now)
        else:
            self.log = SqliteEventLog(path, AGES)

    async def pass_by(self, seconds: float) -> None:
        """Have time pass, and what is due then be done."""
        self.now += seconds
        if isinstance(self.log, SqliteEventLog):
            assert self.log._writer is not None
            self.is_done.clear()
            self.log._writer._expiry_is_due = True
            self.log._writer.look()
            assert await asyncio.to_thread(self.is_done.wait, 60)
            self.log._take_reports()


async def _no_gap_is_silent(aging: Aging, prefix: str, steps: list[Any]) -> None:
    log = aging.log
    given: list[tuple[int, ChannelName, float]] = []
    held: list[tuple[list[str], Floors, list[int]]] = []
    for step in steps:
        if isinstance(step, float):
            await aging.pass_by(step)
        elif isinstance(step, list):
            names = [ChannelName(f"{prefix}.{name}") for name in step]
            ids = await log.append([new(name) for name in names])
            given += [(id.seq, name, aging.now) for id, name in zip(ids, names, strict=True)]
        else:
            texts = [f"{prefix}.{text}" for text in step[0]]
            covers = Selection(texts).covers
            of_channel: dict[ChannelName, list[tuple[int, float]]] = {}
            for seq, name, at in given:
                if covers(name):
                    of_channel.setdefault(name, []).append((seq, at))
            expected = []
            for name, pairs in of_channel.items():
                size, age = AGES.of(name)
                expected += [seq for seq, at in pairs[-size:] if at > aging.now - age][-(step[1] or 99) :]
            floors = await log.begin(texts, Beginning(last=step[1]))
            events, gap = await pages(log, texts, floors.first - 1, floors.head.seq, floors.floors)
            assert ([event.seq for event in events], gap) == (sorted(expected), False)
            held.append((texts, floors, sorted(expected)))

            after = max(0, log.head.seq - step[2])
            lost = await log.lost(texts, EventId(log.head.epoch, after))
            following = dict.fromkeys(lost, log.head.seq)
            events, gap = await pages(log, texts, after, log.head.seq, following)
            assert not gap
            seqs = {event.seq for event in events}
            missing = {name for seq, name, _ in given if seq > after and covers(name) and seq not in seqs}
            assert all(map(Selection(lost).covers, missing))
            held.append((texts, Floors(log.head, after + 1, following), sorted(seqs)))
    for texts, floors, expected in held:  # streams that began then, and have been given nothing yet
        covers = Selection(texts).covers
        later = [seq for seq, name, _ in given if covers(name) and seq > floors.head.seq]
        events, gap = await pages(log, texts, floors.first - 1, log.head.seq, floors.floors)
        seqs_now = [event.seq for event in events]
        assert set(seqs_now) <= {*expected, *later}
        assert gap or seqs_now == [*expected, *later]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_whatever_is_too_old_or_forgotten_no_gap_is_silent(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = iter(range(1_000_000))
    aging = Aging(kind, tmp_path / "e.db", monkeypatch)
    with asyncio.Runner() as runner:
        runner.run(aging.log.open())
        runner.run(aging.pass_by(0))

        @hypothesis(max_examples=35, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given_steps(AGED_STEPS)
        def no_gap(steps: list[Any]) -> None:
            runner.run(_no_gap_is_silent(aging, f"n{next(numbers)}", steps))

        try:
            no_gap()
        finally:
            runner.run(aging.log.close())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.gen_test
async def test_a_beginning_has_nothing_that_is_too_old_also_before_that_is_erased(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aging = Aging(kind, tmp_path / "e.db", monkeypatch)
    names = ["n.s.a", "n.l.a", "n.x", "n.s.b", "n.x"]  # kept for 5,000, 50,000 and 100,000 seconds
    async with opened(aging.log) as log:
        await log.append([new(name) for name in names])
        aging.now += 4_000.0
        await log.append([new("n.s.a"), new("n.l.b")])
        every = Beginning(last=9, types=frozenset("t"))
        for seconds, kept in (
            (900.0, [1, 2, 3, 4, 5, 6, 7]),
            (200.0, [2, 3, 5, 6, 7]),
            (45_000.0, [3, 5, 7]),
            (50_000.0, []),
        ):
            aging.now += seconds
            for beginning in (Beginning(), Beginning(last=9), Beginning(ago=1e9), every):
                assert await begun(log, ["n.**"], beginning) == (kept, False)
                assert await begun(log, sorted({*names, "n.l.b"}), beginning) == (kept, False)
        await log.append([new("n.x")])
        assert await begun(log, ["n.**"]) == ([8], False)


@pytest.mark.gen_test
async def test_while_events_of_some_types_are_looked_for_others_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "WALK_TIME", 0.0)
    async with opened(SqliteEventLog(tmp_path / "e.db")) as log:
        await log.append([new(f"a.{number}") for number in range(500)])
        looking = asyncio.create_task(log.begin(["a.*"], Beginning(last=1, types=frozenset("u"))))
        await asyncio.sleep(0)
        for _ in range(20):
            assert (await log.latest(["a.7"], 1))[0].seq == 8
        assert not looking.done()
        (last,) = await log.append([new("a.9", type="u")])
        floors = await looking
        assert (floors.head.seq, floors.first) == (500, 501), "all is of one moment"
        assert last.seq == 501


@pytest.mark.gen_test
async def test_events_that_become_too_old_all_the_time_do_not_keep_others_from_being_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aging = Aging("sqlite", tmp_path / "e.db", monkeypatch)
    step = expiry.Expiry.step

    def late(one: expiry.Expiry) -> bool:
        aging.now += 1000.0
        return step(one)

    async with opened(aging.log) as log:
        await aging.pass_by(0)
        begun_at = aging.now
        for _ in range(40):
            await log.append([new(f"steady.{aging.now:.0f}")])
            aging.now += 1000.0
        aging.now = begun_at + 100_000.0
        await log.append([new("n.s.a")])
        monkeypatch.setattr(expiry.Expiry, "step", late)
        await aging.pass_by(6_000.0)
        assert await log.latest(["n.s.a"], 1) == []
        assert len(await log.latest(["steady.*"], 99)) > 20
