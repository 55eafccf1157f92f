"""Health, readiness, metrics and the public status, for operators and load balancers."""

from __future__ import annotations

from sse_app.handlers.base import ApiHandler
from sse_app.handlers.errors import RETRY_AFTER, Refusal
from sse_app.handlers.site.pages import STATIC, content_of


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

    async def get(self) -> None:
        """Answer in Prometheus' text format, with the metrics of all workers of this machine."""
        self.require_local()
        from sse_app.monitoring.prometheus import CONTENT_TYPE, render_all

        node = self.node
        self.set_header("Content-Type", CONTENT_TYPE)
        cluster = node.cluster
        if cluster.noun:
            self.write(render_all(await cluster.ask("metrics", to=cluster.beside()), cluster.noun))
        else:
            self.write(node.prometheus().render())


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
        self.write_json(await self.node.status.current())
