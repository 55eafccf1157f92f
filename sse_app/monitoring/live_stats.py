"""The server's figures, once a second, for all administrators who look on; nothing is done while nobody does."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from tornado.ioloop import PeriodicCallback

from sse_app.core.channels import ADMIN_CHANNEL
from sse_app.core.counters import quantile
from sse_app.core.events import timestamp
from sse_app.core.framing import framed
from sse_app.core.sse import encode
from sse_app.version import VERSION

if TYPE_CHECKING:
    from sse_app.node import Node

EVENT = "figures"
"""The type of the events; they have no ids, for they are not in the log and nothing is missed without them."""

INTERVAL = 1.0
"""Seconds between two sets of figures."""

KEPT = 300
"""How many sets of figures are kept, for who comes later."""

LINGER = 10.0
"""For how many seconds figures are still taken when nobody listens any more: whoever reconnects finds no hole."""

PRECISION = 3


class _Counts(NamedTuple):
    """Counters at one moment: rates are what is between two."""

    at: float
    cpu: float
    deliveries: int
    events: int
    opened: int
    resumed: int
    refused: int
    publish: tuple[int, ...]
    fan_out: tuple[int, ...]


class Figures:
    """Takes the figures once for all streams on the admin channel and writes them to each, as pings are.

    Args:
        node: whose figures; only counters are read, and the streams that are behind.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._started_at = timestamp(time.time())
        self._number = 0
        self._last = self._count(time.monotonic())
        self._wanted_until = 0.0
        self._recent: deque[bytes] = deque(maxlen=KEPT)
        self._callback = PeriodicCallback(self.tick, INTERVAL * 1000)

    @property
    def recent(self) -> list[bytes]:
        """The last sets of figures as JSON, the oldest first; where nobody looked on for a while some are missing."""
        return list(self._recent)

    def start(self) -> None:
        """Begin to look whether anybody listens."""
        self._callback.start()

    def stop(self) -> None:
        """Take no more."""
        self._callback.stop()

    async def tick(self) -> None:
        """Take the figures and send them, if anybody listens."""
        subscribers = self._node.hub.subscribers(ADMIN_CHANNEL)
        now = time.monotonic()
        last, self._last = self._last, self._count(now)
        self._number += 1
        if subscribers:
            self._wanted_until = now + LINGER
        if now > self._wanted_until:
            return
        figures = orjson.dumps(await self._figures(last, self._last))
        self._recent.append(figures)
        event = framed(encode(figures, event=EVENT))
        for stream in self._node.hub.subscribers(ADMIN_CHANNEL):
            stream.write(event(stream.framing))

    def _count(self, now: float) -> _Counts:
        hub, metrics = self._node.hub, self._node.metrics
        return _Counts(
            now,
            time.process_time(),
            hub.deliveries,
            hub.events_fanned_out,
            metrics.streams_opened,
            metrics.streams_resumed,
            metrics.refusals.total(),
            metrics.publish_seconds.counts,
            hub.fan_out_seconds.counts,
        )

    async def _figures(self, last: _Counts, this: _Counts) -> dict[str, Any]:
        node = self._node
        hub, metrics = node.hub, node.metrics
        seconds = this.at - last.at

        def rate(name: str) -> float:
            change: float = getattr(this, name) - getattr(last, name)
            return round(change / seconds, PRECISION)

        return {
            "channel": ADMIN_CHANNEL,
            "timestamp": timestamp(time.time()),
            "version": VERSION,
            "started_at": self._started_at,
            "number": self._number,
            "uptime_seconds": round(time.monotonic() - node.started_at, PRECISION),
            "draining": node.draining,
            "streams": len(hub.streams),
            "users": len(hub.streams_of_subject),
            "addresses": len(hub.streams_of_address),
            "streams_behind": len(hub.laggards),
            "backlog_bytes": sum(stream.backlog_bytes for stream in hub.laggards),
            "log_head": str(hub.head),
            "log_available": node.eventlog.available,
            "cpu": rate("cpu"),
            "deliveries_per_second": rate("deliveries"),
            "publishes_per_second": rate("events"),
            "opens_per_second": rate("opened"),
            "reconnects_per_second": rate("resumed"),
            "refusals_per_second": rate("refused"),
            "publish_seconds": _latency(last.publish, this.publish),
            "fan_out_seconds": _latency(last.fan_out, this.fan_out),
            "deliveries": hub.deliveries,
            "events": hub.events_fanned_out,
            "reconnects": metrics.streams_resumed,
            "refusals": dict(sorted(metrics.refusals.items())),
            "endings": dict(sorted(hub.endings.items())),
            "channels": await self._channels(),
        }

    async def _channels(self) -> list[dict[str, Any]]:
        """Return the channels that are configured by name; those of patterns may be as many as there are users."""
        node = self._node
        rows = []
        for name in node.channels.names:
            published, _ = await node.eventlog.published(name)
            streams = node.hub.streams_on_channel[name]
            rows.append({"channel": name, "streams": streams, "events": published})
        return rows


def _latency(last: tuple[int, ...], this: tuple[int, ...]) -> dict[str, float | None]:
    """Return upper bounds of the median and the 99th percentile since the last look; None where nothing was."""
    counts = [now - before for now, before in zip(this, last, strict=True)]
    return {"p50": quantile(counts, 0.5), "p99": quantile(counts, 0.99)}
