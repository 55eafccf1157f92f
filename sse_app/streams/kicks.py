"""Kicks: ends a stream that its number names, on whichever node it is."""

from __future__ import annotations

from typing import Any, NamedTuple

from sse_app.cluster.base import ASK_TIMEOUT, Cluster
from sse_app.core.errors import UnknownStream, WorkerSilent
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
            WorkerSilent: its node does not answer.
        """
        owner = self._owner(number)
        tokens = (
            self._tokens(number)
            if owner is None
            else await self._asked(owner, "kick.tokens", {"number": number})
        )
        if tokens is None:
            raise UnknownStream
        answers = await self._cluster.ask("kick.sharing", tokens)
        return Sharing(sum(map(int, answers.by_node.values())), answers.missing)

    async def kick(self, number: int, seconds: float) -> Kicked:
        """Revoke the tokens that a stream can come back with, and end all streams with them.

        Args:
            number: of the stream.
            seconds: for how long its session gets neither a stream nor a stream token.

        Raises:
            UnknownStream: there is none of that number.
            WorkerSilent: its node does not answer.
            AuthStoreUnavailable: the revocations cannot be written; no stream is ended.
        """
        if (owner := self._owner(number)) is None:
            kicked = await self._kick(number, seconds)
        else:
            answer = await self._asked(owner, "kick", {"number": number, "seconds": seconds})
            kicked = None if answer is None else Kicked(*(answer[name] for name in Kicked._fields))
        if kicked is None:
            raise UnknownStream
        return kicked

    def _owner(self, number: int) -> str | None:
        """Return the name of the other node that has a stream; None where it is this one, or gone."""
        name = str(node_of(number))
        return name if name in self._cluster.peers() else None

    async def _asked(self, owner: str, kind: str, payload: dict[str, Any]) -> Any:
        answers = await self._cluster.ask(kind, payload, ASK_TIMEOUT, [owner])
        if answers.missing:
            raise WorkerSilent(*answers.missing)
        return answers.by_node[owner]

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
