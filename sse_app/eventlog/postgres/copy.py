"""Copies an event log from SQLite into PostgreSQL: its epoch, its positions, and the answers to idempotency keys.

A page of events is one transaction, with how far the copy has come: so one that was cut at any moment continues from
there. Until `LogCopy.finish` there is no row in ``sse_app.log``, without which nothing can append or read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from psycopg import AsyncConnection

from sse_app.core.errors import StateError
from sse_app.eventlog.base import LogClock
from sse_app.eventlog.sqlite.export import Export, ExportPage, StoredChannel
from sse_app.eventlog.sqlite.schema import LogState

_CHANNELS = """
INSERT INTO sse_app.channels (name, published, last_seq, trimmed, removed)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (name) DO UPDATE SET published = excluded.published, last_seq = excluded.last_seq,
    trimmed = excluded.trimmed, removed = excluded.removed
RETURNING name, id
"""

_GONE = """
DELETE FROM sse_app.events AS e USING sse_app.channels AS c, unnest(%s::text[], %s::bigint[]) AS lost (name, trimmed)
WHERE c.name = lost.name AND e.channel = c.id AND e.seq <= lost.trimmed
"""

_FORGOTTEN = """
WITH forgotten AS (
    DELETE FROM sse_app.channels AS c
    WHERE NOT EXISTS (SELECT FROM unnest(%s::text[]) AS there (name) WHERE there.name = c.name) RETURNING id
)
DELETE FROM sse_app.events WHERE channel IN (SELECT id FROM forgotten)
"""

_ANSWERS = """
INSERT INTO sse_app.idempotency (subject, key, digest, seq, count, at)
SELECT * FROM unnest(%s::bytea[], %s::text[], %s::bytea[], %s::bigint[], %s::integer[], %s::double precision[])
ON CONFLICT (subject, key) DO UPDATE SET
    digest = excluded.digest, seq = excluded.seq, count = excluded.count, at = excluded.at
"""

_LOG = """
INSERT INTO sse_app.log (epoch, seq, at, wall, forgotten, system, timeline, made)
SELECT %s, %s, %s, extract(epoch FROM clock_timestamp())::double precision - %s, %s, system_identifier,
    sse_app.timeline(), 'sse_app.log'::regclass::oid::bigint
FROM pg_control_system()
"""


class Totals(NamedTuple):
    """What a log keeps: events, bytes of their data, channels and what was ever published there, answers to keys."""

    events: int
    size: int
    channels: int
    published: int
    answers: int


class LogCopy:
    """One run of a copy.

    Args:
        connection: to the database, with autocommit; its schema is of this version.
        export: reads the log.
        where: the database's name for people, without a password.
    """

    def __init__(self, connection: AsyncConnection[Any], export: Export, where: str) -> None:
        self._connection = connection
        self._export = export
        self._where = where
        self._clock = LogClock()
        self._known: dict[str, StoredChannel] = {}
        self._last_at = 0.0
        self._state: LogState | None = None
        self.position = 0
        """Up to which ``seq`` events have been copied."""

    async def begin(self) -> bool:
        """Begin, or return True where an earlier run has begun; `position` is then where it has come to.

        Raises:
            StateError: the database holds something else, or is in use.
        """
        state = self._export.state()
        if state is None:
            raise StateError(f"there is no event log in {self._export.path} yet: nothing is to be copied")
        self._clock = self._export.clock()
        async with self._connection.transaction():
            await self._refuse_nodes()
            log = await self._row("SELECT epoch, seq FROM sse_app.log")
            copied = await self._row("SELECT epoch, seq, finished FROM sse_app.copied FOR UPDATE")
            if copied is None:
                await self._require_empty(log)
            else:
                await self._require_ours(state, log, *copied)
            await self._connection.execute("DELETE FROM sse_app.log")
            await self._connection.execute(
                "INSERT INTO sse_app.copied (source, epoch) VALUES (%s, %s) "
                "ON CONFLICT (one) DO UPDATE SET finished = false, source = excluded.source",
                (str(self._export.path.absolute()), state.epoch),
            )
        self.position = copied[1] if copied is not None else 0
        rows = await self._connection.execute(
            "SELECT name, published, last_seq, trimmed, removed FROM sse_app.channels"
        )
        self._known = {row[0]: StoredChannel(*row) async for row in rows}
        last = await self._row("SELECT at FROM sse_app.events ORDER BY seq DESC LIMIT 1")
        self._last_at = last[0] if last is not None else 0.0
        return copied is not None

    async def _row(self, statement: str) -> tuple[Any, ...] | None:
        return await (await self._connection.execute(statement.encode())).fetchone()

    async def _refuse_nodes(self) -> None:
        rows = await self._connection.execute(
            "SELECT name FROM sse_app.nodes WHERE NOT has_left AND heard_at > clock_timestamp() - interval '10 s' "
            "ORDER BY name"
        )
        if names := [name async for (name,) in rows]:
            raise StateError(
                f"the database {self._where} is in use by the node {names[0]}"
                + (f" and {len(names) - 1} more" if len(names) > 1 else "")
                + ": stop its servers first"
            )

    async def _require_empty(self, log: tuple[Any, ...] | None) -> None:
        if log is not None and log[1] > 0:
            raise StateError(
                f"the database {self._where} holds another log (epoch {log[0]}, {log[1]} events published): "
                "name an empty one"
            )
        full = await self._row(
            "SELECT EXISTS (SELECT FROM sse_app.accounts) OR EXISTS (SELECT FROM sse_app.revocations) "
            "OR EXISTS (SELECT FROM sse_app.events) OR EXISTS (SELECT FROM sse_app.channels)"
        )
        if full is not None and full[0]:
            raise StateError(
                f"the database {self._where} has accounts, revocations or channels of its own, "
                "which a copy would replace: name an empty one"
            )

    async def _require_ours(
        self, state: LogState, log: tuple[Any, ...] | None, epoch: str, seq: int, finished: bool
    ) -> None:
        if epoch != state.epoch:
            raise StateError(
                f"the database {self._where} holds another log (epoch {epoch}; {self._export.path} has {state.epoch}): "
                "name an empty one"
            )
        used = await self._row("SELECT FROM sse_app.nodes, sse_app.copied WHERE heard_at > copied.at")
        if not finished and log is not None and log[1] > 0:
            raise StateError(f"the database {self._where} has got events of its own since the copy was begun")
        if finished and (log != (epoch, seq) or used is not None):
            raise StateError(
                f"the database {self._where} has been used since the log was copied to it: "
                "it is the log now, and another copy would undo what was done there"
            )
        if seq > state.head:
            raise StateError(
                f"the database {self._where} has {seq} events of the log, and {self._export.path} only {state.head}: "
                "it is an earlier state of it"
            )

    async def events(self, progress: Callable[[int], None]) -> None:
        """Copy all events that there are; a server that appends to the log meanwhile is followed up to its end.

        Args:
            progress: is told how many events each page had.
        """
        while True:
            page = self._export.page(self.position)
            await self._write(page)
            progress(len(page.events))
            if page.log is not None:
                self._state = page.log
                return

    async def _write(self, page: ExportPage) -> None:
        position = page.log.head if page.log is not None else page.events[-1].seq
        lost = [
            channel
            for channel in page.channels
            if channel.name in self._known and channel.trimmed > self._known[channel.name].trimmed
        ]
        # Of those that have more than this page, the counts are those of its last event of them.
        last = {event.channel: event for event in page.events} if page.log is None else {}
        new = [
            channel._replace(published=last[channel.name].n, last_seq=last[channel.name].seq)
            if channel.name in last
            else channel
            for channel in page.channels
        ]
        changed = [channel for channel in new if self._known.get(channel.name) != channel]
        async with self._connection.transaction():
            # What a crash of the server takes back is copied again; `finish` waits for the disk.
            await self._connection.execute("SELECT set_config('synchronous_commit', 'off', true)")
            moved = await self._connection.execute(
                "UPDATE sse_app.copied SET seq = %s, at = clock_timestamp() WHERE seq = %s AND NOT finished",
                (position, self.position),
            )
            if not moved.rowcount:
                raise StateError(f"another copy into the database {self._where} is running, or has finished")
            if lost:
                await self._connection.execute(
                    _GONE, ([one.name for one in lost], [one.trimmed for one in lost])
                )
            if page.log is not None:
                await self._connection.execute(_FORGOTTEN, ([channel.name for channel in page.channels],))
            columns = [list(column) for column in zip(*changed, strict=True)] or [[]] * 5
            rows = await self._connection.execute(_CHANNELS, columns)
            ids = {name: id async for name, id in rows}
            missing = list({event.channel for event in page.events} - ids.keys())
            if missing:
                rows = await self._connection.execute(
                    "SELECT name, id FROM sse_app.channels WHERE name = ANY(%s::text[])", (missing,)
                )
                ids |= {name: id async for name, id in rows}
            await self._copy_in(page, ids)
        self.position = position
        self._known.update((channel.name, channel) for channel in changed)

    async def _copy_in(self, page: ExportPage, ids: dict[str, int]) -> None:
        if not page.events:
            return
        now = self._clock.now()
        async with (
            self._connection.cursor() as cursor,
            cursor.copy(
                "COPY sse_app.events (seq, channel, n, type, data, retry, at, flags) FROM STDIN (FORMAT BINARY)"
            ) as copy,
        ):
            copy.set_types(["int8", "int4", "int8", "text", "bytea", "int4", "float8", "int2"])
            for seq, channel, n, type, data, retry, at, flags in page.events:
                # There the dates never go back, and none is in the future.
                self._last_at = max(self._last_at, min(at, now))
                await copy.write_row((seq, ids[channel], n, type, data, retry, self._last_at, flags))

    async def answers(self) -> int:
        """Copy the answers to idempotency keys, from the last one that is there already, and return how many."""
        row = await self._row("SELECT max(at) FROM sse_app.idempotency")
        after = (row[0] if row is not None and row[0] is not None else -1.0, "", "")
        count = 0
        while answers := self._export.answers(after):
            subject, key, *_, at = answers[-1]
            after = (at, subject, key)
            columns = [list(column) for column in zip(*answers, strict=True)]
            columns[0] = [one.encode() for one in columns[0]]
            await self._connection.execute(_ANSWERS, columns)
            count += len(answers)
        return count

    async def finish(self) -> Totals:
        """Compare both sides, and have the copy be the log, which servers may use; none may use the source any more.

        Raises:
            StateError: it is not the same on both sides.
        """
        state = self._state
        assert state is not None, "the events come first"
        source = self._export.state()
        async with self._connection.transaction():
            await self._connection.execute(
                "DELETE FROM sse_app.idempotency WHERE at < %s", (self._oldest_answer(),)
            )
            totals = await self._totals()
            expected = Totals(*self._export.totals())
            if source != state or totals != expected:
                raise StateError(
                    f"the copy is not whole: {expected.events} events and {expected.answers} answers are in "
                    f"{self._export.path}, {totals.events} and {totals.answers} in the database {self._where}"
                )
            at = max(self._last_at, min(state.last_at, self._clock.now()))
            await self._connection.execute(
                _LOG, (state.epoch, state.head, at, max(0.0, self._clock.now() - at), state.forgotten)
            )
            await self._connection.execute(
                "UPDATE sse_app.copied SET finished = true, at = clock_timestamp()"
            )
        return totals

    def _oldest_answer(self) -> float:
        """Return the time of the oldest answer that is kept in the source: it erases them by their age."""
        first = self._export.answers((-1.0, "", ""))
        return first[0][-1] if first else float("inf")

    async def _totals(self) -> Totals:
        row = await self._row(
            "SELECT count(*), coalesce(sum(octet_length(data)), 0), "
            "(SELECT count(*) FROM sse_app.channels), (SELECT coalesce(sum(published), 0) FROM sse_app.channels), "
            "(SELECT count(*) FROM sse_app.idempotency) FROM sse_app.events"
        )
        assert row is not None
        return Totals(*map(int, row))
