"""The application: which path leads to which handler, and the class that other applications mount."""

from __future__ import annotations

from typing import Any

from tornado import web
from tornado.routing import URLSpec

from sse_app.core.errors import InvalidInput, NotStarted
from sse_app.core.events import EventId
from sse_app.handlers.api import admin, login, presence, publish, subscribe, tokens, users
from sse_app.handlers.base import NotFoundHandler
from sse_app.handlers.dispatch import Application
from sse_app.handlers.site import health, pages
from sse_app.handlers.tornado_logs import keep_values_out
from sse_app.node import Node
from sse_app.settings.model import Settings


class SSEApp:
    """An event stream server, to run alone or to mount in another Tornado application.

    >>> sse = SSEApp(Settings(state_dir="/var/lib/mine"))
    >>> application = tornado.web.Application([*sse.routes(), ("/", MyHandler)])
    >>> await sse.start()
    >>> await sse.publish("alerts", "risk_alert", {"severity": "high"})

    Args:
        settings: its settings; host, port and log format concern only `sse_app.process.server`.
        locked: whether to lock the state directory against other servers; False where another process
            hands its lock over.
        worker: the number of this process among several on the same state directory; 0 where it is alone.

    Raises:
        StateError: the state directory cannot be used, or another server uses it.
    """

    def __init__(self, settings: Settings, *, locked: bool = True, worker: int = 0) -> None:
        self.node = Node(settings, locked=locked, worker=worker)

    async def start(self) -> None:
        """Open the event log and begin to serve; call it on the event loop, before requests come.

        Raises:
            StateError: the event log cannot be used.
        """
        await self.node.start()
        await self.node.join()

    async def stop(self, drain_time: float = 0.0) -> None:
        """End all streams with ``closing``, so that clients reconnect elsewhere, and close the event log.

        Args:
            drain_time: over how many seconds the ends of many streams are spread.
        """
        await self.node.stop(drain_time)

    async def publish(
        self, channel: str, event: str, data: object, *, retry: int | None = None, final: bool = False
    ) -> EventId | None:
        """Publish one event from Python, as `Publisher.publish` says.

        Raises:
            NotStarted: `start` has not been awaited.
        """
        self._require_started()
        return await self.node.publisher.publish(channel, event, data, retry=retry, final=final)

    async def publish_batch(self, events: list[dict[str, Any]]) -> list[EventId | None]:
        """Publish several events from Python, as `Publisher.publish_batch` says.

        Raises:
            NotStarted: `start` has not been awaited.
        """
        self._require_started()
        return await self.node.publisher.publish_batch(events)

    def _require_started(self) -> None:
        if not (self.node.lifecycle.ready or self.node.lifecycle.draining):
            raise NotStarted("this SSEApp has not started: await its start() before you publish")

    def token(self, subject: str, *, subscribe: list[str], lifetime: float = 600) -> str:
        """Return a stream token for a user that the application around this one has authenticated.

        Args:
            subject: the user's name.
            subscribe: patterns of the channels that it allows.
            lifetime: seconds.

        Raises:
            InvalidChannel: one of them is not a pattern.
            InvalidInput: they are one text, not a list.
        """
        if isinstance(subscribe, str):  # each of its characters would be taken for a channel
            raise InvalidInput("subscribe must be a list of channels, such as ['alerts']", "subscribe")
        return self.node.login.stream_token_for(subject, subscribe, lifetime)

    def routes(self) -> list[URLSpec]:
        """Return the routes of the API: streams, publishing, login, administration, health and metrics."""
        keep_values_out()
        parts = {"node": self.node}
        return [
            URLSpec(r"/api/v1/sse", publish.BatchHandler, parts),
            URLSpec(r"/api/v1/sse/status", health.StatusHandler, parts),
            URLSpec(r"/api/v1/sse/([^/]*)", subscribe.StreamHandler, parts),
            URLSpec(r"/api/v1/sse/([^/]*)/history", publish.HistoryHandler, parts),
            URLSpec(r"/api/v1/sse/([^/]*)/presence", presence.PresenceHandler, parts),
            URLSpec(r"/api/v1/sse/connections/([A-Za-z0-9._-]{1,64})/renew", tokens.RenewHandler, parts),
            URLSpec(r"/api/v1/auth/login", login.LoginHandler, parts),
            URLSpec(r"/api/v1/auth/refresh", login.RefreshHandler, parts),
            URLSpec(r"/api/v1/auth/logout", login.LogoutHandler, parts),
            URLSpec(r"/api/v1/auth/stream-token", tokens.StreamTokenHandler, parts),
            URLSpec(r"/api/v1/auth/me", tokens.MeHandler, parts),
            URLSpec(r"/api/v1/admin/connections", admin.ConnectionsHandler, parts),
            URLSpec(r"/api/v1/admin/connections/([0-9]{1,20})/kick", admin.KickHandler, parts),
            URLSpec(r"/api/v1/admin/channels/([^/]*)/presence", presence.AdminPresenceHandler, parts),
            URLSpec(r"/api/v1/admin/users", users.UsersHandler, parts),
            URLSpec(r"/api/v1/admin/users/([^/]*)", users.UserHandler, parts),
            URLSpec(r"/api/v1/admin/figures", admin.FiguresHandler, parts),
            URLSpec(r"/api/v1/admin/revocations", admin.RevocationsHandler, parts),
            URLSpec(r"/api/v1/admin/audit", admin.AuditHandler, parts),
            URLSpec(r"/.well-known/jwks.json", tokens.KeySetHandler, parts),
            URLSpec(r"/openapi\.json", health.DescriptionHandler, parts),
            URLSpec(r"/healthz", health.HealthHandler, parts),
            URLSpec(r"/readyz", health.ReadyHandler, parts),
            URLSpec(r"/metrics", health.MetricsHandler, parts),
        ]

    def application(self) -> web.Application:
        """Return a complete application: the API, the pages, and a JSON answer for every other path."""
        parts = {"node": self.node}
        start_page = "market.html" if self.node.settings.demo else "index.html"
        pages.read_ahead()
        return Application(
            [
                *self.routes(),
                URLSpec(r"/", pages.PageHandler, parts | {"file": start_page}),
                URLSpec(r"/admin", pages.PageHandler, parts | {"file": "admin/index.html"}),
                URLSpec(r"/docs/([a-z-]+\.md)", pages.DocumentHandler, parts),
                URLSpec(r"/static/(.*)", pages.StaticHandler, parts),
            ],
            default_handler_class=NotFoundHandler,
            default_handler_args=parts,
            cross_origin_protection=True,
        )
