"""The public status: how the configured channels are used, over all nodes."""

from __future__ import annotations

import asyncio
from typing import Any

from sse_app.cluster.base import Cluster
from sse_app.core.channel_rules import ChannelRules
from sse_app.core.events import EventId
from sse_app.core.lifecycle import Lifecycle
from sse_app.eventlog.base import EventLog
from sse_app.streams.hub import Hub
from sse_app.version import VERSION

KEPT = 1.0
"""For how many seconds an answer is given again where the other nodes had to be asked for it: who asks for the status
may be a stranger, who must not make every node work at each request."""


class Status:
    """Answers what is public: no client ids, and no channels of patterns.

    Args:
        hub: whose streams are this node's.
        eventlog: how many events each channel has had.
        channels: those that are configured.
        lifecycle: since when the node exists.
        cluster: the other nodes.
    """

    def __init__(
        self, hub: Hub, eventlog: EventLog, channels: ChannelRules, lifecycle: Lifecycle, cluster: Cluster
    ) -> None:
        self._hub = hub
        self._eventlog = eventlog
        self._channels = channels
        self._lifecycle = lifecycle
        self._cluster = cluster
        self._asking: asyncio.Task[dict[str, Any]] | None = None
        self._asked_at = 0.0
        cluster.answer("status", lambda node, payload: self._own())

    def use(self, channels: ChannelRules) -> None:
        """Show other channels from now on."""
        self._channels = channels
        self._asking = None

    async def current(self) -> dict[str, Any]:
        """Return the status of this moment; that of several nodes may be a second old."""
        if not self._cluster.name:
            return await self._compute()
        now = asyncio.get_running_loop().time()
        asking = self._asking
        if asking is None or (asking.done() and (asking.exception() or now > self._asked_at + KEPT)):
            asking = self._asking = asyncio.create_task(self._compute())
            self._asked_at = now
        return await asyncio.shield(asking)  # others wait for it too

    def _own(self) -> dict[str, Any]:
        on_channel = self._hub.streams_on_channel
        return {
            "streams": len(self._hub.streams),
            "channels": {name: on_channel[name] for name in self._channels.names},
            "uptime": self._lifecycle.uptime,
        }

    async def _compute(self) -> dict[str, Any]:
        answers = await self._cluster.ask("status")
        nodes = list(answers.by_node.values())
        channels = {}
        for name in self._channels.names:
            published, last = await self._eventlog.published(name)
            channels[name] = {
                "connection_count": sum(node["channels"].get(name, 0) for node in nodes),
                "events_published": published,
                "last_event_id": str(EventId(self._eventlog.head.epoch, last)) if last else None,
            }
        status = {
            "status": "active",
            "version": VERSION,
            "uptime_seconds": round(max(node["uptime"] for node in nodes), 3),
            "total_connections": sum(node["streams"] for node in nodes),
            "channels": channels,
        }
        return status | self._cluster.naming(answers.missing)
