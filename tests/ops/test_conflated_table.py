"""A table of symbols that change many times a second, and clients of which some read far less than comes.

A client that reads slowly is never cut off: of each symbol it has the newest value that fits into what it reads, in
the order of the log. The others have every event. What it takes is bounded by the table, not by what was published.
"""

from __future__ import annotations

import json
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from tests.support.fleet import Client
from tests.support.people import bearer
from tests.support.room import sequence
from tests.support.server_process import ServerProcess, running
from tests.support.sse_reader import EventStreamReader, ReceivedEvent
from tests.support.waiting import until
from tests.support.worker_processes import worker_processes

CHANNELS = [{"pattern": "market.*", "conflate": "symbol", "history_size": 20_000}]
CHANGES = 20
"""How often a second each symbol changes."""

SHARE = 10
"""A slow client reads this part of what is published."""

SO_RCVBUFFORCE = 33
"""As SO_RCVBUF, but over the system's limit (socket(7))."""

MEMORY = 50.0
"""By how many MiB a server may grow while a table changes that it has seen already."""

FILLING = "x" * 40

MARK = b"\nid: "


class Readers:
    """Clients of a table, read in a thread.

    Args:
        port, path: of the streams.
        count: how many.
        rate: bytes a second that each reads, with a small receive buffer, until `throttled` is false; else all at once.
        kept: of how many clients all that came is kept; of the others the events are counted.
    """

    STEPS = 100

    def __init__(self, port: int, path: str, count: int, *, rate: float = 0.0, kept: int) -> None:
        buffer = 2048 if rate else 0
        self.clients = [Client(port, path, receive_buffer=buffer) for _ in range(count)]
        for client in () if rate else self.clients:  # so that a busy machine does not make them slow
            with suppress(PermissionError):
                client.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
        self.kept = self.clients[:kept]
        self.counts = dict.fromkeys(self.clients[kept:], 0)
        """How many events have come, with ``connected``."""
        self._piece = int(rate / self.STEPS)
        self.throttled = rate > 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        until(lambda: all(client.received for client in self.clients), "all are connected")

    def _read(self) -> None:
        with selectors.DefaultSelector() as ready:
            for client in self.clients:
                ready.register(client.socket, selectors.EVENT_READ, client)
            while not self._stopping.wait(1 / self.STEPS if self.throttled else 0):
                for key, _ in ready.select(0 if self.throttled else 0.05):
                    self._take(key.data)
                    if key.data.ended:
                        ready.unregister(key.fileobj)

    def _take(self, client: Client) -> None:
        try:
            piece = client.socket.recv(self._piece if self.throttled else 1 << 20)
        except OSError as error:
            client.ended = str(error)
            return
        if not piece:
            client.ended = "end of file"
        if client in self.counts:
            tail = bytes(client.received[-len(MARK) + 1 :])  # it may have been cut in the middle
            self.counts[client] += (tail + piece).count(MARK)
            client.received[:] = piece[-1000:] if len(piece) >= 1000 else client.received[-1000:] + piece
        else:
            client.received += piece

    def wait_for(self, id: str) -> None:
        """Wait until an event has come to all, whose streams have not ended."""
        for client in self.clients:
            until(
                lambda client=client: f"id: {id}\n".encode() in client.received[-1_000_000:] or client.ended,  # type: ignore[misc]
                "the last event has come",
            )
            assert client.ended is None, client.ended

    def close(self) -> None:
        """End all."""
        self._stopping.set()
        self._thread.join()
        for client in self.clients:
            client.socket.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("symbols", "clients", "seconds"),
    [(50, 20, 2.0), pytest.param(500, 100, 20.0, marks=pytest.mark.long)],
)
def test_slow_clients_of_a_table_have_the_newest_of_each_key_and_the_others_every_event(
    tmp_path: Path, symbols: int, clients: int, seconds: float
) -> None:
    with running(
        state_dir=tmp_path / "state",
        CHANNELS=CHANNELS,
        LIMITS__STREAMS_PER_USER=1000,
        LIMITS__BACKLOG_BYTES=64 * 1024 * (symbols // 50),
        LOG__LEVEL="info",
    ) as server:
        path = server.stream_url("market.eu", server.stream_token("market.*")).removeprefix(server.url)
        size = len(json.dumps({"symbol": "s000", "n": 0, "filling": FILLING})) + 110
        rate = symbols * CHANGES * size / SHARE
        with (
            closing(Readers(server.port, path, clients - clients // SHARE, kept=1)) as fast,
            closing(Readers(server.port, path, clients // SHARE, rate=rate, kept=clients)) as slow,
        ):
            log, late = publish(server, symbols, seconds / 3)
            before = resident_mib(server)
            more, late = publish(server, symbols, seconds, len(log) // symbols)
            log += more
            grown = resident_mib(server) - before
            slow.throttled = False
            for readers in (fast, slow):
                readers.wait_for(log[-1][0])
            assert [event.id for event in events_of(fast.kept[0])] == [id for id, _, _ in log]
            assert set(fast.counts.values()) == {len(log) + 1}
            spared = [check_newest(events_of(client), log) for client in slow.clients]
            assert all(count > len(log) // 4 for count in spared), (spared, len(log))
            print(f"{len(log)} events, {late:.1f} s late, spared {spared}, {grown:.0f} MiB more")
            assert grown < MEMORY


@pytest.mark.slow
def test_streams_of_a_table_go_on_over_an_upgrade_whether_they_are_fast_slow_or_have_a_rate(
    tmp_path: Path,
) -> None:
    symbols = 50
    with worker_processes(
        1,
        tmp_path / "state",
        CHANNELS=CHANNELS,
        LIMITS__BACKLOG_BYTES=64 * 1024,
        LIMITS__STREAMS_PER_USER=1000,
    ) as (server,):
        token = server.stream_token("market.*")
        path = server.stream_url("market.eu", token).removeprefix(server.url)
        with (
            closing(Readers(server.port, path, 3, kept=3)) as fast,
            closing(Readers(server.port, path, 3, rate=20_000, kept=3)) as slow,
            closing(Readers(server.port, f"{path}&rate=2", 3, kept=3)) as rated,
        ):
            log, _ = publish(server, symbols, 1.0)
            server.upgrade()
            more, _ = publish(server, symbols, 1.5, len(log) // symbols)
            log += more
            slow.throttled = False
            for readers in (fast, slow, rated):
                readers.wait_for(log[-1][0])
            for client in fast.clients:
                assert [event.id for event in events_of(client)] == [id for id, _, _ in log]
            for client in [*slow.clients, *rated.clients]:
                assert check_newest(events_of(client), log) > 0


@pytest.mark.slow
def test_what_comes_to_an_idle_stream_with_a_rate_while_it_is_handed_over_is_not_lost(tmp_path: Path) -> None:
    """Its turn comes later, in the next process; until then it has nothing waiting, as one that has all."""
    count = 400
    with worker_processes(1, tmp_path / "state", CHANNELS=CHANNELS, LIMITS__STREAMS_PER_USER=count) as (
        server,
    ):
        token = server.stream_token("market.*")
        urls = [server.stream_url(f"market.n{number}", token, rate="0.2") for number in range(count)]
        clients = [Client(server.port, url.removeprefix(server.url)) for url in urls]
        upgrade = threading.Thread(target=server.upgrade)
        with httpx.Client(base_url=server.url, headers=bearer(server.access_token()), timeout=60) as http:
            upgrade.start()
            for number in range(count):
                price = {"event": "price", "data": {"symbol": "s", "n": number}}
                answer = http.post(f"/api/v1/sse/market.n{number}", json=price)
                assert answer.status_code == 201, answer.text
        upgrade.join()

        def have_all() -> bool:
            for client in clients:
                client.read()
            return all(b"event: price" in client.received for client in clients)

        until(have_all, "each has its event")
        for client in clients:
            client.socket.close()


def resident_mib(server: ServerProcess) -> float:
    """Return how much memory the server's process has in use."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def publish(
    server: ServerProcess, symbols: int, seconds: float, start: int = 0
) -> tuple[list[tuple[str, str, int]], float]:
    """Have each symbol change so often a second, for so long, and return id, symbol and number of each event."""
    log: list[tuple[str, str, int]] = []
    rounds = int(seconds * CHANGES)
    batch = 500
    with httpx.Client(base_url=server.url, headers=bearer(server.access_token()), timeout=60) as http:
        begun = time.monotonic()
        for number in range(start, start + rounds):
            for first in range(0, symbols, batch):
                names = [f"s{symbol:03}" for symbol in range(first, min(first + batch, symbols))]
                events = [
                    {
                        "channel": "market.eu",
                        "event": "price",
                        "data": {"symbol": name, "n": number, "filling": FILLING},
                    }
                    for name in names
                ]
                answer = http.post("/api/v1/sse", json={"events": events})
                assert answer.status_code == 201, answer.text
                log += [(id, name, number) for id, name in zip(answer.json()["ids"], names, strict=True)]
            time.sleep(max(0.0, begun + (number - start + 1) / CHANGES - time.monotonic()))
        return log, time.monotonic() - begun - seconds


def events_of(client: Client) -> list[ReceivedEvent]:
    """Return the events that a client has been sent."""
    return [event for event in EventStreamReader().feed(client.body()) if event.type == "price"]


def check_newest(events: Sequence[ReceivedEvent], log: Sequence[tuple[str, str, int]]) -> int:
    """Check what a client that was behind has got, and return how many events it was spared.

    Ids ascend, each event is one of the log, and at the end it has the newest of each symbol.
    """
    stored = {id: (symbol, number) for id, symbol, number in log}
    newest = {symbol: number for _, symbol, number in log}
    numbers = [sequence(event.id or "") for event in events]
    assert numbers == sorted(set(numbers))
    has: dict[str, int] = {}
    for event in events:
        data = event.json()
        assert event.id is not None
        assert stored[event.id] == (data["symbol"], data["n"])
        assert data["n"] > has.get(data["symbol"], -1)
        has[data["symbol"]] = data["n"]
    assert has == newest
    return len(log) - len(events)
