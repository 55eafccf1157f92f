"""Streams that are read at a fixed rate, and what is known of the values that they bring."""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

from bench.load import LoadFailed
from bench.payload import SENT_BASE, SEQ_BASE

_TICK = 0.01
"""Seconds between two reads."""

_RECEIVE_BUFFER = 16 * 1024
"""What a socket holds that has not been read, in bytes: without a bound it would be megabytes, grown old."""

_VALUE = re.compile(rb'"seq":(\d+),"sent":(\d+),"symbol":"([^"]+)"')


@dataclass
class SlowReader:
    """One stream, and what has come of it."""

    connection: socket.socket
    rest: bytes = b""
    is_open: bool = True
    events: int = 0
    disordered: int = 0
    """Events that are no later than the one before."""
    last: int = 0
    newest: dict[bytes, int] = field(default_factory=dict)
    """The number of the last event of each key."""
    ages: list[float] = field(default_factory=list)
    """Of each event when it was read, in milliseconds after it was published."""
    other: Counter[bytes] = field(default_factory=Counter)
    """How many events have come of the server's own types."""

    def take(self, data: bytes) -> None:
        """Take what was read."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        now = time.monotonic_ns() // 1000
        for line in lines:
            if line.startswith(b"event: "):
                self.other[line[7:]] += 1
            elif (value := _VALUE.search(line)) is not None:
                number = int(value[1]) - SEQ_BASE
                self.disordered += number <= self.last
                self.last = self.newest[value[3]] = number
                self.events += 1
                self.ages.append((now - int(value[2]) + SENT_BASE) / 1000)


class SlowReaders:
    """Streams of a server that are read at a rate, by a thread.

    Args:
        port: of the server.
        paths: of the streams.
        rate: in bytes a second, of each.
    """

    def __init__(self, port: int, paths: Sequence[str], rate: float) -> None:
        self._port, self._paths, self._rate = port, paths, rate
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._sockets = ExitStack()
        self.readers: list[SlowReader] = []

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for path in self._paths:
                connection = opened.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
                connection.settimeout(30)
                connection.connect(("127.0.0.1", self._port))
                # In HTTP/1.0 its lines come without chunks.
                connection.sendall(f"GET {path} HTTP/1.0\r\nAccept: text/event-stream\r\n\r\n".encode())
                head = b""
                while b"event: connected" not in head:
                    if not (data := connection.recv(4096)):
                        raise LoadFailed(f"a stream was answered {head[:200]!r}")
                    head += data
                self.readers.append(SlowReader(connection))
                self.readers[-1].take(head)
            self._sockets = opened.pop_all()
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        self._ending.set()
        self._thread.join()
        self._sockets.close()

    def _read(self) -> None:
        began, taken = time.monotonic(), dict.fromkeys(range(len(self.readers)), 0)
        while not self._ending.wait(_TICK):
            granted = int((time.monotonic() - began) * self._rate)
            for number, reader in enumerate(self.readers):
                if not reader.is_open or not select.select([reader.connection], [], [], 0)[0]:
                    taken[number] = granted  # a time without anything to read gives no more right later
                    continue
                try:
                    data = reader.connection.recv(max(0, granted - taken[number]))
                except ConnectionError:
                    data = b""
                reader.is_open = bool(data) or granted == taken[number]
                taken[number] += len(data)
                reader.take(data)

    def wait_for(self, number: int, keys: int, timeout: float) -> float:
        """Return after how many seconds all have the last event of each key, or the timeout.

        Args:
            number: of the last event; the keys have had their events in turn.
            keys: how many there are.
            timeout: in seconds.
        """
        began = time.monotonic()
        while (waited := time.monotonic() - began) < timeout:
            if all(_has_newest(reader, number, keys) == keys for reader in self.readers if reader.is_open):
                break
            time.sleep(_TICK)
        return waited

    def complete(self, number: int, keys: int) -> float:
        """Return how many keys have their last event, of those of all streams, in percent."""
        newest = sum(_has_newest(reader, number, keys) for reader in self.readers)
        return newest / (keys * len(self.readers)) * 100


def _has_newest(reader: SlowReader, number: int, keys: int) -> int:
    return sum(seen > number - keys for seen in list(reader.newest.values()))
