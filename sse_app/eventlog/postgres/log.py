"""The event log on PostgreSQL: one function appends for all nodes, and each reads what the others have committed."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg.types.multirange import Multirange

from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.errors import EventLogUnavailable, StateError
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.core.json_text import to_json
from sse_app.core.periodic import PeriodicCallback
from sse_app.core.selection import selection_of
from sse_app.core.shared_reads import SharedReads
from sse_app.eventlog.base import (
    MAX_SEQ,
    NO_FLOORS,
    PAGE_BYTES,
    Beginning,
    EventLog,
    EventsTrimmed,
    Floors,
    IdempotencyKey,
    LogReplaced,
    Page,
    Retention,
    RetentionRules,
    floors_of,
    retention_rules,
    without_holes,
)
from sse_app.eventlog.postgres.appends import Appends, Stored, patience
from sse_app.eventlog.postgres.expiry import Expiry
from sse_app.eventlog.postgres.memory import Memory
from sse_app.eventlog.postgres.notices import Notices
from sse_app.eventlog.tail import TAIL_EVENTS, Tails
from sse_app.storage.postgres.database import Database, DatabaseUnavailable, text_of

CHANNEL = "sse_app_events"
"""Where each commit is notified: ``epoch seq sender``, and perhaps a notice of its events."""

LOOK_INTERVAL = 1.0
"""How often the log is looked at, also where no notification has come, in seconds."""

SCANNED_EVENTS = 20_000
"""At how many events a page of many channels is looked at the most."""

ROUNDED = 1000
"""To a multiple of this positions are rounded down where it is asked what channels of patterns have lost after them."""

_ALL = ChannelPattern("**")

log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    """What the log had at one moment.

    Args:
        epoch: its own.
        head: the ``seq`` of its last event.
        forgotten: that of the last event of any channel that was forgotten.
        trimmed: up to which ``seq`` it keeps no event of a channel.
        holes: which ``seq`` no event has up to that, though one may have had it at a server before.
    """

    epoch: str
    head: int
    forgotten: int
    trimmed: dict[str, int]
    holes: Multirange[int]


class PostgresEventLog(EventLog):
    """Keeps events in a database that other processes use too.

    What another process has committed is learned from a notification, or from a look each second, and read then.

    Args:
        database: opened and closed with the log; other parts may use it too.
        retention: how much of each channel is kept; the database is told, and of several nodes the last one counts.
        memory: a file in which this node remembers how far the log went, so that it notices when it is started again
            whether an earlier state of the database was restored meanwhile.
    """

    def __init__(
        self,
        database: Database,
        retention: Retention | RetentionRules | None = None,
        memory: Path | None = None,
    ) -> None:
        self._database = database
        self._memory = Memory(memory)
        self._retention = retention_rules(retention)
        self._retention_is_told = False
        """Whether the database has been told how much is kept, and has it in force."""
        self._tails = Tails(self._following)
        self._epoch = ""
        self._seq = 0
        self._replacements = 0
        """How often the log had another epoch than before: what was asked before that is answered for another log."""
        self._opened = self._closing = False
        self._failure: EventLogUnavailable | None = None
        self._cannot_be_written = False
        """Whether the last attempt to write failed: that it can be read says nothing then."""
        self._sender = secrets.token_hex(4)
        self._notices = Notices()
        self._appends = Appends(
            database, self._sender, self._notices, lambda: self.head, self._stored, self._not_stored
        )
        self._expiry = Expiry(database)
        self._looks: SharedReads[None, None] = SharedReads()
        """Those that a position ahead of the log has asked for."""
        self._kept_reads: SharedReads[tuple[tuple[str, ...], int], _Kept] = SharedReads()
        self._beginnings: SharedReads[tuple[tuple[str, ...], Beginning], Floors] = SharedReads()
        self._due = asyncio.Event()
        """Whether the log is to be looked at."""
        self._periodic = PeriodicCallback(self._due.set, LOOK_INTERVAL)
        self._watching: asyncio.Task[None] | None = None
        database.listener.listen(CHANNEL, self._heard, self._due.set)

    @property
    def head(self) -> EventId:
        return EventId(self._epoch, self._seq)

    @property
    def available(self) -> bool:
        return self._opened and self._failure is None

    async def open(self) -> None:
        await self._database.open()
        self._opened, self._closing = True, False
        self._epoch, self._seq = self._memory.recall()
        try:
            await self._look()
            self._tails.grown_to(self._seq)  # also where nothing has come since the end that was remembered
            await self._tell_retention()
        except EventLogUnavailable as error:
            self._opened = False
            await self._database.close()
            raise StateError(f"cannot use the database {self._database.address}: {error}") from error
        self._periodic.start()
        self._watching = asyncio.create_task(self._watch(), name="postgres-log")
        self._expiry.start()

    async def close(self) -> None:
        if not self._opened or self._closing:
            return
        self._closing = True
        await self._appends.finish()
        self._periodic.stop()
        self._due.set()
        if self._watching is not None:
            await asyncio.wait([self._watching])
            self._watching = None
        await self._expiry.stop()
        self._memory.note(self.head)
        await self._database.close()
        self._opened = False

    # -- what happens to the log ----------------------------------------------------------------------------

    def _heard(self, payload: str) -> None:
        """Hand on the events that a notification has, or have them read, unless this process has committed them.

        Without a notice of a node it is no more than a hint: any role of the database may notify.
        """
        epoch, _, rest = payload.partition(" ")
        seq, _, rest = rest.partition(" ")
        sender, _, notice = rest.partition(" ")
        if sender == self._sender:
            return
        if epoch != self._epoch or not (seq.isdecimal() and len(seq) < 20):
            self._due.set()
        elif (head := int(seq)) > self._seq:
            if events := self._notices.open(notice, EventId(epoch, head)):
                self._seq = head
                self._tails.publish(events)
            else:
                self._tails.grown_to(head)

    def _learned(self, epoch: str, head: int, asked_at: int) -> None:
        """Take over what the log was a moment ago.

        Args:
            epoch: its epoch.
            head: the ``seq`` of its last event.
            asked_at: what `_replacements` was when it was asked for.
        """
        if epoch == self._epoch:
            if head > self._seq:
                self._seq = head
                self._tails.grown_to(head)
        elif asked_at == self._replacements:
            self._replacements += 1
            self._epoch, self._seq = epoch, head
            self._tails.replaced(head)

    def _stored(self, stored: Stored) -> None:
        """Take over what an append has stored."""
        self._cannot_be_written = False
        self._set_failure(None)
        if stored.events and stored.epoch == self._epoch:
            self._seq = max(self._seq, stored.events[-1].seq)
            self._tails.publish(stored.events)
        elif stored.known.epoch == self._epoch:
            self._learned(stored.epoch, stored.head + len(stored.events), self._replacements)

    def _not_stored(self, failure: EventLogUnavailable) -> None:
        self._cannot_be_written = True
        self._set_failure(failure)

    def _set_failure(self, failure: EventLogUnavailable | None) -> None:
        """Note whether the last attempt to use the log succeeded, and log it where that has changed."""
        before, self._failure = self._failure, failure
        if self._watching is None or self._closing:  # an open that fails says so itself
            return
        if failure is not None and before is None:
            log.error("event_log_unavailable", extra={"detail": str(failure)})
        elif failure is None and before is not None:
            log.info("event_log_available")

    async def _watch(self) -> None:
        """Look at the log whenever that is due."""
        while not self._closing:
            await self._due.wait()
            self._due.clear()
            if self._closing:
                return
            try:
                with suppress(EventLogUnavailable):
                    if self._cannot_be_written:
                        await self._appends.append([], None)
                    else:
                        await self._look()
                    if not self._retention_is_told:
                        await self._tell_retention()
                self._memory.note(self.head)
            except Exception:  # a mistake of ours must not be the last look
                log.exception("a look at the event log failed")

    async def _look(self) -> None:
        asked_at = self._replacements
        ((epoch, head, secret),) = await self._query(
            "SELECT epoch, seq, (SELECT secret FROM sse_app.cluster) FROM sse_app.look(%s, %s, %s)",
            self._epoch,
            self._seq,
            patience(self._database),
        )
        self._notices.use(secret)
        self._learned(epoch, head, asked_at)

    def use(self, retention: Retention | RetentionRules) -> None:
        self._retention = retention_rules(retention)
        self._retention_is_told = False
        self._due.set()

    async def _tell_retention(self) -> None:
        """Write to the database how much of each channel is kept."""
        told = self._retention
        rules = [*told.rules, (_ALL, told.default)]
        await self._query(
            "SELECT sse_app.set_retention(%s::text[], %s::bigint[], %s::double precision[], %s)",
            [pattern.text for pattern, _ in rules],
            [kept.size for _, kept in rules],
            [kept.age for _, kept in rules],
            patience(self._database),
        )
        self._retention_is_told = told is self._retention  # else other rules have come meanwhile

    # -- what callers ask -----------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if not self._opened or self._closing:
            raise EventLogUnavailable("the event log is closed")

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        if self._tails.is_full:
            await self._tails.room()
        self._require_open()
        return await self._appends.append(events, key)

    async def begin(self, channels: Collection[str], beginning: Beginning) -> Floors:
        texts = tuple(dict.fromkeys(channels))
        return await self._beginnings.get((texts, beginning), lambda: self._begin(texts, beginning))

    async def _begin(self, texts: tuple[str, ...], beginning: Beginning) -> Floors:
        asked_at = self._replacements
        first, *rows = await self._query(
            "SELECT name, floor, first FROM sse_app.beginning(%b::text[], %s, %s, %s, %b::text[])",
            list(texts),
            beginning.last,
            beginning.since,
            beginning.ago,
            None if beginning.types is None else list(beginning.types),
        )
        epoch, head, forgotten = first
        self._learned(epoch, head, asked_at)
        found = [(name, floor, following or 0) for name, floor, following in rows]
        return floors_of(selection_of(frozenset(texts)), EventId(epoch, head), forgotten, found)

    async def lost(self, channels: Collection[str], position: EventId) -> dict[str, str]:
        texts = tuple(channels)
        if not texts:
            return {}
        # Clients that come back together have about the same position, and of a pattern only what was lost after it.
        selection = selection_of(frozenset(texts))
        seq = min(position.seq, MAX_SEQ)
        after = seq - seq % ROUNDED if selection.patterns else 0
        kept = await self._kept_reads.get((texts, after), lambda: self._kept(texts, after))
        if position.epoch == kept.epoch and position.seq > kept.head:
            # A promoted standby may lack the event, and may have another epoch from the first look on.
            await self._looks.get(None, self._look)
            if position.epoch != self._epoch:
                return dict.fromkeys(texts, "log_replaced")
        if position.epoch != kept.epoch or position.seq > kept.head:
            # That read may have begun before the event was stored, and one that is asked for now has not.
            kept = await self._kept_reads.get((texts, after), lambda: self._kept(texts, after))
        if position.epoch != kept.epoch:
            return dict.fromkeys(texts, "log_replaced")
        if position.seq > kept.head or any(seq in hole for hole in kept.holes):
            return dict.fromkeys(texts, "position_ahead")
        lost = [name for name, trimmed in kept.trimmed.items() if position.seq < trimmed]
        whole = [pattern.text for pattern in selection.patterns if position.seq < kept.forgotten]
        if whole:
            lost = [*whole, *(name for name in lost if name in selection.names)]
        return dict.fromkeys(lost, "history_trimmed")

    async def _kept(self, texts: tuple[str, ...], after: int) -> _Kept:
        asked_at = self._replacements
        (epoch, head, forgotten, holes), *rows = await self._query(
            "SELECT name, trimmed, forgotten, CASE WHEN forgotten IS NOT NULL THEN (SELECT holes FROM sse_app.log) END "
            "FROM sse_app.lost_after(%b::text[], %s)",
            list(texts),
            after,
        )
        self._learned(epoch, head, asked_at)
        return _Kept(epoch, head, forgotten, {name: trimmed for name, trimmed, *_ in rows}, holes)

    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        return await self._page(channels, after, until, limit, floors)

    async def latest(self, channels: Collection[str], limit: int) -> list[Event]:
        return (await self._page(channels, 0, MAX_SEQ, limit, newest_first=True)).events

    async def _page(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
        *,
        newest_first: bool = False,
    ) -> Page:
        if not channels:
            return Page([], False, False)
        asked_at = self._replacements
        first, *rows = await self._query(
            "SELECT seq, name, type, data, retry, flags, more, gap, looked "
            "FROM sse_app.page(%b::text[], %s::jsonb, %s, %s, %s, %s, %s, %s)",
            list(dict.fromkeys(channels)),
            to_json(_that_count(floors, after)).decode(),
            after,
            until,
            limit,
            PAGE_BYTES,
            SCANNED_EVENTS,
            newest_first,
        )
        head, epoch, *_, gap, looked = first
        self._learned(epoch, head, asked_at)
        if self._replacements != asked_at:
            raise EventLogUnavailable("the log was replaced while it was read")
        events = [Event(*row[:6]) for row in rows]
        if rows and rows[-1][6]:
            return Page(events, True, gap)
        return Page(events, looked is not None, gap, looked or 0)

    async def ended(self) -> dict[ChannelName, int]:
        asked_at = self._replacements
        rows = await self._query(
            "SELECT name, seq, (SELECT epoch FROM sse_app.log), (SELECT seq FROM sse_app.log) FROM sse_app.ended()"
        )
        if rows:
            *_, epoch, head = rows[0]
            self._learned(epoch, head, asked_at)
        return {name: seq for name, seq, *_ in rows}

    async def names(self, pattern: str) -> list[ChannelName]:
        wanted = ChannelPattern(pattern)
        rows = await self._query(
            """SELECT name FROM sse_app.channels WHERE name COLLATE "C" >= %s AND name COLLATE "C" < %s""",
            wanted.prefix,
            f"{wanted.prefix}~",
        )
        return [ChannelName(name) for (name,) in rows if wanted.matches(name)]

    async def published(self, channel: ChannelName) -> tuple[int, int]:
        rows = await self._query("SELECT published, last_seq FROM sse_app.channels WHERE name = %s", channel)
        return rows[0] if rows else (0, 0)

    async def tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        # It begins only with what retention keeps. What becomes too much for it meanwhile is read while it is there.
        asked_at = self._replacements
        ((epoch, head, trimmed),) = await self._query(
            "SELECT epoch, head, trimmed FROM sse_app.trimmed_after(%s)", after
        )
        self._learned(epoch, head, asked_at)
        if self._replacements != asked_at:
            raise LogReplaced
        if trimmed:
            raise EventsTrimmed(head)
        async with aclosing(self._tails.follow(after)) as following:
            async for events in following:
                yield events

    async def _following(self, after: int) -> Page:
        """Return the first events after a position, as soon as they can be read."""
        while True:
            asked_at = self._replacements
            try:
                first, *rows = await self._query(
                    "SELECT seq, name, type, data, retry, flags, more FROM sse_app.following(%s, %s, %s)",
                    after,
                    TAIL_EVENTS,
                    PAGE_BYTES,
                )
            except EventLogUnavailable:
                self._require_open()
                await asyncio.sleep(LOOK_INTERVAL / 2)
                continue
            head, epoch = first[:2]
            self._learned(epoch, head, asked_at)
            if self._replacements != asked_at:
                raise LogReplaced
            page = Page([Event(*row[:6]) for row in rows], bool(rows) and rows[-1][6], False)
            try:
                return without_holes(page, after, partial(int, head))
            except EventsTrimmed:
                last = page.events[-1].seq if page.events else after
                return without_holes(page, after, partial(int, head), await self._left_out(after, last))

    async def _left_out(self, after: int, until: int) -> int:
        """Return how many numbers after a position no event has, as a promoted standby leaves some out."""
        ((count,),) = await self._query(
            "SELECT coalesce(sum(upper(part) - lower(part)), 0)::bigint "
            "FROM sse_app.log CROSS JOIN unnest(holes * int8multirange(int8range(%s, %s, '(]'))) AS part",
            after,
            until,
        )
        return int(count)

    async def _query(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a statement.

        Raises:
            EventLogUnavailable: the log is closed, or cannot be read.
        """
        if not self._opened:
            raise EventLogUnavailable("the event log is closed")
        if asyncio.current_task() is None:  # for a request that is answered without one
            return await asyncio.create_task(self._query(statement, *parameters))
        try:
            async with self._database.connection() as connection:
                cursor = await connection.execute(statement.encode(), parameters, binary=True)
                rows = await cursor.fetchall()
        except (DatabaseUnavailable, psycopg.Error) as error:
            failure = EventLogUnavailable(f"the event log cannot be read: {text_of(error)}")
            self._set_failure(failure)
            raise failure from error
        if not self._cannot_be_written:
            self._set_failure(None)
        return rows


def _that_count(floors: Mapping[str, int], after: int) -> dict[str, int]:
    """Return the floors without which events after a position would be others.

    One of a channel that is no further than the position counts where a pattern's would else be the channel's.
    """
    if any(floor > after and "*" in text for text, floor in floors.items()):
        return dict(floors)
    return {text: floor for text, floor in floors.items() if floor > after}
