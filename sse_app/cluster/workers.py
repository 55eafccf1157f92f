"""The cluster of the worker processes of one machine: each listens on a Unix socket in its own directory.

A worker connects to each of the others, asks and tells over that connection, and is answered there. So two workers
have two connections. The others are found by their sockets: one that ends removes its own, one that was killed leaves
it behind. When a worker is handed over to another process, that one binds its socket beside the old one and renames it
to its place, and the others connect again when the old process has ended.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import socket
import time
from collections.abc import Awaitable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from sse_app.cluster.base import ASK_TIMEOUT, Answers, Cluster, NoAnswer, in_order, own_answer, together
from sse_app.cluster.link import ANSWER, ASK, HELLO, NO_ANSWER, TELL, Link, message
from sse_app.cluster.peer import RECONNECT_TIME, Peer
from sse_app.core.background import BackgroundTasks
from sse_app.core.errors import EXHAUSTED
from sse_app.core.periodic import PeriodicCallback
from sse_app.storage.unix_sockets import is_of_own_user, short_path

SOCKET_NAME = "control"
"""The name of a worker's socket in its directory."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks for other workers."""

RECONNECT_INTERVAL = 0.02
"""Seconds between two tries to connect to the next process of a worker."""

FORGET_TIME = 300.0
"""After how many seconds without a process a worker is taken for one that is not to come back."""

BACKLOG = 1024
"""How many connections may wait: more than there are workers."""

log = logging.getLogger(__name__)


class Workers(Cluster):
    """The workers that use one state directory.

    Args:
        number: of this worker.
        directory: which has one for each worker, named by its number.
    """

    noun = "worker"

    def __init__(self, number: int, directory: Path) -> None:
        super().__init__()
        self._name = str(number)
        self._directory = directory
        self._peers: dict[str, Peer] = {}
        self._connecting: set[str] = set()
        self._incoming: set[Link] = set()
        self._numbers = itertools.count(1)
        self._listening: socket.socket | None = None
        self._inode = 0
        self._tasks = BackgroundTasks()
        self._unbound = False
        """Whether it was logged that the socket cannot be bound."""
        self._running = False
        self._looking = PeriodicCallback(self._look, LOOK_INTERVAL)

    @property
    def name(self) -> str:
        """The number of this worker."""
        return self._name

    @property
    def number(self) -> int:
        """The number of this worker."""
        return int(self._name)

    def peers(self) -> tuple[str, ...]:
        """Return the numbers of the other workers, in their order."""
        oldest = asyncio.get_running_loop().time() - FORGET_TIME
        known = (peer for peer in self._peers.values() if peer.link is not None or peer.lost_at > oldest)
        return tuple(in_order(peer.name for peer in known))

    @property
    def is_first(self) -> bool:
        """Whether this is the worker with the least number of those that answer."""
        answering = (peer.name for peer in self._peers.values() if peer.link is not None and not peer.silent)
        return all(int(self._name) < int(name) for name in answering)

    def tell(self, kind: str, payload: object = None) -> None:
        """Send something to all others that can be reached."""
        data = message(TELL, kind, payload)
        for peer in self._peers.values():
            peer.tell(data)

    async def ask(
        self,
        kind: str,
        payload: object = None,
        within: float = ASK_TIMEOUT,
        to: Collection[str] | None = None,
    ) -> Answers:
        """Ask all workers at the same time."""
        number = next(self._numbers)
        begin = (ASK, number, kind, payload)
        asked = [self._peers[name] for name in self.peers() if to is None or name in to]
        answers = Answers({}, ())
        others = asyncio.gather(*(peer.ask(number, begin, within) for peer in asked), return_exceptions=True)
        if to is None or self._name in to:
            answers = await own_answer(self._answer_of(self._name, kind, payload), self._name)
        return together(answers, [peer.name for peer in asked], await others)

    # -- connections ----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Do nothing: the number is given."""

    async def start(self) -> None:
        """Take the place of an earlier process of this worker, and connect to the others."""
        self._running = True
        await self._look()
        self._looking.start()

    def stop(self) -> None:
        """Remove the socket, unless it is the next process's, and close all connections."""
        self._running = False
        self._looking.stop()
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
            path = self._directory / self._name / SOCKET_NAME
            with suppress(OSError):
                if path.lstat().st_ino == self._inode:
                    path.unlink()
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            peer.give_up()
            if peer.link is not None:
                peer.link.close()
        for link in list(self._incoming):
            link.close()

    async def _look(self) -> None:
        """Connect to workers that have come, forget those that have gone."""
        if not self._running:  # it was about to when this one was stopped
            return
        if self._listening is None:
            self._bind()
        now = asyncio.get_running_loop().time()
        found = self._found()
        for name in found - self._peers.keys() - {self._name}:
            self._peers[name] = Peer(name, now)
        for name, peer in list(self._peers.items()):
            if peer.link is not None:
                continue
            if name not in found:
                self._forget(peer)
            else:
                await self._connect(peer)

    def _found(self) -> set[str]:
        """Return the names of the workers that have a socket."""
        try:
            with os.scandir(self._directory) as entries:
                return {
                    entry.name
                    for entry in entries
                    if entry.name.isdecimal() and os.path.lexists(os.path.join(entry.path, SOCKET_NAME))
                }
        except OSError:
            return set(self._peers)  # for lack of descriptors, for instance: that says nothing about them

    def _forget(self, peer: Peer) -> None:
        del self._peers[peer.name]
        peer.give_up()

    def _bind(self) -> None:
        """Listen; where that is not possible just now, on a full disk for instance, the next look tries again."""
        directory = self._directory / self._name
        beside = f".{SOCKET_NAME}.{os.getpid()}"
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.setblocking(False)
        try:
            with short_path(directory) as path:
                with suppress(FileNotFoundError):
                    os.unlink(f"{path}/{beside}")
                listening.bind(f"{path}/{beside}")
                os.chmod(f"{path}/{beside}", 0o600)
                listening.listen(BACKLOG)
                self._inode = os.lstat(f"{path}/{beside}").st_ino
                os.replace(f"{path}/{beside}", f"{path}/{SOCKET_NAME}")
        except OSError as error:
            listening.close()
            if not self._unbound:
                log.error("control_socket_failed", extra={"detail": f"{directory}: {error.strerror}"})
            self._unbound = True
            return
        self._unbound = False
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listening is not None
        loop = asyncio.get_running_loop()
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:  # it would be called again at once
                descriptor = self._listening.fileno()
                loop.remove_reader(descriptor)
                loop.call_later(LOOK_INTERVAL, self._accept_again, descriptor)
            return
        self._tasks.begin(self._serve(connection))

    def _accept_again(self, descriptor: int) -> None:
        if self._listening is not None and self._listening.fileno() == descriptor:
            asyncio.get_running_loop().add_reader(descriptor, self._accept)

    async def _serve(self, connection: socket.socket) -> None:
        link = Link(self._asked, self._incoming.discard)
        if await _open(link, connection):
            self._incoming.add(link)

    async def _connect(self, peer: Peer) -> None:
        """Connect to a worker, if it listens."""
        if peer.name in self._connecting:
            return
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        self._connecting.add(peer.name)
        try:
            try:
                with short_path(self._directory / peer.name) as path:
                    connection.connect(f"{path}/{SOCKET_NAME}")
            except OSError:  # it does not listen, or very many wait
                connection.close()
                return
            link = Link(self._answered, self._disconnected)
            link.node = peer.name
            if await _open(link, connection):
                link.send(message(HELLO, self._name))
                peer.connected(link)
        finally:
            self._connecting.discard(peer.name)

    def _disconnected(self, link: Link) -> None:
        peer = self._peers.get(link.node)
        if peer is not None and peer.link is link:
            peer.disconnected(asyncio.get_running_loop().time())
            self._when_lost()
            self._tasks.begin(self._reconnect(peer))

    async def _reconnect(self, peer: Peer) -> None:
        """Connect to the next process of a worker as soon as it is there; one that has left is forgotten."""
        loop = asyncio.get_running_loop()
        while self._peers.get(peer.name) is peer and peer.link is None:
            if peer.name not in self._found():
                self._forget(peer)
                return
            await self._connect(peer)
            if loop.time() > peer.lost_at + RECONNECT_TIME:
                peer.give_up()
                return
            await asyncio.sleep(RECONNECT_INTERVAL)

    # -- messages -------------------------------------------------------------------------------------------

    def _answered(self, link: Link, members: list[Any]) -> None:
        """Take a message over a connection of ours."""
        peer = self._peers.get(link.node)
        if peer is None:
            return
        peer.heard()
        match members:
            case [int(kind), int(number), answer, *_] if kind in (ANSWER, NO_ANSWER):
                peer.answered(number, answer, kind == NO_ANSWER)

    def _asked(self, link: Link, members: list[Any]) -> None:
        """Take a message over a connection of another's."""
        match members:
            case [int(kind), str(name), *_] if kind == HELLO and not link.node:
                link.node = name
                peer = self._peers.get(name)
                if peer is None or peer.link is None:  # it has just come
                    self._tasks.begin(self._look())
            case [int(kind), str(about), payload, *_] if kind == TELL:
                self._answer(link, None, about, payload)
            case [int(kind), number, str(about), payload, float(until), *_] if kind == ASK:
                if until > time.monotonic():  # else its asker has been told that it was not done
                    self._answer(link, number, about, payload)
        if peer := self._peers.get(link.node):
            peer.heard()

    def _answer(self, link: Link, number: Any, kind: str, payload: Any) -> None:
        """Answer at once what a handler answers at once, without a task; what is told has no number and no answer."""
        try:
            answer = self._begin_answer(link.node, kind, payload)
        except NoAnswer as error:
            self._reply(link, number, NO_ANSWER, str(error))
            return
        if inspect.isawaitable(answer):
            self._tasks.begin(self._answer_later(link, number, kind, answer))
        else:
            self._reply(link, number, ANSWER, answer)

    async def _answer_later(self, link: Link, number: Any, kind: str, answer: Awaitable[Any]) -> None:
        try:
            self._reply(link, number, ANSWER, await self._rest_of_answer(kind, answer))
        except NoAnswer as error:
            self._reply(link, number, NO_ANSWER, str(error))

    def _reply(self, link: Link, number: Any, kind: int, answer: Any) -> None:
        if number is None:
            return
        try:
            link.send(message(kind, number, answer))
        except ValueError as error:
            link.send(message(NO_ANSWER, number, str(error)))


async def _open(link: Link, connection: socket.socket) -> bool:
    """Begin a connection, if the process at its other end runs as this user; return whether it does."""
    if not is_of_own_user(connection):
        connection.close()
        return False
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, connection)
    except OSError:
        connection.close()
        return False
    return True
