"""Fan-out while administrators look on: what three dashboards cost it."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from functools import partial

from bench.measure import Sample, connect, fan_out, running, stream_client
from bench.run import Run
from bench.scenarios.scenario import Column, Scenario, Variant
from bench.servers.sse_app import SseApp

_DASHBOARDS = 3
_TABLE_EVERY = 5.0
"""Seconds between two looks of a dashboard at the table of connections, as the page takes them."""


class _Dashboard:
    """What the page does, without drawing: a stream of the figures, and the table again and again."""

    def __init__(self, server: SseApp) -> None:
        self._server = server
        self.heard = 0
        self._stopping = threading.Event()
        self._stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        self._stream.request("GET", server.figures_path())
        self._answer = self._stream.getresponse()
        self._threads = [threading.Thread(target=self._listen), threading.Thread(target=self._look)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        while not self._stopping.is_set():
            self.heard += self._answer.readline().startswith(b"event: figures")

    def _look(self) -> None:
        headers = {"Authorization": f"Bearer {self._server.admin_token()}"}
        while not self._stopping.wait(_TABLE_EVERY):
            table = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=10)
            table.request("GET", "/api/v1/admin/connections?limit=50", headers=headers)
            table.getresponse().read()
            table.close()

    def close(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._stream.close()


@contextlib.contextmanager
def _dashboards(server: SseApp, count: int) -> Iterator[list[_Dashboard]]:
    opened = [_Dashboard(server) for _ in range(count)]
    try:
        deadline = time.monotonic() + 10
        while not all(dashboard.heard for dashboard in opened):
            if time.monotonic() > deadline:
                raise RuntimeError("a dashboard hears nothing")
            time.sleep(0.05)
        yield opened
    finally:
        for dashboard in opened:
            dashboard.close()


def _measure(dashboards: int, server_name: str, run: Run) -> Sample:
    streams, events = run.pick((1_000, 12), (10_000, 20), (10_000, 40))
    with running(server_name) as server, stream_client(server, streams) as client:
        assert isinstance(server, SseApp)
        connect(server, client)
        with _dashboards(server, dashboards):
            return fan_out(server, client, events, 4.0)


SCENARIOS = (
    Scenario(
        "dashboards",
        "Fan-out to 10,000 streams with three admin dashboards open",
        "60 events at 4 a second, each to 10,000 streams, with and without three dashboards: each has a stream of "
        "the figures and asks for a page of the connections every 5 seconds.",
        (
            Variant("sse_app", "without", partial(_measure, 0)),
            Variant("sse_app", "three dashboards", partial(_measure, _DASHBOARDS)),
        ),
        (
            Column("cpu_us", "server CPU, µs a delivery", 2),
            Column("p50_ms", "p50 ms"),
            Column("p99_ms", "p99 ms"),
            Column("stolen_percent", "stolen %"),
            Column("others_percent", "others %"),
        ),
        partial(_measure, 0),
        default=("sse_app",),
        rounds=1,
    ),
)
