"""Live statistics, once a second, on the admin channel; nothing is computed while no node has a stream on it.

A node that has one tells the others so, and each tells all others its own statistics then: every second, as they are.
So each can add them up, for its own streams, and for an administrator's page that comes to it later.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from typing import Any, NamedTuple

from sse_app.auth.tokens.claims import NO_TOKEN
from sse_app.cluster.base import Cluster, in_order
from sse_app.core.channel_rules import ChannelRules
from sse_app.core.channels import ADMIN_CHANNEL, ChannelName
from sse_app.core.counters import Metrics, quantile
from sse_app.core.distinct import Sample, distinct, sample
from sse_app.core.errors import EventLogUnavailable
from sse_app.core.events import EventId, timestamp
from sse_app.core.framing import framed
from sse_app.core.json_text import to_json
from sse_app.core.lifecycle import Lifecycle
from sse_app.core.multimap import Multimap
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.sse import encode
from sse_app.eventlog.base import EventLog
from sse_app.streams.hub import Hub
from sse_app.streams.stream import Stream
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
"""How many digits of a figure follow the decimal point."""

FRESH = 2.5
"""How old the statistics of another node may be, in seconds; it is named as missing where they are older."""

WANTED, FIGURES = "figures.wanted", "figures"
"""What a node tells that has a stream on the admin channel, and its statistics."""


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
        cluster: the other nodes.
    """

    def __init__(
        self,
        hub: Hub,
        eventlog: EventLog,
        metrics: Metrics,
        channels: ChannelRules,
        lifecycle: Lifecycle,
        cluster: Cluster,
    ) -> None:
        self._hub = hub
        self._eventlog = eventlog
        self._metrics = metrics
        self._channels = channels
        self._lifecycle = lifecycle
        self._cluster = cluster
        self._started_at = timestamp(time.time())
        self._last = self._count(time.monotonic())
        self._wanted_until = 0.0
        self._published: dict[ChannelName, int] = {}
        """How many events each channel had when the log could be read last."""
        self._told_at: dict[str, float] = {}
        self._told: dict[str, dict[str, Any]] = {}
        """The last statistics of the other nodes."""
        self._recent: deque[bytes] = deque(maxlen=KEPT)
        self._number = 0
        self._phase = time.monotonic() % INTERVAL
        self._callback = PeriodicCallback(self.tick, INTERVAL)
        cluster.answer(WANTED, self._want)
        cluster.answer(FIGURES, self._hear)

    @property
    def recent(self) -> list[bytes]:
        """The last events as JSON, the oldest first, with gaps where the admin channel had no stream."""
        return list(self._recent)

    def start(self) -> None:
        """Begin to look for streams on the admin channel."""
        self._phase = self._cluster.shared_time(time.monotonic()) % INTERVAL
        self._callback.start()

    def stop(self) -> None:
        """Compute no more."""
        self._callback.stop()

    def use(self, channels: ChannelRules) -> None:
        """Show other channels from now on."""
        self._channels = channels

    def _want(self, node: str, payload: object) -> None:
        self._wanted_until = time.monotonic() + LINGER

    def _hear(self, node: str, figures: dict[str, Any]) -> None:
        self._told[node] = figures
        self._told_at[node] = time.monotonic()

    async def tick(self) -> None:
        """Compute the statistics and send them, if the admin channel has a stream or had one within `LINGER`."""
        now = time.monotonic()
        last, self._last = self._last, self._count(now)
        # Of several nodes all give a second the same number, by the clock that they share.
        shared = self._cluster.shared_time(now)
        self._number = round(shared - self._phase) if self._cluster.name else self._number + 1
        if now > self._wanted_until:
            self._told_at.clear()
        if self._hub.subscribers(ADMIN_CHANNEL):
            began = now > self._wanted_until
            self._wanted_until = now + LINGER
            self._cluster.tell(WANTED)
            if began and self._cluster.peers():
                return  # what the others have is not known yet
        if now > self._wanted_until:
            return
        own = self._own(last, self._last)
        self._cluster.tell(FIGURES, own)
        figures = to_json(await self._figures(own, now))
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

    def _own(self, last: _Counts, this: _Counts) -> dict[str, Any]:
        """Return the statistics of this node, as it tells the others."""
        hub, metrics = self._hub, self._metrics
        seconds = this.at - last.at

        def rate(name: str) -> float:
            change: float = getattr(this, name) - getattr(last, name)
            return change / seconds

        return {
            "started_at": self._started_at,
            "uptime_seconds": round(self._lifecycle.uptime, PRECISION),
            "draining": self._lifecycle.draining,
            "streams": len(hub.streams),
            "users": self._names(hub.streams_of_subject),
            "addresses": self._names(hub.streams_of_address),
            "streams_behind": len(hub.laggards),
            "backlog_bytes": sum(stream.backlog_bytes for stream in hub.laggards),
            "log_head": hub.head.seq,
            "log_available": self._eventlog.available,
            "cpu": rate("cpu"),
            "deliveries_per_second": rate("deliveries"),
            "publishes_per_second": rate("events"),
            "opens_per_second": rate("opened"),
            "reconnects_per_second": rate("resumed"),
            "refusals_per_second": rate("refused"),
            "publish_counts": _change(last.publish, this.publish),
            "fan_out_counts": _change(last.fan_out, this.fan_out),
            "deliveries": hub.deliveries,
            "events": hub.events_fanned_out,
            "reconnects": metrics.streams_resumed,
            "refusals": dict(metrics.refusals),
            "endings": dict(hub.endings),
            "channels": {name: hub.streams_on_channel[name] for name in self._channels.names},
        }

    def _names(self, names: Multimap[str, Stream] | Counter[str]) -> Sample | int:
        """Return what the others need to count the names of all nodes once each; of one node alone, how many.

        Those who have no token have no name.
        """
        nameless = NO_TOKEN.subject
        if self._cluster.name:
            return sample([name for name in names if name != nameless])
        return len(names) - (nameless in names)

    async def _figures(self, own: dict[str, Any], now: float) -> dict[str, Any]:
        """Return the statistics of all nodes together."""
        name = self._cluster.name
        nodes = {name: own}
        for peer in self._cluster.peers():
            told = self._told.get(peer, {})
            # Another version of the program may tell less than is needed here, for the time of an upgrade.
            if self._told_at.get(peer, -math.inf) > now - FRESH and told.keys() >= own.keys():
                nodes[peer] = told
        every = nodes.values()

        def total(name: str) -> Any:
            return sum(node[name] for node in every)

        def greatest(name: str) -> Any:
            return max(node[name] for node in every)

        figures = {
            "channel": ADMIN_CHANNEL,
            "timestamp": timestamp(time.time()),
            "version": VERSION,
            "started_at": min(node["started_at"] for node in every),
            "number": self._number,
            "uptime_seconds": greatest("uptime_seconds"),
            "draining": all(node["draining"] for node in every),
            "streams": total("streams"),
            "users": distinct(node["users"] for node in every) if name else own["users"],
            "addresses": distinct(node["addresses"] for node in every) if name else own["addresses"],
            "streams_behind": total("streams_behind"),
            "backlog_bytes": total("backlog_bytes"),
            "log_head": str(EventId(self._hub.head.epoch, greatest("log_head"))),
            "log_available": all(node["log_available"] for node in every),
            "cpu": round(total("cpu"), PRECISION),
            "deliveries_per_second": round(total("deliveries_per_second"), PRECISION),
            # Each node fans out each event.
            "publishes_per_second": round(greatest("publishes_per_second"), PRECISION),
            "opens_per_second": round(total("opens_per_second"), PRECISION),
            "reconnects_per_second": round(total("reconnects_per_second"), PRECISION),
            "refusals_per_second": round(total("refusals_per_second"), PRECISION),
            "publish_seconds": _latency([node["publish_counts"] for node in every]),
            "fan_out_seconds": _latency([node["fan_out_counts"] for node in every]),
            "deliveries": total("deliveries"),
            "events": greatest("events"),
            "reconnects": total("reconnects"),
            "refusals": _together([node["refusals"] for node in every]),
            "endings": _together([node["endings"] for node in every]),
            "channels": await self._channel_rows([node["channels"] for node in every]),
        }
        if noun := self._cluster.noun:
            figures[f"{noun}s"] = [{noun: each, **_of_node(nodes[each])} for each in in_order(nodes)]
            figures |= self._cluster.naming(each for each in self._cluster.peers() if each not in nodes)
        return figures

    async def _channel_rows(self, streams: list[dict[str, int]]) -> list[dict[str, Any]]:
        """Return the channels that are configured by name; those of patterns may be as many as there are users."""
        rows = []
        readable = True
        for name in self._channels.names:
            if readable:
                try:
                    self._published[name], _ = await self._eventlog.published(name)
                except EventLogUnavailable:  # what was known last is shown, and all else as it is
                    readable = False
            published = self._published.get(name, 0)
            count = sum(node.get(name, 0) for node in streams)
            rows.append({"channel": name, "streams": count, "events": published})
        return rows


def _of_node(node: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown of one node."""
    return {
        "streams": node["streams"],
        "deliveries_per_second": round(node["deliveries_per_second"], PRECISION),
        "cpu": round(node["cpu"], PRECISION),
        "backlog_bytes": node["backlog_bytes"],
        "uptime_seconds": node["uptime_seconds"],
        "draining": node["draining"],
    }


def _change(last: tuple[int, ...], this: tuple[int, ...]) -> list[int]:
    return [now - before for now, before in zip(this, last, strict=True)]


def _together(counters: list[dict[str, int]]) -> dict[str, int]:
    """Return the sums of counts by their names, in the order of these."""
    return dict(sorted(sum(map(Counter, counters), Counter()).items()))


def _latency(counts: list[list[int]]) -> dict[str, float | None]:
    """Return upper bounds of the median and the 99th percentile, in seconds; None where nothing was counted."""
    added = [sum(each) for each in zip(*counts, strict=True)]
    return {"p50": quantile(added, 0.5), "p99": quantile(added, 0.99)}
