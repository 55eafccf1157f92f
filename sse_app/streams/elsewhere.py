"""How many streams users and addresses have on the other nodes, so that limits hold over all of them together.

About once a second each node tells the others how many streams it has, and of whom; what has changed since the last
time, or to a node that is new all of it. So a limit may be exceeded by what is opened within that second, and not by
more. A node that has fallen silent counts no more; one whose process is replaced keeps its name, so that its streams
are never counted twice.

Of most users and addresses nothing is told, nor kept by the others: as long as each node has less than its share of
what the limit allows, all together have not reached it. Once one node has that much of a user, all tell what they
have of that user.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from sse_app.cluster.base import Cluster
from sse_app.core.periodic import PeriodicCallback
from sse_app.settings.model import Limits
from sse_app.streams.hub import Hub

HEARTBEAT = 1.0
"""Seconds between two times that the others are told."""

SILENT_AFTER = 5.0
"""Seconds after which a node that has told nothing has no streams any more, as far as the others know."""

_TOLD, _ASKED = "streams", "all_streams"


class Held(msgspec.Struct):
    """What a node tells of its streams.

    Args:
        began: when its process began; later for the next process of the same node, by the clock that all nodes share.
        number: how many times that process has told before; a receiver that missed one asks for all.
        all: whether what is not named here counts as none, and not as unchanged.
        total: how many streams it has.
        users, addresses: how many streams each has there, as far as told.
    """

    began: float
    number: int
    all: bool
    total: int
    users: dict[str, int]
    addresses: dict[str, int]


class _Counts:
    """How many streams each user has, or each address: on this node, and on the others as they say.

    Args:
        here: returns how many there are here.
        names: returns those who have any here.
    """

    def __init__(self, here: Callable[[str], int], names: Callable[[], list[str]]) -> None:
        self._here = here
        self._names = names
        self._share = 1
        self._told: dict[str, int] = {}
        self._new: set[str] = set()
        self.elsewhere: Counter[str] = Counter()

    def set_share(self, share: int) -> None:
        """Take what one node may have of the limit, and look again at all who have so much here."""
        if share != self._share:
            self._share = share
            self.look_at_all()

    def look_at_all(self) -> None:
        """Look at all who have streams here: many of them may be others' of before."""
        self._new.update(name for name in self._names() if self._concerns(name))

    def opened(self, name: str) -> None:
        """Note that there is one more here."""
        if name not in self._told and self._concerns(name):
            self._new.add(name)

    def _concerns(self, name: str) -> bool:
        return name in self.elsewhere or self._here(name) >= self._share

    def all_told(self) -> dict[str, int]:
        """Return what the others have been told."""
        return dict(self._told)

    @property
    def kept(self) -> int:
        """How many names are kept because others have or need the number."""
        return len(self._told.keys() | self.elsewhere.keys())

    def changes(self) -> dict[str, int]:
        """Return what has changed since the last call, which the others are told now."""
        told = self._told
        changed = {name: here for name, count in told.items() if (here := self._here(name)) != count}
        changed |= {name: here for name in self._new if name not in told and (here := self._here(name))}
        self._new.clear()
        told |= changed
        for name, count in changed.items():
            if not count:
                del told[name]
        return changed

    def take(self, before: dict[str, int], told: dict[str, int], *, all: bool) -> None:
        """Take what another node tells; ``before``, what counted of it until now, becomes what counts from now on."""
        gone = dict.fromkeys(before, 0) if all else {}
        for name, count in (gone | told).items():
            self.elsewhere[name] += count - before.pop(name, 0)
            if count:
                before[name] = count
                if name not in self._told:
                    self._new.add(name)
            if not self.elsewhere[name]:
                del self.elsewhere[name]


class _Node(msgspec.Struct):
    """What another node has told last, and when by the clock of this one."""

    began: float
    number: int
    heard_at: float
    total: int
    users: dict[str, int] = {}
    addresses: dict[str, int] = {}


class StreamsElsewhere:
    """Tells the other nodes of the streams of this one, and knows of theirs; does nothing where the node is alone.

    Args:
        cluster: the other nodes.
        hub: has the streams of this one.
        limits: on streams.
    """

    def __init__(self, cluster: Cluster, hub: Hub, limits: Limits) -> None:
        self._cluster = cluster
        self._hub = hub
        self._limits = limits
        self._began = time.monotonic()
        self._number = 0
        self._beaten_at = time.monotonic()
        self._nodes: dict[str, _Node] = {}
        self._users = _Counts(
            lambda name: len(hub.streams_of_subject.get(name)), lambda: list(hub.streams_of_subject)
        )
        self._addresses = _Counts(
            lambda name: hub.streams_of_address[name], lambda: list(hub.streams_of_address)
        )
        self.total = 0
        """How many streams the others have."""
        # At the same moment as the other workers: each wakes up once for what all of them tell.
        self._heart = PeriodicCallback(self.beat, HEARTBEAT, phase=0.0)
        cluster.answer(_TOLD, self._take)
        cluster.answer(_ASKED, lambda node, payload: self._all())

    def use(self, limits: Limits) -> None:
        """Put other limits in force."""
        self._limits = limits

    def start(self) -> None:
        """Tell the others what there is, now and from time to time; on a node that is alone do nothing."""
        if self._cluster.name:
            self._began = self._cluster.shared_time(time.monotonic())
            self._users.look_at_all()
            self._addresses.look_at_all()
            self.beat()
            self._heart.start()

    async def catch_up(self) -> None:
        """Ask the others what they have."""
        await self._ask(self._cluster.peers())

    def stop(self) -> None:
        """Tell the others no more."""
        self._heart.stop()

    @property
    def runs(self) -> bool:
        """Whether the others are told."""
        return self._heart.running

    @property
    def kept(self) -> int:
        """How many users and addresses the other nodes have been told of, or have told of."""
        return self._users.kept + self._addresses.kept

    def of_user(self, subject: str) -> int:
        """Return how many streams a user has on the other nodes."""
        return self._users.elsewhere[subject]

    def of_address(self, network: str) -> int:
        """Return how many streams an address has there, as `network_of` counts addresses."""
        return self._addresses.elsewhere[network]

    def opened(self, subject: str, network: str) -> None:
        """Note that a stream was opened here."""
        if self._cluster.name:
            self._users.opened(subject)
            self._addresses.opened(network)

    # -- telling --------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """Tell the others what has changed, if only that this node is still there, and forget those that are not."""
        peers = self._cluster.peers()
        now = time.monotonic()
        # What the others have told while this process stood still is read after this.
        stood_still = max(0.0, now - self._beaten_at - HEARTBEAT)
        self._beaten_at = now
        oldest = now - SILENT_AFTER - stood_still
        for name, node in list(self._nodes.items()):
            if name not in peers or node.heard_at < oldest:
                self._forget(name)
        nodes = 1 + len(peers)
        self._users.set_share(max(1, self._limits.streams_per_user // nodes))
        self._addresses.set_share(max(1, self._limits.streams_per_address // nodes))
        held = Held(
            self._began,
            self._number,
            self._number == 0,
            len(self._hub.streams),
            self._users.changes(),
            self._addresses.changes(),
        )
        self._number += 1
        self._cluster.tell(_TOLD, held)

    def _all(self) -> Held:
        return Held(
            self._began,
            self._number - 1,
            True,
            len(self._hub.streams),
            self._users.all_told(),
            self._addresses.all_told(),
        )

    # -- being told -----------------------------------------------------------------------------------------

    async def _take(self, name: str, payload: Any) -> None:
        """Take what a node tells; where something was missed, ask it for all."""
        if (held := _held(payload)) is None:
            return
        node = self._nodes.get(name)
        is_next = node is not None and (held.began, held.number) == (node.began, node.number + 1)
        if held.all or is_next:
            self._apply(name, held)
        elif self._is_new(name, held):
            await self._ask((name,))

    def _is_new(self, name: str, held: Held) -> bool:
        """Return whether it was told later than what is known; a process that has been replaced may still tell."""
        node = self._nodes.get(name)
        return node is None or (held.began, held.number) > (node.began, node.number)

    async def _ask(self, names: tuple[str, ...]) -> None:
        if not names:
            return
        answers = await self._cluster.ask(_ASKED, to=names)
        for name, payload in answers.by_node.items():
            if (held := _held(payload)) is not None:
                self._apply(name, held)

    def _apply(self, name: str, held: Held) -> None:
        if self._is_new(name, held):
            self._put(name, held)

    def _put(self, name: str, held: Held) -> None:
        now = time.monotonic()
        node = self._nodes.setdefault(name, _Node(held.began, held.number, now, 0))
        self.total += held.total - node.total
        node.began, node.number, node.heard_at, node.total = held.began, held.number, now, held.total
        self._users.take(node.users, held.users, all=held.all)
        self._addresses.take(node.addresses, held.addresses, all=held.all)

    def _forget(self, name: str) -> None:
        node = self._nodes[name]
        self._put(name, Held(node.began, node.number, True, 0, {}, {}))
        del self._nodes[name]


def _held(payload: Any) -> Held | None:
    """Return what a node tells, or None where another version of the program says it in another form."""
    try:
        return msgspec.convert(payload, Held)
    except msgspec.ValidationError:
        return None
