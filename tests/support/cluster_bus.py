"""The nodes of a cluster in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import msgspec

from sse_app.cluster.base import ASK_TIMEOUT, Answers, Cluster


class Bus(Cluster):
    """A cluster in one process, which loses messages when it is asked to."""

    def __init__(self, name: str, nodes: dict[str, Bus]) -> None:
        super().__init__()
        self._name = name
        self.nodes = nodes
        nodes[name] = self
        self.losing = False
        self.ahead = 0.0
        """By how many seconds the clock that the nodes share is ahead of this machine's."""
        self.pending: list[asyncio.Future[Any]] = []

    @property
    def name(self) -> str:
        return self._name

    @property
    def number(self) -> int:
        return 0

    def peers(self) -> tuple[str, ...]:
        return tuple(name for name in self.nodes if name != self._name)

    def shared_time(self, at: float) -> float:
        return at + self.ahead

    def tell(self, kind: str, payload: object = None) -> None:
        for peer in self.peers():
            if not self.losing:
                plain = msgspec.msgpack.decode(msgspec.msgpack.encode(payload))
                self.pending.append(
                    asyncio.ensure_future(self.nodes[peer]._answer_of(self._name, kind, plain))
                )

    async def ask(
        self,
        kind: str,
        payload: object = None,
        within: float = ASK_TIMEOUT,
        to: Collection[str] | None = None,
    ) -> Answers:
        answers = {}
        for name in self.peers() if to is None else to:
            answer = await self.nodes[name]._answer_of(self._name, kind, payload)
            answers[name] = msgspec.msgpack.decode(msgspec.msgpack.encode(answer))
        return Answers(answers, ())

    async def open(self) -> None: ...

    async def start(self) -> None: ...

    def stop(self) -> None:
        self.nodes.pop(self._name, None)
