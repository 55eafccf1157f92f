"""Which users are on a channel, for those whose grants say so, and for administrators."""

from __future__ import annotations

from sse_app.core.channels import ChannelName, parse_channel
from sse_app.core.events import timestamp
from sse_app.handlers.base import ApiHandler


class PresenceHandler(ApiHandler):
    """``GET /api/v1/sse/{channel}/presence``: which users have streams on a channel, over all nodes."""

    async def get(self, name: str) -> None:
        """Answer with the users, sorted by name; ``complete`` is false where a node has not answered."""
        channel = parse_channel(name)
        claims = self.access_claims()
        claims.grants.require_presence(channel)
        await self.tell_of(channel)

    async def tell_of(self, channel: ChannelName) -> None:
        """Answer with the users of a channel, for a request that may know them."""
        self.node.publisher.require_known(channel)
        users, missing = await self.node.presence.on(channel)
        self.write_json(
            {
                "count": len(users.by_subject),
                "users": [
                    {"sub": subject, "streams": user.streams, "since": timestamp(user.since)}
                    for subject, user in sorted(users.by_subject.items())
                ],
                "anonymous": users.anonymous,
                "complete": not missing,
                **self.node.cluster.naming_any(missing),
            }
        )


class AdminPresenceHandler(PresenceHandler):
    """``GET /api/v1/admin/channels/{channel}/presence``: the same for administrators, of any channel."""

    async def get(self, name: str) -> None:
        """Answer with the users, sorted by name."""
        self.admin_claims()
        await self.tell_of(parse_channel(name))
