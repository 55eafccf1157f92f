"""A server with several workers, and many streams on it from several client processes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import memory
from bench.fleet import Fleet
from bench.measure import CHANNEL, Sample, Stopwatch, running, wait_until_quiet
from bench.run import Run
from bench.servers import Options, Server

_INFLIGHT = 100
_PING_SECONDS = 30
_ROOM = 1_000
"""How many streams more than needed the server allows, for those it has yet to see the end of."""


class Crowd:
    """Streams that are yet to be opened, and what opening them takes.

    Args:
        server: running.
        clients: of the streams.
        workers: of the server.
    """

    def __init__(self, server: Server, clients: Fleet, workers: int) -> None:
        self._server = server
        self.clients = clients
        self._empty = memory.shares(server.processes.pids(), [])
        self._workers = workers
        self.short = ""
        """Why not all streams are open; empty when they are."""

    def open(self, least_available: float) -> Sample:
        """Open the streams, and return what it costs.

        Args:
            least_available: with less memory left, in MiB, no further streams are opened.
        """
        watch = Stopwatch(self._server)
        self.short = self.clients.grow(_INFLIGHT, least_available)
        cost = watch.stop()
        opened = max(1, self.clients.streams)
        return {"open_s": cost.wall, "connect_cpu_us": cost.cpu / opened * 1e6}

    def grown(self) -> Sample:
        """Return what a stream takes of memory, in KB (1,024 bytes), when the server is quiet."""
        wait_until_quiet(self._server, 10.0)
        time.sleep(1.0)
        now = memory.shares(self._server.processes.pids(), self.clients.pids)
        grown, streams = now - self._empty, self.clients.streams
        return {
            "server_kb": grown.server / streams,
            "kernel_kb": grown.kernel / streams,
            "client_kb": grown.client / streams,
            "total_kb": grown.total / streams,
            "machine_kb": -grown.available / streams,
            "empty_worker_mib": self._empty.server / self._workers / 1024,
        }


@contextmanager
def crowd(server_name: str, run: Run, streams: int, workers: int) -> Iterator[tuple[Server, Crowd]]:
    """Run a server, with its streams yet to be opened; end both afterwards."""
    options = Options(
        ping_interval=_PING_SECONDS,
        workers=workers,
        most_streams=streams + _ROOM,
        streams_per_token=run.streams_per_token,
    )
    with (
        running(server_name, options) as server,
        Fleet(server.port, server.stream_paths([CHANNEL], streams), streams, server.ready) as clients,
    ):
        yield server, Crowd(server, clients, workers)
