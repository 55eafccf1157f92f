"""Kicks: ends a stream that its number names, on whichever node it is."""

from __future__ import annotations

from typing import Any, NamedTuple

from sse_app.cluster.base import ASK_TIMEOUT, Cluster
from sse_app.core.errors import NodeSilent, UnknownStream
from sse_app.core.events import MAX_RETRY
from sse_app.streams.enforcement import Enforcement
from sse_app.streams.hub import Hub
from sse_app.streams.numbers import node_of
from sse_app.streams.stream import Stream


class Sharing(NamedTuple):
    """How many streams a kick would end, and which nodes could not be asked how many of theirs."""

    streams: int
    missing: tuple[str, ...]


class Kicked(NamedTuple):
    """What a kick has done, and to whom.

    Args:
        streams: how many were ended.
        missing: the nodes that could not be asked how many of theirs.
        subject, client_id, address: of the stream that was named.
    """

    streams: int
    missing: tuple[str, ...]
    subject: str
    client_id: str
    address: str


class Kicks:
    """Finds streams by their numbers, and kicks them.

    Args:
        hub: whose streams are this node's.
        enforcement: ends them.
        cluster: the other nodes.
    """

    def __init__(self, hub: Hub, enforcement: Enforcement, cluster: Cluster) -> None:
        self._hub = hub
        self._enforcement = enforcement
        self._cluster = cluster
        cluster.answer("kick", self._kick_for)
        cluster.answer("kick.tokens", lambda node, payload: self._tokens(payload["number"]))
        cluster.answer("kick.sharing", lambda node, payload: self._sharing(payload))

    async def sharing(self, number: int) -> Sharing:
        """Return how many streams a kick of this one would end: all that have a token in common with it.

        Raises:
            UnknownStream: there is none of that number.
            NodeSilent: its node does not answer.
        """
        tokens = self._tokens(number) or await self._asked(number, "kick.tokens", {"number": number})
        if not tokens["ids"]:
            return Sharing(1, ())
        answers = await self._cluster.ask("kick.sharing", tokens)
        return Sharing(sum(map(int, answers.by_node.values())), answers.missing)

    async def kick(self, number: int, seconds: float) -> Kicked:
        """Revoke the tokens that a stream can come back with, and end all streams with them.

        One without a token is ended alone, and its client told to come back after that time.

        Args:
            number: of the stream.
            seconds: for how long its session gets neither a stream nor a stream token.

        Raises:
            UnknownStream: there is none of that number.
            NodeSilent: its node does not answer.
            AuthStoreUnavailable: the revocations cannot be written; no stream is ended.
        """
        if (kicked := await self._kick(number, seconds)) is not None:
            return kicked
        answer = await self._asked(number, "kick", {"number": number, "seconds": seconds})
        return Kicked(*(answer[name] for name in Kicked._fields))

    async def _asked(self, number: int, kind: str, payload: dict[str, Any]) -> Any:
        """Return what the node answers that has a stream, which is not this one.

        Raises:
            UnknownStream: no node has it.
            NodeSilent: one that may have it does not answer.
        """
        peers = self._cluster.peers()
        owner = self._cluster.name_of(node_of(number))
        if owner == self._cluster.name:
            raise UnknownStream
        # A stream that was handed over to a node of another name has kept its number: that node is not known by it.
        answers = await self._cluster.ask(kind, payload, ASK_TIMEOUT, [owner] if owner in peers else peers)
        if (
            answer := next((each for each in answers.by_node.values() if each is not None), None)
        ) is not None:
            return answer
        if answers.missing:
            raise NodeSilent(self._cluster.noun, answers.missing)
        raise UnknownStream

    def _stream(self, number: int) -> Stream | None:
        return next((stream for stream in self._hub.streams if stream.number == number), None)

    async def _kick_for(self, node: str, payload: dict[str, Any]) -> dict[str, Any] | None:
        kicked = await self._kick(payload["number"], payload["seconds"])
        return None if kicked is None else kicked._asdict()

    async def _kick(self, number: int, seconds: float) -> Kicked | None:
        stream = self._stream(number)
        if stream is None:
            return None
        subscriber = stream.subscriber
        if subscriber.lease.is_anonymous:
            stream.end("kicked", min(MAX_RETRY, max(round(seconds * 1000), self._hub.jittered_retry())))
            return Kicked(1, (), "", subscriber.client_id, subscriber.address)
        ended = await self._enforcement.kick(stream, seconds)
        return Kicked(*ended, subscriber.lease.subject, subscriber.client_id, subscriber.address)

    def _tokens(self, number: int) -> dict[str, Any] | None:
        """Return what a stream has in common with those that a kick would end."""
        stream = self._stream(number)
        if stream is None:
            return None
        subscriber = stream.subscriber
        return {"subject": subscriber.lease.subject, "ids": [token.token_id for token in subscriber.tokens]}

    def _sharing(self, tokens: dict[str, Any]) -> int:
        ids = set(tokens["ids"])
        streams = self._hub.streams_of_subject.get(tokens["subject"])
        return sum(any(token.token_id in ids for token in stream.subscriber.tokens) for stream in streams)
