"""Many clients on real sockets, all in one thread, and what each of them saw."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import lru_cache

import httpx

from tests.support.sse_reader import EventStreamReader
from tests.support.waiting import until

PAUSE = 0.01
"""Seconds between two looks at what has come to a fleet: else each event of each of a thousand clients is a look."""


class Client:
    """One stream: a bare socket, and all bytes that came.

    Args:
        port, path: of the stream.
        receive_buffer: of the socket, in bytes; 0 leaves it to the kernel.
        http: the version of the protocol; the bodies of 1.0 are not chunked.
    """

    def __init__(self, port: int, path: str, *, receive_buffer: int = 0, http: str = "1.1") -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(f"GET {path} HTTP/{http}\r\nHost: localhost\r\n\r\n".encode())
        self._http = http
        self.socket.setblocking(False)
        self.received = bytearray()
        self.ended: str | None = None
        self.reading = True
        self.last_at = time.monotonic()
        self.longest_wait = 0.0

    def read(self) -> None:
        """Take what has arrived."""
        try:
            piece = self.socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError as error:
            self.ended = f"reset: {error}"
            return
        if not piece:
            self.ended = "end of file"
        now = time.monotonic()
        self.longest_wait = max(self.longest_wait, now - self.last_at)
        self.last_at = now
        self.received += piece

    @property
    def head(self) -> str:
        """The response's head."""
        return bytes(self.received).partition(b"\r\n\r\n")[0].decode()

    def body(self) -> bytes:
        """Return the body without its chunks' framing; broken framing fails."""
        rest = bytes(self.received).partition(b"\r\n\r\n")[2]
        if self._http == "1.0":
            return rest
        chunks = []
        at = 0
        while (line_end := rest.find(b"\r\n", at)) >= 0:
            begin = line_end + 2
            end = begin + int(rest[at:line_end], 16)
            if len(rest) < end + 2:
                break  # the rest of this chunk is still under way
            assert rest[end : end + 2] == b"\r\n", rest[end : end + 40]
            chunks.append(rest[begin:end])
            at = end + 2
        return b"".join(chunks)

    def read_until(self, text: str) -> None:
        """Read until a text has come, for a client that no fleet reads for."""
        more = select.poll()
        more.register(self.socket, select.POLLIN)

        def arrived() -> bool:
            self.read()
            assert self.ended is None, self.ended
            if text.encode() in self.received[-4096:]:
                return True
            more.poll(100)  # milliseconds
            return False

        until(arrived, f"{text!r} has come", pause=0)

    def wait_for(self, id: str) -> None:
        """Wait until an event has come, for a client that a fleet reads for."""
        until(lambda: id.encode() in self.received, f"the event {id} has come")

    def ids(self) -> list[str]:
        """Return the ids of the published events that came, in their order."""
        first, blank, others = self.body().partition(b"\n\n")
        return [*_ids_in(first + blank), *_ids_in(others)]


@lru_cache(maxsize=16)
def _ids_in(events: bytes) -> tuple[str, ...]:
    """Return the ids of published events; of many clients all but the first event is often the same."""
    return tuple(
        event.id
        for event in EventStreamReader().feed(events)
        if event.id is not None and event.type != "connected"
    )


class Fleet:
    """Opens clients and reads from them in a thread until it is closed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.clients: list[Client] = []
        self._poll = select.epoll()
        self._by_descriptor: dict[int, Client] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="fleet")
        self._thread.start()

    def open(
        self, count: int, path: str | Callable[[int], str], *, port: int = 0, http: str = "1.1"
    ) -> list[Client]:
        """Open clients, at the port of a proxy if one is given, and wait until each has its first event."""
        opened = []
        for number in range(count):
            client = Client(port or self.port, path if isinstance(path, str) else path(number), http=http)
            self._by_descriptor[client.socket.fileno()] = client
            self._poll.register(client.socket.fileno(), select.EPOLLIN)
            opened.append(client)
        self.clients += opened
        until(lambda: all(b"event: connected" in client.received for client in opened), "the event has come")
        return opened

    def pause(self, client: Client) -> None:
        """Read no more from a client until `resume`."""
        self._poll.unregister(client.socket.fileno())

    def resume(self, client: Client) -> None:
        """Read from a client again."""
        self._poll.register(client.socket.fileno(), select.EPOLLIN)

    def _read(self) -> None:
        while not self._stopping.is_set():
            for descriptor, _ in self._poll.poll(0.05):
                client = self._by_descriptor[descriptor]
                client.read()
                if client.ended:
                    self._poll.unregister(descriptor)
            self._stopping.wait(PAUSE)

    @property
    def ended(self) -> list[str]:
        """How clients ended that did."""
        return [client.ended for client in self.clients if client.ended]

    def close(self) -> None:
        """End all clients."""
        self._stopping.set()
        self._thread.join()
        for client in self.clients:
            client.socket.close()
        self._poll.close()


class SteadyPublisher:
    """Publishes events one after another in a thread, each until it is acknowledged.

    Args:
        url: of the server.
        token: an access token.
        channel: where to.
        pause: seconds between two.
        data: what is in the event of a number.
    """

    def __init__(
        self,
        url: str,
        token: str,
        channel: str = "dashboard",
        pause: float = 0.025,
        data: Callable[[int], dict[str, object]] = lambda number: {"number": number},
    ) -> None:
        self.ids: list[str] = []
        self.retried: list[str] = []
        self.longest = 0.0
        self._url = f"{url}/api/v1/sse/{channel}"
        self._token = token
        self._pause = pause
        self._data = data
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._publish, name="publisher", daemon=True)
        self._thread.start()

    def _publish(self) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {self._token}"}, timeout=60) as http:
            number = 0
            while not self._stopping.is_set():
                number += 1
                begun = time.monotonic()
                self.ids.append(self._acknowledged(http, number))
                self.longest = max(self.longest, time.monotonic() - begun)
                time.sleep(self._pause)

    def _acknowledged(self, http: httpx.Client, number: int) -> str:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = http.post(
                    self._url,
                    json={"event": "e", "data": self._data(number)},
                    headers={"Idempotency-Key": f"event-{number}"},
                )
                if answer.status_code == 201:
                    return str(answer.json()["id"])
                assert answer.status_code == 503, answer.text
            self.retried.append(f"event {number}")
            time.sleep(0.02)

    def stop(self) -> list[str]:
        """Stop, and return the ids of all events in their order."""
        self._stopping.set()
        self._thread.join()
        return self.ids


def assert_all_received(clients: Sequence[Client], ids: list[str]) -> None:
    """Wait for the last event, and check that each client has every event once, in order."""
    until(
        lambda: all(ids[-1].encode() in client.received[-4096:] for client in clients), "the event has come"
    )
    for client in clients:
        assert client.ids() == ids
