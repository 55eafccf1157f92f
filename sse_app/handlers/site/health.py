"""Health, readiness, metrics and the public status, for operators and load balancers."""

from __future__ import annotations

from sse_app.core.events import EventId
from sse_app.handlers.base import ApiHandler
from sse_app.handlers.errors import RETRY_AFTER, Refusal
from sse_app.handlers.site.pages import STATIC, content_of
from sse_app.version import VERSION


class HealthHandler(ApiHandler):
    """``GET /healthz``: the process is alive and its event loop runs."""

    any_host = True

    def get(self) -> None:
        """Answer 200."""
        self.write_json({"status": "ok"})


class ReadyHandler(ApiHandler):
    """``GET /readyz``: whether new work should come here."""

    any_host = True

    def get(self) -> None:
        """Answer 503 while starting or draining, or while the event log or the accounts are away."""
        obstacle = self.node.readiness.obstacle()
        if obstacle is not None:
            raise Refusal(503, obstacle.code, obstacle.message, Retry_After=RETRY_AFTER)
        self.write_json({"status": "ready"})


class MetricsHandler(ApiHandler):
    """``GET /metrics``, for the networks that the settings allow."""

    def get(self) -> None:
        """Answer in Prometheus' text format."""
        self.require_local()
        from sse_app.monitoring.prometheus import CONTENT_TYPE, NodeMetrics

        node = self.node
        metrics = NodeMetrics(
            node.hub,
            node.keepalive,
            node.eventlog,
            node.metrics,
            node.channels,
            node.lifecycle,
            node.readiness,
        )
        self.set_header("Content-Type", CONTENT_TYPE)
        self.write(metrics.render())


class DescriptionHandler(ApiHandler):
    """``GET /openapi.json``: the API, streams aside, as OpenAPI 3.1."""

    def get(self) -> None:
        """Answer with the description."""
        self.set_header("Content-Type", "application/json")
        self.write(content_of(STATIC / "openapi.json"))


class StatusHandler(ApiHandler):
    """``GET /api/v1/sse/status``: figures that are public: no client ids, and no channels of patterns."""

    async def get(self) -> None:
        """Answer with the configured channels and how they are used."""
        node = self.node
        epoch = node.eventlog.head.epoch
        channels = {}
        for name in node.channels.names:
            published, last = await node.eventlog.published(name)
            channels[name] = {
                "connection_count": node.hub.streams_on_channel[name],
                "events_published": published,
                "last_event_id": str(EventId(epoch, last)) if last else None,
            }
        self.write_json(
            {
                "status": "active",
                "version": VERSION,
                "uptime_seconds": round(node.lifecycle.uptime, 3),
                "total_connections": len(node.hub.streams),
                "channels": channels,
            }
        )
