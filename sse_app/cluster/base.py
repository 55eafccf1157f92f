"""The interface of a cluster: what a node asks the others, what it tells them, and what it answers."""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any, NamedTuple

from sse_app.core.errors import SSEAppError

ASK_TIMEOUT = 2.0
"""How long the others may take to answer, in seconds."""

_LATE = 0.05
"""By how many seconds a timer is late when the process, or its event loop, has stood still meanwhile."""

_READING_TIME = 0.2
"""For how many seconds what has come meanwhile is read then."""

Handler = Callable[[str, Any], Any]
"""Takes the name of the node that asks or tells, and the payload; returns the answer, or an awaitable of it."""

log = logging.getLogger(__name__)


class NoAnswer(SSEAppError):
    """A node has no answer to a question; the text says why."""


class Answers(NamedTuple):
    """What the nodes have answered.

    Args:
        by_node: the answers by the names of the nodes, in the order of `Cluster.peers`, this node's own first.
        missing: the names of the nodes that have not answered in time, or have no answer.
    """

    by_node: dict[str, Any]
    missing: tuple[str, ...]


class Cluster(ABC):
    """A node and the others that serve the same streams: other workers on this machine, later also on other machines.

    A payload is what msgpack can carry: None, bool, int, float, str, bytes, and lists, tuples and dicts with text keys
    of these; also a ``msgspec.Struct``. It arrives as plain lists and dicts, which ``msgspec.convert`` makes a type of.
    The other node may run another version of the program for a while: a kind that it does not know has no answer, and
    a handler has to ignore members that it does not know, as ``msgspec.convert`` does.

    A node may hang or die at any time. So a message to it may be lost, and what is told should say how things are
    rather than what has changed since the last message.
    """

    noun = ""
    """What a node is called in answers, ``worker`` or ``node``; empty where it is alone."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self._when_lost: Callable[[], None] = lambda: None

    @property
    @abstractmethod
    def name(self) -> str:
        """The name of this node; empty where it is alone. A worker's is its number."""

    @property
    @abstractmethod
    def number(self) -> int:
        """The number of this node, which those of its streams begin with, known once open; 0 where it is alone."""

    @abstractmethod
    async def open(self) -> None:
        """Learn this node's number; `start` comes later.

        Raises:
            StateError: another machine has this name, or no number is free.
        """

    @abstractmethod
    def peers(self) -> tuple[str, ...]:
        """Return the names of the other nodes, also of those that do not answer just now."""

    def naming(self, missing: Iterable[str]) -> dict[str, list[str]]:
        """Return the member of an answer that names nodes which did not answer; none where this one is alone."""
        return {f"{self.noun}s_missing": list(missing)} if self.noun else {}

    def naming_any(self, missing: Iterable[str]) -> dict[str, list[str]]:
        """Return the same only where there are any to name."""
        found = list(missing)
        return self.naming(found) if found else {}

    def beside(self) -> tuple[str, ...]:
        """Return the names of the nodes of this machine, this one among them: one who asks it means all of them."""
        return tuple(in_order((self.name, *self.peers())))

    def name_of(self, number: int) -> str:
        """Return the name of the node of a number; empty where it is not known."""
        return str(number)

    def shared_time(self, at: float) -> float:
        """Return a time of this machine's monotonic clock by the clock that all nodes have in common, in seconds."""
        return at

    @property
    def is_first(self) -> bool:
        """Whether this node does what one of them is to do, as far as this one knows."""
        return True

    @abstractmethod
    def tell(self, kind: str, payload: object = None) -> None:
        """Send something to all others; returns at once, and does not say who has received it.

        Raises:
            ValueError: the payload is too large.
        """

    @abstractmethod
    async def ask(
        self,
        kind: str,
        payload: object = None,
        within: float = ASK_TIMEOUT,
        to: Collection[str] | None = None,
    ) -> Answers:
        """Ask all nodes, this one among them, and return what they have answered.

        A node that reads the question only after that time does nothing.

        Args:
            kind: which handler answers.
            payload: what is asked.
            within: how many seconds to wait at most. A node that did not answer the last time is waited for no longer
                than a short while, until it sends something again.
            to: the names of the nodes to ask; all where it is None.

        Raises:
            ValueError: the payload is too large.
        """

    @abstractmethod
    async def start(self) -> None:
        """Find the others, and answer them from now on."""

    @abstractmethod
    def stop(self) -> None:
        """Leave: the others do not wait for this node any more."""

    async def close(self) -> None:
        """Give back what `open` has taken, after `stop`; also where it was never open."""
        return None

    def answer(self, kind: str, handler: Handler) -> None:
        """Answer what is asked or told of a kind with a handler; there is one for each kind."""
        assert kind not in self._handlers
        self._handlers[kind] = handler

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call a function whenever the connection to another node has ended, as at its death."""
        self._when_lost = callback

    async def _answer_of(self, node: str, kind: str, payload: Any) -> Any:
        """Return the answer of this node.

        Raises:
            NoAnswer: the kind is not known, or its handler has failed; what is a mistake is logged.
        """
        answer = self._begin_answer(node, kind, payload)
        return await self._rest_of_answer(kind, answer) if inspect.isawaitable(answer) else answer

    def _begin_answer(self, node: str, kind: str, payload: Any) -> Any:
        """Return the answer of this node, or an awaitable for `_rest_of_answer`.

        Raises:
            NoAnswer: as `_answer_of` says.
        """
        handler = self._handlers.get(kind)
        if handler is None:
            raise NoAnswer("this kind of question is not known")
        try:
            return handler(node, payload)
        except Exception as error:
            raise _no_answer(kind, error) from error

    async def _rest_of_answer(self, kind: str, answer: Awaitable[Any]) -> Any:
        """Return what an awaitable answer brings.

        Raises:
            NoAnswer: as `_answer_of` says.
        """
        try:
            return await answer
        except Exception as error:
            raise _no_answer(kind, error) from error


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of nodes as people sort them: ``web2`` before ``web10``, and 2 before 10."""
    return sorted(names, key=sort_key)


def sort_key(name: str) -> list[str | int]:
    """Return what the name of a node is sorted by: texts and numbers by turns."""
    return [int(part) if part.isdecimal() else part for part in re.split("([0-9]+)", name)]


async def answer_in(future: asyncio.Future[Any], within: float) -> Any:
    """Wait for an answer, and return it; one that came while this process itself stood still counts as in time.

    Args:
        future: gets the answer.
        within: for how many seconds it is waited for.

    Raises:
        TimeoutError: there is none in time.
        NoAnswer: the node has none.
    """
    due = time.monotonic() + within
    await asyncio.wait([future], timeout=within)
    if not future.done() and time.monotonic() > due + _LATE:
        await asyncio.wait([future], timeout=_READING_TIME)
    if not future.done():
        raise TimeoutError
    return future.result()


def _no_answer(kind: str, error: Exception) -> NoAnswer:
    """Return why there is no answer, and log what is a mistake."""
    if isinstance(error, SSEAppError):
        return NoAnswer(str(error))
    log.error("uncaught: %s", kind, exc_info=error)
    return NoAnswer("the handler has failed")


class Alone(Cluster):
    """A node without others; it answers itself."""

    @property
    def name(self) -> str:
        """The empty text."""
        return ""

    @property
    def number(self) -> int:
        """0."""
        return 0

    def name_of(self, number: int) -> str:
        """Return the empty text."""
        return ""

    def peers(self) -> tuple[str, ...]:
        """Return nothing."""
        return ()

    def tell(self, kind: str, payload: object = None) -> None:
        """Do nothing: there is no other."""

    async def ask(
        self,
        kind: str,
        payload: object = None,
        within: float = ASK_TIMEOUT,
        to: Collection[str] | None = None,
    ) -> Answers:
        """Return the answer of this node, if it is asked."""
        if to is not None and self.name not in to:
            return Answers({}, ())
        return await own_answer(self._answer_of(self.name, kind, payload), self.name)

    async def open(self) -> None:
        """Do nothing."""

    async def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


def together(own: Answers, names: Iterable[str], answers: Iterable[Any]) -> Answers:
    """Return what a node and the others have answered.

    Args:
        own: its own answer, if it was asked.
        names: the others that were asked.
        answers: what each of them has answered, or the exception instead, which is raised unless it is a `NoAnswer`.
    """
    by_node, missing = own.by_node, list(own.missing)
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, NoAnswer):
            missing.append(name)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            by_node[name] = answer
    return Answers(by_node, tuple(missing))


async def own_answer(answer: Awaitable[Any], name: str) -> Answers:
    """Return what a node itself answers to its own question."""
    try:
        return Answers({name: await answer}, ())
    except NoAnswer:
        return Answers({}, (name,))
