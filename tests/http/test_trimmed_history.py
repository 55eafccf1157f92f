"""A replay that is long, or whose history is trimmed meanwhile, has no silent gap."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.room import (
    DEADLINE,
    Acknowledged,
    Room,
    first,
    listen,
    numbers,
    publish_stubbornly,
    sequence,
    take,
)


def enough(count: int, met: Callable[[], bool]) -> Iterator[int]:
    """Count on from 21, so often at least, and further until all outcomes are met: how long that takes is chance."""
    deadline = time.monotonic() + DEADLINE
    for n in itertools.count(21):
        if n >= 21 + count and met():
            return
        assert time.monotonic() < deadline, "not all outcomes were met"
        yield n


@pytest.mark.slow
def test_a_replay_far_larger_than_the_backlog_limit_arrives_whole_while_more_is_published(
    start_room: Callable[..., Room],
) -> None:
    room = start_room(LIMITS__BACKLOG_BYTES=65536)
    start = room.head("dashboard")
    for part in range(20):
        room.publish_batch([("dashboard", 100 * part + n) for n in range(100)], text="x" * 2000)
    acknowledged: list[Acknowledged] = []
    with ThreadPoolExecutor() as pool:
        publisher = pool.submit(
            publish_stubbornly, room, [("dashboard", 2000 + n) for n in range(200)], acknowledged
        )
        with listen(room.url("dashboard"), after=start) as frames:
            assert first(frames).data["recovered"] is True
            assert numbers(take(frames, 2200)) == list(range(2200))
        publisher.result(DEADLINE)


def test_history_trimmed_during_a_replay_is_never_skipped_in_silence(start_room: Callable[..., Room]) -> None:
    # Its client does not read meanwhile; after two ping intervals it would be stalled.
    room = start_room(HISTORY__SIZE=300, LIMITS__BACKLOG_BYTES=65536, KEEPALIVE__PING_INTERVAL=60)
    start = room.head("dashboard")
    room.publish_batch([("dashboard", n) for n in range(300)], text="x" * 3000)
    position, seen, reset = start, list[int](), False
    with listen(room.url("dashboard"), after=start) as frames:
        connected = first(frames)
        assert connected.data["recovered"] is True
        # The client has read one event and does not read on; meanwhile all that it waits for is trimmed.
        for part in range(1, 4):
            room.publish_batch([("dashboard", 300 * part + n) for n in range(300)], text="x" * 3000)
        for frame in frames:
            if frame.type in ("closing", "reset"):
                reset = frame.type == "reset"
                break
            if frame.type == "e":
                assert frame.id is not None
                position = frame.id
                seen.append(frame.data["n"])
            if seen and seen[-1] == 1199:
                break
    assert seen == list(range(len(seen)))
    if len(seen) < 1200 and not reset:
        with listen(room.url("dashboard"), after=position) as frames:
            following = [first(frames), *take(frames, 1)]
        # What comes next is either the very next event, or a reset.
        assert following[1].type == "reset" or following[1].data["n"] == len(seen)


@pytest.mark.ci
@pytest.mark.parametrize("count", [40, pytest.param(400, marks=pytest.mark.long)])
def test_who_resumes_at_the_edge_of_a_history_being_trimmed_gets_the_next_event_or_a_reset(
    start_room: Callable[..., Room], count: int
) -> None:
    # Events so large that the past is read from the disk; the server may turn a client away in between.
    room = start_room(HISTORY__SIZE=20, expected=("replay_failed",))
    ids = [room.publish("dashboard", n, text="x" * 450_000) for n in range(21)]
    ended = threading.Event()
    met: set[str] = set()
    gaps: list[tuple[str, str | None]] = []

    def resume(back: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        with httpx.Client(timeout=DEADLINE) as client:
            while not ended.is_set():
                position = ids[-1 - back]
                with listen(room.url("dashboard"), after=position, client=client) as frames:
                    connected = first(frames)
                    (frame,) = take(frames, 1)
                assert connected.data["recovered"] is (frame.type != "reset")
                assert frame.type in ("e", "reset", "closing"), frame
                outcomes[frame.type] += 1
                met.add(frame.type)
                if (
                    frame.type == "e"
                    and frame.id is not None
                    and sequence(frame.id) != sequence(position) + 1
                ):
                    gaps.append((position, frame.id))
        return outcomes

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(resume, back) for back in (18, 19, 20)]
        try:
            for n in enough(count, lambda: {"e", "reset"} <= met):
                ids.append(room.publish("dashboard", n, text="x" * 450_000))
        finally:
            ended.set()
        outcomes = sum((client.result(DEADLINE) for client in clients), Counter[str]())
    assert not gaps, f"{len(gaps)} silent gaps in {outcomes}: {gaps}"
    assert outcomes["e"], "the test met no client that could go on"
    assert outcomes["reset"], "the test met no client that could not"


@pytest.mark.slow
def test_a_history_being_trimmed_is_complete_or_says_that_it_is_not(start_room: Callable[..., Room]) -> None:
    room = start_room(HISTORY__SIZE=20)
    met: set[str] = set()
    ids = [room.publish("dashboard", n) for n in range(21)]
    ended = threading.Event()

    def ask(back: int) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        headers = {"Authorization": f"Bearer {room.access}"}
        with httpx.Client(base_url=room.server.url, headers=headers, timeout=DEADLINE) as client:
            while not ended.is_set():
                position = ids[-1 - back]
                parameters: dict[str, str | int] = {"after": position, "limit": 1000}
                answer = client.get("/api/v1/sse/dashboard/history", params=parameters).json()
                got = [sequence(event["id"]) for event in answer["events"]]
                begin = sequence(position) + 1
                whole = got[:back] == list(range(begin, begin + back))
                outcome = "incomplete" if not answer["complete"] else "whole" if whole else "gap"
                outcomes[outcome] += 1
                met.add(outcome)
        return outcomes

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(ask, back) for back in (18, 19, 20)]
        try:
            for n in enough(150, lambda: {"whole", "incomplete"} <= met):
                ids.append(room.publish("dashboard", n))
        finally:
            ended.set()
        outcomes = sum((client.result(DEADLINE) for client in clients), Counter[str]())
    assert not outcomes["gap"], outcomes
    assert outcomes["whole"], outcomes
    assert outcomes["incomplete"], outcomes
