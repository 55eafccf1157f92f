"""What a client that drops and comes back gets: every event once and in order, or a `reset`."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import shutil
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, NamedTuple

import httpx
import pytest

from tests.server_process import ServerProcess

Start = Callable[..., ServerProcess]
DEADLINE = 30.0  # seconds after which a test stops waiting


class Frame(NamedTuple):
    """One event as it came over the wire; fields that were not there are None."""

    type: str | None
    id: str | None
    data: dict[str, Any]
    retry: int | None


class Acknowledged(NamedTuple):
    """One event that the server answered with 201."""

    id: str
    channel: str
    n: int


def sequence(id: str) -> int:
    return int(id.rpartition("-")[2])


def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE) -> None:
    """Wait until the condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def frames_of(lines: Iterable[str]) -> Iterator[Frame]:
    """Decode lines strictly: known fields only, each at most once, and data that is a JSON object."""
    fields: dict[str, str] = {}
    for line in lines:
        if line:
            name, colon, value = line.partition(": ")
            assert colon, line
            assert name in {"id", "event", "data", "retry"}, line
            assert name not in fields, line
            fields[name] = value
        elif fields:
            retry = fields.get("retry")
            data = json.loads(fields["data"]) if "data" in fields else {}
            assert isinstance(data, dict)
            if set(fields) != {"retry"}:
                yield Frame(fields.get("event"), fields.get("id"), data, int(retry) if retry else None)
            fields = {}
    assert not fields, "the stream ended within an event"


@contextlib.contextmanager
def listen(
    url: str, *, after: str | bytes | None = None, client: httpx.Client | None = None
) -> Iterator[Iterator[Frame]]:
    """Open a stream, with a position for the Last-Event-ID header, and give its frames; drop it at the end."""
    headers = {} if after is None else {b"Last-Event-ID": after.encode() if isinstance(after, str) else after}
    with contextlib.ExitStack() as stack:
        client = client or stack.enter_context(httpx.Client(timeout=DEADLINE))
        response = stack.enter_context(client.stream("GET", url, headers=headers))
        if response.status_code != 200:
            raise AssertionError((response.status_code, response.read()))
        deadline = time.monotonic() + DEADLINE

        def lines() -> Iterator[str]:
            for line in response.iter_lines():
                assert time.monotonic() < deadline, "pings, and not what the test waits for"
                yield line

        yield frames_of(lines())


def first(frames: Iterator[Frame]) -> Frame:
    """Return the first frame, which has to be `connected`."""
    frame = next(frames)
    assert frame.type == "connected", frame
    assert frame.id is not None
    return frame


def take(frames: Iterator[Frame], count: int) -> list[Frame]:
    """Return the next frames, pings left out."""
    return list(itertools.islice((frame for frame in frames if frame.type != "ping"), count))


def numbers(frames: Iterable[Frame]) -> list[int]:
    return [frame.data["n"] for frame in frames]


class Room:
    """A running server with one token that may read everything and one that may publish everything."""

    names = itertools.count()

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.access = server.access_token()
        self.token = server.stream_token("**")
        self.http = httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {self.access}"}, timeout=DEADLINE
        )

    def channel(self) -> str:
        """Return the name of a channel that no other test uses."""
        return f"test.c{next(self.names)}"

    def url(self, channels: str, **query: str) -> str:
        return self.server.stream_url(channels, self.token, **query)

    def head(self, channels: str) -> str:
        """Return where a fresh stream begins."""
        with listen(self.url(channels)) as frames:
            id = first(frames).id
        assert id is not None
        return id

    def publish(self, channel: str, n: int, event: str = "e", **more: object) -> str:
        """Publish one event and return its id."""
        answer = self.http.post(f"/api/v1/sse/{channel}", json={"event": event, "data": {"n": n, **more}})
        assert answer.status_code == 201, answer.text
        assert answer.json()["channel"] == channel
        return str(answer.json()["id"])

    def publish_batch(self, events: Iterable[tuple[str, int]], **more: object) -> list[str]:
        """Publish (channel, n) pairs at once and return their ids."""
        answer = self.http.post(
            "/api/v1/sse",
            json={
                "events": [
                    {"channel": channel, "event": "e", "data": {"n": n, **more}} for channel, n in events
                ]
            },
        )
        assert answer.status_code == 201, answer.text
        return [str(id) for id in answer.json()["ids"]]

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.get(f"{self.server.url}/api/v1/sse/status").json()
        return answer

    def metric(self, name: str) -> float:
        """Return the value of one line of /metrics."""
        for line in httpx.get(f"{self.server.url}/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        raise AssertionError(f"no metric {name}")


CHANNELS = ["dashboard", "alerts", "training", "backtest", "test.**"]
LIMITS: dict[str, Any] = {"LIMITS__STREAMS_PER_USER": 1000}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A server that the tests of this file share, each on channels of its own."""
    server = ServerProcess(
        state_dir=tmp_path_factory.mktemp("delivery") / "state",
        CHANNELS=CHANNELS,
        KEEPALIVE__PING_INTERVAL=1,
        **LIMITS,
    )
    try:
        server.start()
        room = Room(server)
        with room.http:
            yield room
    finally:
        if server.process is not None:
            server.stop()
    server.check_log()


@pytest.fixture
def start_room(start_server: Start) -> Iterator[Callable[..., Room]]:
    """A function that starts a server of the test's own."""
    with contextlib.ExitStack() as stack:

        def start(**settings: object) -> Room:
            room = Room(
                start_server(**{"CHANNELS": CHANNELS, "KEEPALIVE__PING_INTERVAL": 1, **LIMITS, **settings})
            )
            stack.enter_context(room.http)
            return room

        yield start


def publish_stubbornly(
    room: Room, jobs: Iterable[tuple[str, int]], acknowledged: list[Acknowledged], pace: float = 0
) -> None:
    """Publish (channel, n) pairs one by one, each again with the same Idempotency-Key until it is answered 201."""
    headers = {"Authorization": f"Bearer {room.access}"}
    with httpx.Client(base_url=room.server.url, headers=headers, timeout=DEADLINE) as client:
        for channel, n in jobs:
            key = str(uuid.uuid4())
            deadline = time.monotonic() + DEADLINE
            while True:
                assert time.monotonic() < deadline, "not acknowledged in time"
                try:
                    answer = client.post(
                        f"/api/v1/sse/{channel}",
                        json={"event": "e", "data": {"n": n}},
                        headers={"Idempotency-Key": key},
                    )
                except httpx.TransportError:
                    time.sleep(0.02)
                    continue
                if answer.status_code == 503:
                    assert answer.headers["Retry-After"]
                    time.sleep(0.02)
                    continue
                break
            assert answer.status_code == 201, answer.text
            acknowledged.append(Acknowledged(answer.json()["id"], channel, n))
            if pace:
                time.sleep(pace)


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


@pytest.mark.parametrize("by", ["header", "query"])
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


@pytest.mark.slow
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
        parts = [[(names[n % 3], 200 * part + n) for n in range(200)] for part in range(5)]
        publishers = [pool.submit(publish_stubbornly, room, jobs, acknowledged) for jobs in parts]
        for count in (200, 450, 700):
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
    assert sorted(event.n for event in acknowledged) == list(range(1000))
    assert len({event.id for event in acknowledged}) == 1000
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
    room = start_room(HISTORY__SIZE=300, LIMITS__BACKLOG_BYTES=65536)
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


@pytest.mark.slow
def test_who_resumes_at_the_edge_of_a_history_being_trimmed_gets_the_next_event_or_a_reset(
    start_room: Callable[..., Room],
) -> None:
    # Events so large that the past is read from the disk; the server may turn a client away in between.
    room = start_room(HISTORY__SIZE=20, expected=("replay_failed",))
    ids = [room.publish("dashboard", n, text="x" * 450_000) for n in range(20)]
    ended = threading.Event()
    gaps: list[tuple[str, str | None]] = []

    def resume(back: int) -> Counter[str | None]:
        outcomes: Counter[str | None] = Counter()
        with httpx.Client(timeout=DEADLINE) as client:
            while not ended.is_set():
                position = ids[-1 - back]
                with listen(room.url("dashboard"), after=position, client=client) as frames:
                    connected = first(frames)
                    (frame,) = take(frames, 1)
                assert connected.data["recovered"] is (frame.type != "reset")
                assert frame.type in ("e", "reset", "closing"), frame
                outcomes[frame.type] += 1
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
            for n in range(20, 160):
                ids.append(room.publish("dashboard", n, text="x" * 450_000))
        finally:
            ended.set()
        outcomes = sum((client.result(DEADLINE) for client in clients), Counter[str | None]())
    assert not gaps, f"{len(gaps)} silent gaps in {outcomes}: {gaps}"
    assert outcomes["e"], "the test met no client that could go on"
    assert outcomes["reset"], "the test met no client that could not"


def test_a_history_being_trimmed_is_complete_or_says_that_it_is_not(start_room: Callable[..., Room]) -> None:
    room = start_room(HISTORY__SIZE=20)
    ids = [room.publish("dashboard", n) for n in range(20)]
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
                outcomes["incomplete" if not answer["complete"] else "whole" if whole else "gap"] += 1
        return outcomes

    with ThreadPoolExecutor() as pool:
        clients = [pool.submit(ask, back) for back in (18, 19, 20)]
        try:
            for n in range(20, 170):
                ids.append(room.publish("dashboard", n))
        finally:
            ended.set()
        outcomes = sum((client.result(DEADLINE) for client in clients), Counter[str]())
    assert not outcomes["gap"], outcomes
    assert outcomes["whole"], outcomes
    assert outcomes["incomplete"], outcomes


# Positions that cannot be continued


def test_a_position_older_than_the_history_brings_a_reset_and_then_live_events(
    start_room: Callable[..., Room],
) -> None:
    room = start_room(HISTORY__SIZE=10)
    fresh = room.head("dashboard")
    ids = [room.publish("dashboard", n) for n in range(30)]
    for round in range(2):
        for old in (fresh, ids[0], ids[18]):
            with listen(room.url("dashboard"), after=old) as frames:
                assert first(frames).data["recovered"] is False
                (reset,) = take(frames, 1)
                assert (reset.type, reset.id) == ("reset", None)
                assert set(reset.data) == {"channel", "reason"}
                assert reset.data["channel"] == "dashboard"
                assert isinstance(reset.data["reason"], str)
                assert reset.data["reason"]
                room.http.post("/api/v1/sse/dashboard", json={"event": "live", "data": {}})
                assert [frame.type for frame in take(frames, 1)] == ["live"]
            room.publish_batch([("dashboard", n) for n in range(10)])
        ids = [room.publish("dashboard", n) for n in range(30)]
        with listen(room.url("dashboard"), after=ids[19]) as frames:
            assert first(frames).data["recovered"] is True
            assert numbers(take(frames, 10)) == list(range(20, 30))
        if round == 0:  # a restart does not forget what was trimmed
            room.server.stop()
            room.server.start()


def test_a_position_before_an_event_that_grew_too_old_brings_a_reset(start_room: Callable[..., Room]) -> None:
    room = start_room(HISTORY__AGE=1)
    before = room.publish("dashboard", 0)
    last = room.publish("dashboard", 1)
    after = {"after": before}

    def gone() -> bool:
        answer = room.http.get("/api/v1/sse/dashboard/history", params=after).json()
        assert answer["complete"] is (answer["events"] != [])
        return not answer["events"]

    until(gone, "the event grew too old")
    for _ in range(2):
        with listen(room.url("dashboard"), after=before) as frames:
            assert first(frames).data["recovered"] is False
            assert [frame.type for frame in take(frames, 1)] == ["reset"]
        with listen(room.url("dashboard"), after=last) as frames:
            assert first(frames).data["recovered"] is True
            new = room.publish("dashboard", 2)
            assert [(frame.type, frame.id) for frame in take(frames, 1)] == [("e", new)]
        # Nothing is left in the log but its head; ids go on from there all the same.
        assert sequence(new) == sequence(last) + 1
        until(
            lambda: not room.http.get("/api/v1/sse/dashboard/history").json()["events"],
            "the next event grew too old",
        )
        last = new
        room.server.stop()
        room.server.start()
    assert sequence(room.publish("dashboard", 3)) == sequence(last) + 1


def test_a_quiet_channel_goes_on_while_a_busy_one_was_trimmed(start_room: Callable[..., Room]) -> None:
    room = start_room(HISTORY__SIZE=10)
    position = room.publish("alerts", 0)
    next_id = room.publish("alerts", 1)
    room.publish_batch([("dashboard", n) for n in range(50)])
    room.publish("training", 2)
    with listen(room.url("alerts"), after=position) as frames:
        assert first(frames).data["recovered"] is True
        assert [frame.id for frame in take(frames, 1)] == [next_id]
    with listen(room.url("training,dashboard,alerts"), after=position) as frames:
        connected = first(frames)
        assert connected.data["recovered"] is False
        reset, quiet, other = take(frames, 3)
        assert (reset.type, reset.data["channel"]) == ("reset", "dashboard")
        assert (quiet.id, quiet.data["channel"]) == (next_id, "alerts")
        assert other.data["channel"] == "training"
        live = room.publish("dashboard", 99)
        assert [frame.id for frame in take(frames, 1)] == [live]
    # Cut before the replay, it is told and gets the same again.
    with listen(room.url("training,dashboard,alerts"), after=connected.id) as frames:
        assert first(frames).data["recovered"] is False
        assert [frame.type for frame in take(frames, 3)] == ["reset", "e", "e"]


@pytest.mark.parametrize(
    "make",
    [
        "0badc0de-{seq}",
        "{epoch}",
        "{epoch}-",
        "-{seq}",
        "{seq}",
        "garbage",
        "{epoch}-ahead",
        "{epoch}-{ahead}",
        "{epoch}-9223372036854775807",
        "{epoch}-9223372036854775808",
        "{epoch}-999999999999999999999999999999999999999",
        "{epoch}--1",
        "{epoch}-1.5",
        "{epoch}-1e0",
        "{epoch}-0x1",
        "{epoch}-+{seq}",
        "{epoch}-0_1",
        "{epoch}-{seq}-{seq}",
        "{epoch}-²",
        "{epoch}-\u0661",
        "{epoch}\u2028-{seq}",
        "'; drop table events; --",
        "null",
        "é",
    ],
)
def test_a_position_that_means_nothing_here_brings_a_reset_for_each_channel(room: Room, make: str) -> None:
    a, b = room.channel(), room.channel()
    id = room.publish(a, 0)
    room.publish(b, 0)
    epoch = id.rpartition("-")[0]
    position = make.format(epoch=epoch, seq=sequence(id), ahead=sequence(id) + 1000)
    for url, header in (
        (room.url(f"{a},{b}", last_event_id=position), None),
        (room.url(f"{a},{b}"), position),
    ):
        with listen(url, after=header) as frames:
            connected = first(frames)
            assert connected.data["recovered"] is False
            resets = take(frames, 2)
            assert [frame.type for frame in resets] == ["reset", "reset"]
            assert [frame.data["channel"] for frame in resets] == [a, b]
            live = room.publish(b, 1)
            assert [frame.id for frame in take(frames, 1)] == [live]


@pytest.mark.parametrize("lost", ["trimmed", "another epoch", "unreadable", "ahead"])
def test_a_client_cut_between_connected_and_reset_is_told_again(
    start_room: Callable[..., Room], lost: str
) -> None:
    room = start_room(HISTORY__SIZE=10)
    head = room.head("dashboard")
    ids = room.publish_batch([("dashboard", n) for n in range(30)])
    position = {
        "trimmed": head,
        "another epoch": f"0badc0de-{sequence(ids[5])}",
        "unreadable": "unreadable",
        "ahead": ids[-1].replace(f"-{sequence(ids[-1])}", "-5000"),
    }[lost]
    for _ in range(3):
        with listen(room.url("dashboard"), after=position) as frames:
            connected = next(frames)
            assert (connected.type, connected.data["recovered"]) == ("connected", False)
        # A client keeps the last id that it was given, and this one saw no `reset` yet.
        position = position if connected.id is None else connected.id


def test_bytes_in_the_header_that_are_no_utf8_bring_a_reset(room: Room) -> None:
    channel = room.channel()
    with listen(room.url(channel), after=b"\xff\xfe\x80") as frames:
        assert first(frames).data["recovered"] is False
        assert [frame.type for frame in take(frames, 1)] == ["reset"]


def test_an_id_of_128_bytes_is_looked_at_and_a_longer_one_or_control_characters_are_not(room: Room) -> None:
    channel = room.channel()
    with listen(room.url(channel, last_event_id="x" * 128)) as frames:
        assert first(frames).data["recovered"] is False
    for value in ("x" * 129, "é" * 65, "a\nb", "\n", " a\x00", "a\t", "\x7f", "a\r"):
        answer = httpx.get(room.url(channel, last_event_id=value))
        assert answer.status_code == 400, value
        assert set(answer.json()["error"]) == {"code", "message"}
    answer = httpx.get(room.url(channel), headers={"Last-Event-ID": "x" * 129})
    assert answer.status_code == 400


def test_after_a_restored_backup_a_new_epoch_makes_old_ids_recognisable(
    start_room: Callable[..., Room],
) -> None:
    room = start_room()
    server = room.server
    saved = [room.publish("dashboard", n) for n in range(5)]
    assert server.stop() == 0
    backup = server.state_dir.with_name("backup")
    shutil.copytree(server.state_dir, backup)
    server.start()
    lost = [room.publish("dashboard", n) for n in range(5, 10)]
    server.stop()
    shutil.rmtree(server.state_dir)
    backup.rename(server.state_dir)
    server.command("eventlog", "new-epoch")
    server.start()
    new = [room.publish("dashboard", n) for n in range(10, 15)]
    assert not {*saved, *lost} & {*new}
    for old in (saved[0], saved[-1], lost[0], lost[-1]):
        with listen(room.url("dashboard"), after=old) as frames:
            assert first(frames).data["recovered"] is False
            assert [frame.type for frame in take(frames, 1)] == ["reset"]
        history = room.http.get("/api/v1/sse/dashboard/history", params={"after": old}).json()
        assert history["complete"] is False
    with listen(room.url("dashboard"), after=new[2]) as frames:
        assert first(frames).data["recovered"] is True
        assert [frame.id for frame in take(frames, 2)] == new[3:]


def test_a_lost_log_is_another_one_when_it_is_made_again(start_room: Callable[..., Room]) -> None:
    room = start_room()
    old = [room.publish("dashboard", n) for n in range(3)]
    room.server.stop()
    for path in room.server.state_dir.glob("events.db*"):
        path.unlink()
    room.server.start()
    new = [room.publish("dashboard", n) for n in range(3)]
    assert not set(old) & set(new)
    with listen(room.url("dashboard"), after=old[0]) as frames:
        assert first(frames).data["recovered"] is False
        assert [frame.type for frame in take(frames, 1)] == ["reset"]


# What a stream carries


def test_a_ping_is_a_named_event_without_an_id_and_comes_in_every_interval(room: Room) -> None:
    with listen(room.url(room.channel())) as frames:
        first(frames)
        begin = time.monotonic()
        pings = list(itertools.islice(frames, 3))
        took = time.monotonic() - begin
    for ping in pings:
        assert (ping.type, ping.id) == ("ping", None)
        assert set(ping.data) == {"timestamp"}
        assert datetime.fromisoformat(ping.data["timestamp"]).utcoffset() is not None
    assert 1.5 < took < 4.5, "three pings at one a second"


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
            {**good, "data": []},
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
        frames = frames_of(response.iter_lines())
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
        with client.makefile("r", encoding="utf-8", newline="") as file:
            assert file.readline().split()[1] == "200"
            headers = [line.lower() for line in iter(file.readline, "\r\n")]
            assert not any(line.startswith("transfer-encoding") for line in headers)
            frames = frames_of(line.rstrip("\n") for line in file)
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
