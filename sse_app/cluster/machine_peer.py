"""Another node as one sees it through the database: when it was heard, and what it has not answered yet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from sse_app.cluster.base import NoAnswer, answer_in
from sse_app.cluster.registry import SILENCE

log = logging.getLogger(__name__)


class Said(msgspec.Struct, array_like=True, frozen=True):
    """A message from a node, its content not read yet; what a newer version adds to its end is ignored.

    Args:
        kind: of the message.
        node, instance, number: which process of which node has sent it, and how many it had sent before.
        to: the names of the nodes that it is for; all where it is None.
        content: the rest, in msgpack.
    """

    kind: int
    node: str
    instance: int
    number: int
    to: list[str] | None
    content: bytes


class MachinePeer:
    """Another node.

    Args:
        name: of the node.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        """The node's; 0 until it is known."""
        self.silent = False
        """Whether it did not answer in time, and has sent nothing since."""
        self.heard_at = time.monotonic()
        """When it was there, by its own heartbeat."""
        self.later: deque[Said] = deque()
        """What it has sent after a long message that is still being read."""
        self._instance = 0
        self._last = -1
        self._waiting: dict[int, tuple[Callable[[], bool], asyncio.Future[Any]]] = {}

    @property
    def is_there(self) -> bool:
        """Whether it was heard not long ago."""
        return time.monotonic() - self.heard_at < SILENCE

    def replaced(self, instance: int) -> None:
        """Note which process of the node is known to the database; ask the next one what has not been answered."""
        if instance > self._instance:
            is_another = self._instance != 0
            self._instance, self._last = instance, -1
            if is_another:
                for send, _ in self._waiting.values():
                    send()

    def takes(self, said: Said) -> bool:
        """Note a message, and return whether it is of the node's process of now, and comes for the first time."""
        self.replaced(said.instance)
        if said.instance != self._instance or said.number <= self._last:
            return False
        self._last = said.number
        self.heard_at = time.monotonic()
        if self.silent:
            self._say(silent=False)
        return True

    async def ask(self, number: int, send: Callable[[], bool], within: float) -> Any:
        """Wait for the answer to a question that is being sent, and return it.

        Args:
            number: of the question.
            send: sends it, again for the node's next process.
            within: for how many seconds it is waited for.

        Raises:
            NoAnswer: there is none in time.
        """
        if not self.is_there:
            raise NoAnswer("it is not there")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = send, future
        try:
            return await answer_in(future, within)
        except TimeoutError:
            self._say(silent=True)
            raise NoAnswer("it has not answered in time") from None
        finally:
            del self._waiting[number]

    def answered(self, number: int, answer: Any, failed: bool) -> None:
        """Take an answer; one that came too late is dropped."""
        _, future = self._waiting.get(number, (None, None))
        if future is not None and not future.done():
            if failed:
                future.set_exception(NoAnswer(str(answer)))
            else:
                future.set_result(answer)

    def give_up(self, why: str) -> None:
        """Wait for no answer any more."""
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(NoAnswer(why))

    def _say(self, *, silent: bool) -> None:
        if silent != self.silent:
            level = logging.WARNING if silent else logging.INFO
            log.log(level, "node_silent" if silent else "node_answers", extra={"peer": self.name})
        self.silent = silent
