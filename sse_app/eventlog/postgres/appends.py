"""Appends to the log on PostgreSQL: those that come together share one call of one function, and one commit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg.errors import Diagnostic

from sse_app.core.errors import EventLogUnavailable, IdempotencyKeyReused, OutcomeUnknown
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import IdempotencyKey
from sse_app.eventlog.postgres.notices import Notices
from sse_app.storage.postgres.database import Database, DatabaseUnavailable, text_of

MAX_GROUP_EVENTS = 2000
"""No further append shares a call that has so many events."""

MAX_GROUP_BYTES = 4 * 1024 * 1024
"""No further append shares a call whose events have so much data."""

GRACE = 2.0
"""How many seconds longer than its call an append may take to get its connection, and to give it up."""

_APPEND = """
SELECT epoch, head, firsts FROM sse_app.append(
    %s, %s, %s, %s,
    %b::text[], %b::text[], %b::bytea[], %b::integer[], %b::integer[], %b::integer[],
    %b::bytea[], %b::text[], %b::bytea[], %s)
"""


class _Append(NamedTuple):
    """One append that waits; `due` is when it is refused if it has not been sent by then, by the loop's clock."""

    events: Sequence[NewEvent]
    key: IdempotencyKey | None
    future: asyncio.Future[list[EventId]]
    due: float


class Stored(NamedTuple):
    """What a call has found and stored.

    Attributes:
        known: the last event that was known when it was called.
        epoch: the log's.
        head: the ``seq`` of the last event before.
        events: the new ones.
    """

    known: EventId
    epoch: str
    head: int
    events: list[Event]


class Appends:
    """Sends the appends of a process to the database, one call at a time; the next ones gather meanwhile.

    Args:
        database: is open while there are appends.
        sender: names this process in the notification of its commits.
        notices: says what else stands there.
        known: returns the position of the last event that is known to be in the log.
        stored: is called with what each call has stored, before the appends are answered.
        failed: is called with what a call has failed with, before the appends are refused.
    """

    def __init__(
        self,
        database: Database,
        sender: str,
        notices: Notices,
        known: Callable[[], EventId],
        stored: Callable[[Stored], None],
        failed: Callable[[EventLogUnavailable], None],
    ) -> None:
        self._database = database
        self._sender = sender
        self._notices = notices
        self._known = known
        self._stored = stored
        self._failed = failed
        self._waiting: deque[_Append] = deque()
        self._in_doubt = False
        """Whether the last call, if it has failed, may have stored its events."""
        self._working: asyncio.Task[None] | None = None

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None) -> list[EventId]:
        """Store events; see `EventLog.append`. None at all shows whether others could be stored."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[EventId]] = loop.create_future()
        self._waiting.append(_Append(events, key, future, loop.time() + self._database.timeout))
        if self._working is None:
            self._working = asyncio.create_task(self._work(), name="postgres-appends")
        return await future

    async def finish(self) -> None:
        """Wait until each append has been answered; none comes any more."""
        if self._working is not None:
            await asyncio.wait([self._working])

    async def _work(self) -> None:
        try:
            while group := self._group():
                await self._send(group)
        finally:
            self._working = None

    def _group(self) -> list[_Append]:
        """Take the appends that share the next call; those that have waited too long are refused."""
        group: list[_Append] = []
        count = size = 0
        now = asyncio.get_running_loop().time()
        while self._waiting and count < MAX_GROUP_EVENTS and size < MAX_GROUP_BYTES:
            append = self._waiting.popleft()
            if append.future.done():  # the caller has gone, and nothing was stored
                continue
            if append.due < now:
                append.future.set_exception(EventLogUnavailable("the event log takes too long to be written"))
                continue
            group.append(append)
            count += len(append.events)
            size += sum(len(event.data) for event in append.events)
        return group

    async def _send(self, group: list[_Append]) -> None:
        known = self._known()
        try:
            epoch, head, firsts = await self._call(self._parameters(group, known))
        except (DatabaseUnavailable, psycopg.Error) as error:
            kind = OutcomeUnknown if self._in_doubt else EventLogUnavailable
            failure = kind(f"the event log cannot be written: {text_of(error)}")
            failure.__cause__ = error
            self._failed(failure)
            outcomes: list[list[EventId] | Exception] = [failure] * len(group)
        except Exception as error:  # a mistake of ours: none waits forever for its answer
            outcomes = [error] * len(group)
        else:
            events: list[Event] = []
            following = head + 1
            outcomes = []
            for append, first in zip(group, firsts, strict=True):
                if first == 0:
                    outcomes.append(
                        IdempotencyKeyReused("this Idempotency-Key was used with another request")
                    )
                    continue
                if first == following:  # else its key is known, perhaps from another append of this group
                    events += [Event(seq, *event) for seq, event in enumerate(append.events, first)]
                    following += len(append.events)
                outcomes.append([EventId(epoch, first + place) for place in range(len(append.events))])
            self._stored(Stored(known, epoch, head, events))
        for append, outcome in zip(group, outcomes, strict=True):
            if append.future.done():  # the publisher gave up waiting
                continue
            if isinstance(outcome, Exception):
                append.future.set_exception(outcome)
            else:
                append.future.set_result(outcome)

    def _parameters(self, group: list[_Append], known: EventId) -> list[Any]:
        events = [event for append in group for event in append.events]
        retries = [event.retry for event in events]
        flags = [event.flags for event in events]
        keys = [append.key for append in group]
        has_keys = any(keys)
        return [
            known.epoch,
            known.seq,
            patience(self._database),
            self._sender,
            [event.channel for event in events],
            [event.type for event in events],
            [event.data for event in events],
            retries if any(retry is not None for retry in retries) else None,
            flags if any(flags) else None,
            [len(append.events) for append in group],
            # As bytes: a subject that an identity provider has made may have characters that a text cannot have here.
            [key and key.subject.encode("utf-8", "surrogatepass") for key in keys] if has_keys else None,
            [key and key.key for key in keys] if has_keys else None,
            [key and key.digest for key in keys] if has_keys else None,
            self._notices.close(known, events),
        ]

    async def _call(self, parameters: list[Any]) -> tuple[str, int, list[int]]:
        """Call the function, in a transaction of its own, and return its answer once that is committed.

        A call that takes too long is given up with its connection, and never cancelled: PostgreSQL answers the
        cancelling of a commit that waits for a synchronous standby with a warning, and as if it had succeeded.
        """
        cancelled: list[str | None] = []

        def heed(notice: Diagnostic) -> None:
            if notice.source_function == "SyncRepWaitForLSN":
                cancelled.append(notice.message_primary)

        self._in_doubt = False
        async with self._database.connection(self._database.timeout + GRACE) as connection:
            self._in_doubt = True
            connection.add_notice_handler(heed)
            execution = asyncio.ensure_future(connection.execute(_APPEND, parameters, binary=True))
            try:
                await asyncio.wait([execution], timeout=self._database.timeout)
            finally:
                if not execution.done():
                    connection.shut_down()
                    await asyncio.wait([execution])
                    execution.exception()  # where the time for all is over, it is not asked for below
            try:
                row = await (await execution).fetchone()
            except psycopg.Error as error:
                # At level ERROR the command was rolled back; FATAL may come after a commit ("Message Severity Levels").
                self._in_doubt = error.diag.severity_nonlocalized != "ERROR"
                raise
            finally:
                connection.remove_notice_handler(heed)
        if cancelled:
            raise DatabaseUnavailable(cancelled[0] or "the commit was not waited for")
        assert row is not None
        return row[0], row[1], row[2]


def patience(database: Database) -> int:
    """Return for how many milliseconds a call may wait for the log's row: so that it is refused, and not given up."""
    return max(1, int(database.timeout * 800))
