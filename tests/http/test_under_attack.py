"""Silent connections, a log that is not read, a flood of lines for it and rubbish, all at once: streams are in time."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.fleet import Client, Fleet
from tests.support.server_process import ServerProcess
from tests.support.silence import own_address, silent_clients
from tests.support.waiting import until

HEADS = (
    b"rubbish\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:" + b"9" * 5000 + b"\r\n\r\n",
    b"GET /\x9b[31m HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
)
"""Heads of requests that are malformed, each in its way."""


class Load(NamedTuple):
    """How much is done at once.

    Args:
        streams, silent: how many connections there are of each.
        malformed, for_nothing: how many requests a second.
        seconds: for how long.
    """

    streams: int
    silent: int
    malformed: int
    for_nothing: int
    seconds: float


class Limits(NamedTuple):
    """What may be measured: seconds until all streams have an event, and until a probe is answered."""

    event: float
    probe: float


@pytest.fixture
def unheard(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that is not started yet."""
    server = ServerProcess(
        state_dir=tmp_path / "state",
        LOG__LEVEL="info",
        LIMITS__STREAMS_PER_USER=5000,
        LIMITS__STREAMS_PER_ADDRESS=5000,
    )
    yield server
    if server.process is not None:
        server.kill()


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "limits"),
    [
        pytest.param(Load(100, 100, 50, 50, 3), Limits(5.0, 3.0), id="a little"),
        pytest.param(Load(1000, 1000, 100, 100, 20), Limits(3.0, 1.0), id="in full", marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("many_files")
def test_streams_and_probes_are_in_time_under_all_attacks_at_once(
    unheard: ServerProcess, load: Load, limits: Limits
) -> None:
    reading, writing = os.pipe()
    with ExitStack() as stack:
        lines = LogReader(reading)
        stack.callback(lines.close)
        unheard.start(stderr=writing)
        stack.callback(unheard.kill)
        os.close(writing)
        path = f"/api/v1/sse/dashboard?token={unheard.stream_token('dashboard')}"
        fleet = Fleet(unheard.port)
        stack.callback(fleet.close)
        streams = fleet.open(load.streams, path)
        probes: list[float] = []
        with (
            silent_clients(unheard.port, load.silent, address=own_address),
            repeated(load.malformed, Malformed(unheard.port)),
            repeated(load.for_nothing, Unknown(unheard.port)),
            repeated(10, lambda: probes.append(probe(unheard.port))),
        ):
            times = event_times(unheard, streams, load.seconds)
            lines.start()  # what the pipe holds comes at once, and after that what is written
            time.sleep(1)
            before, begun = lines.size, time.monotonic()
            times += event_times(unheard, streams, load.seconds)
            rate = (lines.size - before) / (time.monotonic() - begun)
        assert not fleet.ended
        stored, events = zip(*times, strict=True)
        late = sorted(probes)[int(len(probes) * 0.99)]
        print(
            f"events: median {median(events):.3f} s, longest {max(events):.3f} s; "
            f"stored within {max(stored):.3f} s; probes: median {median(probes):.4f} s, "
            f"99 of 100 {late:.4f} s, longest {max(probes):.4f} s; log: {rate:.0f} B/s"
        )
        assert max(events) < limits.event
        assert late < limits.probe
        assert rate < 10_000
        assert unheard.stop() == 0


def event_times(server: ServerProcess, streams: list[Client], seconds: float) -> list[tuple[float, float]]:
    """Publish for a while, one event after the other; return how long each took until it was stored, and until all
    streams had it.
    """
    times = []
    end = time.monotonic() + seconds
    with server.publisher() as publisher:
        while time.monotonic() < end:
            begun = time.monotonic()
            mark = f"mark-{time.monotonic_ns()}"
            answer = publisher.post("/api/v1/sse/dashboard", json={"event": "e", "data": {"mark": mark}})
            assert answer.status_code == 201, answer.text
            stored = time.monotonic() - begun
            text = mark.encode()
            until(lambda text=text: all(text in one.received[-4096:] for one in streams), "all have it")  # type: ignore[misc]
            times.append((stored, time.monotonic() - begun))
            time.sleep(0.2)
    return times


def probe(port: int) -> float:
    """Return how many seconds a probe on a new connection takes."""
    begun = time.monotonic()
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
    finally:
        connection.close()
    return time.monotonic() - begun


class Malformed:
    """Sends a malformed head, each time another one, on a connection of its own."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = 0

    def __call__(self) -> None:
        self._number += 1
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 30) as client:
            client.sendall(HEADS[self._number % len(HEADS)])
            client.recv(4096)


class Unknown:
    """Asks for what is not there, each time for something else."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = 0

    def __call__(self) -> None:
        self._number += 1
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", f"/nothing-{self._number}/{'x' * 500}")
            assert connection.getresponse().status == 404
        finally:
            connection.close()


@contextmanager
def repeated(rate: float, act: Callable[[], None]) -> Iterator[None]:
    """Do something so many times a second, in a thread; an error in it fails the test at the end."""
    stopping = threading.Event()
    errors: list[Exception] = []

    def run() -> None:
        due_at = time.monotonic()
        while not stopping.is_set():
            try:
                act()
            except Exception as error:
                errors.append(error)
                return
            due_at = max(due_at + 1 / rate, time.monotonic() - 1)
            stopping.wait(max(0.0, due_at - time.monotonic()))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
    assert not errors, errors


class LogReader:
    """Reads a pipe from `start` on, in a thread, until its other end is closed."""

    def __init__(self, descriptor: int) -> None:
        self.size = 0
        self._descriptor = descriptor
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read."""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while piece := os.read(self._descriptor, 65_536):
            self.size += len(piece)

    def close(self) -> None:
        """Wait for the end, and close the pipe."""
        if self._thread is not None:
            self._thread.join()
        os.close(self._descriptor)


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
