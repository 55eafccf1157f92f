"""Another worker as one sees it: the connection to it, and the questions that it has not answered yet."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from sse_app.cluster.base import NoAnswer, answer_in
from sse_app.cluster.link import MAX_TOLD, Link, message

RECONNECT_TIME = 1.0
"""For how many seconds after the end of a connection the next process of that worker is waited for."""

SILENT_TIMEOUT = 0.2
"""How long a worker that did not answer the last time is waited for, in seconds."""

log = logging.getLogger(__name__)


class Peer:
    """Another worker, and the connection to it.

    Args:
        name: its number.
        now: the time, of the event loop.
    """

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.link: Link | None = None
        self.lost_at = now
        """Since when there is no connection, where there is none."""
        self.silent = False
        """Whether it did not answer in time, and has sent nothing since."""
        self._waiting: dict[int, tuple[bytes, asyncio.Future[Any]]] = {}

    def tell(self, data: bytes) -> None:
        """Send a message; it is lost where the worker cannot be reached, or does not read."""
        if self.link is not None:
            self.link.send(data, MAX_TOLD)

    async def ask(self, number: int, begin: tuple[object, ...], within: float) -> Any:
        """Send a question, again where the connection is made anew meanwhile, and return the answer.

        Args:
            number: of the question.
            begin: of the message; what follows is until when the answer is waited for.
            within: for how many seconds it is waited for; fewer where the worker is silent.

        Raises:
            NoAnswer: there is none in time.
            ValueError: the question is too long.
        """
        loop = asyncio.get_running_loop()
        if self.silent:
            within = min(within, SILENT_TIMEOUT)
        data = message(*begin, time.monotonic() + within)
        if self.link is None and loop.time() > self.lost_at + RECONNECT_TIME:
            raise NoAnswer("it cannot be reached")
        if self.link is not None and not self.link.send(data):
            raise NoAnswer("it does not read")
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting[number] = data, future
        try:
            return await answer_in(future, within)
        except TimeoutError:
            if self.link is not None:
                self._say(silent=True)
            raise NoAnswer("it has not answered in time") from None
        finally:
            del self._waiting[number]

    def connected(self, link: Link) -> None:
        """Use a connection, and send again what has not been answered over the one before."""
        self.link = link
        for data, _ in self._waiting.values():
            link.send(data)

    def disconnected(self, now: float) -> None:
        """Use no connection from now on."""
        self.link = None
        self.lost_at = now

    def give_up(self) -> None:
        """Wait for no answer any more."""
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(NoAnswer("it has ended"))

    def heard(self) -> None:
        """Note that it has sent something."""
        if self.silent:
            self._say(silent=False)

    def answered(self, number: int, answer: Any, failed: bool) -> None:
        """Take an answer; one that came too late is dropped."""
        _, future = self._waiting.get(number, (b"", None))
        if future is not None and not future.done():
            if failed:
                future.set_exception(NoAnswer(str(answer)))
            else:
                future.set_result(answer)

    def _say(self, *, silent: bool) -> None:
        if silent != self.silent:
            level = logging.WARNING if silent else logging.INFO
            log.log(level, "worker_silent" if silent else "worker_answers", extra={"peer": self.name})
        self.silent = silent
