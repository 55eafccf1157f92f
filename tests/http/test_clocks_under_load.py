"""The wall clock is set back, forward, to 1970 and back to today, under many streams and a publisher."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable

import httpx
import pytest

from sse_app.auth.tokens.issuer import TokenKind
from tests.support.fleet import Client, Fleet
from tests.support.people import Ear, bearer
from tests.support.waiting import until
from tests.support.wall_clock import HOUR, YEAR, ClockedServer, Hear
from tests.support.wall_clock import clock_library as clock_library
from tests.support.wall_clock import hear as hear
from tests.support.wall_clock import start as start
from tests.support.wall_clock import wall_clock as wall_clock

LIFE = 200 * 86_400.0
"""Of the tokens of the many streams, in seconds."""
BRIEF = 3.0
"""Of the tokens of the streams that have to end."""
STANDSTILL = 10.0
"""Within how many seconds each request must be answered: half of the least time for which a server would stand still
that waits by the wall clock."""


class Health:
    """Asks the server for its health all the time, in a thread, and notes the longest that it took."""

    def __init__(self, port: int) -> None:
        self.longest = 0.0
        self._port = port
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="health")
        self._thread.start()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while not self._stopping.wait(0.01):
            begun = time.monotonic()
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            self.longest = max(self.longest, time.monotonic() - begun)
        connection.close()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


class ClockedPublisher:
    """Publishes one event after another, each with a token of the moment and until it is acknowledged."""

    def __init__(self, server: ClockedServer) -> None:
        self.ids: list[str] = []
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="publisher")
        self._thread.start()

    def _publish(self) -> None:
        url = f"{self._server.url}/api/v1/sse/dashboard"
        with httpx.Client(timeout=30) as http:
            while not self._stopping.wait(0.02):
                key = {"Idempotency-Key": f"k{len(self.ids)}"}
                body = {"event": "e", "data": {"number": len(self.ids)}}
                while True:
                    token = self._server.minted(TokenKind.ACCESS)
                    answer = http.post(url, json=body, headers=bearer(token) | key)
                    if answer.status_code == 201:
                        break
                    assert answer.status_code == 401, answer.text  # the clock was set since it was minted
                self.ids.append(str(answer.json()["id"]))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("streams", [30, pytest.param(300, marks=pytest.mark.long)])
def test_pings_expiry_and_revocation_come_in_time_and_no_event_is_lost_whatever_the_clock_does(
    start: Callable[..., ClockedServer], hear: Hear, streams: int
) -> None:
    server = start(
        AUTH__LONGEST_LIFETIME=300 * 86_400,
        KEEPALIVE__PING_INTERVAL=1,
        LIMITS__STREAMS_PER_USER=1000,
        LIMITS__STREAMS_PER_ADDRESS=1000,
    )
    fleet = Fleet(server.port)
    publisher = ClockedPublisher(server)
    health = Health(server.port)

    def opened(after: list[str | None]) -> list[Client]:
        token = server.minted(TokenKind.STREAM, ttl=LIFE)
        position = [f"&last_event_id={id}" if id else "" for id in after]
        return fleet.open(len(after), lambda number: f"/api/v1/sse/dashboard?token={token}{position[number]}")

    try:
        earlier = opened([None] * streams)
        first = len(publisher.ids) + 1  # at most one event is on its way
        until(lambda: all(len(client.ids()) > 5 for client in earlier), "events come")
        clients = earlier
        for name, step in {"20 s back": -20.0, "an hour back": -HOUR, "2 years forward": 2 * YEAR}.items():
            set_and_check(server, hear, fleet, clients, publisher, health, name, step)
        until(lambda: all(client.ended for client in earlier), "their tokens are of the past")
        assert all(b'"reason":"token_expired"' in bytes(client.received[-400:]) for client in earlier)
        later = opened([client.ids()[-1] for client in earlier])
        for name, moment in {"1970": 1000.0, "today": time.time()}.items():
            step = moment - time.time()
            set_and_check(server, hear, fleet, later, publisher, health, name, step)
        publisher.stop()
        ids = publisher.ids
        until(lambda: all(ids[-1].encode() in client.received[-4096:] for client in later), "the last event")
        for before, after in zip(earlier, later, strict=True):
            seen = before.ids() + after.ids()
            assert len(ids) - first <= len(seen) <= len(ids)
            assert seen == ids[-len(seen) :]
        assert not [client.ended for client in later if client.ended]
    finally:
        publisher.stop()
        health.stop()
        fleet.close()


def set_and_check(
    server: ClockedServer,
    hear: Hear,
    fleet: Fleet,
    clients: list[Client],
    publisher: ClockedPublisher,
    health: Health,
    name: str,
    offset: float,
) -> None:
    """Set the clock, and check that what is due comes in time; print what was measured."""
    subject = f"user-{name.replace(' ', '-')}"
    brief = hear(server, "dashboard", server.minted(TokenKind.STREAM, ttl=BRIEF))
    revoked = hear(server, "dashboard", server.minted(TokenKind.STREAM, subject=subject, ttl=LIFE))
    forward = offset > server.clock.offset + LIFE
    begun = time.monotonic()
    health.longest = 0.0
    published = len(publisher.ids)
    server.clock.set(offset)
    if not forward:
        for client in clients:
            client.longest_wait = 0.0
        marks = [len(client.received) for client in clients]
        server.command("revoke", "--subject", subject)
        commanded = time.monotonic()
        until(lambda: revoked.ended_at, "the revoked stream ends", 15)
        assert revoked.farewell == "revoked"
        print(f"{name}: revoked after {ended(revoked) - commanded:.2f} s", end=", ")
        until(
            lambda: all(
                client.received.count(b"event: ping", mark) >= 2
                for client, mark in zip(clients, marks, strict=True)
            ),
            "each stream is pinged",
            15,
        )
        assert not [client.ended for client in clients if client.ended]
    until(lambda: brief.ended_at, "the life of its token is over", BRIEF + 10)
    assert brief.farewell == "token_expired"
    until(lambda: len(publisher.ids) > published + 5, "events are published")
    longest = max(client.longest_wait for client in clients)
    print(
        f"{name}: expired after {ended(brief) - begun:.2f} s of {BRIEF:g} s, longest time without a byte on a "
        f"stream {longest:.3f} s, longest answer of /healthz {health.longest * 1000:.0f} ms"
    )
    assert health.longest < STANDSTILL


def ended(ear: Ear) -> float:
    assert ear.ended_at is not None
    return ear.ended_at
