"""Prometheus metrics, read from the parts when somebody asks, so that counting costs the fan-out nothing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from sse_app.services import Services

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The metrics of one server. Labels are bounded: no client, user or unconfigured channel is among them."""

    def __init__(self, services: Services) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Parts(services, self))
        ProcessCollector(registry=self._registry)
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """Requests answered, by handler, method and status."""
        self.publish_seconds = Histogram(
            "sse_app_publish_seconds",
            "Time from a publish request to its answer, the commit included.",
            buckets=_SECONDS,
            registry=self._registry,
        )

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)


class _Parts(Collector):
    """Reads the counters that the parts keep anyway."""

    def __init__(self, services: Services, metrics: Metrics) -> None:
        self._services = services
        self._metrics = metrics

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        services = self._services
        hub = services.hub
        yield GaugeMetricFamily(
            "sse_app_uptime_seconds", "Time since the start.", time.monotonic() - services.started_at
        )
        yield GaugeMetricFamily("sse_app_ready", "Whether the server is ready.", float(services.ready))
        yield GaugeMetricFamily("sse_app_streams", "Open streams.", len(hub.streams))
        on_channel = GaugeMetricFamily(
            "sse_app_channel_streams", "Open streams on a configured channel.", labels=["channel"]
        )
        for name in services.channels.names:
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
        yield CounterMetricFamily("sse_app_pings", "Pings sent.", services.keepalive.pings)
        endings = CounterMetricFamily("sse_app_stream_ends", "Streams ended, by reason.", labels=["reason"])
        for reason, count in sorted(hub.endings.items()):
            endings.add_metric([reason], count)
        yield endings
        requests = CounterMetricFamily(
            "sse_app_requests", "Requests answered, streams aside.", labels=["handler", "method", "status"]
        )
        for (handler, method, status), count in sorted(self._metrics.requests.items()):
            requests.add_metric([handler, method, str(status)], count)
        yield requests
        yield GaugeMetricFamily("sse_app_log_head", "Number of the last event of the log.", hub.head.seq)
        yield GaugeMetricFamily(
            "sse_app_log_available", "Whether the event log can be used.", float(services.eventlog.available)
        )
