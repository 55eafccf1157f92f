"""One measurement: a server in a fresh directory, streams on it, and what a stretch of work costs."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.load import Publisher, Report, StreamClient, verify
from bench.native import BUILD
from bench.servers import SERVERS, Options, Server
from bench.servers.interface import ENOUGH

Sample = dict[str, float]
CHANNEL = "bench.0"
WARM_UP_CHANNEL = "bench.warm-up"
SETTLE_SECONDS = 0.5
_MOST = 64
"""No more connections than these are warmed up."""


def _warm_up(server: Server) -> None:
    """One stream and one event on a channel of their own, so that what is loaded on first use is there.

    With several workers so many of both that each has some.
    """
    if server.streams:
        enough = 1 if server.options.workers == 1 else min(_MOST, ENOUGH * server.options.workers)
        with stream_client(server, enough, [WARM_UP_CHANNEL]) as client:
            client.open()
            Publisher(server.publish([WARM_UP_CHANNEL]), enough, connections=enough).result()
            client.wait(enough, 5.0)
    time.sleep(SETTLE_SECONDS)


@contextmanager
def running(name: str, options: Options | None = None) -> Iterator[Server]:
    """Run a server in a directory of its own, on the disk of this checkout, and end it afterwards."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=BUILD) as directory:
        server = SERVERS[name](Path(directory), options or Options())
        try:
            server.start()
            _warm_up(server)
            yield server
            server.processes.check()
        finally:
            server.stop()


def wait_until_quiet(server: Server, limit: float = 20.0) -> None:
    """Return when the server has taken less than 2 % of a core for a second, or after the limit in seconds."""
    deadline = time.monotonic() + limit
    used, quiet = server.processes.cpu_seconds(), 0
    while quiet < 4 and time.monotonic() < deadline:
        time.sleep(0.25)
        before, used = used, server.processes.cpu_seconds()
        quiet = quiet + 1 if used - before < 0.005 else 0


def stream_client(server: Server, streams: int, channels: list[str] | None = None) -> StreamClient:
    """Return a client for so many streams on the server; not yet connected."""
    paths = server.stream_paths(channels or [CHANNEL], streams)
    return StreamClient(server.port, paths, streams, ready=server.ready)


def machine_time() -> tuple[int, int, int]:
    """All time of all cores, that in which they worked for us, and that which was stolen, in ticks."""
    line = Path("/proc/stat").read_text().split("\n", 1)[0]
    user, nice, system, idle, waiting, hard, soft, stolen = (int(field) for field in line.split()[1:9])
    busy = user + nice + system + hard + soft
    return busy + idle + waiting + stolen, busy, stolen


@dataclass
class Cost:
    """What a stretch took: CPU of the server and of the whole machine, and the clock, in seconds."""

    cpu: float
    machine_cpu: float
    wall: float
    stolen: float
    """The share of the machine's time that the hypervisor gave to others."""


class Stopwatch:
    """Reads the server's CPU time, the clock and the hypervisor's steal at its start and at `stop`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._machine = machine_time()
        self._wall = time.monotonic()
        self._cpu = server.processes.cpu_seconds()

    def stop(self) -> Cost:
        """Return what has passed since the start."""
        cpu = self._server.processes.cpu_seconds() - self._cpu
        wall = time.monotonic() - self._wall
        total, busy, stolen = (now - then for now, then in zip(machine_time(), self._machine, strict=True))
        return Cost(cpu, busy / os.sysconf("SC_CLK_TCK"), wall, stolen / max(1, total))


def connect(server: Server, client: StreamClient) -> Sample:
    """Connect all streams; return what a connection costs in CPU, time and memory."""
    memory = server.processes.memory()
    watch = Stopwatch(server)
    report = client.open()
    cost = watch.stop()
    wait_until_quiet(server, 5.0)
    grown = server.processes.memory()
    return {
        "connect_cpu_us": cost.cpu / client.streams * 1e6,
        "connects_per_s": client.streams / cost.wall,
        "connect_p99_ms": report["opening_us"]["p99"] / 1e3,
        "connect_retries": float(report["retried"] + report["ended"]),
        "rss_kib_per_stream": (grown.rss - memory.rss) / client.streams,
        "pss_kib_per_stream": (grown.pss - memory.pss) / client.streams,
        "rss_mib": grown.rss / 1024,
        "connect_stolen_percent": cost.stolen * 100,
    }


def latencies(report: Report) -> Sample:
    """Return the latencies of a report of the stream client in milliseconds."""
    return {f"{name}_ms": report["latency_us"][name] / 1e3 for name in ("p50", "p90", "p99", "p999", "max")}


def fan_out(
    server: Server, client: StreamClient, events: int, rate: float, batch: int = 1, channel: str = CHANNEL
) -> Sample:
    """Publish so many events in batches at so many requests a second to all streams; return what it costs.

    A server without batches gets the events of a batch one by one, as fast as it answers.
    """
    streams = client.streams
    if not server.batches and batch > 1:
        batch, rate = 1, 0.0
    publish = server.publish([channel], batch)
    before = client.reset()
    watch = Stopwatch(server)
    publisher = Publisher(publish, events // batch, rate=rate)
    after = client.wait(events, 60.0 + (events / batch / rate if rate else 0.0))
    cost = watch.stop()
    published = publisher.result()
    verify(after, events)
    deliveries = streams * events
    client_cpu = after["cpu_s"] - before["cpu_s"]
    others = max(0.0, cost.machine_cpu - cost.cpu - client_cpu - published["cpu_s"])
    return {
        "cpu_us": cost.cpu / deliveries * 1e6,
        "client_cpu_us": client_cpu / deliveries * 1e6,
        "publisher_cpu_us": published["cpu_s"] / events * 1e6,
        "server_cpu_percent": cost.cpu / cost.wall * 100,
        "client_cpu_percent": client_cpu / cost.wall * 100,
        "bytes_per_delivery": after["bytes"] / deliveries,
        "deliveries_per_s": deliveries / cost.wall,
        "stolen_percent": cost.stolen * 100,
        "others_percent": others / cost.wall / (os.cpu_count() or 1) * 100,
        "answer_p99_ms": published["answer_us"]["p99"] / 1e3,
        **latencies(after),
    }
