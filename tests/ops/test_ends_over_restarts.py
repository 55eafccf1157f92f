"""Channels that end, and streams of some types only, where streams are handed over, killed, or on several workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client, Fleet
from tests.support.server_process import ServerProcess
from tests.support.service import Service
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.supervised import ServerWithWorkers, starting_workers
from tests.support.waiting import until

ENDED = '{"reason":"ended","retry":null}'
COUNT = 60
"""So many events of 10,000 bytes are more than the kernel takes for a client that does not read."""


@pytest.fixture
def start_workers(tmp_path: Path) -> Iterator[Callable[..., ServerWithWorkers]]:
    yield from starting_workers(tmp_path / "state")


@pytest.fixture
def ping_interval() -> int:
    """Return the seconds between pings; a client that reads nothing for two of them is taken for gone."""
    return 30


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.long)])
def service(
    request: pytest.FixtureRequest, start_service: Callable[..., Service], ping_interval: int
) -> Service:
    """The server as a unit that is restarted with a standby and without."""
    service = start_service(KEEPALIVE__PING_INTERVAL=ping_interval)
    if request.param == "cold":
        service.configure("cold", "KillMode=mixed")
    return service


def publish(url: str, token: str, text: str, *, event: str = "e", final: bool = False) -> str:
    """Publish a text on ``dashboard``, and return its id."""
    answer = httpx.post(
        f"{url}/api/v1/sse/dashboard",
        params={"event": event, "final": str(final).lower()},
        content=text.encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "text/plain"},
        timeout=60,
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def events_of(client: Client) -> list[ReceivedEvent]:
    """Return what has come but for pings."""
    events = EventStreamReader(texts=True).feed(client.body())
    return [event for event in events if event.type not in ("connected", "ping")]


def read_to_end(client: Client) -> None:
    """Read until the connection has ended well, or the answer is that there is nothing to come."""

    def has_ended() -> bool:
        client.read()
        return client.ended == "end of file" or client.received.startswith(b"HTTP/1.1 204 ")

    until(has_ended, "the stream is ended", pause=0)


def assert_ended_with(client: Client, ids: list[str]) -> None:
    *events, closing = events_of(client)
    assert (closing.type, closing.data, closing.id, closing.retry) == ("closing", ENDED, None, None)
    assert [event.id for event in events] == ids
    assert bytes(client.received).endswith(b"0\r\n\r\n"), "the end of the body"


def status(url: str, path: str, position: str) -> int:
    """Return the status of a stream that is asked for from a position."""
    with httpx.stream("GET", url + path, headers={"Last-Event-ID": position}, timeout=60) as answer:
        return answer.status_code


@pytest.mark.slow
def test_a_client_that_is_behind_as_its_channel_ends_has_all_and_then_the_end_over_restarts(
    service: Service,
) -> None:
    path = service.stream_path(client_id="slow")
    slow, quick = Client(service.port, path, receive_buffer=4096), Client(service.port, path)
    quick.read_until("event: connected")
    token = service.access_token()
    ids = service.publish(COUNT, size=10_000)
    ids.append(publish(service.url, token, "the end", final=True))
    read_to_end(quick)
    assert_ended_with(quick, ids)
    service.restart()
    service.upgrade()
    read_to_end(slow)
    assert_ended_with(slow, ids)
    assert status(service.url, path, ids[-1]) == 204
    late = Client(service.port, f"{path}&last_event_id={ids[0]}", receive_buffer=4096)
    until(lambda: len(service.logged("stream_opened")) == 3, "it is in the middle of a replay")
    service.restart()
    read_to_end(late)
    assert_ended_with(late, ids[1:])
    for client in (slow, quick, late):
        client.socket.close()


@pytest.mark.slow
def test_a_channel_that_is_opened_again_while_a_stream_is_behind_does_not_end_it(service: Service) -> None:
    slow = Client(service.port, service.stream_path(client_id="slow"), receive_buffer=4096)
    token = service.access_token()
    ids = service.publish(COUNT, size=10_000)
    ids.append(publish(service.url, token, "the end", final=True))
    service.restart()
    ids.append(publish(service.url, token, "or not"))
    service.upgrade()
    slow.read_until(ids[-1])
    ids.append(publish(service.url, token, "but now", final=True))
    read_to_end(slow)
    assert_ended_with(slow, ids)
    slow.socket.close()


@pytest.mark.parametrize("ping_interval", [1])
def test_pings_tell_positions_also_in_the_next_process(service: Service) -> None:
    path = service.stream_path() + "&types=rare"
    client = Client(service.port, path)
    client.read_until("event: connected")
    token = service.access_token()
    for _ in range(3):
        position = publish(service.url, token, "x", event="often")
        client.read_until(f"id: {position}\nevent: ping")
        service.restart()
    rare = publish(service.url, token, "x", event="rare")
    client.read_until(rare)
    assert [event.id for event in events_of(client)] == [rare]
    numbers = [int(id.rpartition("-")[2]) for id in client.ids()]
    assert numbers == sorted(numbers), "a client that is cut off at any moment has no event twice"
    client.socket.close()


def test_after_a_kill_it_is_known_which_channels_have_ended(
    start_server: Callable[..., ServerProcess],
) -> None:
    server = start_server()
    path = server.stream_url("dashboard", server.stream_token("dashboard")).removeprefix(server.url)
    token = server.access_token()
    ids = [publish(server.url, token, text, final=text == "c") for text in "abc"]
    server.kill()
    server.start()
    until(lambda: status(server.url, path, ids[-1]) == 204, "the server has learned it from the log")
    client = Client(server.port, f"{path}&last_event_id={ids[0]}")
    read_to_end(client)
    assert_ended_with(client, ids[1:])
    client.socket.close()
    ids.append(publish(server.url, token, "d"))
    server.kill()
    server.start()
    client = Client(server.port, f"{path}&last_event_id={ids[-2]}")
    client.read_until(ids[-1])
    ids.append(publish(server.url, token, "e", final=True))
    read_to_end(client)
    assert_ended_with(client, ids[-2:])
    client.socket.close()


@pytest.mark.slow
def test_a_stream_that_comes_at_the_end_before_it_is_known_is_ended_once_it_is(
    start_server: Callable[..., ServerProcess],
) -> None:
    """A client that comes back at once after a kill must not wait for ever for what does not come."""
    server = start_server()
    path = server.stream_url("dashboard", server.stream_token("dashboard")).removeprefix(server.url)
    end = publish(server.url, server.access_token(), "end", final=True)
    for _ in range(3):
        server.kill()
        server.start()
        clients = [Client(server.port, f"{path}&last_event_id={end}") for _ in range(5)]
        for client in clients:
            read_to_end(client)
            assert " 204 " in client.head or ENDED.encode() in client.body()
            client.socket.close()


@pytest.mark.long
def test_each_worker_ends_its_streams_and_knows_of_the_ends_of_others(
    start_workers: Callable[..., ServerWithWorkers],
) -> None:
    server = start_workers(workers=2)
    path, token = server.path(), server.access_token()
    fleet = Fleet(server.port)
    try:
        ids = [publish(server.url, token, str(number)) for number in range(3)]
        clients = fleet.open(40, path)
        assert set(server.by_worker(clients)) == {1, 2}
        for number in range(3, 6):
            ids.append(publish(server.url, token, str(number)))
        ids.append(publish(server.url, token, "end", final=True))
        until(lambda: len(fleet.ended) == 40, "all are ended")
        for client in clients:
            # It begins at the head of its worker, which may not have sent yet what was published at another.
            begins = sum(1 for event in events_of(client) if event.id) - 4
            assert begins in range(4)
            assert_ended_with(client, ids[3 - begins :])
        for _ in range(20):
            assert status(server.url, path, ids[-1]) == 204, "whichever worker is asked, each knows"
        again = publish(server.url, token, "again")
        for _ in range(10):
            with httpx.stream(
                "GET", server.url + path, headers={"Last-Event-ID": ids[-1]}, timeout=60
            ) as answer:
                assert answer.status_code == 200, (
                    "whichever worker is asked, none says that nothing is to come"
                )
                reader = EventStreamReader(texts=True)
                received = (event for piece in answer.iter_bytes() for event in reader.feed(piece))
                assert [next(received).id, next(received).id] == [ids[-1], again]
    finally:
        fleet.close()
