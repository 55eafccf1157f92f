"""Channels that end: the last event of a stream, what comes after it, and what is answered to those that come back."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.support.room import CHANNELS, DEADLINE, Room, receive
from tests.support.server_process import running
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.waiting import until

TEXT = {"Content-Type": "text/plain"}


@pytest.fixture(scope="module", params=["memory:", "sqlite:"])
def room(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Room]:
    with running(
        state_dir=tmp_path_factory.mktemp("endings") / "state",
        CHANNELS=CHANNELS,
        EVENT_LOG=request.param,
        HISTORY__SIZE=20,
        LIMITS__STREAMS_PER_USER=1000,
    ) as server:
        room = Room(server)
        with room.http:
            yield room


def say(room: Room, channel: str, text: str, *, event: str = "token", final: bool = False) -> str:
    """Publish a text, and return its id."""
    query = f"?event={event}" + ("&final=true" if final else "")
    answer = room.http.post(f"/api/v1/sse/{channel}{query}", content=text.encode(), headers=TEXT)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def rest_of(stream: Iterator[ReceivedEvent]) -> list[tuple[str, str]]:
    """Return types and data up to the end of the body, which has to be that of a channel that has ended."""
    *events, closing = stream
    assert_ended(closing)
    return [(event.type, event.data) for event in events]


def assert_ended(closing: ReceivedEvent) -> None:
    assert (closing.type, closing.id, closing.retry) == ("closing", None, None)
    assert json.loads(closing.data) == {"reason": "ended", "retry": None}


def coming_back(room: Room, channels: str, position: str | None, method: str = "GET", **query: str) -> int:
    """Return the status of a stream that is asked for from a position."""
    headers = {} if position is None else {"Last-Event-ID": position}
    with httpx.stream(method, room.url(channels, **query), headers=headers, timeout=DEADLINE) as answer:
        if answer.status_code == 204:
            assert answer.read() == b""
            assert "Content-Type" not in answer.headers
            assert answer.headers["Cache-Control"] == "no-store"
        return answer.status_code


def test_after_its_final_event_a_stream_ends_and_says_so(room: Room) -> None:
    channel = room.channel()
    with receive(room.url(channel)) as stream:
        assert next(stream).type == "connected"
        say(room, channel, "Hello")
        last = say(room, channel, " world", final=True)
        events = list(stream)
    assert [(event.type, event.data) for event in events[:-1]] == [("token", "Hello"), ("token", " world")]
    assert_ended(events[-1])
    assert events[-1].last_id == last, "with which a client comes back"


@pytest.mark.parametrize("how", ["json", "batch", "query"])
def test_an_end_is_published_in_each_way(room: Room, how: str) -> None:
    channel = room.channel()
    event: dict[str, Any] = {"event": "e", "data": {"n": 1}, "final": True}
    with receive(room.url(channel)) as stream:
        next(stream)
        if how == "query":
            say(room, channel, "x", final=True)
        elif how == "json":
            room.http.post(f"/api/v1/sse/{channel}", json=event).raise_for_status()
        else:
            batch = {"events": [{**event, "channel": channel}]}
            room.http.post("/api/v1/sse", json=batch).raise_for_status()
        assert len(rest_of(stream)) == 1


def test_a_client_with_all_there_was_is_answered_204_and_one_that_missed_something_gets_that_first(
    room: Room,
) -> None:
    channel = room.channel()
    ids = [say(room, channel, text) for text in "abc"] + [say(room, channel, "d", final=True)]
    said = [("token", text) for text in "abcd"]
    for seen, position in enumerate(ids[:-1], 1):
        with receive(room.url(channel), after=position) as stream:
            assert next(stream).id == position
            assert rest_of(stream) == said[seen:]
        assert coming_back(room, channel, position, "HEAD") == 200
    until(lambda: room.status()["total_connections"] == 0, "those streams are gone")
    for method in ("GET", "HEAD"):
        assert coming_back(room, channel, ids[-1], method) == 204
        assert coming_back(room, channel, None, method) == 204, "nothing is to come"
        assert coming_back(room, channel, None, method, last_event_id=ids[-1]) == 204
        for beginning in ({"since": "2100-01-01T00:00:00Z"}, {"from": "latest"}):
            assert coming_back(room, channel, None, method, **beginning) == 204
    later = say(room, room.channel(), "elsewhere")
    assert coming_back(room, channel, later) == 204, "behind the end"
    assert room.status()["total_connections"] == 0, "nothing was registered"


@pytest.mark.parametrize(
    ("beginning", "seen"),
    [
        ({"from": "earliest"}, "abcd"),
        ({"last": "2"}, "cd"),
        ({"last": "1"}, "d"),
        ({"since": "-600"}, "abcd"),
    ],
)
def test_a_stream_that_begins_in_the_past_of_a_channel_that_has_ended_gets_that_and_ends(
    room: Room, beginning: dict[str, str], seen: str
) -> None:
    channel = room.channel()
    ids = [say(room, channel, text) for text in "abc"] + [say(room, channel, "d", final=True)]
    with receive(room.url(channel, **beginning)) as stream:
        next(stream)
        events = list(stream)
    assert "".join(event.data for event in events[:-1]) == seen
    assert [event.id for event in events[:-1]] == ids[-len(seen) :]
    assert_ended(events[-1])
    assert coming_back(room, channel, events[-1].last_id, **beginning) == 204


def test_a_later_event_opens_the_channel_again(room: Room) -> None:
    channel = room.channel()
    end = say(room, channel, "the end", final=True)
    assert coming_back(room, channel, end) == 204
    again = say(room, channel, "or not")
    with receive(room.url(channel), after=end) as stream:
        next(stream)
        event = next(stream)
        assert (event.data, event.id) == ("or not", again)
        say(room, channel, "but now", final=True)
        assert rest_of(stream) == [("token", "but now")]


def test_a_stream_of_several_channels_ends_when_all_of_them_have(room: Room) -> None:
    one, two, three = (room.channel() for _ in range(3))
    both = f"{one},{two}"
    with receive(room.url(both)) as stream, receive(room.url(f"{both},{three}")) as longer:
        next(stream)
        next(longer)
        end = say(room, one, "a", final=True)
        say(room, two, "b")
        say(room, two, "c", final=True)
        assert rest_of(stream) == [("token", "a"), ("token", "b"), ("token", "c")]
        assert coming_back(room, one, end) == 204
        say(room, one, "d")
        say(room, three, "e", final=True)
        say(room, one, "f", final=True)
        assert rest_of(longer) == [("token", text) for text in "abcdef"]
    with receive(room.url(f"{both},{three}"), after=end) as stream:
        next(stream)
        assert rest_of(stream) == [("token", text) for text in "bcdef"]


def test_a_stream_of_a_pattern_does_not_end(room: Room) -> None:
    channel = room.channel()
    with (
        receive(room.url(f"{channel}.*")) as pattern,
        receive(room.url(f"{channel}.a,{channel}.*")) as mixed,
        receive(room.url(f"{channel}.a")) as alone,
    ):
        for stream in (pattern, mixed, alone):
            next(stream)
        end = say(room, f"{channel}.a", "the end", final=True)
        assert rest_of(alone) == [("token", "the end")]
        say(room, f"{channel}.b", "later")
        for stream in (pattern, mixed):
            assert [event.data for event in itertools.islice(stream, 2)] == ["the end", "later"]
    for names in (f"{channel}.*", f"{channel}.a,{channel}.**"):
        assert coming_back(room, names, end) == 200


def test_within_a_batch_only_what_is_last_on_a_channel_ends_it(room: Room) -> None:
    one, two = room.channel(), room.channel()
    with (
        receive(room.url(one)) as first,
        receive(room.url(two)) as second,
        receive(room.url(f"{one},{two}")) as both,
    ):
        for stream in (first, second, both):
            next(stream)
        events = [
            {"channel": one, "event": "e", "data": "1", "final": True},
            {"channel": two, "event": "e", "data": "2", "final": True},
            {"channel": one, "event": "e", "data": "3"},
        ]
        room.http.post("/api/v1/sse", json={"events": events}).raise_for_status()
        assert rest_of(second) == [("e", "2")]
        assert [event.data for event in itertools.islice(first, 2)] == ["1", "3"]
        say(room, one, "4", event="e", final=True)
        assert rest_of(first) == [("e", "4")]
        assert rest_of(both) == [("e", text) for text in "1234"]


def test_a_repeat_of_the_final_event_with_its_key_does_not_end_what_was_opened_again(room: Room) -> None:
    channel = room.channel()
    key = {"Idempotency-Key": f"end-of-{channel}"}
    body = {"event": "e", "data": "end", "final": True}

    def post() -> httpx.Response:
        return room.http.post(f"/api/v1/sse/{channel}", json=body, headers=key)

    first = post().json()["id"]
    assert coming_back(room, channel, first) == 204
    assert post().json()["id"] == first
    assert coming_back(room, channel, first) == 204
    say(room, channel, "again")
    assert post().json()["id"] == first
    with receive(room.url(channel), after=first) as stream:
        next(stream)
        assert next(stream).data == "again"
        say(room, channel, "x", final=True)
        assert rest_of(stream) == [("token", "x")]


def test_what_cannot_be_continued_is_told_before_the_end_and_then_a_client_stops(room: Room) -> None:
    channel, other = room.channel(), room.channel()
    old = say(room, channel, "trimmed")
    for number in range(30):
        say(room, channel, str(number))
    end = say(room, channel, "end", final=True)
    say(room, other, "x", final=True)
    for names, position in (
        (channel, old),
        (channel, "made-1"),
        (channel, "what"),
        (f"{channel},{other}", old),
    ):
        seen: list[str] = []
        for _ in range(3):
            if coming_back(room, names, position) == 204:
                break
            with receive(room.url(names), after=position) as stream:
                connected, *events, closing = stream
                assert connected.type == "connected"
                assert_ended(closing)
                seen += [event.type for event in events]
                position = closing.last_id
        else:
            raise AssertionError(f"a client of {names} would come back for ever")
        assert "reset" in seen, "never a silent gap"
        assert seen.count("reset") == 1, "once for each channel"
    assert coming_back(room, channel, end) == 204


@pytest.mark.slow
def test_where_the_final_event_is_no_longer_kept_the_channel_counts_as_not_ended(
    start_room: Callable[..., Room],
) -> None:
    room = start_room(EVENT_LOG="memory:", HISTORY__AGE=2)
    channel = room.channel()
    end = say(room, channel, "end", final=True)
    assert coming_back(room, channel, end) == 204
    until(lambda: coming_back(room, channel, end) == 200, "the event is too old to be kept")
    assert coming_back(room, channel, None) == 200


def test_slow_clients_have_all_of_it_before_the_end(room: Room) -> None:
    channel = room.channel()
    text = "x" * 100_000
    with receive(room.url(channel)) as stream, receive(room.url(channel)) as quick:
        next(stream)
        next(quick)
        for _ in range(9):
            say(room, channel, text)
        say(room, channel, "end", final=True)
        assert rest_of(quick) == [("token", text)] * 9 + [("token", "end")]
        assert rest_of(stream) == [("token", text)] * 9 + [("token", "end")]


def test_streams_that_come_while_channels_end_and_begin_again_have_every_event_once(room: Room) -> None:
    """Each client comes back until it is told that there is nothing more, as a browser does."""
    channel = room.channel()
    start = say(room, channel, "start")
    published: list[str] = []
    done = threading.Event()

    def publish() -> None:
        for number in range(15):
            published.append(say(room, channel, str(number), final=number % 3 == 2))
        done.set()

    def follow(results: list[list[str]]) -> None:
        ids: list[str] = []
        position = start
        while not done.is_set() or coming_back(room, channel, position) != 204:
            with httpx.stream(
                "GET", room.url(channel), headers={"Last-Event-ID": position}, timeout=DEADLINE
            ) as answer:
                if answer.status_code == 204:
                    continue
                events = [event for event in _events(answer) if event.type == "token"]
            ids += [event.id for event in events if event.id is not None]
            position = ids[-1] if ids else position
        results.append(ids)

    results: list[list[str]] = []
    threads = [
        threading.Thread(target=publish),
        *(threading.Thread(target=follow, args=(results,)) for _ in range(8)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == [published] * 8


def _events(answer: httpx.Response) -> Iterator[ReceivedEvent]:
    reader = EventStreamReader(texts=True)
    for piece in answer.iter_bytes():
        yield from reader.feed(piece)
    reader.end()


def test_who_may_not_listen_is_not_told_that_a_channel_has_ended(room: Room) -> None:
    channel = room.channel()
    say(room, channel, "end", final=True)
    for token, status in ((room.server.stream_token("alerts"), 403), ("x", 401)):
        assert httpx.get(room.server.stream_url(channel, token)).status_code == status
        assert httpx.head(room.server.stream_url(channel, token)).status_code == status
    assert httpx.get(room.url(f"{channel},..")).status_code == 400
    assert httpx.get(room.url(channel, types="a,a b")).status_code == 400


def test_a_connection_goes_on_after_a_204(room: Room) -> None:
    channel = room.channel()
    say(room, channel, "end", final=True)
    with httpx.Client(timeout=DEADLINE) as client:
        for _ in range(3):
            assert client.get(room.url(channel)).status_code == 204
            assert client.get(f"{room.server.url}/healthz").status_code == 200
