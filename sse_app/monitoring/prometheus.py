"""The metrics in Prometheus' text format; its library is imported when somebody asks for the first time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from sse_app.node import Node

__all__ = ["CONTENT_TYPE", "render"]


def render(node: Node) -> bytes:
    """Return all metrics of a server."""
    registry = CollectorRegistry()
    registry.register(_Parts(node))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Parts(Collector):
    """Reads the counters that the parts keep anyway."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        node = self._node
        hub = node.hub
        yield GaugeMetricFamily(
            "sse_app_uptime_seconds", "Time since the start.", time.monotonic() - node.started_at
        )
        yield GaugeMetricFamily("sse_app_ready", "Whether the server is ready.", float(node.ready))
        yield GaugeMetricFamily("sse_app_streams", "Open streams.", len(hub.streams))
        on_channel = GaugeMetricFamily(
            "sse_app_channel_streams", "Open streams on a configured channel.", labels=["channel"]
        )
        for name in node.channels.names:
            on_channel.add_metric([name], hub.streams_on_channel[name])
        yield on_channel
        yield GaugeMetricFamily("sse_app_streams_behind", "Streams with bytes waiting.", len(hub.laggards))
        yield GaugeMetricFamily(
            "sse_app_backlog_bytes",
            "Bytes waiting for streams.",
            sum(stream.backlog_bytes for stream in hub.laggards),
        )
        yield CounterMetricFamily("sse_app_events", "Events fanned out.", hub.events_fanned_out)
        yield CounterMetricFamily(
            "sse_app_deliveries", "Events times the streams they went to.", hub.deliveries
        )
        yield CounterMetricFamily("sse_app_pings", "Pings sent.", node.keepalive.pings)
        endings = CounterMetricFamily("sse_app_stream_ends", "Streams ended, by reason.", labels=["reason"])
        for reason, count in sorted(hub.endings.items()):
            endings.add_metric([reason], count)
        yield endings
        requests = CounterMetricFamily(
            "sse_app_requests", "Requests answered, streams aside.", labels=["handler", "method", "status"]
        )
        for (handler, method, status), count in sorted(node.metrics.requests.items()):
            requests.add_metric([handler, method, str(status)], count)
        yield requests
        seconds = node.metrics.publish_seconds
        yield HistogramMetricFamily(
            "sse_app_publish_seconds",
            "Time from a publish request to its answer, the commit included.",
            buckets=seconds.cumulated(),
            sum_value=seconds.sum,
        )
        yield GaugeMetricFamily("sse_app_log_head", "Number of the last event of the log.", hub.head.seq)
        yield GaugeMetricFamily(
            "sse_app_log_available", "Whether the event log can be used.", float(node.eventlog.available)
        )
