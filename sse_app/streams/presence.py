"""Presence: which users have streams on a channel, over all nodes, and events when one comes or leaves.

Each node knows its own streams; what is asked of one is asked of all. A node with streams on the channel of presence of
a channel asks once a second, and tells these streams what has changed. A stream is on the channels that it names: one
on a pattern is present on none.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import msgspec

from sse_app.cluster.base import Cluster
from sse_app.core.channels import PRESENCE_PREFIX, ChannelName, presence_channel
from sse_app.core.events import NewEvent, timestamp
from sse_app.core.json_text import to_json
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.sse import encode_json
from sse_app.streams.hub import Hub
from sse_app.streams.slices import slices

INTERVAL = 1.0
"""Seconds between two looks for changes: a user comes or leaves at most once in each."""

KEPT_FOR = 3.0
"""For how many seconds the users of a node that does not answer are taken to be there still."""

_KIND = "presence"


class User(msgspec.Struct, array_like=True):
    """A user's streams on a channel.

    Args:
        streams: how many there are.
        since: when the first of them was opened, in seconds since the epoch.
    """

    streams: int
    since: float


class Users(msgspec.Struct, array_like=True):
    """The users that have streams on a channel, by subject, and how many streams have none, as public ones."""

    by_subject: dict[str, User] = {}
    anonymous: int = 0


class Present(NamedTuple):
    """The users that have streams on a channel, over all nodes; ``missing`` are the nodes that did not answer."""

    users: Users
    missing: tuple[str, ...]


class _Heard(NamedTuple):
    """What a node has answered, and when that was (`time.monotonic`)."""

    at: float
    by_channel: dict[str, Users]


class Presence:
    """Says which users are on a channel, and tells streams of changes.

    Args:
        hub: whose streams are this node's.
        cluster: the other nodes.
    """

    def __init__(self, hub: Hub, cluster: Cluster) -> None:
        self._hub = hub
        self._cluster = cluster
        self._heard: dict[str, _Heard] = {}
        self._seen: dict[ChannelName, set[str]] = {}
        """The users of each channel whose changes are told, as they were told last."""
        self._callback = PeriodicCallback(self.look, INTERVAL)
        cluster.answer(_KIND, lambda node, channels: self._here(channels))

    def start(self) -> None:
        """Begin to look for changes."""
        self._callback.start()

    def stop(self) -> None:
        """Look no more."""
        self._callback.stop()

    async def on(self, channel: ChannelName) -> Present:
        """Return which users are on a channel."""
        answers = await self._cluster.ask(_KIND, [channel])
        found = [_converted(answer) for answer in answers.by_node.values()]
        return Present(_together(of_node.get(channel, Users()) for of_node in found), answers.missing)

    async def _here(self, channels: Collection[str]) -> dict[str, Users]:
        """Return the users of this node's streams on channels."""
        wanted = frozenset(channels)
        found: dict[str, Users] = {channel: Users() for channel in wanted}
        async for some in slices(list(self._hub.streams)):
            for stream in some:
                for channel in wanted.intersection(stream.channels):
                    users, lease = found[channel], stream.subscriber.lease
                    if lease.is_anonymous:
                        users.anonymous += 1
                    elif (user := users.by_subject.get(lease.subject)) is None:
                        users.by_subject[lease.subject] = User(1, stream.opened_at)
                    else:
                        user.streams += 1
                        user.since = min(user.since, stream.opened_at)
        return found

    async def look(self) -> None:
        """Tell the streams on channels of presence which users have come and left since the last look.

        When a channel is first looked at all users that are there have come.
        """
        watched = {
            ChannelName(channel.removeprefix(PRESENCE_PREFIX))
            for channel in self._hub.streams_on_channel
            if channel.startswith(PRESENCE_PREFIX)
        }
        if not watched:
            self._seen.clear()
            self._heard.clear()
            return
        answers = await self._cluster.ask(_KIND, sorted(watched))
        now = time.monotonic()
        self._heard.update({name: _Heard(now, _converted(found)) for name, found in answers.by_node.items()})
        peers = (self._cluster.name, *self._cluster.peers())
        self._heard = {
            name: heard
            for name, heard in self._heard.items()
            if name in answers.by_node or (name in peers and heard.at > now - KEPT_FOR)
        }
        events: list[NewEvent] = []
        seen = {}
        for channel in watched:
            by_node = (heard.by_channel.get(channel, Users()) for heard in self._heard.values())
            seen[channel] = set(_together(by_node).by_subject)
            if channel not in self._seen:
                self._reset(presence_channel(channel))
            events += _changes(channel, self._seen.get(channel, set()), seen[channel])
        self._seen = seen
        if events:
            await self._hub.pass_on(events, lambda: True)

    def _reset(self, channel: ChannelName) -> None:
        """Have clients whose streams began in another process ask anew: it is not known what they were told."""
        reset = encode_json("reset", {"channel": channel, "reason": "presence_unknown"})
        for stream in self._hub.subscribers(channel):
            if stream.adopted:
                stream.write(stream.framing.frame(reset))


def _changes(channel: ChannelName, before: set[str], after: set[str]) -> Iterable[NewEvent]:
    """Yield the events that tell which users have come and left."""
    about = presence_channel(channel)
    now = timestamp(time.time())
    for type, subjects in (("leave", before - after), ("join", after - before)):
        for subject in sorted(subjects):
            yield NewEvent(about, type, to_json({"sub": subject, "channel": about, "timestamp": now}))


def _together(nodes: Iterable[Users]) -> Users:
    """Return the users of several nodes."""
    found = Users({}, 0)
    for users in nodes:
        found.anonymous += users.anonymous
        for subject, user in users.by_subject.items():
            known = found.by_subject.get(subject)
            if known is None:
                found.by_subject[subject] = User(user.streams, user.since)
            else:
                known.streams += user.streams
                known.since = min(known.since, user.since)
    return found


def _converted(answer: Any) -> dict[str, Users]:
    """Return what a node has answered; nothing where another version of the program says it in another form."""
    try:
        return msgspec.convert(answer, dict[str, Users])
    except msgspec.ValidationError:
        return {}
