"""How a stream begins: whether it may be opened and can be served, from which position, and with which events."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from sse_app.auth.tokens.claims import NO_TOKEN, Claims, Lease
from sse_app.auth.tokens.issuer import Tokens
from sse_app.core.addresses import interned, network_of
from sse_app.core.channels import ADMIN_CHANNEL, ChannelName, with_presence
from sse_app.core.counters import Metrics
from sse_app.core.errors import EventLogUnavailable, InvalidRate, TokenRefused, TooManyStreams
from sse_app.core.events import EventId, timestamp
from sse_app.core.framing import Framing
from sse_app.core.json_text import to_json
from sse_app.core.lifecycle import Lifecycle
from sse_app.core.selection import Interest, Selection, interest_of
from sse_app.core.sse import encode_closing, encode_event, encode_json, encode_ping
from sse_app.eventlog.base import Beginning, Floors
from sse_app.settings.model import Limits
from sse_app.streams.elsewhere import StreamsElsewhere
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.publisher import Publisher
from sse_app.streams.stream import Replay, Stream, Subscriber

UNREADABLE = EventId("unreadable", 0)
"""Stands for a position that is no event id: in its form, and of no log's epoch."""


class Subscription(NamedTuple):
    """What a client asks for.

    Args:
        client_id: the client's label.
        channels: names and patterns in the order asked for, each once.
        position: the id of the last event that the client has, as it says it; None for a new stream.
        address: of the client.
        framing: how the stream's bytes stand in the body of the response.
        beginning: where a new stream begins; at the head where it is None.
        types: of the events; all where it is None.
        rate: how many events of each key of a conflated channel a second at most; None: as they come.
    """

    client_id: str
    channels: tuple[str, ...]
    position: str | None
    address: str
    framing: Framing
    beginning: Beginning | None = None
    types: frozenset[str] | None = None
    rate: float | None = None

    @property
    def interest(self) -> Interest:
        """The events that are wanted."""
        return interest_of(self.channels, self.types, self.rate)


class Admitted(NamedTuple):
    """A registered stream, and the wire bytes that it begins with.

    ``recovered`` says whether it continues from a position of the client's on every channel.
    """

    stream: Stream
    first_events: bytes
    recovered: bool


class TurnedAway(NamedTuple):
    """A stream that cannot be served just now: why, and the ``closing`` event for the client, not framed."""

    reason: str
    closing: bytes


class NothingToCome:
    """What is answered to a client whose channels have all ended, and that has all they had."""


class _Start(NamedTuple):
    """From which event on a stream has its events.

    Args:
        after: the position.
        lost: which channels and patterns cannot be continued there, with reasons.
        floors: as of `Replay`.
        end: where nothing is to come but what is told of ``lost``: the position from which a client that comes back is
            told no more of that.
    """

    after: EventId
    lost: dict[str, str] = {}  # noqa: RUF012 - never changed
    floors: dict[str, int] = {}  # noqa: RUF012 - never changed
    end: EventId | None = None


class Admission:
    """Decides about streams and registers them. It works for any transport: nothing here is about HTTP.

    Args:
        hub: registers the streams; its event log says where they begin.
        keepalive: pings them.
        publisher: knows the channels.
        tokens: verified the clients' tokens.
        metrics: counts the streams.
        lifecycle: says whether the node is draining.
        limits: how many streams a user and an address may have.
        capacity: how many streams there may be on this node.
        elsewhere: counts the streams on other nodes, which the limits are for too.
    """

    def __init__(
        self,
        hub: Hub,
        keepalive: Keepalive,
        publisher: Publisher,
        tokens: Tokens,
        metrics: Metrics,
        lifecycle: Lifecycle,
        limits: Limits,
        capacity: int,
        elsewhere: StreamsElsewhere,
    ) -> None:
        self._hub = hub
        self._keepalive = keepalive
        self._publisher = publisher
        self._tokens = tokens
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._elsewhere = elsewhere
        self.use(limits, capacity)

    def use(self, limits: Limits, capacity: int) -> None:
        """Put other limits in force for the streams that are opened from now on."""
        self._limits = limits
        self._capacity = capacity

    async def admit(
        self, claims: Claims | None, wanted: Subscription
    ) -> Admitted | TurnedAway | NothingToCome:
        """Register a stream, or say why it cannot be served just now, or that there is nothing to come.

        The checks come in the order of the errors below; only then is the event log asked. The caller attaches
        a connection to the stream, writes the first events and runs it with the `Pump`; where that fails it
        calls `abandon`.

        Args:
            claims: of a verified stream token; None where the client has none.
            wanted: what the client asks for.

        Raises:
            Kicked: the session is barred from streams.
            Forbidden: the token does not grant a channel.
            UnknownChannel: no configured name or pattern covers a channel.
            InvalidRate: a rate is asked for, and no channel is conflated.
            TooManyStreams: the user or the address has as many as it may.
            TokenRefused: the token has been revoked or has expired since it was verified, or there is none and not all
                channels are public.
        """
        self._authorise(claims, wanted.channels)
        self._require_conflated(wanted)
        if (reason := self._unavailable(claims, wanted)) is not None:
            return self._turn_away(reason)
        start = self._start(wanted)
        if not isinstance(start, _Start) or self._hub.ended.leave_nothing(wanted.interest):
            try:
                start = await self._settle(wanted, start)
                has_ended = await self._has_ended(wanted)
            except EventLogUnavailable:
                return self._turn_away("unavailable")
            if len({start.after.epoch, self._hub.head.epoch, self._hub.eventlog.head.epoch}) > 1:
                return self._turn_away("unavailable")  # the log was replaced meanwhile
            # Others may have been admitted, and the server may have begun to drain, while the log was asked.
            if (reason := self._unavailable(claims, wanted)) is not None:
                return self._turn_away(reason)
            if has_ended and self._is_at_end(wanted, start):
                if not start.lost:
                    return NothingToCome()
                start = start._replace(end=self._hub.head)
        # The stream is registered in the same step of the event loop, so a later revocation finds it.
        ungranted: tuple[str, ...] = ()
        if claims is None:
            self._require_public(wanted.channels)
        else:
            self._tokens.require_in_force(claims)
            self._tokens.require_not_kicked(claims)
            ungranted = self._publisher.ungranted(claims.grants, wanted.channels)
        admitted = self._register(NO_TOKEN if claims is None else claims.lease, wanted, start)
        admitted.stream.ungranted = ungranted
        return admitted

    async def check(self, claims: Claims | None, wanted: Subscription) -> bool:
        """Raise what `admit` would, and register nothing; return whether there is something to come.

        Raises:
            Kicked, Forbidden, UnknownChannel, InvalidRate, TooManyStreams, TokenRefused: as `admit` does.
        """
        self._authorise(claims, wanted.channels)
        self._require_conflated(wanted)
        self._unavailable(claims, wanted)
        if claims is not None:
            self._tokens.require_in_force(claims)
        if not self._hub.ended.leave_nothing(wanted.interest):
            return True
        try:
            start = await self._settle(wanted, self._start(wanted))
            return not await self._has_ended(wanted) or not self._is_at_end(wanted, start) or bool(start.lost)
        except EventLogUnavailable:
            return True

    def is_allowed(self, stream: Stream) -> bool:
        """Return whether the settings of now allow a stream: if all its channels are public that no token grants."""
        without = stream.channels if stream.subscriber.lease.is_anonymous else stream.ungranted
        return all(map(self._publisher.is_public, without))

    def end_not_allowed(self) -> None:
        """End the streams that are on channels which are public no more, and that no token grants them."""
        for stream in list(self._hub.streams):
            if not self.is_allowed(stream):
                stream.end("revoked", None)

    def abandon(self, stream: Stream) -> None:
        """Forget an admitted stream whose client is gone before the pump runs it."""
        self._hub.unregister(stream)
        self._keepalive.forget(stream)

    def _authorise(self, claims: Claims | None, channels: tuple[str, ...]) -> None:
        if claims is None:
            self._require_public(channels)
            return
        self._tokens.require_not_kicked(claims)
        self._publisher.ungranted(claims.grants, channels)
        for channel in channels:
            if channel != ADMIN_CHANNEL:
                self._publisher.require_known(with_presence(channel) or channel)

    def _require_conflated(self, wanted: Subscription) -> None:
        if wanted.rate is not None and not self._hub.conflation.conflated(wanted.channels):
            raise InvalidRate("rate is for conflated channels, and none of these is one")

    def _require_public(self, channels: tuple[str, ...]) -> None:
        if not all(map(self._publisher.is_public, channels)):
            message = "this takes one stream token, as ?token=… or in the Authorization header"
            raise TokenRefused(message, "no token")

    def _unavailable(self, claims: Claims | None, wanted: Subscription) -> str | None:
        """Return why no stream can be served just now, or None.

        Raises:
            TooManyStreams: this user or this address has as many as it may.
        """
        limits, hub, elsewhere = self._limits, self._hub, self._elsewhere
        if claims is not None:
            of_user = len(hub.streams_of_subject.get(claims.subject)) + elsewhere.of_user(claims.subject)
            if of_user >= limits.streams_per_user:
                raise TooManyStreams(
                    f"this user has {limits.streams_per_user} streams open, which is the limit"
                )
        network = network_of(wanted.address)
        if hub.streams_of_address[network] + elsewhere.of_address(network) >= limits.streams_per_address:
            raise TooManyStreams(
                f"this address has {limits.streams_per_address} streams open, which is the limit"
            )
        if self._lifecycle.draining:
            return "shutdown"
        open_here = len(hub.streams)
        full = open_here >= self._capacity or open_here + elsewhere.total >= limits.streams
        serves = self._lifecycle.ready and hub.eventlog.available
        return "unavailable" if full or not serves else None

    def _turn_away(self, reason: str) -> TurnedAway:
        self._metrics.refusals[reason] += 1
        return TurnedAway(reason, encode_closing(reason, self._hub.jittered_retry()))

    def _start(self, wanted: Subscription) -> _Start | EventId | Beginning:
        """Return where the stream begins, or the position or beginning of which the log must be asked."""
        head = self._hub.head
        if wanted.position is None:
            return _Start(head) if wanted.beginning is None else wanted.beginning
        after = EventId.parse(wanted.position)
        if after is None:
            return self._reset_at(head, dict.fromkeys(wanted.channels, "position_unreadable"))
        # At the head nothing was missed: the fan-out brings the events that follow, or ends all streams where some were
        # trimmed before they were read; also where other processes append to the log.
        return _Start(after) if after == head else after

    async def _settle(self, wanted: Subscription, start: _Start | EventId | Beginning) -> _Start:
        """Return where the stream begins; the log is asked where that is needed.

        Raises:
            EventLogUnavailable: the log cannot be asked just now.
        """
        if isinstance(start, _Start):
            return start
        if isinstance(start, EventId):
            return await self._resume(wanted.channels, start)
        return await self._begin(wanted.channels, start)

    async def _has_ended(self, wanted: Subscription) -> bool:
        """Return whether the channels have ended, also by what the log has: a client that is told so stays away.

        Raises:
            EventLogUnavailable: the log cannot be asked just now.
        """
        if not self._hub.ended.leave_nothing(wanted.interest):
            return False
        # In a task of its own, which the log may need and a request need not have (`handlers.dispatch`). It is not
        # shared with others that come back: a read that has begun before may not know the latest event.
        return await asyncio.create_task(self._hub.ended.confirm(wanted.interest))

    def _is_at_end(self, wanted: Subscription, start: _Start) -> bool:
        return self._hub.ended.is_at_end(wanted.interest, start.after.seq, start.floors)

    async def _begin(self, channels: tuple[str, ...], beginning: Beginning) -> _Start:
        """Return where a stream begins in the past.

        Raises:
            EventLogUnavailable: the log cannot be asked just now.
        """
        eventlog, conflation = self._hub.eventlog, self._hub.conflation
        # The last events of a conflated channel are the newest of each key, which may be old.
        texts = conflation.conflated(channels) if beginning.last is not None else []
        while True:
            begun = await eventlog.begin(channels, beginning)
            if texts and (whole := await conflation.channels(texts)):
                tables = await eventlog.begin(whole, Beginning())
                if tables.head.epoch != begun.head.epoch:  # the log was replaced in between
                    continue
                floors: dict[str, int] = {name: tables.floors.get(name, 0) for name in whole}
                first = min(begun.first, tables.first)
                begun = Floors(tables.head, first, {**begun.floors, **floors})
            if await self._reached(begun.head):
                return _Start(begun.head._replace(seq=begun.first - 1), floors=begun.floors)

    def _reset_at(self, after: EventId, lost: dict[str, str]) -> _Start:
        """Return that a stream has its events from a position on, but of what is lost from the head on."""
        return _Start(after, lost, dict.fromkeys(lost, self._hub.head.seq))

    async def _resume(self, channels: tuple[str, ...], after: EventId) -> _Start:
        """Return where a stream begins: at the position, or at the head where no channel can be continued.

        Raises:
            EventLogUnavailable: the log cannot be asked just now.
        """
        hub = self._hub
        while True:
            lost = await self._lost(channels, after)
            all_lost = lost.keys() >= set(channels)
            # Where all is lost the hub may still follow the log that was replaced, and be behind the position in it.
            if await self._reached(hub.eventlog.head if all_lost else after):
                return self._reset_at(hub.head if all_lost else after, lost)
            # Another log is there, or a part of this one was skipped, so the answer may not hold any more.

    async def _reached(self, position: EventId) -> bool:
        """Wait until the fan-out of an event has begun; return False where the log is to be asked again.

        Args:
            position: that the log has told of. Where the log has been replaced since, the hub never comes to it.
        """
        hub = self._hub
        return position.epoch in (hub.head.epoch, hub.eventlog.head.epoch) and await hub.reached(position)

    async def _lost(self, channels: tuple[str, ...], after: EventId) -> dict[str, str]:
        """Return which channels cannot be continued from a position.

        A conflated one can where the newest event of each key is known that came after it, trimmed or not.
        """
        hub, conflation = self._hub, self._hub.conflation
        lost = await hub.eventlog.lost(channels, after)
        trimmed = [
            ChannelName(name)
            for name, reason in lost.items()
            if reason == "history_trimmed" and "*" not in name and conflation.member(name)
        ]
        if trimmed:
            await conflation.read(Selection(trimmed), lambda: hub.head.seq)
            for name in trimmed:
                if conflation.continues(name, after.seq):
                    del lost[name]
        return lost

    def _register(self, lease: Lease, wanted: Subscription, start: _Start) -> Admitted:
        hub = self._hub
        subscriber = Subscriber(wanted.client_id, lease, interned(wanted.address))
        stream = hub.register(
            subscriber, wanted.channels, types=wanted.types, rate=wanted.rate, framing=wanted.framing
        )
        self._elsewhere.opened(lease.subject, network_of(wanted.address))
        stream.retry = hub.jittered_retry()
        stream.replay = Replay(start.after.seq, start.floors)
        self._keepalive.watch(stream)
        resumed = wanted.position is not None
        self._metrics.streams_opened += 1
        self._metrics.streams_resumed += resumed
        recovered = resumed and not start.lost
        now = time.time()
        conflated = hub.conflation.conflated(wanted.channels)
        first_events = _connected(stream, _id_of(wanted, start), recovered, now, conflated)
        first_events += _resets(start.lost)
        if start.end is not None:
            first_events += encode_ping(now, start.end)
        return Admitted(stream, wanted.framing.frame(first_events), recovered)


def _id_of(wanted: Subscription, start: _Start) -> EventId:
    """Return the id of ``connected``.

    It is the position asked for, also where that is lost: a client that is cut off before its first event comes
    back with it, and gets its resets again.
    """
    return start.after if wanted.position is None else EventId.parse(wanted.position) or UNREADABLE


def _connected(stream: Stream, id: EventId, recovered: bool, now: float, conflated: list[str]) -> bytes:
    """Return the event ``connected`` (its members are part of the API)."""
    subscriber = stream.subscriber
    data = {
        "client_id": subscriber.client_id,
        "channel": stream.channels[0],
        "channels": stream.channels,
        "message": f"connected to {', '.join(stream.channels)}",
        "recovered": recovered,
        "retry": stream.retry,
        "expires_in": None if subscriber.lease.is_anonymous else int(subscriber.lease.remaining(now)),
        "timestamp": timestamp(now),
    }
    if conflated:
        data["conflated"] = conflated
    return encode_event(str(id).encode(), b"connected", to_json(data), stream.retry)


def _resets(lost: dict[str, str]) -> bytes:
    """Return a ``reset`` for each channel that cannot be continued."""
    return b"".join(
        encode_json("reset", {"channel": channel, "reason": reason}) for channel, reason in lost.items()
    )
