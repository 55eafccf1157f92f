"""The metrics in Prometheus' text format.

This module is imported at the first request for them: its library takes as long to load as a restart may last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from sse_app.auth.tokens.claims import NO_TOKEN
from sse_app.cluster.base import Answers, in_order
from sse_app.core.channel_rules import ChannelRules
from sse_app.core.counters import Metrics
from sse_app.core.lifecycle import Lifecycle
from sse_app.eventlog.base import EventLog
from sse_app.monitoring.readiness import Readiness
from sse_app.settings.model import Limits
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.passing_on import PassingOn

__all__ = ["CONTENT_TYPE", "NodeMetrics", "render_all"]

OF_THE_LOG = {"sse_app_log_head"}
"""Metrics of the log, which all nodes share: of these there is one sample, of the node that is ahead."""


class NodeMetrics(Collector):
    """The metrics of a node, read from the counters that its parts keep anyway."""

    def __init__(
        self,
        hub: Hub,
        keepalive: Keepalive,
        eventlog: EventLog,
        metrics: Metrics,
        passing_on: PassingOn,
        channels: ChannelRules,
        limits: Limits,
        lifecycle: Lifecycle,
        readiness: Readiness,
    ) -> None:
        self._hub = hub
        self._keepalive = keepalive
        self._eventlog = eventlog
        self._metrics = metrics
        self._passing_on = passing_on
        self._channels = channels
        self._limits = limits
        self._lifecycle = lifecycle
        self._readiness = readiness

    def render(self) -> bytes:
        """Return all metrics of the node and its process."""
        return generate_latest(self._registry())

    def families(self) -> list[dict[str, Any]]:
        """Return all metrics of the node and its process, as one node sends them to another."""
        return [
            {
                "name": family.name,
                "help": family.documentation,
                "type": family.type,
                "samples": [(sample.name, sample.labels, sample.value) for sample in family.samples],
            }
            for family in self._registry().collect()
        ]

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        return registry

    def describe(self) -> list[Metric]:
        """Return nothing: the registry need not know the names before the first `collect`."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with its value of this moment."""
        hub = self._hub
        yield GaugeMetricFamily("sse_app_uptime_seconds", "Time since the start.", self._lifecycle.uptime)
        yield GaugeMetricFamily(
            "sse_app_tasks",
            "Tasks of the event loop: what is being done or waited for.",
            len(asyncio.all_tasks()),
        )
        ready = self._readiness.obstacle() is None
        yield GaugeMetricFamily(
            "sse_app_ready", "Whether the server is ready, as /readyz says.", float(ready)
        )
        yield GaugeMetricFamily("sse_app_streams", "Open streams.", len(hub.streams))
        yield GaugeMetricFamily(
            "sse_app_streams_limit",
            "Open streams that there may be, of all workers together: limits.streams.",
            self._limits.streams,
        )
        yield GaugeMetricFamily(
            "sse_app_anonymous_streams",
            "Open streams without a token, on public channels.",
            len(hub.streams_of_subject.get(NO_TOKEN.subject)),
        )
        on_channel = GaugeMetricFamily(
            "sse_app_channel_streams", "Open streams on a configured channel.", labels=["channel"]
        )
        for name in self._channels.names:
            on_channel.add_metric([name], hub.streams_on_channel[name])
        yield on_channel
        yield GaugeMetricFamily("sse_app_streams_behind", "Streams with bytes waiting.", len(hub.laggards))
        yield GaugeMetricFamily(
            "sse_app_backlog_bytes",
            "Bytes waiting for streams.",
            sum(stream.backlog_bytes for stream in hub.laggards),
        )
        yield CounterMetricFamily(
            "sse_app_events", "Events fanned out; each node fans out all.", hub.events_fanned_out
        )
        yield CounterMetricFamily(
            "sse_app_deliveries", "Events times the streams they went to.", hub.deliveries
        )
        yield CounterMetricFamily(
            "sse_app_unstored_events",
            "Events published here that are not stored.",
            self._passing_on.events,
        )
        yield CounterMetricFamily(
            "sse_app_unstored_drops",
            "How often a stream that was behind was not given events that are not stored.",
            hub.offers_dropped,
        )
        yield CounterMetricFamily("sse_app_pings", "Pings sent.", self._keepalive.pings)
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
        refusals = CounterMetricFamily(
            "sse_app_refusals",
            "Requests and streams refused, by the code of the error or the reason of the closing event.",
            labels=["reason"],
        )
        for reason, count in sorted(self._metrics.refusals.items()):
            refusals.add_metric([reason], count)
        yield refusals
        connections = self._metrics.connections
        yield GaugeMetricFamily(
            "sse_app_connections", "Open connections that are no streams.", connections.open
        )
        shed = CounterMetricFamily(
            "sse_app_connections_shed",
            "Connections closed because of too many, by reason.",
            labels=["reason"],
        )
        for reason, count in sorted(connections.shed.items()):
            shed.add_metric([reason], count)
        yield shed
        yield CounterMetricFamily(
            "sse_app_accept_failures",
            "How often no connection could be accepted.",
            connections.accept_failures,
        )
        seconds = self._metrics.publish_seconds
        yield HistogramMetricFamily(
            "sse_app_publish_seconds",
            "Time from a publish request to its answer, the commit included.",
            buckets=seconds.cumulated(),
            sum_value=seconds.sum,
        )
        yield GaugeMetricFamily("sse_app_log_head", "Number of the last event of the log.", hub.head.seq)
        yield GaugeMetricFamily(
            "sse_app_log_available", "Whether the event log can be used.", float(self._eventlog.available)
        )
        yield CounterMetricFamily(
            "sse_app_log_lines_dropped",
            "Log lines dropped because standard error did not take them.",
            self._metrics.dropped_log_lines(),
        )


class _AllMetrics(Collector):
    """The metrics of several nodes, each sample with the name of its node.

    Args:
        answers: the `NodeMetrics.families` of each.
        noun: what a node is called, which is also the label.
    """

    def __init__(self, answers: Answers, noun: str) -> None:
        self._answers = answers
        self._noun = noun

    def describe(self) -> list[Metric]:
        """Return nothing, as `NodeMetrics` does."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield each metric once, with the samples of all nodes."""
        answering = GaugeMetricFamily(
            f"sse_app_{self._noun}_up",
            f"Whether the {self._noun} has answered; the metrics of one that has not are missing.",
            labels=[self._noun],
        )
        for name in in_order((*self._answers.by_node, *self._answers.missing)):
            answering.add_metric([name], float(name in self._answers.by_node))
        yield answering
        merged: dict[str, Metric] = {}
        for node in in_order(self._answers.by_node):
            for family in self._answers.by_node[node]:
                name = family["name"]
                if (metric := merged.get(name)) is None:
                    metric = merged[name] = Metric(name, family["help"], family["type"])
                for sample, labels, value in family["samples"]:
                    metric.add_sample(
                        sample, labels if name in OF_THE_LOG else {**labels, self._noun: node}, value
                    )
        for name in OF_THE_LOG & merged.keys():
            newest = max(merged[name].samples, key=lambda sample: sample.value)
            merged[name].samples = [newest]
        yield from merged.values()


def render_all(answers: Answers, noun: str) -> bytes:
    """Return the metrics of several nodes; those of the log, which they share, once.

    Args:
        answers: the `NodeMetrics.families` of each.
        noun: what a node is called, ``worker`` or ``node``.
    """
    registry = CollectorRegistry()
    registry.register(_AllMetrics(answers, noun))
    return generate_latest(registry)
