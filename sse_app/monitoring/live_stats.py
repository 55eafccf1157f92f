"""Live statistics of the node, once a second, on the admin channel; nothing is computed while it has no stream."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

from sse_app.core.channels import ADMIN_CHANNEL, ChannelPatterns
from sse_app.core.counters import Metrics, quantile
from sse_app.core.events import timestamp
from sse_app.core.framing import framed
from sse_app.core.json_text import to_json
from sse_app.core.lifecycle import Lifecycle
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.sse import encode
from sse_app.eventlog.base import EventLog
from sse_app.streams.hub import Hub
from sse_app.version import VERSION

EVENT = "figures"
"""The type of the events. They have no ids: they are not in the log, and a client misses nothing without them."""

INTERVAL = 1.0
"""Seconds between two events."""

KEPT = 300
"""How many events are kept for administrators who come later."""

LINGER = 10.0
"""For how many seconds they are still computed after the last stream ended: a client that reconnects finds no gap."""

PRECISION = 3


class _Counts(NamedTuple):
    """Counters at one moment; a rate is the difference of two, divided by the time between."""

    at: float
    cpu: float
    deliveries: int
    events: int
    opened: int
    resumed: int
    refused: int
    publish: tuple[int, ...]
    fan_out: tuple[int, ...]


class LiveStats:
    """Computes the statistics once for all streams on the admin channel and writes them to each, as pings are.

    Only counters are read, and the streams that are behind.

    Args:
        hub: whose streams are counted, and written to.
        eventlog: whose head and availability are shown, and how many events each channel has.
        metrics: the counters of requests.
        channels: those that are configured.
        lifecycle: since when the node exists, and whether it is draining.
    """

    def __init__(
        self, hub: Hub, eventlog: EventLog, metrics: Metrics, channels: ChannelPatterns, lifecycle: Lifecycle
    ) -> None:
        self._hub = hub
        self._eventlog = eventlog
        self._metrics = metrics
        self._channels = channels
        self._lifecycle = lifecycle
        self._started_at = timestamp(time.time())
        self._number = 0
        self._last = self._count(time.monotonic())
        self._wanted_until = 0.0
        self._recent: deque[bytes] = deque(maxlen=KEPT)
        self._callback = PeriodicCallback(self.tick, INTERVAL)

    @property
    def recent(self) -> list[bytes]:
        """The last events as JSON, the oldest first, with gaps where the admin channel had no stream."""
        return list(self._recent)

    def start(self) -> None:
        """Begin to look for streams on the admin channel."""
        self._callback.start()

    def stop(self) -> None:
        """Compute no more."""
        self._callback.stop()

    def use(self, channels: ChannelPatterns) -> None:
        """Show other channels from now on."""
        self._channels = channels

    async def tick(self) -> None:
        """Compute the statistics and send them, if the admin channel has a stream or had one within `LINGER`."""
        subscribers = self._hub.subscribers(ADMIN_CHANNEL)
        now = time.monotonic()
        last, self._last = self._last, self._count(now)
        self._number += 1
        if subscribers:
            self._wanted_until = now + LINGER
        if now > self._wanted_until:
            return
        figures = to_json(await self._figures(last, self._last))
        self._recent.append(figures)
        event = framed(encode(figures, event=EVENT))
        for stream in self._hub.subscribers(ADMIN_CHANNEL):
            stream.write(event(stream.framing))

    def _count(self, now: float) -> _Counts:
        hub, metrics = self._hub, self._metrics
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
        hub, metrics = self._hub, self._metrics
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
            "uptime_seconds": round(self._lifecycle.uptime, PRECISION),
            "draining": self._lifecycle.draining,
            "streams": len(hub.streams),
            "users": len(hub.streams_of_subject),
            "addresses": len(hub.streams_of_address),
            "streams_behind": len(hub.laggards),
            "backlog_bytes": sum(stream.backlog_bytes for stream in hub.laggards),
            "log_head": str(hub.head),
            "log_available": self._eventlog.available,
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
            "channels": await self._channel_rows(),
        }

    async def _channel_rows(self) -> list[dict[str, Any]]:
        """Return the channels that are configured by name; those of patterns may be as many as there are users."""
        rows = []
        for name in self._channels.names:
            published, _ = await self._eventlog.published(name)
            streams = self._hub.streams_on_channel[name]
            rows.append({"channel": name, "streams": streams, "events": published})
        return rows


def _latency(last: tuple[int, ...], this: tuple[int, ...]) -> dict[str, float | None]:
    """Return upper bounds of the median and the 99th percentile, in seconds; None where nothing was counted."""
    counts = [now - before for now, before in zip(this, last, strict=True)]
    return {"p50": quantile(counts, 0.5), "p99": quantile(counts, 0.99)}
