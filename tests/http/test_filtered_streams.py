"""Streams of some event types only: what they carry, and the positions that their pings tell."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import httpx
import pytest

from tests.support.room import DEADLINE, Frame, Room, first, listen, numbers, sequence, take
from tests.support.waiting import until


def next_ping(frames: Callable[[], Frame], at_least: int = 0) -> Frame:
    """Return the next ping that tells a position from a number on."""
    while True:
        frame = frames()
        assert frame.type == "ping", frame
        if frame.id is not None and sequence(frame.id) >= at_least:
            return frame


def test_only_the_types_asked_for_are_sent_live_and_of_the_past(room: Room) -> None:
    one, two = room.channel(), room.channel()
    position = room.head(one)
    with listen(room.url(f"{one},{two}", types="a,c")) as live:
        first(live)
        for number, event in enumerate(["a", "b", "c", "A", "aa", "a.b", "a"]):
            room.publish((one, two)[number % 2], number, event)
        batch = [{"channel": one, "event": type, "data": {"n": n}} for n, type in enumerate("abcab", 10)]
        room.http.post("/api/v1/sse", json={"events": batch}).raise_for_status()
        wanted = [0, 2, 6, 10, 12, 13]
        seen = list(itertools.islice((frame for frame in live if frame.type != "ping"), len(wanted)))
        assert numbers(seen) == wanted
    with listen(room.url(f"{one},{two}", types="c,a"), after=position) as replayed:
        first(replayed)
        again = list(itertools.islice((frame for frame in replayed if frame.type != "ping"), len(wanted)))
        assert again == seen


def test_pings_move_the_position_over_what_is_left_out_and_a_reconnect_goes_on_there(room: Room) -> None:
    channel = room.channel()
    with listen(room.url(channel, types="rare")) as frames, listen(room.url(channel)) as all_of_it:
        first(frames)
        first(all_of_it)
        last = ""
        for number in range(50):
            last = room.publish(channel, number, "often")
        ping = next_ping(frames.__next__, sequence(last))
        assert ping.id == last
        assert set(ping.data) == {"timestamp"}
        unfiltered = [next(frame for frame in all_of_it if frame.type == "ping") for _ in range(2)]
        assert [frame.id for frame in unfiltered] == [None, None], "they are told by events"
    missed = room.publish(channel, 50, "rare")
    room.publish(channel, 51, "often")
    with listen(room.url(channel, types="rare"), after=ping.id) as frames:
        begin = first(frames)
        assert (begin.id, begin.data["recovered"]) == (ping.id, True)
        event = next(frame for frame in frames if frame.type != "ping")
        assert (event.id, event.data["n"]) == (missed, 50)
        next_ping(frames.__next__, sequence(missed) + 1)


@pytest.mark.parametrize("on_pattern", [False, True])
def test_the_last_events_are_those_of_the_types_asked_for(room: Room, on_pattern: bool) -> None:
    base = room.channel()
    channel = f"{base}.one"
    alerts = []
    for number in range(60):
        rare = number % 10 == 0
        id = room.publish(channel, number, "rare" if rare else "often")
        alerts += [id] * rare
    room.publish(f"{base}.two", 60, "often")
    asked = f"{base}.*" if on_pattern else f"{base}.two,{channel}"

    def begun(last: str, types: str, count: int) -> tuple[int, list[int]]:
        """Return the number that ``connected`` tells, and those of the first events."""
        with listen(room.url(asked, last=last, types=types)) as frames:
            position = sequence(str(first(frames).id))
            return position, numbers(take(frames, count))

    assert begun("5", "rare", 5) == (sequence(alerts[1]) - 1, [10, 20, 30, 40, 50])
    assert begun("99", "rare", 6) == (sequence(alerts[0]) - 1, [0, 10, 20, 30, 40, 50])
    assert begun("1", "often", 2)[1] == [59, 60]
    assert begun("2", "often,rare", 3)[1] == [58, 59, 60]
    # Where there is none, the stream begins with what is new.
    with listen(room.url(asked, last="3", types="never")) as frames:
        assert first(frames).id == room.head(channel)
        room.publish(channel, 61, "often")
        room.publish(channel, 62, "never")
        assert numbers(take(frames, 1)) == [62]


def test_the_last_event_of_a_type_of_a_channel_that_has_ended_is_sent_before_its_end(room: Room) -> None:
    channel = room.channel()
    room.publish(channel, 0, "rare")
    room.publish(channel, 1, "often")
    final = {"event": "often", "data": {"n": 2}, "final": True}
    room.http.post(f"/api/v1/sse/{channel}", json=final).raise_for_status()
    with listen(room.url(channel, last="1", types="rare")) as frames:
        first(frames)
        event, closing = take(frames, 2)
        assert (event.data["n"], closing.data["reason"]) == (0, "ended")
    answer = httpx.get(room.url(channel, last="1", types="none"), timeout=DEADLINE)
    assert answer.status_code == 204, "nothing will come"


def test_a_client_that_is_told_positions_loses_nothing_when_the_history_goes_on(
    start_room: Callable[..., Room],
) -> None:
    """Without them it would come back with the position of long ago, and be told of a gap."""
    room = start_room(EVENT_LOG="memory:", HISTORY__SIZE=10)
    channel = room.channel()
    with listen(room.url(channel, types="rare")) as frames:
        begin = first(frames).id
        ids = [room.publish(channel, number, "often") for number in range(30)]
        ping = next_ping(frames.__next__, sequence(ids[-1]))
    with listen(room.url(channel, types="rare"), after=ping.id) as frames:
        assert first(frames).data["recovered"] is True
    with listen(room.url(channel, types="rare"), after=begin) as frames:
        assert first(frames).data["recovered"] is False
        assert next(frames).type == "reset"


@pytest.mark.parametrize(
    "types",
    [
        "",
        ",",
        "a,",
        ",a",
        "a,,b",
        "a b",
        " a",
        "a%0A",
        "a%00",
        "a%0Adata:%20x",
        "%C3%A9",
        "%FF",
        "*",
        "a*",
        "a/b",
        "connected",
        "a,ping",
        "reset",
        "closing",
        "open",
        "error",
        "a" * 129,
        ",".join(f"t{n}" for n in range(33)),
        "a&types=b",
    ],
)
def test_bad_types_are_400_that_names_them_and_nothing_is_registered(room: Room, types: str) -> None:
    channel = room.channel()
    for method in ("GET", "HEAD"):
        answer = httpx.request(method, f"{room.url(channel)}&types={types}", timeout=DEADLINE)
        assert answer.status_code == 400
        if method == "GET":
            error = answer.json()["error"]
            assert error["code"] == "invalid_types"
            assert "types" in error["message"]
    with listen(room.url(channel, types="a")) as frames:
        first(frames)
        until(lambda: opened(room, channel) == 1, "the good one is logged, and is the only one")


def opened(room: Room, channel: str) -> int:
    """Return how many streams have been opened on a channel."""
    lines = room.server.log_lines()
    return sum(line["event"] == "stream_opened" and line["channels"] == channel for line in lines)


def test_types_of_every_allowed_character_and_more_than_once_are_taken(room: Room) -> None:
    channel = room.channel()
    types = ["e", "A.b:c-d_9", "message", ".", ":", "-", "a" * 128]
    with listen(room.url(channel, types=",".join([*types, *types]))) as frames:
        first(frames)
        for number, type in enumerate(types):
            room.publish(channel, number, type)
        seen = list(itertools.islice((frame for frame in frames if frame.type != "ping"), len(types)))
    assert [frame.type for frame in seen] == types
