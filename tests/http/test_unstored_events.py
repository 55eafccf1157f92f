"""Events that are not stored: they have no id, cost no commit, and come in order to the streams that are there."""

from __future__ import annotations

import itertools
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sse_app.streams.passing_on import WAIT
from tests.support.node_processes import node_processes
from tests.support.people import Ear
from tests.support.room import Frame, Room, first, listen, numbers, take
from tests.support.server_process import ServerProcess
from tests.support.waiting import until
from tests.support.worker_processes import worker_processes

CHANNELS: list[object] = ["dashboard", {"pattern": "cursors.*", "stored": False}]
CURSORS, STORED = "cursors.a", "dashboard"


@pytest.fixture
def start(start_room: Callable[..., Room]) -> Callable[..., Room]:
    """A function that starts a server with a pattern of channels that are not stored."""
    return lambda **settings: start_room(**{"CHANNELS": CHANNELS, **settings})


@pytest.fixture
def room(start: Callable[..., Room]) -> Room:
    """Such a server."""
    return start()


def move(http: httpx.Client, n: int, channel: str = CURSORS, **more: object) -> None:
    """Publish an event that is not stored."""
    answer = http.post(f"/api/v1/sse/{channel}", json={"event": "move", "data": {"n": n}, **more})
    assert (answer.status_code, answer.json()) == (202, {"channel": channel})


def alternate(http: httpx.Client, count: int) -> float:
    """Publish events of both kinds by turns, each when the one before is answered; return what the longest took."""
    longest = 0.0
    for n in range(count):
        begun = time.monotonic()
        if n % 2:
            move(http, n)
        else:
            answer = http.post(f"/api/v1/sse/{STORED}", json={"event": "e", "data": {"n": n}})
            assert answer.status_code == 201, answer.text
        longest = max(longest, time.monotonic() - begun)
    return longest


def test_an_event_that_is_not_stored_has_no_id_and_no_history(room: Room) -> None:
    head = room.publish(STORED, 0)
    with listen(room.url(f"{STORED},{CURSORS}")) as frames:
        first(frames)
        move(room.http, 1)
        after = room.publish(STORED, 2)
        moved, stored = take(frames, 2)
    assert (moved.type, moved.id, moved.data["n"], moved.data["channel"]) == ("move", None, 1, CURSORS)
    assert "timestamp" in moved.data
    assert (stored.id, int(after.rpartition("-")[2])) == (after, int(head.rpartition("-")[2]) + 1)
    for query in ({}, {"after": head}, {"after": "other-5"}):
        history = room.http.get(f"/api/v1/sse/{CURSORS}/history", params=query).json()
        assert history == {"events": [], "complete": True}
    with listen(room.url(CURSORS), after=head) as frames:
        assert first(frames).data["recovered"]
        move(room.http, 3)
        assert numbers(take(frames, 1)) == [3]


def test_a_text_that_is_not_stored_comes_line_by_line_and_a_retry_with_it(room: Room) -> None:
    with httpx.stream("GET", room.url(CURSORS), timeout=60) as response:
        lines = response.iter_lines()
        assert "event: connected" in itertools.islice(lines, 3)
        answer = room.http.post(
            f"/api/v1/sse/{CURSORS}?event=say", content="a\nb", headers={"Content-Type": "text/plain"}
        )
        assert (answer.status_code, answer.json()) == (202, {"channel": CURSORS})
        move(room.http, 1, retry=777)
        told = itertools.takewhile(lambda line: not line.startswith('data: {"n"'), lines)
        frames = "\n".join(itertools.dropwhile(lambda line: line != "event: say", told)).split("\n\n")
        assert [frame for frame in frames if not frame.startswith("event: ping")] == [
            "event: say\ndata: a\ndata: b",
            "retry: 777\nevent: move",
        ]


def test_both_kinds_come_in_the_order_in_which_one_publisher_published_them(room: Room) -> None:
    with listen(room.url(f"{CURSORS},{STORED}")) as frames, listen(room.url("*.*,*")) as others:
        first(frames)
        first(others)
        alternate(room.http, 100)
        assert numbers(take(frames, 100)) == list(range(100))
        assert numbers(take(others, 100)) == list(range(100))


def test_of_a_batch_those_that_are_stored_come_first_and_have_ids(room: Room) -> None:
    def batch(*channels: str) -> httpx.Response:
        events = [{"channel": name, "event": "e", "data": {"n": n}} for n, name in enumerate(channels)]
        return room.http.post("/api/v1/sse", json={"events": events})

    with listen(room.url(f"{CURSORS},{STORED}")) as frames:
        first(frames)
        answer = batch(CURSORS, STORED, CURSORS, STORED)
        assert answer.status_code == 201
        ids = answer.json()["ids"]
        assert (ids[0], ids[2]) == (None, None)
        taken = take(frames, 4)
        assert numbers(taken) == [1, 3, 0, 2]
        assert [frame.id for frame in taken] == [ids[1], ids[3], None, None]
        answer = batch(CURSORS, CURSORS)
        assert (answer.status_code, answer.json()) == (202, {"ids": [None, None]})
        assert numbers(take(frames, 2)) == [0, 1]
        assert batch(CURSORS, "nowhere").status_code == 404
        assert batch(CURSORS, "B").status_code == 422
        move(room.http, 9)
        assert numbers(take(frames, 1)) == [9]


def test_an_idempotency_key_does_nothing_for_events_that_are_not_stored(room: Room) -> None:
    body = {"event": "move", "data": {"n": 1}}
    with listen(room.url(CURSORS)) as frames:
        first(frames)
        for _ in range(2):
            answer = room.http.post(f"/api/v1/sse/{CURSORS}", json=body, headers={"Idempotency-Key": "one"})
            assert answer.status_code == 202
        assert numbers(take(frames, 2)) == [1, 1]
        assert room.http.post(
            f"/api/v1/sse/{STORED}", json=body, headers={"Idempotency-Key": "one"}
        ).is_success


def test_types_limits_and_grants_hold_for_events_that_are_not_stored(start: Callable[..., Room]) -> None:
    room = start(
        CHANNELS=[{"pattern": CURSORS, "stored": False, "types": ["move"]}],
        LIMITS__PUBLISH_RATE=3,
    )
    assert room.http.post(f"/api/v1/sse/{CURSORS}", json={"event": "x", "data": {}}).status_code == 422
    reader = {"Authorization": f"Bearer {room.server.access_token(publish='')}"}
    answer = httpx.post(
        f"{room.server.url}/api/v1/sse/{CURSORS}", json={"event": "move", "data": {}}, headers=reader
    )
    assert answer.status_code == 403
    with listen(room.url(CURSORS, types="other")) as others, listen(room.url(CURSORS)) as frames:
        first(others)
        first(frames)
        begun, statuses = time.monotonic(), [202]
        while statuses[-1] == 202:  # a busy machine may take as long for some as the rate wants
            body = {"event": "move", "data": {"n": len(statuses)}}
            statuses.append(room.http.post(f"/api/v1/sse/{CURSORS}", json=body).status_code)
            assert len(statuses) < 50
        accepted = statuses[1:-1]
        assert statuses[-1] == 429
        assert len(accepted) <= 3 + 3 * (time.monotonic() - begun) + 1
        assert len(take(frames, len(accepted))) == len(accepted)
        assert next(others).type == "ping"


@pytest.mark.slow
def test_one_that_no_message_between_nodes_could_hold_is_refused(start: Callable[..., Room]) -> None:
    room = start(LIMITS__BODY_BYTES=20_000_000)
    for size, status in ((9_000_000, 422), (2_000_000, 202)):
        body = {"event": "move", "data": {"filler": "x" * size}}
        assert room.http.post(f"/api/v1/sse/{CURSORS}", json=body).status_code == status
        events = [{"channel": STORED, "event": "e", "data": {}}, {"channel": CURSORS, **body}]
        answer = room.http.post("/api/v1/sse", json={"events": events})
        assert answer.status_code == (201 if status == 202 else status)
    assert room.metric("sse_app_log_head") == 1


def test_the_metrics_count_them(room: Room) -> None:
    with listen(room.url(CURSORS)) as frames:
        first(frames)
        before = room.metric("sse_app_deliveries_total")
        for n in range(5):
            move(room.http, n)
        take(frames, 5)
    assert room.metric("sse_app_unstored_events_total") == 5
    assert room.metric("sse_app_deliveries_total") == before + 5
    assert room.metric("sse_app_log_head") == 0


@pytest.mark.slow
def test_a_stream_that_does_not_read_is_not_ended_by_them_and_goes_on_with_new_ones(
    start: Callable[..., Room],
) -> None:
    room = start(LIMITS__BACKLOG_BYTES=65_536, KEEPALIVE__PING_INTERVAL=60)
    filler = "x" * 2000
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", room.server.port))
        path = room.url(f"{CURSORS},{STORED}").removeprefix(room.server.url)
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        until(lambda: room.status()["total_connections"] == 1, "the stream is there")
        sent = itertools.count()
        while room.metric("sse_app_unstored_drops_total") < 20:
            n = next(sent)
            answer = room.http.post(
                f"/api/v1/sse/{CURSORS}", json={"event": "move", "data": {"n": n, "filler": filler}}
            )
            assert answer.status_code == 202
        room.publish(STORED, 1_000_000)
        client.settimeout(60)
        received = b""
        while b"1000000" not in received:
            piece = client.recv(65_536)
            assert piece, received[-1000:]
            received += piece
        assert b"closing" not in received
        move(room.http, 2_000_000)
        while b"2000000" not in received:
            received += client.recv(65_536)
        assert room.status()["total_connections"] == 1


@pytest.mark.slow
def test_a_storm_of_them_does_not_hold_up_events_that_are_stored(room: Room) -> None:
    stop = threading.Event()

    def storm(number: int) -> int:
        count = 0
        with room.server.publisher() as http:
            while not stop.is_set():
                events = [{"channel": CURSORS, "event": "move", "data": {"n": n}} for n in range(100)]
                assert http.post("/api/v1/sse", json={"events": events}).status_code == 202
                count += 100
        return count

    with (
        listen(room.url(STORED)) as frames,
        listen(room.url(CURSORS)) as moves,
        ThreadPoolExecutor(3) as pool,
    ):
        first(frames)
        first(moves)
        storms = [pool.submit(storm, number) for number in range(2)]
        taking = pool.submit(take, moves, 500)
        ids = [room.publish(STORED, n) for n in range(50)]
        taken = take(frames, 50)
        stop.set()
        assert [frame.id for frame in taken] == ids
        assert all(each.result() for each in storms)
        assert len(taking.result()) == 500


def test_a_final_one_ends_the_streams_that_are_there_and_no_later_one(room: Room) -> None:
    with (
        listen(room.url(CURSORS)) as alone,
        listen(room.url(CURSORS, types="other")) as filtered,
        listen(room.url(f"{CURSORS},{STORED}")) as both,
        listen(room.url("cursors.*")) as pattern,
    ):
        for each in (alone, filtered, both, pattern):
            first(each)
        move(room.http, 1, final=True)
        event, closing = take(alone, 2)
        assert (event.data["n"], closing.data) == (1, {"reason": "ended", "retry": None})
        assert next(alone, None) is None
        assert take(filtered, 1)[0].data == {"reason": "ended", "retry": None}
        with listen(room.url(CURSORS)) as later:
            first(later)
            move(room.http, 2)
            for each, expected in ((later, [2]), (pattern, [1, 2]), (both, [1, 2])):
                assert numbers(take(each, len(expected))) == expected


def test_they_come_also_to_streams_of_conflated_channels_and_with_a_rate(start: Callable[..., Room]) -> None:
    room = start(CHANNELS=[*CHANNELS, {"pattern": "prices", "conflate": "symbol"}])
    channels = f"prices,{CURSORS}"
    with listen(room.url(channels)) as frames, listen(room.url(channels, rate="50")) as rated:
        first(frames)
        first(rated)
        for n in range(0, 20, 2):
            room.publish("prices", n, symbol=f"s{n}")
            taken = numbers(take(rated, 1))
            move(room.http, n + 1)
            assert taken + numbers(take(rated, 1)) == [n, n + 1]
        assert numbers(take(frames, 20)) == list(range(20))


def test_a_final_one_ends_a_stream_whose_other_channels_have_ended(room: Room) -> None:
    with listen(room.url(f"{CURSORS},{STORED}")) as frames:
        first(frames)
        body = {"event": "e", "data": {"n": 1}, "final": True}
        assert room.http.post(f"/api/v1/sse/{STORED}", json=body).status_code == 201
        move(room.http, 2)
        move(room.http, 3, final=True)
        *events, closing = take(frames, 4)
        assert numbers(events) == [1, 2, 3]
        assert closing.data["reason"] == "ended"


# -- several nodes --------------------------------------------------------------------------------------------


class Listener:
    """A client that keeps the numbers of all events that it gets, until the last."""

    def __init__(self, server: ServerProcess, channels: str) -> None:
        self.frames: list[Frame] = []
        self._ear = Ear(server, channels, server.stream_token("**"))

    @property
    def numbers(self) -> list[int]:
        return [data["n"] for type, data in list(self._ear.events) if type in ("move", "e")]

    def leave(self) -> None:
        self._ear.leave()


def _check_order(nodes: list[Any], count: int) -> None:
    """Publish at each node in turn, and check that the streams of all have it in order."""
    for node in nodes:
        listeners = [Listener(each, f"{STORED},{CURSORS}") for each in nodes]
        with node.publisher() as http:
            longest = alternate(http, count)
            http.post(f"/api/v1/sse/{STORED}", json={"event": "e", "data": {"n": count}}).raise_for_status()
        for listener in listeners:
            until(lambda listener=listener: count in listener.numbers, "the last event is there")  # type: ignore[misc]
            seen = listener.numbers
            assert seen == sorted(set(seen))
            # A node that was too busy to take one in time has lost it: its publisher has waited as long, or was told.
            is_late = longest > 0.9 * WAIT or any("_silent" in each.log_path.read_text() for each in nodes)
            assert len(seen) == count + 1 or is_late
            assert set(range(0, count, 2)) <= set(seen), "those that are stored"
            listener.leave()


@pytest.mark.slow
def test_they_come_in_order_to_the_streams_of_all_workers(tmp_path: Path) -> None:
    with worker_processes(2, tmp_path / "state", CHANNELS=CHANNELS) as workers:
        _check_order(workers, 100)


@pytest.mark.slow
def test_they_come_in_order_to_the_streams_of_all_machines(tmp_path: Path, database_url: str) -> None:
    with node_processes(
        tmp_path, database_url, CHANNELS=CHANNELS, expected=("node_silent", "worker_silent")
    ) as nodes:
        _check_order(nodes, 30)


@pytest.mark.slow
def test_a_large_one_comes_to_the_streams_of_all_machines(tmp_path: Path, database_url: str) -> None:
    with node_processes(
        tmp_path, database_url, CHANNELS=CHANNELS, expected=("node_silent", "worker_silent")
    ) as nodes:
        listeners = [Listener(each, CURSORS) for each in nodes]
        with nodes[0].publisher() as http:
            body = {"event": "move", "data": {"n": 1, "filler": "x" * 100_000}}
            assert http.post(f"/api/v1/sse/{CURSORS}", json=body).status_code == 202
            move(http, 2)
        for listener in listeners:
            until(lambda listener=listener: listener.numbers == [1, 2], "both are there")  # type: ignore[misc]
            listener.leave()


def test_what_a_worker_could_not_take_in_time_is_lost_and_never_late(tmp_path: Path) -> None:
    with worker_processes(
        2, tmp_path / "state", CHANNELS=CHANNELS, expected=("worker_silent", "worker_answers")
    ) as (one, other):
        listeners = [Listener(each, f"{STORED},{CURSORS}") for each in (one, other)]
        with one.publisher() as http:
            is_whole = alternate(http, 10) < 0.9 * WAIT
            until(lambda: 8 in listeners[1].numbers, "the last that is stored is there")
            until(lambda: not is_whole or len(listeners[1].numbers) == 10, "all events are there")
            assert other.process is not None
            other.process.send_signal(signal.SIGSTOP)
            try:
                for n in range(10, 20):  # the first one waits for it, the others shortly
                    move(http, n)
                assert http.post(f"/api/v1/sse/{STORED}", json={"event": "e", "data": {"n": 20}}).is_success
            finally:
                other.process.send_signal(signal.SIGCONT)
            until(lambda: 20 in listeners[1].numbers, "the stored event is there")
            until(lambda: _reaches(http, listeners[1]), "it takes such events again")
        seen = listeners[1].numbers
        before = [n for n in seen if n < 10]
        assert before == [*range(10)] if is_whole else set(range(0, 10, 2)) <= set(before)
        assert not set(range(10, 20)) & set(seen)
        assert seen == sorted(seen)
        until(lambda: len(listeners[0].numbers) >= 21, "the other one has all")
        assert listeners[0].numbers[:21] == list(range(21))
        for listener in listeners:
            listener.leave()


_later = itertools.count(1000)


def _reaches(http: httpx.Client, listener: Listener) -> bool:
    n = next(_later)
    move(http, n)
    time.sleep(0.05)
    return n in listener.numbers


# -- restarts -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_streams_that_are_handed_over_get_each_once_and_in_order(tmp_path: Path) -> None:
    with worker_processes(
        2, tmp_path / "state", CHANNELS=CHANNELS, expected=("worker_silent", "worker_answers")
    ) as workers:
        one, other = workers
        listeners = [Listener(each, f"{STORED},{CURSORS}") for each in workers]
        published = itertools.count()
        stop = threading.Event()

        def publish() -> int:
            with one.publisher() as http:
                n = 0
                while not stop.is_set():
                    n = next(published)
                    move(http, n)
                return n

        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(publish)
            try:
                for _ in range(2):
                    other.upgrade()
            finally:
                stop.set()
            last = publishing.result()
        with one.publisher() as http:
            move(http, last + 1)
            for listener in listeners:
                until(lambda listener=listener: listener.numbers[-1] == last + 1, "the last is there")  # type: ignore[misc]
                seen = listener.numbers
                assert seen == sorted(set(seen))
        assert listeners[0].numbers == list(range(last + 2))
        for listener in listeners:
            listener.leave()


def test_a_cold_restart_has_nothing_of_them_and_streams_go_on(room: Room) -> None:
    with listen(room.url(f"{STORED},{CURSORS}")) as frames:
        position = first(frames).id
        move(room.http, 1)
        stored = room.publish(STORED, 2)
        assert numbers(take(frames, 2)) == [1, 2]
    room.server.kill()
    room.server.start()
    with listen(room.url(f"{STORED},{CURSORS}"), after=position) as frames:
        assert first(frames).data["recovered"]
        assert [frame.id for frame in take(frames, 1)] == [stored]
        move(room.http, 3)
        assert numbers(take(frames, 1)) == [3]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    until(lambda: threading.active_count() <= before, "the threads of the test have ended")
