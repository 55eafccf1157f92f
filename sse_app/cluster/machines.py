"""The cluster of nodes on several machines: they find each other in PostgreSQL, and speak through notifications.

Each node has a row in the database, and once a second it calls one function there: that notes that it is there,
notifies the others of what it has to say, and returns who else is there. So a node that has nothing else to say makes
one query a second. What it says at the same moment goes with one call; the others hear it without a query.

A notification has at most 8000 bytes. What is longer is stored, and the notification names it.

While the database is away each node is alone: the others are missing. A node that has lost the connection on which it
listens hears no question, and is silent for the others.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Awaitable, Collection
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import psycopg

from sse_app.cluster.base import ASK_TIMEOUT, Answers, Cluster, NoAnswer, in_order, own_answer, together
from sse_app.cluster.clock import ClockComparison
from sse_app.cluster.link import (
    ANSWER,
    ASK,
    HELLO,
    MAX_BYTES,
    MAX_TOLD,
    MAX_WAITING,
    NO_ANSWER,
    TELL,
)
from sse_app.cluster.machine_peer import MachinePeer, Said
from sse_app.cluster.peer import SILENT_TIMEOUT
from sse_app.cluster.registry import MESSAGE_TIME, Registry, Row
from sse_app.core.background import BackgroundTasks
from sse_app.core.errors import StateError
from sse_app.core.periodic import PeriodicCallback
from sse_app.storage.postgres.database import Database, DatabaseUnavailable
from sse_app.storage.postgres.sealing import Seal

CHANNEL = "sse_app_cluster"
"""The channel of the notifications."""

BEAT_INTERVAL = 1.0
"""Seconds between two heartbeats."""

LONGEST_NOTIFIED = 5800
"""How many bytes a message may have that is notified as a whole: sealed and in base64 these are fewer than 8000."""

MOST_ADDRESSED = 50
"""To how many nodes a message is addressed at most: their names have to fit beside the content."""

LISTEN_TIMEOUT = 1.0
"""For how many seconds a start waits until the notifications are listened for."""

MOST_AT_ONCE = 256
"""How many notifications one call makes at most."""

LEFT, STORED = 5, 6
"""Types of messages beside those of `cluster.link`: a node has left; a message is stored: ``[id]``. ``HELLO`` says that
another process of the node has begun. The time in ``ASK`` is that of the database."""

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_decode_said = msgspec.msgpack.Decoder(Said).decode


class _Sent(NamedTuple):
    """A message that waits to be sent."""

    kind: int
    to: list[str] | None
    content: bytes


class Machines(Cluster):
    """The nodes that share a database, on one machine or several.

    Args:
        database: that they share.
        name: of this node, which no other may have: that of its machine, with ``.`` and its number for a worker.
        place: the machine and the state directory, which one server at a time uses.
    """

    noun = "node"

    def __init__(self, database: Database, name: str, place: str) -> None:
        super().__init__()
        self._name = str(name)  # exactly that: msgspec takes no subclass
        self._database = database
        self._registry = Registry(database, name, place)
        self._instance = 0
        """Of this process, from the database; 0 until it has its place among the others."""
        self._retired = False
        """Whether another process is this node now."""
        self._refused = False
        """Whether it was logged that another machine has the name."""
        self._failed = False
        """Whether it was logged that the database refuses what is asked of it."""
        self._peers: dict[str, MachinePeer] = {}
        self._seal: Seal | None = None
        self._clocks = ClockComparison()
        self._outgoing: deque[_Sent] = deque()
        self._outgoing_bytes = 0
        self._sent = itertools.count()
        self._questions = itertools.count(1)
        self._due = False
        """Whether a heartbeat is due."""
        self._sending: asyncio.Task[None] | None = None
        self._sweep_at: float | None = None
        """When the long messages that were stored by this node have expired."""
        self._tasks = BackgroundTasks()
        self._opened = self._running = False
        # At the moment at which other parts tell the others how things are: that goes with the same call.
        self._beating = PeriodicCallback(self._beat, BEAT_INTERVAL, phase=0.0)
        self._listens = asyncio.Event()
        database.listener.listen(CHANNEL, self._hear, self._listens.set)

    @property
    def name(self) -> str:
        """The name of this node."""
        return self._name

    @property
    def number(self) -> int:
        """The number of this node, which stays its own over restarts."""
        return self._registry.number

    def peers(self) -> tuple[str, ...]:
        """Return the names of the other nodes, in their order."""
        return tuple(in_order(self._peers))

    def beside(self) -> tuple[str, ...]:
        """Return the names of the nodes of this machine."""
        machine = self._machine(self._name)
        return tuple(name for name in in_order((self._name, *self._peers)) if self._machine(name) == machine)

    @staticmethod
    def _machine(name: str) -> str:
        return name.partition(".")[0]

    def name_of(self, number: int) -> str:
        """Return the name of the node of a number; empty where it is not known."""
        if number == self.number:
            return self._name
        return next((peer.name for peer in self._peers.values() if peer.number == number), "")

    def shared_time(self, at: float) -> float:
        """Return a time by the database's clock, as far as that is known: to some milliseconds."""
        return at + self._clocks.ahead

    @property
    def is_first(self) -> bool:
        """Whether this is the node with the least number of those that are there."""
        others = (peer.number for peer in self._peers.values() if peer.is_there and not peer.silent)
        return all(self.number < number for number in others)

    def tell(self, kind: str, payload: object = None) -> None:
        """Send something to all others."""
        content = _content(kind, payload)
        if any(peer.is_there for peer in self._peers.values()):
            self._send(_Sent(TELL, None, content), MAX_TOLD)

    async def ask(
        self,
        kind: str,
        payload: object = None,
        within: float = ASK_TIMEOUT,
        to: Collection[str] | None = None,
    ) -> Answers:
        """Ask all nodes at the same time."""
        number = next(self._questions)
        peers = [self._peers[name] for name in self.peers() if to is None or name in to]
        # Who is waited for only shortly is not to act on it later.
        silent = [peer for peer in peers if peer.silent]
        others = [peer for peer in peers if not peer.silent]
        shortly = min(within, SILENT_TIMEOUT)
        peers = [*others, *silent]
        asking = asyncio.gather(
            *self._questions_to(others, number, kind, payload, within),
            *self._questions_to(silent, number, kind, payload, shortly),
            return_exceptions=True,
        )
        answers = Answers({}, ())
        if to is None or self._name in to:
            answers = await own_answer(self._answer_of(self._name, kind, payload), self._name)
        by_node, missing = together(answers, [peer.name for peer in peers], await asking)
        in_place = {name: by_node[name] for name in (self._name, *in_order(by_node)) if name in by_node}
        return Answers(in_place, tuple(in_order(missing)))

    def _questions_to(
        self, peers: list[MachinePeer], number: int, kind: str, payload: object, within: float
    ) -> list[Awaitable[Any]]:
        """Send a question to nodes, with few messages, and return what waits for the answer of each."""
        content = _content(number, kind, payload, self.shared_time(time.monotonic()) + within)
        there = [peer.name for peer in peers if peer.is_there]
        some = [there[first : first + MOST_ADDRESSED] for first in range(0, len(there), MOST_ADDRESSED)]
        if not self._hears or not all(self._send(_Sent(ASK, to, content), MAX_WAITING) for to in some):
            return [_nothing("it cannot be reached") for _ in peers]

        def again(name: str) -> bool:
            return self._send(_Sent(ASK, [name], content), MAX_WAITING)

        return [peer.ask(number, lambda name=peer.name: again(name), within) for peer in peers]  # type: ignore[misc]

    @property
    def _hears(self) -> bool:
        is_heard = self._instance != 0 and not self._refused and not self._retired
        return self._running and is_heard and self._database.listener.connected

    # -- the life of a node ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Claim the name in the database, and learn the number that belongs to it."""
        await self._database.open()
        self._opened = True
        try:
            self._clocks = ClockComparison(await self._registry.claim())
        except DatabaseUnavailable as error:
            raise StateError(f"cannot use the database {self._database.address}: {error}") from None

    async def start(self) -> None:
        """Take the place of an earlier process of this node, and find the others."""
        self._running = True
        with suppress(TimeoutError):  # what the others answer at once is not to be missed
            async with asyncio.timeout(LISTEN_TIMEOUT):
                await self._listens.wait()
        self._beat()
        if self._sending is not None:
            await asyncio.wait([self._sending])
        self._beating.start()

    def stop(self) -> None:
        """Answer no more."""
        self._running = False
        self._beating.stop()
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            peer.give_up("this node has stopped")

    async def close(self) -> None:
        """Have the others wait for this node no more, and leave the database."""
        if not self._opened:
            return
        self._opened = False
        if self._sending is not None:
            await asyncio.wait([self._sending])
        if self._instance and not self._retired and self._seal is not None:
            said = self._sealed(self._seal, _Sent(LEFT, None, b""))
            try:
                await self._registry.leave(self._instance, [said])
            except (DatabaseUnavailable, psycopg.Error) as error:
                log.debug("node_left_unheard", extra={"detail": str(error)})
        await self._database.close()

    def _beat(self) -> None:
        self._due = True
        self._wake()

    # -- sending --------------------------------------------------------------------------------------------

    def _send(self, sent: _Sent, most: int) -> bool:
        """Queue a message, and return whether it will be sent: it is dropped where more bytes than `most` wait."""
        if not self._running or self._retired or self._outgoing_bytes > most:
            return False
        self._outgoing.append(sent)
        self._outgoing_bytes += len(sent.content)
        self._wake()
        return True

    def _wake(self) -> None:
        if self._sending is None and self._running:
            self._sending = asyncio.create_task(self._send_all())
            self._sending.add_done_callback(self._sent_all)

    def _sent_all(self, task: asyncio.Task[None]) -> None:
        self._sending = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("uncaught: the nodes cannot be told", exc_info=error)

    async def _send_all(self) -> None:
        await asyncio.sleep(0)  # what is said at the same moment goes together
        while self._running and not self._retired and (self._outgoing or self._due):
            self._due = False
            sending = [self._outgoing.popleft() for _ in range(min(MOST_AT_ONCE, len(self._outgoing)))]
            self._outgoing_bytes -= sum(len(sent.content) for sent in sending)
            try:
                said = [await self._notification(sent) for sent in sending]
                began = time.monotonic()
                rows = await self._registry.beat(self._instance, said)
                self._look(rows, began, time.monotonic())
                await self._sweep()
            except (DatabaseUnavailable, psycopg.Error) as error:
                self._lose(error)
                return
            self._failed = False

    async def _notification(self, sent: _Sent) -> str:
        """Return the payload of a notification, or of one that names what is stored."""
        assert self._seal is not None
        if len(sent.content) <= LONGEST_NOTIFIED:
            sealed = self._sealed(self._seal, sent)
            if len(sealed) < 8000:
                return sealed
        number = await self._registry.store(self._seal.close(self._message(sent)))
        if self._sweep_at is None:
            self._sweep_at = time.monotonic() + MESSAGE_TIME
        return self._sealed(self._seal, _Sent(STORED, sent.to, _content(number)))

    def _sealed(self, seal: Seal, sent: _Sent) -> str:
        return b64encode(seal.close(self._message(sent))).decode()

    def _message(self, sent: _Sent) -> bytes:
        return _encode((sent.kind, self._name, self._instance, next(self._sent), sent.to, sent.content))

    async def _sweep(self) -> None:
        if self._sweep_at is not None and time.monotonic() > self._sweep_at:
            self._sweep_at = None
            await self._registry.sweep()

    def _lose(self, error: Exception) -> None:
        """Give up what was being said and asked: the database does not take it."""
        self._outgoing.clear()
        self._outgoing_bytes = 0
        for peer in self._peers.values():
            peer.give_up("the database cannot be used")
        if isinstance(error, DatabaseUnavailable):
            log.debug("cluster_unreachable", extra={"detail": str(error)})
        elif not self._failed:
            self._failed = True
            log.error("cluster_failed", extra={"detail": " ".join(str(error).split())})

    # -- who is there ---------------------------------------------------------------------------------------

    def _look(self, rows: list[Row], asked_at: float, answered_at: float) -> None:
        """Take what the database says of the nodes.

        Args:
            rows: the nodes.
            asked_at: when it was asked, by the monotonic clock.
            answered_at: when the answer was there.
        """
        at = (asked_at + answered_at) / 2
        found = {row.name: row for row in rows}
        own = found.pop(self._name, None)
        for name in self._peers.keys() - found.keys():
            if self._peers[name].heard_at < at:  # else it has come since
                self._peers.pop(name).give_up("it has left")
        if not rows:
            return
        self._clocks.learn(rows[0].clock, asked_at, answered_at)
        if self._seal is None or self._seal.secret != rows[0].secret:
            self._seal = Seal(rows[0].secret)
        for name, row in found.items():
            peer = self._peers.get(name)
            if peer is None:
                peer = self._peers[name] = MachinePeer(name)
                peer.heard_at = at - row.age
            peer.number = row.number
            peer.heard_at = max(peer.heard_at, at - row.age)
            peer.replaced(row.instance)
        self._look_at_own(own)

    def _look_at_own(self, own: Row | None) -> None:
        if own is None or not own.is_here or own.number != self.number:
            if not self._refused:
                self._refused = True
                log.error("node_name_taken", extra={"node": self._name})
            return
        self._refused = False
        if self._instance == 0:
            self._instance = own.instance
            self._send(_Sent(HELLO, None, b""), MAX_WAITING)
        elif own.instance > self._instance:
            self._retire()

    def _retire(self) -> None:
        """Leave the rest to the next process of this node."""
        self._retired = True
        self._beating.stop()
        self._outgoing.clear()
        for peer in self._peers.values():
            peer.give_up("another process is this node now")

    # -- hearing --------------------------------------------------------------------------------------------

    def _hear(self, payload: str) -> None:
        """Take a notification, of a node or a stranger."""
        if not self._running or self._retired or self._seal is None:
            return
        try:
            sealed = b64decode(payload, validate=True)
        except ValueError:
            return
        if (said := self._opened_message(sealed)) is None:
            return
        if said.node == self._name:
            if self._instance and said.instance > self._instance:
                self._retire()
            return
        peer = self._peers.get(said.node)
        if peer is None:
            peer = self._peers[said.node] = MachinePeer(said.node)
            self._beat()  # the database has its number
        if not peer.takes(said):
            return
        if said.kind == LEFT:
            del self._peers[said.node]
            peer.give_up("it has left")
        elif said.to is None or self._name in said.to:
            if peer.later:
                peer.later.append(said)
            elif said.kind == STORED:
                peer.later.append(said)
                self._tasks.begin(self._read_stored(peer))
            else:
                self._take(peer, said)

    def _opened_message(self, sealed: bytes) -> Said | None:
        assert self._seal is not None
        message = self._seal.open(sealed)
        if message is None:
            return None
        try:
            return _decode_said(message)
        except msgspec.ValidationError:  # another version says it in another form
            return None

    async def _read_stored(self, peer: MachinePeer) -> None:
        """Take a long message, and what the node has said since: its messages come in their order."""
        try:
            while peer.later and self._running:
                first = peer.later[0]
                said = await self._stored(first) if first.kind == STORED else first
                if said is not None:
                    self._take(peer, said)
                peer.later.popleft()
        finally:
            peer.later.clear()  # else what comes next would wait for this

    async def _stored(self, said: Said) -> Said | None:
        """Return the long message that a notification names; None where it cannot be read any more."""
        number, *_ = _decode(said.content)
        try:
            sealed = await self._registry.stored(number, last=said.to is not None and len(said.to) == 1)
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.debug("cluster_message_lost", extra={"detail": str(error)})
            return None
        message = None if sealed is None else self._opened_message(sealed)
        if message is None or (message.node, message.instance) != (said.node, said.instance):
            return None
        return message

    def _take(self, peer: MachinePeer, said: Said) -> None:
        content = _decode(said.content) if said.content else []
        match said.kind, content:
            case int(kind), [int(instance), int(number), answer, *_] if kind in (ANSWER, NO_ANSWER):
                if instance == self._instance:
                    peer.answered(number, answer, kind == NO_ANSWER)
            case int(kind), [str(about), payload, *_] if kind == TELL:
                self._answer(said, None, about, payload)
            case int(kind), [int(number), str(about), payload, float(until), *_] if kind == ASK:
                if until > self.shared_time(
                    time.monotonic()
                ):  # else its asker has been told that it was not done
                    self._answer(said, number, about, payload)

    # -- answering ------------------------------------------------------------------------------------------

    def _answer(self, said: Said, number: int | None, kind: str, payload: Any) -> None:
        """Answer at once what a handler answers at once; what is told has no number and no answer."""
        try:
            answer = self._begin_answer(said.node, kind, payload)
        except NoAnswer as error:
            self._reply(said, number, NO_ANSWER, str(error))
            return
        if inspect.isawaitable(answer):
            self._tasks.begin(self._answer_later(said, number, kind, answer))
        else:
            self._reply(said, number, ANSWER, answer)

    async def _answer_later(self, said: Said, number: int | None, kind: str, answer: Awaitable[Any]) -> None:
        try:
            self._reply(said, number, ANSWER, await self._rest_of_answer(kind, answer))
        except NoAnswer as error:
            self._reply(said, number, NO_ANSWER, str(error))

    def _reply(self, said: Said, number: int | None, kind: int, answer: Any) -> None:
        if number is None:
            return
        try:
            content = _content(said.instance, number, answer)
        except ValueError as error:
            kind, content = NO_ANSWER, _content(said.instance, number, str(error))
        self._send(_Sent(kind, [said.node], content), MAX_WAITING)


async def _nothing(why: str) -> Any:
    raise NoAnswer(why)


def _content(*members: object) -> bytes:
    """Return the content of a message.

    Raises:
        ValueError: it is too long.
    """
    content = _encode(members)
    if len(content) > MAX_BYTES:
        raise ValueError(f"a message of {len(content)} bytes is longer than {MAX_BYTES}")
    return content
