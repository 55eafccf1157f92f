"""Clients that are gone without a word, or no longer read: found, ended, and their memory given back."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.namespaces import reserved_subnet
from tests.support.programs import require, unavailable
from tests.support.server_process import ServerProcess
from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import PAUSE, until

INTERVAL = 4.0
"""The ping interval of these servers, in seconds."""

LATE = 0.8 * INTERVAL
"""Seconds by which an end may be seen later than it is due, on a busy machine: less than one more interval."""

Start = Callable[..., ServerProcess]


def seconds_until(condition: Callable[[], bool], what: str) -> float:
    """Wait until the condition holds, and return how long that took."""
    begun = time.monotonic()
    until(condition, what, pause=PAUSE)
    return time.monotonic() - begun


def streams(server: ServerProcess, url: str | None = None) -> int:
    return int(httpx.get(f"{url or server.url}/api/v1/sse/status").json()["total_connections"])


def memory(server: ServerProcess) -> int:
    """Return the resident memory of the server in KiB."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def ends(server: ServerProcess, reason: str) -> float:
    """Return how many streams ended for a reason, as the metrics say."""
    for line in httpx.get(f"{server.url}/metrics").text.split("\n"):
        if line.startswith(f'sse_app_stream_ends_total{{reason="{reason}"}}'):
            return float(line.split()[-1])
    return 0.0


class RawStream:
    """A stream on a bare socket, read only when told to."""

    def __init__(self, host: str, port: int, path: str, *, buffer: int = 0) -> None:
        self.socket = socket.socket()
        if buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(10)
        self.socket.connect((host, port))
        # HTTP/1.0: the body is not chunked, so that it can be parsed as it comes.
        self.socket.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        self.parser = EventStreamReader()
        head = b""
        while b"\r\n\r\n" not in head:
            head += self.socket.recv(1024)
        assert b" 200 " in head.partition(b"\r\n")[0]
        self.events = self.parser.feed(head.partition(b"\r\n\r\n")[2])

    def read(self, size: int = 65_536) -> bool:
        """Read a piece; return False at the end."""
        try:
            piece = self.socket.recv(size)
        except ConnectionError:
            return False
        self.events += self.parser.feed(piece)
        return bool(piece)

    def numbers(self) -> list[int]:
        return [int(event.last_id.partition("-")[2]) for event in self.events if event.type == "big"]


@dataclass
class Network:
    """A host of our own on the far side of a pair of virtual interfaces."""

    name: str
    server_address: str
    link: str


@pytest.fixture
def network() -> Iterator[Network]:
    """A network namespace with one link to ours, made for this test and gone after it."""
    ip = require("ip")
    if os.geteuid() != 0:
        unavailable("network namespaces need root")
    name = f"sse{uuid.uuid4().hex[:8]}"

    def run(*arguments: str) -> None:
        subprocess.run([ip, *arguments], check=True, timeout=60)

    with reserved_subnet() as subnet:
        net = Network(name, f"{subnet}.1", f"{name}a")
        run("netns", "add", name)
        try:
            run("link", "add", net.link, "type", "veth", "peer", "name", f"{name}b", "netns", name)
            run("addr", "add", f"{net.server_address}/30", "dev", net.link)
            run("link", "set", net.link, "up")
            run("-n", name, "addr", "add", f"{subnet}.2/30", "dev", f"{name}b")
            run("-n", name, "link", "set", f"{name}b", "up")
            yield net
        finally:
            # The link at once, unlike the other end.
            subprocess.run([ip, "link", "delete", net.link], check=False, timeout=60)
            run("netns", "delete", name)


@pytest.mark.slow
@pytest.mark.netns
def test_a_client_that_vanishes_without_a_fin_is_reaped_within_two_ping_intervals(
    start_server: Start, network: Network
) -> None:
    server = start_server(HOST="0.0.0.0", KEEPALIVE__PING_INTERVAL=INTERVAL)
    token = server.stream_token("dashboard")
    url = f"http://{network.server_address}:{server.port}/api/v1/sse/dashboard?token={token}"
    clients = [
        subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                network.name,
                require("curl"),
                "--silent",
                "--no-buffer",
                "--connect-timeout",
                "5",
                url,
            ],
            stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]
    try:
        for client in clients:
            assert client.stdout is not None
            assert client.stdout.readline()
        assert streams(server) == 3
        # From here on everything that is sent to the clients is dropped, and they send nothing: no FIN, no RST.
        drop = ["ip", "-n", network.name, "link", "set", f"{network.name}b", "down"]
        subprocess.run(drop, check=True, timeout=60)
        took = seconds_until(lambda: streams(server) == 0, "the streams are ended")
        assert took <= 2 * INTERVAL + LATE
    finally:
        for client in clients:
            client.kill()
            client.communicate()


@pytest.mark.slow
def test_a_client_that_stops_reading_is_ended_and_its_memory_given_back(start_server: Start) -> None:
    server = start_server(KEEPALIVE__PING_INTERVAL=INTERVAL, LIMITS__BACKLOG_BYTES=64 * 1024 * 1024)
    path = f"/api/v1/sse/dashboard?token={server.stream_token('dashboard')}"
    with server.publisher() as publisher:
        event = {"event": "big", "data": {"x": "x" * 500_000}}

        def publish(count: int) -> None:
            for _ in range(count):
                publisher.post("/api/v1/sse/dashboard", json=event).raise_for_status()

        publish(30)  # what the log and the allocator keep in any case is there from now on
        before = memory(server)
        stalled = RawStream("127.0.0.1", server.port, path, buffer=4096)
        try:
            publish(30)  # 15 MB, of which the socket takes less than one
            took = seconds_until(lambda: streams(server) == 0, "the streams are ended")
            assert took <= 2 * INTERVAL + LATE
            until(lambda: memory(server) < before + 4_000, "the memory is given back")
        finally:
            stalled.socket.close()


@pytest.mark.parametrize(
    "size",
    [pytest.param(15_000, marks=pytest.mark.slow), 60_000],
    ids=["in the kernel alone", "also in the server"],
)
def test_a_client_that_lives_and_reads_nothing_has_two_ping_intervals_and_counts_as_stalled(
    start_server: Start, size: int
) -> None:
    server = start_server(KEEPALIVE__PING_INTERVAL=INTERVAL)
    path = f"/api/v1/sse/dashboard?token={server.stream_token('dashboard')}"
    # Each is pinged at a moment of its own: also those whose first ping comes just before the event.
    stalled = [RawStream("127.0.0.1", server.port, path, buffer=4096) for _ in range(16)]
    slow = RawStream("127.0.0.1", server.port, path, buffer=4096)
    try:
        begun = time.monotonic()
        with server.publisher() as publisher:  # the clients' windows take less
            event = {"event": "big", "data": {"x": "x" * size}}
            publisher.post("/api/v1/sse/dashboard", json=event).raise_for_status()
        while time.monotonic() - begun < INTERVAL:
            time.sleep(0.05)
        assert streams(server) == 17
        while slow.numbers() != [1]:
            assert slow.read()
        until(lambda: streams(server) < 17, "one that is stalled is ended")
        took = time.monotonic() - begun
        print(f"{took / INTERVAL:.2f} ping intervals")
        assert took > 2 * INTERVAL - 0.2
        until(lambda: streams(server) == 1, "all that are stalled are ended")
        assert (ends(server, "stalled"), ends(server, "client")) == (16, 0)
        while "ping" not in [event.type for event in slow.events[-1:]]:
            assert slow.read()
    finally:
        for stream in (*stalled, slow):
            stream.socket.close()


def test_a_stream_over_its_backlog_is_ended_and_resumes_completely(start_server: Start) -> None:
    server = start_server(LIMITS__BACKLOG_BYTES=300_000)
    path = f"/api/v1/sse/dashboard?token={server.stream_token('dashboard')}"
    slow = RawStream("127.0.0.1", server.port, path, buffer=4096)
    quick = RawStream("127.0.0.1", server.port, path)
    try:
        with server.publisher() as publisher:

            def publish(first: int, last: int) -> None:
                event = {"channel": "dashboard", "event": "big", "data": {"x": "x" * 50_000}}
                events = [event] * (last + 1 - first)
                publisher.post("/api/v1/sse", json={"events": events}).raise_for_status()
                while len(quick.numbers()) < last:
                    assert quick.read()

            publish(1, 10)  # 1 MB: the sockets take a part of it, the backlog 300 KB
            publish(11, 20)  # together, as a stream that is ended has five seconds to read why
            while slow.read():
                pass
            for number in range(21, 41):
                publish(number, number)
        assert quick.numbers() == list(range(1, 41))
        assert ends(server, "slow_consumer") == 1
        assert slow.events[-1].type == "closing"
        assert '"slow_consumer"' in slow.events[-1].data
        numbers = slow.numbers()
        while numbers[-1:] != [40]:
            last = next(event.id for event in reversed(slow.events) if event.id)
            slow.socket.close()
            slow = RawStream("127.0.0.1", server.port, f"{path}&last_event_id={last}")
            while slow.numbers()[-1:] != [40] and slow.read():
                pass
            assert slow.numbers()
            numbers += slow.numbers()
        assert numbers == list(range(1, 41))
    finally:
        slow.socket.close()
        quick.socket.close()


def test_a_client_that_reads_slowly_but_steadily_is_not_ended(start_server: Start) -> None:
    server = start_server(KEEPALIVE__PING_INTERVAL=2, LIMITS__BACKLOG_BYTES=8_000_000)
    path = f"/api/v1/sse/dashboard?token={server.stream_token('dashboard')}"
    slow = RawStream("127.0.0.1", server.port, path, buffer=4096)
    try:
        with server.publisher() as publisher:
            for _ in range(8):
                event = {"event": "big", "data": {"x": "x" * 50_000}}
                publisher.post("/api/v1/sse/dashboard", json=event).raise_for_status()
        begun = time.monotonic()
        while slow.numbers()[-1:] != [8]:
            assert slow.read(8192)
            time.sleep(0.1)  # at most 82 KB a second, where the server could send a thousand times that
        assert time.monotonic() - begun > 4.0  # longer than two ping intervals
        assert slow.numbers() == list(range(1, 9))
        assert streams(server) == 1
    finally:
        slow.socket.close()
