"""Renewals: streams last until the expiry of a fresh token, on whichever nodes they are."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from sse_app.auth.revocations import Revocations
from sse_app.auth.tokens.claims import Claims, Lease
from sse_app.cluster.base import Cluster
from sse_app.core.errors import NodeSilent, TokenRefused, TooManyRenewals
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.publisher import Publisher
from sse_app.streams.stream import Stream

MAX_EARLIER = 32
"""How many earlier tokens of a stream may still be in force: a kick revokes all of them."""


class Renewed(NamedTuple):
    """What a renewal has done.

    Args:
        streams: how many last until the expiry of the fresh token.
        missing: the nodes that did not answer; streams of the client there are not renewed.
    """

    streams: int
    missing: tuple[str, ...]


class Renewal:
    """Renews the streams of a client, all or none, of those nodes that answer.

    Args:
        hub: whose streams are this node's.
        keepalive: ends streams at their expiry.
        revocations: a token may be revoked while the other nodes are asked.
        publisher: knows which channels need no token.
        cluster: the other nodes.
    """

    def __init__(
        self,
        hub: Hub,
        keepalive: Keepalive,
        revocations: Revocations,
        publisher: Publisher,
        cluster: Cluster,
    ) -> None:
        self._hub = hub
        self._publisher = publisher
        self._keepalive = keepalive
        self._revocations = revocations
        self._cluster = cluster
        cluster.answer("renewal.look", lambda node, payload: self._look(payload))
        cluster.answer("renewal.renew", lambda node, payload: self._renew(payload))

    async def renew(self, client_id: str, claims: Claims) -> Renewed:
        """Let a client's streams last until the expiry of a fresh token.

        They are those with that client id that have the token's subject and session.

        Raises:
            Forbidden: the token does not grant a channel of one of them; none is renewed.
            TooManyRenewals: one of them has too many tokens that are still in force; none is renewed.
            TokenRefused: the token has been revoked meanwhile.
            NodeSilent: there is no such stream, and a node that does not answer may have one.
        """
        asked = {"client_id": client_id, "lease": claims.lease._asdict()}
        answers = await self._cluster.ask("renewal.look", asked)
        found = {node: answer for node, answer in answers.by_node.items() if answer["streams"]}
        if not found and answers.missing:
            raise NodeSilent(self._cluster.noun, answers.missing)
        channels = dict.fromkeys(channel for answer in found.values() for channel in answer["channels"])
        ungranted = self._publisher.ungranted(claims.grants, channels)
        if any(answer["earlier"] > MAX_EARLIER for answer in found.values()):
            raise TooManyRenewals(
                f"this stream has been renewed with {MAX_EARLIER} tokens that are still in force"
            )
        if not found:
            return Renewed(0, ())
        renewing = asked | {"ungranted": ungranted}
        renewed = await self._cluster.ask("renewal.renew", renewing, to=list(found))
        counts = renewed.by_node.values()
        if None in counts:
            raise TokenRefused("the token has been revoked", "revoked")
        if renewed.missing:
            raise NodeSilent(self._cluster.noun, renewed.missing)
        return Renewed(sum(map(int, counts)), answers.missing)

    def _look(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return what is to be known of the streams of this node before any is renewed."""
        streams = self._streams(asked)
        lease, now = _lease(asked), time.time()
        return {
            "streams": len(streams),
            "channels": list(dict.fromkeys(channel for stream in streams for channel in stream.channels)),
            "earlier": max((len(each.subscriber.renewed(lease, now).earlier) for each in streams), default=0),
        }

    def _renew(self, asked: dict[str, Any]) -> int | None:
        """Renew the streams of this node, and return how many; None where the token has been revoked meanwhile."""
        lease = _lease(asked)
        if self._revocations.covers(lease) or self._revocations.barred_for(lease.session):
            return None
        streams = self._streams(asked)
        for stream in streams:
            self._keepalive.renew(stream, lease)
            if (ungranted := asked.get("ungranted")) is not None:  # the version before does not tell them
                stream.ungranted = tuple(channel for channel in stream.channels if channel in ungranted)
                if not all(map(self._publisher.is_public, stream.ungranted)):  # no more, since that was asked
                    stream.end("revoked", None)
        return len(streams)

    def _streams(self, asked: dict[str, Any]) -> list[Stream]:
        lease = _lease(asked)
        return [
            stream
            for stream in self._hub.streams_of_subject.get(lease.subject)
            if stream.subscriber.client_id == asked["client_id"]
            and stream.subscriber.lease.session == lease.session
            and stream.ending is None
            and not stream.closed
        ]


def _lease(asked: dict[str, Any]) -> Lease:
    return Lease(**{name: asked["lease"][name] for name in Lease._fields})
