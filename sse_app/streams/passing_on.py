"""Events that are not stored: passes them on to the streams of all nodes, in order with those of the log.

A message names the head that the log had when they were published; each node waits until its hub has come as far. One
message at a time is under way, with all that was published meanwhile, and their publishers are answered when every node
has given them to its streams. So what the same publisher does next comes after them, and many of them take no more
messages than a few. A node that does not answer in time does nothing later: they are lost there, but never late.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from sse_app.cluster.base import Cluster
from sse_app.core.background import BackgroundTasks
from sse_app.core.errors import InvalidInput
from sse_app.core.events import EventId, NewEvent, held_bytes
from sse_app.streams.hub import Hub

WAIT = 1.0
"""For how many seconds after it was sent a node may begin to give the events to its streams: its hub may lag behind
what the events' publisher knew of the log, or be busy. The publisher waits for longer than that."""

MESSAGE_BYTES = 64 * 1024
"""About how many bytes of events a message has; one event may be larger."""

LARGEST = 8 * 1024 * 1024
"""How many bytes the events of one request may have: messages between nodes have a bound."""

_KIND = "events.pass_on"


class _Message(msgspec.Struct, array_like=True):
    """What the other nodes are asked to give to their streams.

    Args:
        sent_at: when it was sent, by the clock that the nodes share.
        epoch, seq: the position in the log that the events follow.
        events: that follow it.
    """

    sent_at: float
    epoch: str
    seq: int
    events: list[NewEvent]


class _Waiting(NamedTuple):
    """Events that wait to be sent; `done` is set when all nodes that answer have given them to their streams."""

    events: Sequence[NewEvent]
    size: int
    done: asyncio.Future[None]


class PassingOn:
    """Gives events to the streams of this node and of the others.

    Args:
        hub: has the streams of this one.
        cluster: the other nodes.
    """

    def __init__(self, hub: Hub, cluster: Cluster) -> None:
        self._hub = hub
        self._cluster = cluster
        self._waiting: deque[_Waiting] = deque()
        self._tasks = BackgroundTasks()
        self._is_sending = False
        self._began = float("inf")
        """Since when it takes messages, by this machine's monotonic clock: the one that is shared may be set back."""
        self.events = 0
        """How many have been published at this node."""
        cluster.answer(_KIND, self._take)

    def start(self) -> None:
        """Take from now on what the other nodes pass on: what was sent before, an earlier process may have had."""
        self._began = time.monotonic()

    def require_size(self, events: Sequence[NewEvent]) -> None:
        """Refuse events that are too large.

        Raises:
            InvalidInput: they are.
        """
        if sum(map(held_bytes, events)) > LARGEST:
            raise InvalidInput(f"events that are not stored have at most {LARGEST} bytes together", "data")

    async def publish(self, events: Sequence[NewEvent]) -> None:
        """Give events to all streams that are there, and return when every node has done so that answers.

        They come after all that this process knows to be in the log.
        """
        self.events += len(events)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(events, sum(map(held_bytes, events)), done))
        if not self._is_sending:
            self._is_sending = True
            self._tasks.begin(self._send_all())
        await done

    async def _send_all(self) -> None:
        taken: list[_Waiting] = []
        try:
            while self._waiting:
                taken = self._take_some()
                await self._send([event for each in taken for event in each.events])
                _finish(taken)
        finally:
            self._is_sending = False
            _finish([*taken, *self._waiting])
            self._waiting.clear()

    def _take_some(self) -> list[_Waiting]:
        taken = [self._waiting.popleft()]
        size = taken[0].size
        while self._waiting and size + self._waiting[0].size <= MESSAGE_BYTES:
            taken.append(self._waiting.popleft())
            size += taken[-1].size
        return taken

    async def _send(self, events: list[NewEvent]) -> None:
        head, sent_at = self._hub.eventlog.head, self._now()
        others = self._cluster.peers()
        if others:
            message = _Message(sent_at, *head, events)
            asking = asyncio.create_task(self._cluster.ask(_KIND, message, to=others))
            await self._give(events, head, sent_at)
            await asking
        else:
            await self._give(events, head, sent_at)

    def _now(self) -> float:
        return self._cluster.shared_time(time.monotonic())

    async def _take(self, node: str, payload: Any) -> None:
        try:
            message = msgspec.convert(payload, _Message)
        except msgspec.ValidationError:  # another version says it in another form
            return
        if message.sent_at > self._cluster.shared_time(self._began):
            await self._give(message.events, EventId(message.epoch, message.seq), message.sent_at)

    async def _give(self, events: list[NewEvent], after: EventId, sent_at: float) -> None:
        """Give events to the streams of this node, unless it has not come as far in time."""
        until = sent_at + WAIT
        with suppress(TimeoutError):
            async with asyncio.timeout(until - self._now()):
                if not await self._hub.reached(after):
                    return
            await self._hub.pass_on(events, lambda: self._now() < until)


def _finish(waiting: Sequence[_Waiting]) -> None:
    for each in waiting:
        if not each.done.done():
            each.done.set_result(None)
