"""Publishing: checks events and appends them to the log, for HTTP and for Python alike."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sse_app.auth.tokens.grants import Grants
from sse_app.core.channel_rules import ChannelRule, ChannelRules
from sse_app.core.channels import ChannelPattern, channel_in, is_internal, parse_channel
from sse_app.core.errors import InvalidInput, TooManyPublishes, UnknownChannel
from sse_app.core.event_members import member_of
from sse_app.core.events import EventId, NewEvent, held_bytes, new_event, timestamp
from sse_app.core.nearest import nearest_first, some_of
from sse_app.eventlog.base import EventLog, IdempotencyKey
from sse_app.settings.model import Limits
from sse_app.streams.passing_on import PassingOn

MAX_WAITING_BYTES = 32 * 1024 * 1024
"""How many bytes of memory the events take that wait to be stored or passed on, before the next are refused."""

_MEMBERS = ("channel", "event", "data", "retry", "final")


class Publisher:
    """Checks events and appends them to the log.

    Args:
        eventlog: stores the events.
        channels: those that are configured.
        limits: how many events a batch may have.
        passing_on: takes the events that are not stored.
    """

    def __init__(
        self, eventlog: EventLog, channels: ChannelRules, limits: Limits, passing_on: PassingOn
    ) -> None:
        self._eventlog = eventlog
        self._passing_on = passing_on
        self._channels = channels
        self._batch_limit = limits.batch_events
        self.waiting = 0
        """How many appends wait until their events are stored or passed on."""
        self._waiting_bytes = 0
        """How much memory these events take."""
        self.appending = 0
        """How many appends to the log have begun and not ended."""

    def use(self, channels: ChannelRules, limits: Limits) -> None:
        """Take other settings."""
        self._channels = channels
        self._batch_limit = limits.batch_events

    async def publish(
        self, channel: str, event: str, data: object, *, retry: int | None = None, final: bool = False
    ) -> EventId | None:
        """Publish one event and return its id once it is durable; None for one that is not stored.

        Args:
            channel: its name.
            event: the event type.
            data: a text, which is sent as it is, or another JSON value; in an object ``channel`` is set, and
                ``timestamp`` where absent.
            retry: a new reconnection time for clients, in milliseconds.
            final: whether it is the last one of the channel, until another one is published there: streams on it end.

        Raises:
            InvalidInput: something has the wrong form.
            UnknownChannel: no configured name or pattern covers the channel.
            OutcomeUnknown: it may be stored.
            TooManyPublishes, EventLogUnavailable: nothing was stored.
        """
        if not isinstance(channel, str):
            raise InvalidInput("channel must be the name of one channel, as a text", "channel")
        return (await self.append([self.check(channel, event, _as_read(data), retry, final)]))[0]

    async def publish_batch(self, events: Sequence[Mapping[str, Any]]) -> list[EventId | None]:
        """Publish events, all or none, in order.

        Each has ``channel``, ``event``, ``data`` and perhaps ``retry`` and ``final``, as `publish` takes them.

        Raises:
            As `publish` does.
        """
        items = [_as_read(event) for event in events]
        for item in items:
            if isinstance(item, dict) and "data" in item:
                item["data"] = _as_read(item["data"])
        return await self.append(self.check_batch(items))

    def check(
        self, channel: str, event: object, data: object, retry: object = None, final: object = False
    ) -> NewEvent:
        """Return an event of the right form; its data is as JSON is read."""
        now = timestamp(time.time())
        return self._of_allowed_form(new_event(parse_channel(channel), event, data, retry, final, now=now))

    def check_batch(self, events: object) -> list[NewEvent]:
        """Return the events of a batch, each of the right form."""
        if not isinstance(events, list) or not events:
            raise InvalidInput("events must be a list with at least one event", "events")
        if len(events) > self._batch_limit:
            raise InvalidInput(f"events has more than {self._batch_limit} events", "events")
        now = timestamp(time.time())
        fields = [f"events[{number}]." for number in range(len(events))]
        checked = [_check_item(item, field, now) for field, item in zip(fields, events, strict=True)]
        return [self._of_allowed_form(event, field) for field, event in zip(fields, checked, strict=True)]

    def _of_allowed_form(self, event: NewEvent, field: str = "") -> NewEvent:
        """Return the event.

        Raises:
            InvalidInput: its type is none of those that are configured for its channel; or its data does not have the
                member by which the channel is conflated.
        """
        rule = self._channels.rule(event.channel)
        if rule is not None and rule.types is not None and event.type not in rule.types:
            raise InvalidInput(
                f"{field}event {event.type!r} is not a type that {event.channel} takes", f"{field}event"
            )
        if rule is not None and rule.conflate and member_of(event, rule.conflate) is None:
            name = f"{field}data.{rule.conflate}"
            raise InvalidInput(f"{name} is missing: {event.channel} is conflated by it", name)
        return event

    def require_known(self, channel: str) -> None:
        """Refuse a channel that no configured name or pattern covers; none covers the server's own.

        Of a pattern some channel has to be covered.

        Raises:
            UnknownChannel: the channel is not configured.
        """
        if "*" not in channel:
            self._rule_of(channel)
        elif is_internal(channel) or not self._channels.overlapping(ChannelPattern(channel)):
            raise self._unknown(channel)

    def _rule_of(self, channel: str) -> ChannelRule:
        """Return what is configured for a channel.

        Raises:
            UnknownChannel: the channel is not configured, or is the server's own.
        """
        rule = self._channels.rule(channel)
        if rule is None or is_internal(channel):
            raise self._unknown(channel)
        return rule

    def _unknown(self, channel: str) -> UnknownChannel:
        there = some_of(channel, [rule.pattern.text for rule in self._channels.rules])
        return UnknownChannel(f"there is no channel {channel}; the settings have {there or 'none'}")

    def is_public(self, channel: str) -> bool:
        """Return whether no token is needed to read a channel, or every channel of a pattern."""
        return self._channels.is_public(channel)

    def ungranted(self, grants: Grants, channels: Iterable[str]) -> tuple[str, ...]:
        """Return which channels and patterns a token does not grant, and has because they are public.

        Raises:
            Forbidden: it does not grant one that is not public.
        """
        found = []
        for channel in channels:
            if not self.is_public(channel):
                grants.require_subscribe(channel)
            elif not grants.may_subscribe(channel):
                found.append(channel)
        return tuple(found)

    async def append(self, events: list[NewEvent], key: IdempotencyKey | None = None) -> list[EventId | None]:
        """Append events of the right form to the log and return their ids once they are durable.

        Those of channels whose events are not stored are passed on after that, and have None in the place of an id.

        Raises:
            InvalidInput: those that are not stored are too large; nothing was stored.
            OutcomeUnknown: they may be stored.
            UnknownChannel, IdempotencyKeyReused, TooManyPublishes, EventLogUnavailable: nothing was stored.
        """
        unstored = set()
        for name in {event.channel for event in events}:
            if not self._rule_of(name).stored:
                unstored.add(name)
        if self._waiting_bytes >= MAX_WAITING_BYTES:
            raise TooManyPublishes
        size = sum(map(held_bytes, events))
        self.waiting += 1
        self._waiting_bytes += size
        try:
            if not unstored:
                return list(await self._append(events, key))
            passing = [event for event in events if event.channel in unstored]
            self._passing_on.require_size(passing)
            stored = [event for event in events if event.channel not in unstored]
            ids = iter(await self._append(stored, key) if stored else ())
            await self._passing_on.publish(passing)
            return [None if event.channel in unstored else next(ids) for event in events]
        finally:
            self.waiting -= 1
            self._waiting_bytes -= size

    async def _append(self, events: list[NewEvent], key: IdempotencyKey | None) -> list[EventId]:
        self.appending += 1
        try:
            return await self._eventlog.append(events, key)
        finally:
            self.appending -= 1


def refuse_unknown(item: Mapping[Any, Any], known: Sequence[str], field: str = "") -> None:
    """Refuse members that mean nothing: to drop them would hide a publisher's mistake.

    Raises:
        InvalidInput: there is one; the text names it, and those that there are, the nearest first.
    """
    for name in item:
        if name not in known:
            shown, there = ascii(name)[1:-1][:80], ", ".join(nearest_first(str(name), known))
            raise InvalidInput(f"unknown member {field}{shown}; there are: {there}", f"{field}{name}")


def data_of(item: Mapping[Any, Any], field: str = "") -> object:
    """Return the data that a request gives for an event, which may be null.

    Raises:
        InvalidInput: it gives none.
    """
    if "data" not in item:
        raise InvalidInput(f"{field}data is missing", f"{field}data")
    return item["data"]


def _as_read(value: object) -> object:
    """Return a mapping as a new dict, which is what JSON is read into, and anything else as it is."""
    return dict(value) if isinstance(value, Mapping) else value


def _check_item(item: object, field: str, now: str) -> NewEvent:
    """Return an event of a batch; ``field`` says where it stands, for the error's text."""
    if not isinstance(item, dict):
        raise InvalidInput(f"{field[:-1]} must be an object", field[:-1])
    refuse_unknown(item, _MEMBERS, field)
    name = channel_in(item.get("channel"), f"{field}channel")
    type, data = item.get("event"), data_of(item, field)
    return new_event(name, type, data, item.get("retry"), item.get("final", False), now=now, field=field)
