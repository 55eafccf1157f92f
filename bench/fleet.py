"""Many streams over several client processes, which look like one client."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from bench.histogram import merged
from bench.load import LoadFailed, Report, StreamClient, path_file
from bench.memory import available_mib

STREAMS_PER_CLIENT = 18_000
"""Fewer than the files that a process may open."""

_SOURCES = 8
"""Loopback addresses for each client process: some 28,000 ports are free between two addresses."""

_NAP = 20_000
"""How often a client of an idle crowd looks, in microseconds: else looking is most of what it does."""

_LEAST = frozenset({"fewest"})
_LARGEST = frozenset({"most", "longest_wait_us", "silent_us"})


def combined(reports: Sequence[Report]) -> Report:
    """Return the reports of several clients, with their buckets, as that of one client."""
    total: dict[str, Any] = {}
    for name, value in reports[0].items():
        values = [report[name] for report in reports]
        if isinstance(value, dict):
            total[name] = merged(reports, name)
        elif isinstance(value, str):
            total[name] = next((text for text in values if text), "")
        elif not isinstance(value, list):
            total[name] = min(values) if name in _LEAST else max(values) if name in _LARGEST else sum(values)
    return total


class Fleet:
    """Streams of one server over as many client processes as their files need.

    Args:
        port: of the server.
        paths: of the streams, taken in turn.
        streams: how many in all.
        ready: what tells that a stream is subscribed.
    """

    def __init__(self, port: int, paths: Sequence[str], streams: int, ready: str) -> None:
        self._paths = path_file(paths)
        self._clients: list[StreamClient] = []
        self.streams = 0
        self._wanted, self._port, self._ready = streams, port, ready

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *about: object) -> None:
        for client in self._clients:
            with contextlib.suppress(OSError):
                client.close()
        self._paths.unlink(missing_ok=True)

    @property
    def pids(self) -> list[int]:
        """The processes that hold the streams."""
        return [pid for client in self._clients for pid in client.pids]

    def grow(self, inflight: int, least_available: float = 0.0, timeout: float = 120.0) -> str:
        """Open the streams, two client processes at a time, and return why not all are open; empty when they are.

        Args:
            inflight: connections under way of each client process.
            least_available: with less memory left, in MiB, no further streams are opened.
            timeout: of each step, in seconds.
        """
        share = min(STREAMS_PER_CLIENT, max(1, -(-self._wanted // 2)))
        while self.streams < self._wanted:
            if available_mib() < least_available:
                return f"{available_mib():.0f} MiB of memory were left"
            clients = []
            for _ in range(2):
                left = self._wanted - self.streams
                if left > 0:
                    clients.append(self._start(min(share, left), share))
            for client in clients:
                client.send(f"open {inflight} {int(timeout * 1000)}")
            reports = [client.receive(timeout) for client in clients]
            ready = sum(report["ready"] for report in reports)
            if ready != sum(client.streams for client in clients):
                self.streams -= sum(client.streams for client in clients) - ready
                return next((report["error"] for report in reports if report["error"]), "no answer in time")
        return ""

    def _start(self, streams: int, share: int) -> StreamClient:
        number = len(self._clients)
        client = StreamClient(
            self._port,
            self._paths,
            streams,
            ready=self._ready,
            sources=_SOURCES,
            first_source=number * _SOURCES,
            first_path=number * share,
        )
        self._clients.append(client)
        self.streams += streams
        client.ask("buckets 1")
        client.ask(f"nap {_NAP}")
        return client

    def ask(self, command: str, timeout: float = 10.0) -> Report:
        """Send one command to all clients at once, and return their answers as one."""
        for client in self._clients:
            client.send(command)
        return combined([client.receive(timeout) for client in self._clients])

    def come_back(self, inflight: int, timeout: float) -> Report:
        """Connect all streams that are not, with their last ids, again where it fails.

        Raises:
            LoadFailed: not all were ready in time.
        """
        report = self.ask(f"return {inflight} {int(timeout * 1000)}", timeout)
        if report["ready"] != self.streams:
            raise LoadFailed(f"{report['ready']} of {self.streams} streams are back: {report['error']}")
        return report

    def reset(self) -> Report:
        """Zero the counters of events; CPU and streams stay."""
        return self.ask("reset")

    def wait(self, events: int, timeout: float) -> Report:
        """Wait until every stream has had so many events since the reset, or the time is over."""
        return self.ask(f"wait {events} {int(timeout * 1000)}", timeout)
