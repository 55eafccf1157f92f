"""The event log: where published events are kept, numbered and read back; the one seam for scale."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import NamedTuple

from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.errors import SSEAppError
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.core.selection import Selection

IDEMPOTENCY_AGE = 86_400.0
"""How long the answer to an idempotency key is kept, in seconds."""

EMPTY_CHANNELS = 1000
"""How many channels are remembered of which no event is kept any more; those used longest ago are forgotten."""

MAX_SEQ = 2**63 - 1
"""No event has a greater ``seq``: up to here is up to the end of the log."""

PAGE_BYTES = 1024 * 1024
"""How much data is read from the log at a time."""


MOST_KNOWN = 10_000
"""For how many channels it is remembered what is kept of them."""


class Retention(NamedTuple):
    """How much of a channel's past is kept: at most ``size`` events, none older than ``age`` seconds."""

    size: int = 10_000
    age: float = 86_400.0


class RetentionRules:
    """How much is kept of each channel.

    Args:
        default: of channels that no rule covers.
        rules: patterns, and what is kept of their channels; the first that covers a channel counts.
    """

    def __init__(
        self, default: Retention | None = None, rules: Sequence[tuple[ChannelPattern, Retention]] = ()
    ) -> None:
        self.default = default or Retention()
        self.rules = tuple(rules)
        self.ages = sorted({self.default.age, *(kept.age for _, kept in self.rules)})
        """For how many seconds events are kept: each age that a channel may have, the shortest first."""
        self._known: dict[str, Retention] = {}

    def of(self, channel: str) -> Retention:
        """Return how much is kept of a channel."""
        if not self.rules:
            return self.default
        kept = self._known.get(channel)
        if kept is None:
            kept = next((kept for pattern, kept in self.rules if pattern.matches(channel)), self.default)
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[channel] = kept
        return kept

    @property
    def longest_age(self) -> float:
        """For how many seconds an event is kept at most."""
        return self.ages[-1]


def retention_rules(retention: Retention | RetentionRules | None) -> RetentionRules:
    """Return rules that say what is kept of each channel, also where it is the same of all."""
    return retention if isinstance(retention, RetentionRules) else RetentionRules(retention)


class LogClock:
    """The time by which a log dates its events: the wall clock when it is made, and the monotonic one from then on.

    So an event has its age whatever the wall clock is set to meanwhile. The time never goes back: where the last
    event of the log is dated in the future, because the clock was ahead, the time continues from there.

    Args:
        ahead: by how many seconds it is ahead of the monotonic clock, where another process of the same start of the
            machine has begun it.
    """

    def __init__(self, ahead: float | None = None) -> None:
        self.ahead = time.time() - time.monotonic() if ahead is None else ahead

    def now(self) -> float:
        """Return the time, in seconds since the epoch or a little off."""
        return self.ahead + time.monotonic()

    def follow(self, at: float) -> None:
        """Be at a time or later: another process has dated an event so."""
        self.ahead = max(self.ahead, at - time.monotonic())


class IdempotencyKey(NamedTuple):
    """What makes a repeated append answer as the first did: the key, whose it is, and a digest of the request.

    A log on disk keeps them as `of` makes them: another way to make them is another version of its schema.
    """

    subject: str
    key: str
    digest: bytes

    @classmethod
    def of(cls, subject: str, key: str, path: str, body: bytes) -> IdempotencyKey:
        """Return what stands for the key of a request."""
        return cls(subject, hash_of_key(key), sha256(path.encode() + b"\0" + body).digest())


def hash_of_key(key: str) -> str:
    """Return what is kept of an idempotency key: a client may have made it of anything, also of a secret."""
    return sha256(key.encode()).hexdigest()


class Beginning(NamedTuple):
    """Where a stream begins whose client has no position: with all that is kept, or with the last of it.

    Args:
        last: with so many of the last events of each channel; None for no such bound.
        since: with events of this time or later, by the clock of `LogClock`, in seconds since the epoch; None for no
            such bound.
        ago: with events of so many seconds ago or later; None for no such bound.
        types: which event types count as the ``last``; all where it is None. Events of others may be among them.
    """

    last: int | None = None
    since: float | None = None
    ago: float | None = None
    types: frozenset[str] | None = None


class Floors(NamedTuple):
    """From where on streams have their events that begin in the past, all of one moment.

    Args:
        head: the last event of the log.
        first: the ``seq`` of the first event that follows the floors; one more than the head's where there is none.
        floors: the ``seq`` that each channel's events follow, by its name; of a pattern, by its text, that which the
            events of its channels follow that have none by name. Channels without one of either begin with all that is
            kept. Of a pattern's channels there may be left out of which the pattern's says enough.
    """

    head: EventId
    first: int
    floors: dict[str, int]


def floors_of(
    selection: Selection, head: EventId, forgotten: int, found: Iterable[tuple[ChannelName, int, int]]
) -> Floors:
    """Return the floors of a stream that begins in the past.

    Args:
        selection: its channels.
        head: of the log.
        forgotten: the ``seq`` of the last event of any channel that was forgotten.
        found: of each channel of the selection that there is: its name, the ``seq`` that its events follow, and that
            of the first of them (0: there is none).
    """
    found = list(found)
    first = min((following for _, _, following in found if following), default=head.seq + 1)
    floors: dict[str, int] = dict.fromkeys(selection.names, forgotten)
    others = max(first - 1, forgotten)
    floors.update((pattern.text, others) for pattern in selection.patterns)
    for name, floor, _ in found:
        if floor > others or others >= first or name in selection.names:
            floors[name] = floor
    return Floors(head, first, floors)


class Page(NamedTuple):
    """Part of the past: ``events`` in log order, and whether more follow before the position asked for.

    ``gap`` says that events after the position are no longer kept. It is of the same moment as the events:
    what `EventLog.lost` said before may have been overtaken by the trimming.

    ``looked`` is how far the log was looked at where that is further than the last of the events.
    """

    events: list[Event]
    more: bool
    gap: bool
    looked: int = 0

    @property
    def reached(self) -> int:
        """The ``seq`` up to which all events are here."""
        return max(self.looked, self.events[-1].seq if self.events else 0)


NO_FLOORS: Mapping[str, int] = MappingProxyType({})
"""Each channel's events follow the position asked for."""


class EventsTrimmed(SSEAppError):
    """Events that a tail has not yielded yet are no longer kept.

    Args:
        head: the ``seq`` of the last event in the log: where another tail can begin.
    """

    def __init__(self, head: int) -> None:
        super().__init__("events were trimmed before they were read from the log's tail")
        self.head = head


class LogReplaced(SSEAppError):
    """The log that a tail reads has another epoch than before: no position of before is one of it.

    `EventLog.head` is the head of the log as it is now, where another tail can begin.
    """

    def __init__(self) -> None:
        super().__init__("the log was replaced by another one, or by an earlier state of itself")


def without_holes(page: Page, after: int, head: Callable[[], int], left_out: int = 0) -> Page:
    """Return a page of all channels' events after a position, in which none is missing.

    Every event takes the next ``seq``, so one that is not there has been trimmed.

    Args:
        page: the events.
        after: the position.
        head: returns the head of the log, of the moment of the page.
        left_out: how many numbers between the position and the last event no event has had.

    Raises:
        EventsTrimmed: one is missing.
    """
    events = page.events
    if events[-1].seq != after + left_out + len(events) if events else head() > after:
        raise EventsTrimmed(head())
    return page


def first_page(events: Iterator[Event], limit: int, *, gap: bool = False) -> Page:
    """Take a page from events in log order (or from the end, against it)."""
    taken: list[Event] = []
    size = 0
    for event in events:
        if len(taken) == limit or size >= PAGE_BYTES:
            return Page(taken, True, gap)
        taken.append(event)
        size += len(event.data)
    return Page(taken, False, gap)


class EventLog(ABC):
    """Appends events, replays them, and yields them as they come.

    Where it takes channels to read, a text with a ``*`` is a pattern, and stands for every channel that it covers:
    those of now, and those that come later.

    Several processes may append to one log; each learns of the others' commits a little later. What a process
    remembers of the log may therefore lag behind it, but never contradicts it: `head` and what `tail` has
    yielded are in the log, and `lost`, `replay` and `latest` also know what this process has not heard of.

    Every method raises `EventLogUnavailable` while the log cannot be reached; nothing is stored then.
    What `tail` yields is what a node sends to its clients, in log order, so one node on SQLite and
    several on a shared log are the same program.
    """

    @property
    @abstractmethod
    def head(self) -> EventId:
        """The id of the last event in the log, as far as this process knows; ``seq`` 0 in an empty log."""

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether the last attempt to use the log succeeded."""

    async def prepare(self) -> None:  # noqa: B027
        """Do what takes time of `open`, while another process serves whose place this one is to take.

        A log may have nothing to do. `close` undoes it where `open` does not follow.

        Raises:
            StateError: as of `open`.
        """

    @abstractmethod
    async def open(self) -> None:
        """Open the log for use; `head` is then the head of the log.

        Raises:
            StateError: it cannot be used at all, e.g. it was written by a newer version.
        """

    @abstractmethod
    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        """Store the events, all or none, and return their ids once they are durable.

        Raises:
            IdempotencyKeyReused: the key was used within 24 h for another request.
            OutcomeUnknown: they may be stored; with the same key they are stored once.
            EventLogUnavailable: nothing was stored.
        """

    @abstractmethod
    async def begin(self, channels: Collection[str], beginning: Beginning) -> Floors:
        """Return from where on the channels' events follow for a stream that begins in the past.

        What is no longer kept is no gap: no client was promised it.
        """

    @abstractmethod
    async def lost(self, channels: Collection[str], position: EventId) -> dict[str, str]:
        """Return the channels that cannot be continued from the position without a gap, each with the reason.

        A pattern is among them where that is so, or may be, for every channel of it; else those of its channels
        are.

        The reasons are ``log_replaced`` (another epoch), ``position_ahead`` (of the log's head, which is read
        from the log where the position is ahead of what this process knows) and ``history_trimmed`` (an event
        of that channel after the position is no longer kept, or may not be: the channel was forgotten since, see
        `EMPTY_CHANNELS`). A position that is not ahead is at or behind
        `head` from then on.
        """

    @abstractmethod
    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        """Return the first kept events of the channels with ``after < seq <= until``, and after their floors.

        At most ``limit``, and no more once their data is `PAGE_BYTES`; at least one where there is one, but where
        there are patterns, for which a page may have none, and more follow after what was looked at.

        Args:
            channels: names and patterns.
            after, until: the part of the log.
            limit: how many events at the most.
            floors: as of `Floors`; an event that is no longer kept and not after its channel's floor is no gap.
        """

    @abstractmethod
    async def latest(self, channels: Collection[str], limit: int) -> list[Event]:
        """Return the last kept events of channels, oldest first; as many as `replay` would."""

    @abstractmethod
    async def ended(self) -> dict[ChannelName, int]:
        """Return the channels whose last event is `FINAL` and still kept, each with its ``seq``.

        Where there are any, and the log has another epoch than this process knew of, `head` has it from then on.
        """

    @abstractmethod
    async def names(self, pattern: str) -> list[ChannelName]:
        """Return the channels that a pattern covers, as far as the log knows of them."""

    @abstractmethod
    async def published(self, channel: ChannelName) -> tuple[int, int]:
        """Return how many events the channel was given, and the ``seq`` of its last one (0: none).

        A channel that was forgotten begins anew: see `EMPTY_CHANNELS`.
        """

    @abstractmethod
    def tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        """Yield every event with ``seq > after``, in log order: what the log has already, then what comes.

        None is left out and none comes twice, whichever process appended it. Events that wait together come
        together, in pieces of a bounded size. Appends in this process wait while what a tail has not yielded
        yet is much.

        Args:
            after: a position at or behind the head.

        Raises:
            EventsTrimmed: some are no longer kept. What came before them in the log may not have been yielded.
            LogReplaced: the log's epoch has changed.
            EventLogUnavailable: they cannot be read; another tail can begin after the last one yielded.
        """

    @abstractmethod
    def use(self, retention: Retention | RetentionRules) -> None:
        """Keep so much of each channel from now on; what is over it is erased, what has been erased stays so."""

    def look(self) -> None:  # noqa: B027
        """Look soon at what other processes have stored: one that was killed may have told nothing of its last events.

        A log that does not depend on what they tell has nothing to do.
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun and release the log; further appends raise `EventLogUnavailable`."""
