"""A client that drops and comes back has every event once and in order."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.room import (
    DEADLINE,
    Acknowledged,
    Frame,
    Room,
    first,
    listen,
    numbers,
    publish_stubbornly,
    sequence,
    take,
)
from tests.support.waiting import until


def follow(room: Room, channels: str, position: str, *, seed: int, by: str = "header") -> list[Frame]:
    """Listen, drop after a random number of frames, resume by the last id; until `end` came on every channel."""
    dice = random.Random(seed)
    seen: list[Frame] = []
    waiting = set(channels.split(","))
    deadline = time.monotonic() + DEADLINE
    with httpx.Client(timeout=DEADLINE) as client:
        while waiting:
            assert time.monotonic() < deadline, (
                f"still waiting for the end of {waiting} after {len(seen)} events"
            )
            query = {"last_event_id": position} if by == "query" else {}
            after = position if by == "header" else None
            try:
                with listen(room.url(channels, **query), after=after, client=client) as frames:
                    frame = next(frames)
                    if frame.type != "closing":
                        assert frame.type == "connected"
                        assert frame.id == position
                        assert frame.data["recovered"] is True
                    for frame in itertools.islice(frames, dice.randrange(60)):
                        assert time.monotonic() < deadline, f"{waiting} did not end, {len(seen)} events"
                        if frame.type in ("ping", "closing"):
                            assert frame.id is None
                            continue
                        assert frame.type in ("e", "end"), frame
                        assert frame.id is not None
                        position = frame.id
                        if frame.type == "end":
                            waiting.discard(frame.data["channel"])
                            if not waiting:
                                break
                        else:
                            seen.append(frame)
            except httpx.TransportError:
                time.sleep(0.02)  # the server is away: a client would wait for its `retry`
    return seen


def everything(seen: Iterable[Frame], acknowledged: Iterable[Acknowledged], channels: str) -> None:
    """Check that what was seen is what was acknowledged on the channels: each event once, in the log's order."""
    wanted = sorted(
        (event for event in acknowledged if event.channel in channels.split(",")),
        key=lambda event: sequence(event.id),
    )
    assert [(frame.id, frame.data["channel"], frame.data["n"]) for frame in seen] == wanted


# A client that drops and comes back


@pytest.mark.slow
@pytest.mark.parametrize("by", ["header", pytest.param("query", marks=pytest.mark.long)])
def test_a_client_that_drops_while_1000_events_are_published_has_each_once_and_in_order(
    room: Room, by: str
) -> None:
    channel = room.channel()
    start = room.head(channel)
    acknowledged: list[Acknowledged] = []
    with ThreadPoolExecutor() as pool:
        client = pool.submit(follow, room, channel, start, seed=1, by=by)
        publish_stubbornly(room, ((channel, n) for n in range(1000)), acknowledged)
        room.publish(channel, 0, "end")
        seen = client.result(DEADLINE)
    assert numbers(seen) == list(range(1000))
    everything(seen, acknowledged, channel)


@pytest.mark.slow
def test_clients_of_several_channels_that_drop_at_random_have_all_in_the_order_of_the_log(room: Room) -> None:
    names = [room.channel() for _ in range(4)]
    wishes = [*names[:2], ",".join(names), ",".join(names[1:3]), ",".join(reversed(names)), ",".join(names)]
    starts = [room.head(wish) for wish in wishes]
    acknowledged: list[Acknowledged] = []
    with ThreadPoolExecutor(20) as pool:
        clients = [
            pool.submit(follow, room, wish, start, seed=seed, by="header" if seed % 2 else "query")
            for seed, (wish, start) in enumerate(zip(wishes, starts, strict=True))
        ]
        dice = random.Random(7)
        parts = [[(dice.choice(names), 250 * part + n) for n in range(250)] for part in range(4)]
        list(pool.map(lambda jobs: publish_stubbornly(room, jobs, acknowledged), parts))
        for name in names:
            room.publish(name, 0, "end")
        for wish, client in zip(wishes, clients, strict=True):
            everything(client.result(DEADLINE), acknowledged, wish)
    assert len(acknowledged) == 1000


@pytest.mark.ci
@pytest.mark.parametrize("how", ["kill -9", "SIGTERM"])
def test_whatever_ends_the_server_each_acknowledged_event_is_there_once(
    start_room: Callable[..., Room], how: str
) -> None:
    room = start_room()
    names = [room.channel() for _ in range(3)]
    wishes = [names[0], ",".join(names), ",".join(names)]
    starts = [room.head(wish) for wish in wishes]
    acknowledged: list[Acknowledged] = []
    with ThreadPoolExecutor(20) as pool:
        clients = [
            pool.submit(follow, room, wish, start, seed=seed)
            for seed, (wish, start) in enumerate(zip(wishes, starts, strict=True))
        ]
        parts = [[(names[n % 3], 100 * part + n) for n in range(100)] for part in range(5)]
        publishers = [pool.submit(publish_stubbornly, room, jobs, acknowledged) for jobs in parts]
        for count in (100, 200, 300):
            until(lambda count=count: len(acknowledged) >= count, f"{count} events are acknowledged")  # type: ignore[misc]
            if how == "SIGTERM":
                assert room.server.stop() == 0
            else:
                room.server.kill()
            room.server.start()
        for publisher in publishers:
            publisher.result(DEADLINE)
        for name in names:
            room.publish(name, 0, "end")
        seen = [client.result(DEADLINE) for client in clients]
    assert sorted(event.n for event in acknowledged) == list(range(500))
    assert len({event.id for event in acknowledged}) == 500
    for wish, frames in zip(wishes, seen, strict=True):
        everything(frames, acknowledged, wish)


def test_a_client_cut_right_after_connected_misses_nothing(room: Room) -> None:
    channel = room.channel()
    position = room.head(channel)
    for n in range(3):
        room.publish(channel, n)
    for _ in range(3):  # cut before the replay each time
        with listen(room.url(channel), after=position) as frames:
            connected = first(frames)
        assert connected.id is not None
        position = connected.id
    with listen(room.url(channel), after=position) as frames:
        assert first(frames).data["recovered"] is True
        assert numbers(take(frames, 3)) == [0, 1, 2]


def test_connected_places_a_fresh_stream_at_the_head_and_a_resumed_one_where_it_was(room: Room) -> None:
    channel, other = room.channel(), room.channel()
    old = room.publish(channel, 1)
    head = room.publish(other, 2)
    with listen(room.url(f"{channel},{other}", client_id="tab-1")) as frames:
        fresh = first(frames)
        room.publish(channel, 3)
        assert numbers(take(frames, 1)) == [3]
    assert fresh.id == head
    assert set(fresh.data) == {
        "client_id",
        "channel",
        "channels",
        "message",
        "recovered",
        "retry",
        "expires_in",
        "timestamp",
    }
    assert fresh.data["client_id"] == "tab-1"
    assert fresh.data["channel"] == channel
    assert fresh.data["channels"] == [channel, other]
    assert fresh.data["recovered"] is False
    assert 0 < fresh.data["expires_in"] <= 600
    assert fresh.retry is None or fresh.retry == fresh.data["retry"]
    with listen(room.url(f"{channel},{other}"), after=old) as frames:
        resumed = first(frames)
        assert numbers(take(frames, 2)) == [2, 3]
    assert (resumed.id, resumed.data["recovered"]) == (old, True)
    with listen(room.url(channel, last_event_id=""), after="") as frames:
        empty = first(frames)
    assert empty.data["recovered"] is False


def test_the_header_wins_over_the_query(room: Room) -> None:
    channel = room.channel()
    ids = [room.publish(channel, n) for n in range(3)]
    with listen(room.url(channel, last_event_id=ids[0]), after=ids[1]) as frames:
        assert first(frames).id == ids[1]
        assert numbers(take(frames, 1)) == [2]


def test_a_position_on_one_channel_is_one_on_all(room: Room) -> None:
    a, b, c = (room.channel() for _ in range(3))
    room.publish(a, 0)
    position = room.publish(b, 1)
    room.publish(c, 2)
    room.publish(a, 3)
    room.publish(b, 4)
    with listen(room.url(f"{a},{c}"), after=position) as frames:
        assert first(frames).data["recovered"] is True
        assert [(frame.data["channel"], frame.data["n"]) for frame in take(frames, 2)] == [(c, 2), (a, 3)]


def test_the_position_of_an_empty_log_is_good_for_all_that_follows(start_room: Callable[..., Room]) -> None:
    room = start_room()
    start = room.head("dashboard")
    assert sequence(start) == 0
    room.publish_batch([("dashboard", n) for n in range(5)])
    with listen(room.url("dashboard"), after=start) as frames:
        assert first(frames).data["recovered"] is True
        assert numbers(take(frames, 5)) == [0, 1, 2, 3, 4]
