"""What hostile clients do, beside those whose events are accounted for."""

from __future__ import annotations

import random
import resource
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from tests.faults.run import Run
from tests.faults.traffic import CHANNELS
from tests.support.repeated import Repeated, repeating
from tests.support.server_process import ServerProcess
from tests.support.waiting import until

LASTS = 3.0
"""Seconds."""


def take_descriptors(run: Run) -> None:
    """More connections to each server than it may have files open, which say nothing."""

    def connect(server: ServerProcess, chance: random.Random) -> None:
        with suppress(OSError):
            ends.enter_context(socket.create_connection(("127.0.0.1", server.port), 1))
            made[server.port] += 1
        time.sleep(0.001 * chance.random())

    made: Counter[int] = Counter()
    with ExitStack() as ends, _many_files(), attacking(run, connect):
        time.sleep(LASTS)
        until(
            lambda: all(made[server.port] > server.open_files for server in run.servers), "each has too many"
        )


@contextmanager
def _many_files() -> Iterator[None]:
    """Let this process have as many files open as it may at all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_slowly(run: Run) -> None:
    """Streams of which a byte a second is read."""

    def read(server: ServerProcess, chance: random.Random) -> None:
        path = server.stream_url(",".join(CHANNELS), server.stream_token(*CHANNELS)).removeprefix(server.url)
        with suppress(OSError), socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(2)
            sock.connect(("127.0.0.1", server.port))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            for _ in range(int(LASTS)):
                sock.recv(1)
                time.sleep(1)

    with attacking(run, read, threads=10):
        time.sleep(LASTS)


def write_slowly(run: Run) -> None:
    """Heads and bodies of requests that come byte by byte, and never as a whole."""

    def write(server: ServerProcess, chance: random.Random) -> None:
        head = b"GET /api/v1/sse/dashboard HTTP/1.1\r\nHost: localhost\r\nX-Slow: 1"
        body = b"POST /api/v1/sse/dashboard HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 2) as sock:
            sent = chance.choice((head, body))
            sock.sendall(sent[: chance.randint(1, len(sent))])
            for _ in range(10):
                sock.sendall(b"x")
                time.sleep(0.2)

    with attacking(run, write, threads=20):
        time.sleep(LASTS)


def connect_and_close(run: Run) -> None:
    """Connections as fast as can be, closed at any step, some with a reset."""

    def connect(server: ServerProcess, chance: random.Random) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 2) as sock:
            if chance.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            if chance.random() < 0.5:
                sock.sendall(b"GET /api/v1/sse/dashboard HTTP/1.1\r\n"[: chance.randint(1, 40)])

    with attacking(run, connect, threads=2):
        time.sleep(LASTS)


def send_garbage(run: Run) -> None:
    """Bytes that are no HTTP, and requests with some bytes changed."""

    def send(server: ServerProcess, chance: random.Random) -> None:
        request = bytearray(
            b"POST /api/v1/sse/dashboard?event=e HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x.y.z\r\n"
            b'Content-Type: application/json\r\nContent-Length: 27\r\n\r\n{"event":"e","data":{"x":1}}'
        )
        if chance.random() < 0.3:
            request = bytearray(chance.randbytes(chance.randint(1, 2000)))
        for _ in range(chance.randint(1, 5)):
            request[chance.randrange(len(request))] = chance.randrange(256)
        with suppress(OSError), socket.create_connection(("127.0.0.1", server.port), 2) as sock:
            sock.sendall(request)
            sock.settimeout(0.2)
            answer = sock.recv(65_536)
            assert not answer.startswith(b"HTTP/1.1 5"), (bytes(request), answer)

    with attacking(run, send, threads=2):
        time.sleep(LASTS)


@contextmanager
def attacking(
    run: Run, attack: Callable[[ServerProcess, random.Random], None], threads: int = 1
) -> Iterator[None]:
    """Attack from so many threads, again and again, each time one of the servers."""

    def attacker(chance: random.Random) -> Repeated:
        return Repeated(lambda: attack(chance.choice(run.servers), chance))

    attackers = [attacker(random.Random(run.chance.getrandbits(60))) for _ in range(threads)]
    run.harmed()
    with repeating(*attackers):
        yield
