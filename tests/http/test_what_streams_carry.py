"""What a stream carries, and what it never does."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import random
import re
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.support.room import (
    CHANNELS,
    DEADLINE,
    Acknowledged,
    Room,
    first,
    frames_of,
    listen,
    numbers,
    publish_stubbornly,
    receive,
    sequence,
    take,
)
from tests.support.waiting import until


def test_a_ping_is_a_named_event_without_an_id_and_comes_in_every_interval(room: Room) -> None:
    with listen(room.url(room.channel())) as frames:
        first(frames)
        pings = list(itertools.islice(frames, 6))
    sent: list[datetime] = []
    for ping in pings:
        assert (ping.type, ping.id) == ("ping", None)
        assert set(ping.data) == {"timestamp"}
        sent.append(datetime.fromisoformat(ping.data["timestamp"]))
        assert sent[-1].utcoffset() is not None
    # By the server's clock: this process may have been too busy to read each as it came.
    between = sorted((later - one).total_seconds() for one, later in itertools.pairwise(sent))
    assert 0.7 < between[2] < 1.6, "most are a second; a busy machine lengthens one or two"


def test_a_server_that_ends_says_so_and_ends_the_body_well(start_room: Callable[..., Room]) -> None:
    room = start_room()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(listen(room.url("dashboard,alerts"))) for _ in range(10)]
        for frames in streams:
            first(frames)
        last = [room.publish("dashboard", n) for n in range(20)][-1]
        assert room.server.process is not None
        room.server.process.send_signal(signal.SIGTERM)
        for frames in streams:
            # httpx raises where the last chunk is missing.
            *events, closing = (frame for frame in frames if frame.type != "ping")
            assert numbers(events) == list(range(20))
            assert events[-1].id == last
            assert (closing.type, closing.id) == ("closing", None)
            assert set(closing.data) == {"reason", "retry"}
            assert closing.data["reason"] == "shutdown"
            assert isinstance(closing.data["retry"], int)
            assert closing.data["retry"] > 0
        assert room.server.process.wait(timeout=DEADLINE) == 0


@pytest.mark.slow
def test_a_stream_opened_while_50_publishers_publish_has_all_from_where_it_begins(room: Room) -> None:
    channel = room.channel()
    acknowledged: list[Acknowledged] = []

    connected: list[str] = []

    def listener(delay: int, after: str | None) -> tuple[str, list[str]]:
        until(lambda: len(acknowledged) >= delay, "the publishers are at it")
        ids: list[str] = []
        with listen(room.url(channel), after=after) as frames:
            begin = first(frames).id
            assert begin is not None
            connected.append(begin)
            for frame in frames:
                if frame.type == "end":
                    return begin, ids
                if frame.type != "ping":
                    assert frame.id is not None
                    ids.append(frame.id)
        raise AssertionError("the stream ended")

    start = room.head(channel)
    with ThreadPoolExecutor(80) as pool:
        listeners = [pool.submit(listener, 50 * step, start if step % 2 else None) for step in range(1, 19)]
        publishers = [
            pool.submit(publish_stubbornly, room, [(channel, 20 * part + n) for n in range(20)], acknowledged)
            for part in range(50)
        ]
        for publisher in publishers:
            publisher.result(DEADLINE)
        until(lambda: len(connected) == len(listeners), "all listen")
        room.publish(channel, 0, "end")
        log = sorted((event.id for event in acknowledged), key=sequence)
        assert len(log) == 1000
        for running in listeners:
            begin, ids = running.result(DEADLINE)
            assert ids == [id for id in log if sequence(id) > sequence(begin)]


def test_the_order_of_a_batch_is_the_order_on_every_stream(room: Room) -> None:
    names = [room.channel() for _ in range(3)]
    dice = random.Random(3)
    jobs = [(dice.choice(names), n) for n in range(200)]
    with listen(room.url(",".join(names))) as all_of_it, listen(room.url(names[1])) as one:
        first(all_of_it)
        first(one)
        ids = room.publish_batch(jobs)
        assert [sequence(id) - sequence(ids[0]) for id in ids] == list(range(200))
        seen = take(all_of_it, 200)
        assert [(frame.data["channel"], frame.data["n"]) for frame in seen] == jobs
        assert [frame.id for frame in seen] == ids
        of_one = [n for channel, n in jobs if channel == names[1]]
        assert numbers(take(one, len(of_one))) == of_one


def test_of_a_batch_with_one_bad_event_nothing_is_published(room: Room) -> None:
    channel = room.channel()
    good = {"channel": channel, "event": "e", "data": {"n": 0}}
    with listen(room.url(channel)) as frames:
        head = first(frames).id
        for bad in (
            {**good, "event": "connected"},
            {**good, "event": "a\nb"},
            {**good, "channel": "no.such.channel"},
            {**good, "retry": []},
            {"channel": channel},
        ):
            answer = room.http.post("/api/v1/sse", json={"events": [good, good, bad]})
            assert 400 <= answer.status_code < 500, answer.text
        live = room.publish(channel, 1)
        assert [frame.id for frame in take(frames, 1)] == [live]
    assert head is not None
    assert sequence(live) == sequence(head) + 1


def test_events_of_other_channels_never_arrive(room: Room) -> None:
    channel = room.channel()
    others = [f"{channel}.a", f"{channel}x", f"{channel}-", room.channel()]
    position = room.head(channel)
    with listen(room.url(channel)) as frames:
        first(frames)
        for n, other in enumerate(others):
            room.publish(other, n)
        room.publish_batch([(channel, 10), *((other, 11) for other in others), (channel, 12)])
        assert numbers(take(frames, 2)) == [10, 12]
    with listen(room.url(channel), after=position) as frames:
        first(frames)
        assert numbers(take(frames, 2)) == [10, 12]
        live = room.publish(channel, 13)
        assert [frame.id for frame in take(frames, 1)] == [live]


def test_a_channel_asked_for_twice_sends_its_events_once(room: Room) -> None:
    channel = room.channel()
    answer = httpx.Client()
    with answer, answer.stream("GET", room.url(f"{channel},{channel}")) as response:
        if response.status_code == 400:
            return
        frames = frames_of(response.iter_bytes())
        assert first(frames).data["channels"] == [channel]
        room.publish_batch([(channel, 1), (channel, 2)])
        assert numbers(take(frames, 2)) == [1, 2]


def test_the_server_sets_channel_and_adds_a_timestamp_where_there_is_none(room: Room) -> None:
    channel = room.channel()
    position = room.head(channel)
    with listen(room.url(channel)) as live:
        first(live)
        posing_data = {"n": 1, "channel": "alerts"}
        room.http.post(f"/api/v1/sse/{channel}", json={"event": "e", "data": posing_data}).raise_for_status()
        room.publish(channel, 2, timestamp="yesterday")
        answer = room.http.post(
            f"/api/v1/sse/{channel}", json={"event": "e", "data": {"n": 3}, "retry": 1234}
        )
        assert answer.status_code == 201
        sent = take(live, 3)
    with listen(room.url(channel), after=position) as replayed:
        first(replayed)
        assert take(replayed, 3) == sent, "a replay is what was sent live"
    history = room.http.get(f"/api/v1/sse/{channel}/history", params={"after": position}).json()
    assert [event["id"] for event in history["events"]] == [frame.id for frame in sent]
    assert [event["data"] for event in history["events"]] == [frame.data for frame in sent]
    posing, dated, slow = sent
    assert posing.data["channel"] == channel
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", posing.data["timestamp"])
    assert dated.data["timestamp"] == "yesterday"
    assert [frame.retry for frame in (posing, dated, slow)] == [None, None, 1234]


def test_a_key_used_by_many_at_once_makes_one_event(room: Room) -> None:
    channel = room.channel()
    position = room.head(channel)

    def once(_: int) -> str:
        answer = room.http.post(
            f"/api/v1/sse/{channel}",
            json={"event": "e", "data": {"n": 1}},
            headers={"Idempotency-Key": f"key-of-{channel}"},
        )
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(once, range(20)))
    last = room.publish(channel, 2)
    with listen(room.url(channel), after=position) as frames:
        first(frames)
        assert [frame.id for frame in take(frames, 2)] == [*ids, last]


def test_a_client_of_http_1_0_gets_the_same_bytes_unframed(room: Room) -> None:
    channel = room.channel()
    position = room.publish(channel, 0)
    missed = room.publish(channel, 1)
    target = room.url(channel).removeprefix(room.server.url)
    with socket.create_connection(("127.0.0.1", room.server.port), timeout=DEADLINE) as client:
        client.sendall(f"GET {target} HTTP/1.0\r\nLast-Event-ID: {position}\r\n\r\n".encode())
        with client.makefile("rb") as file:
            assert file.readline().split()[1] == b"200"
            headers = [line.lower() for line in iter(file.readline, b"\r\n")]
            assert not any(line.startswith(b"transfer-encoding") for line in headers)
            frames = frames_of(file)
            assert first(frames).id == position
            assert [frame.id for frame in take(frames, 1)] == [missed]
            live = room.publish(channel, 2)
            assert [frame.id for frame in take(frames, 1)] == [live]


def test_the_counts_come_back_to_zero_when_the_clients_leave_however_they_leave(room: Room) -> None:
    until(lambda: room.status()["total_connections"] == 0, "the clients of other tests are gone")
    before = room.status()["channels"]["dashboard"]["events_published"]
    with contextlib.ExitStack() as stack:
        for n in range(30):
            wish = ("dashboard", "dashboard,alerts", "alerts,dashboard,training")[n % 3]
            client = stack.enter_context(
                socket.create_connection(("127.0.0.1", room.server.port), timeout=DEADLINE)
            )
            target = room.url(wish, client_id="same").removeprefix(room.server.url)
            client.sendall(f"GET {target} HTTP/1.1\r\nHost: {room.server.url[7:]}\r\n\r\n".encode())
            if n % 5 == 0:
                client.shutdown(
                    socket.SHUT_WR
                )  # half closed: either a client that left, or one still reading
            elif n % 5 == 1:
                client.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
                )  # leaves with a reset
            elif n % 5 == 2:
                assert client.recv(65536)
        until(lambda: room.status()["total_connections"] >= 24, "the streams are open")
        room.publish_batch([("dashboard", n) for n in range(10)])
        status = room.status()
        assert status["channels"]["dashboard"]["connection_count"] == status["total_connections"]
        assert room.metric('sse_app_channel_streams{channel="dashboard"}') >= 24
    until(lambda: room.status()["total_connections"] == 0, "all have left")
    status = room.status()
    assert {name: of["connection_count"] for name, of in status["channels"].items()} == dict.fromkeys(
        CHANNELS[:4], 0
    )
    assert status["channels"]["dashboard"]["events_published"] == before + 10
    for name in (
        "sse_app_streams",
        'sse_app_channel_streams{channel="dashboard"}',
        'sse_app_channel_streams{channel="training"}',
        "sse_app_streams_behind",
        "sse_app_backlog_bytes",
    ):
        assert room.metric(name) == 0, name


VALUES: list[object] = [
    None,
    True,
    False,
    0,
    -1.5,
    1e300,
    12345678901234567890123456789,
    [],
    [1, [2, {"channel": "posing"}], None],
    {},
    {"channel": "posing", "n": [12345678901234567890123456789]},
    "",
    "null",
    '{"n": 1}',
]


@pytest.mark.parametrize("how", ["one", "batch"])
def test_data_is_any_json_value_and_only_an_object_gets_channel_and_timestamp(room: Room, how: str) -> None:
    channel = room.channel()
    position = room.head(channel)
    with receive(room.url(channel)) as live:
        next(live)
        events = [{"event": "e", "data": value} for value in VALUES]
        if how == "one":
            for event in events:
                assert room.http.post(f"/api/v1/sse/{channel}", json=event).status_code == 201
        else:
            batch = {"events": [{**event, "channel": channel} for event in events]}
            assert room.http.post("/api/v1/sse", json=batch).status_code == 201
        sent = [event.data for event in itertools.islice(live, len(VALUES))]
    with receive(room.url(channel), after=position) as replayed:
        next(replayed)
        assert [event.data for event in itertools.islice(replayed, len(VALUES))] == sent
    kept = room.http.get(f"/api/v1/sse/{channel}/history", params={"after": position}).json()["events"]
    for value, data, of_history in zip(VALUES, sent, kept, strict=True):
        if isinstance(value, str):
            assert data == of_history["data"] == value
            continue
        received = json.loads(data)
        assert received == of_history["data"]
        if isinstance(value, dict):
            assert received == {**value, "channel": channel, "timestamp": received["timestamp"]}
        else:
            assert (received, type(received)) == (value, type(value))


TEXTS = [
    "",
    " ",
    "  two spaces first",
    "\ttab",
    "<p>a</p>\n  <p>b</p>\n",
    "one\ntwo\n\n\nfive",
    "\n",
    "\n\n\n",
    "\r",
    "\r\n",
    "a\rb\r\nc\n\rd",
    "a\r\r\n\n",
    "data: x\n\nevent: forged\nid: forged-1\nretry: 1\ndata: y\n\n",
    "\n\nevent: x",
    ": comment\nid: 1",
    "nul \0 within",
    "\ufeffbyte order mark first",
    "\ufeff",
    "\u2028 and \u2029, \x0b \x0c \x1c \x85 are no line breaks",
    "😀 and é",
    "\U0010ffff\ud7ff",
    "x" * 300_000,
    "a\n" * 30_000,
]


def as_a_client_sees(text: str) -> str:
    """Return a text whose line breaks are all LF: more an event stream cannot carry."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def test_a_text_is_received_exactly_as_it_was_published_in_each_way(start_room: Callable[..., Room]) -> None:
    room = start_room(KEEPALIVE__PING_INTERVAL=60)  # the stream is not read while its texts are published
    channel = room.channel()
    position = room.head(channel)
    with receive(room.url(channel)) as live:
        next(live)
        ids = []
        for number, text in enumerate(TEXTS):
            answers = [
                room.http.post(f"/api/v1/sse/{channel}", json={"event": f"t{number}", "data": text}),
                room.http.post(
                    f"/api/v1/sse/{channel}?event=t{number}",
                    content=text.encode(),
                    headers={"Content-Type": "text/html; charset=utf-8"},
                ),
            ]
            for answer in answers:
                assert answer.status_code == 201, (text[:50], answer.text)
                ids.append(answer.json()["id"])
        sent = list(itertools.islice(live, len(ids)))
    expected = [(f"t{number}", as_a_client_sees(text)) for number, text in enumerate(TEXTS) for _ in range(2)]
    assert [(event.type, event.data) for event in sent] == expected
    assert [event.id for event in sent] == ids
    with receive(room.url(channel), after=position) as replayed:
        next(replayed)
        assert list(itertools.islice(replayed, len(ids))) == sent
    kept: list[dict[str, Any]] = []
    while len(kept) < len(ids):
        after = kept[-1]["id"] if kept else position
        page = room.http.get(f"/api/v1/sse/{channel}/history", params={"after": after}).json()
        assert page["complete"]
        assert page["events"]
        kept += page["events"]
    assert [event["data"] for event in kept] == [text for text in TEXTS for _ in range(2)]


@pytest.mark.long
def test_of_a_text_over_the_limit_of_a_body_nothing_is_published(start_room: Callable[..., Room]) -> None:
    # The stream is not read while its text is published; after two ping intervals its client would be stalled.
    room = start_room(KEEPALIVE__PING_INTERVAL=60)
    channel = room.channel()
    post = functools.partial(
        room.http.post, f"/api/v1/sse/{channel}?event=e", headers={"Content-Type": "text/plain"}
    )
    with receive(room.url(channel)) as live:
        next(live)
        assert post(content=b"x" * (1024 * 1024 + 1)).status_code == 413
        assert post(content=b"\n" * (1024 * 1024)).status_code == 201
        assert next(live).data == "\n" * (1024 * 1024)
