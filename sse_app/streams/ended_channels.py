"""Which channels have ended: those whose last event was published as the final one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping

from sse_app.core.channels import ChannelName
from sse_app.core.events import FINAL, Event
from sse_app.core.selection import Interest
from sse_app.eventlog.base import EventLog

MOST_ENDED = 50_000
"""How many channels that have ended are remembered: about ten megabytes. Those that ended first are forgotten."""


class EndedChannels:
    """The channels whose last event is `FINAL`, each with the ``seq`` of that event.

    There may be many, as where each answer of a language model is a channel of its own. One that is forgotten counts as
    one that has not ended: a client that comes back to it has its stream, and waits.

    Args:
        eventlog: is asked where a client would be turned away.
    """

    def __init__(self, eventlog: EventLog) -> None:
        self._eventlog = eventlog
        self._seqs: OrderedDict[ChannelName, int] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._seqs)

    def __len__(self) -> int:
        return len(self._seqs)

    def learn(self, ended: Mapping[ChannelName, int]) -> None:
        """Know these, and none else."""
        self._seqs = OrderedDict(sorted(ended.items(), key=lambda item: item[1])[-MOST_ENDED:])

    def reopen(self, channels: Iterable[ChannelName]) -> None:
        """Note that something has been published on channels."""
        for channel in channels:
            self._seqs.pop(channel, None)

    def end(self, events: Iterable[Event]) -> list[ChannelName]:
        """Note which of their channels events have ended, and return them."""
        last = {event.channel: event for event in events}
        ended = [event for event in last.values() if event.flags & FINAL]
        for event in ended:
            self._seqs[event.channel] = event.seq
            self._seqs.move_to_end(event.channel)
        while len(self._seqs) > MOST_ENDED:
            self._seqs.popitem(last=False)
        return [event.channel for event in ended]

    def have_ended(self, channels: Collection[ChannelName]) -> bool:
        """Return whether all of the channels have ended."""
        return bool(self._seqs) and all(map(self._seqs.__contains__, channels))

    def last_of(self, channel: ChannelName) -> int:
        """Return the ``seq`` of the event that has ended a channel; 0 where it has not ended."""
        return self._seqs.get(channel, 0)

    def leave_nothing(self, interest: Interest) -> bool:
        """Return whether nothing follows of what a stream is sent: it is on no pattern, and its channels have ended."""
        return not interest.selection.patterns and self.have_ended(interest.selection.names)

    def is_at_end(self, interest: Interest, after: int, floors: Mapping[str, int]) -> bool:
        """Return whether a stream that has all up to a position has also what has ended its channels.

        Args:
            interest: in channels that have ended.
            after: the position.
            floors: as of `Replay`.
        """
        return all(self.last_of(name) <= max(after, floors.get(name, 0)) for name in interest.selection.names)

    async def confirm(self, interest: Interest) -> bool:
        """Return whether channels have ended also by what the log has now.

        Something later may have been published that is yet to be fanned out here; or the final event is no longer
        kept. Then the channel counts as one that has not ended.

        Args:
            interest: in channels that have ended as far as is known here.

        Raises:
            EventLogUnavailable: the log cannot be read.
        """
        known = {name: self.last_of(name) for name in interest.selection.names}
        for name, last in known.items():
            latest = await self._eventlog.latest([name], 1)
            newest = latest[-1] if latest else None
            if newest is not None and newest.seq == last and newest.flags & FINAL:
                continue
            # What has been fanned out while the log was asked is later than its answer.
            if last == self.last_of(name) and (newest is None or newest.seq > last):
                self.reopen([name])
            return False
        return all(self.last_of(name) == last for name, last in known.items())
