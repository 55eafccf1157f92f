"""Reads that many ask for at the same time, as the clients do that lost their connections together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class SharedReads(Generic[Key, Value]):
    """Does a read once for all that ask for it while it is under way; nothing is kept after that."""

    __slots__ = ("_under_way",)

    def __init__(self) -> None:
        self._under_way: dict[Key, asyncio.Task[Value]] = {}

    async def get(self, key: Key, read: Callable[[], Coroutine[Any, Any, Value]]) -> Value:
        """Return what the read returns, or raise what it raises.

        Args:
            key: of what is read.
            read: reads it; called where no such read is under way.
        """
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(read())
            task.add_done_callback(partial(self._done, key))
        return await asyncio.shield(task)  # one that is cancelled cancels it for no other

    def _done(self, key: Key, task: asyncio.Task[Value]) -> None:
        del self._under_way[key]
        if not task.cancelled():
            task.exception()  # it is raised to those that wait, if there are any left
