"""Processes that open event logs on disk or in a database, and append to them as they are told.

Each is ``python -m tests.support.log_processes SOCKET``, and listens on a Unix socket. A connection is one log that the
process has open: its first line says which, each further one what to append or how much to keep; an empty list is
answered when that is told where the log is. Several lines are worked on at once, and the log is closed when the
connection is.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sse_app.core import errors
from sse_app.core.channels import ChannelName, ChannelPattern
from sse_app.core.events import Event, EventId, NewEvent
from sse_app.eventlog.base import (
    NO_FLOORS,
    Beginning,
    EventLog,
    Floors,
    IdempotencyKey,
    Page,
    Retention,
    RetentionRules,
    retention_rules,
)
from sse_app.eventlog.postgres.log import PostgresEventLog
from sse_app.eventlog.sqlite.log import SqliteEventLog
from sse_app.storage.postgres.database import Database
from tests.support.preloaded import module, start
from tests.support.waiting import until, until_async

_LINE = 64 << 20
"""Bytes of the longest line."""


async def _serve(path: str) -> None:
    server = await asyncio.start_unix_server(_use_a_log, path, limit=_LINE)
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await ended
    server.close()


async def _use_a_log(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    place, retention = json.loads(await reader.readline())
    log = log_at(place, _read(retention))
    tasks: set[asyncio.Task[None]] = set()

    async def wait_until_told() -> None:
        await until_told(log)
        writer.write(json.dumps([0, [], None]).encode() + b"\n")

    async def append(number: int, events: list[list[Any]], key: list[str] | None) -> None:
        new = [
            NewEvent(ChannelName(channel), type, data.encode(), retry, flags)
            for channel, type, data, retry, flags in events
        ]
        try:
            ids = await log.append(
                new, IdempotencyKey(key[0], key[1], bytes.fromhex(key[2])) if key else None
            )
            answer: list[object] = [number, ids, None]
        except errors.SSEAppError as error:
            answer = [number, [], [type_of(error), str(error)]]
        writer.write(json.dumps(answer).encode() + b"\n")

    try:
        await log.open()
        writer.write(json.dumps(log.head).encode() + b"\n")
    except errors.StateError as error:
        writer.write(json.dumps(str(error)).encode() + b"\n")
    while line := await reader.readline():
        told = json.loads(line)
        if isinstance(told, dict):
            log.use(_read(told))
            continue
        task = asyncio.create_task(append(*told) if told else wait_until_told())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    await log.close()
    writer.close()


def _written(retention: Retention | RetentionRules) -> dict[str, Any]:
    """Return what is kept of each channel, for JSON."""
    kept = retention_rules(retention)
    return {"default": kept.default, "rules": [(pattern.text, rule) for pattern, rule in kept.rules]}


def _read(written: dict[str, Any]) -> RetentionRules:
    rules = [(ChannelPattern(pattern), Retention(*rule)) for pattern, rule in written["rules"]]
    return RetentionRules(Retention(*written["default"]), rules)


def log_at(place: Path | str, retention: Retention | RetentionRules | None = None) -> EventLog:
    """Return the log in a file or in a database, not yet open.

    Args:
        place: the file, or the URL of the database.
        retention: how much of each channel it keeps.
    """
    if str(place).startswith("postgresql:"):
        return PostgresEventLog(Database(str(place)), retention)
    return SqliteEventLog(Path(place), retention)


async def until_told(log: EventLog) -> None:
    """Wait until each process that has a log open has told the database how much is kept, as it was asked to last.

    Of several the last one counts, so one that is late would undo what another one is asked to keep later.
    """
    if isinstance(log, PostgresEventLog):
        await until_async(lambda: log._retention_is_told, "the database has been told how much is kept")
    elif isinstance(log, SharedEventLog):
        await asyncio.gather(until_told(log.first), until_told(log.second))
    elif isinstance(log, LogOfProcesses):
        await asyncio.gather(until_told(log.first), *(other.until_told() for other in log.others))


def type_of(error: Exception) -> str:
    """Return the name of an error's class."""
    return type(error).__name__


@contextmanager
def log_processes(count: int, directory: Path) -> Iterator[list[str]]:
    """Run so many processes, and give the sockets on which they listen."""
    sockets = [directory / f"process-{number}" for number in range(count)]
    processes = [
        start(
            [str(path)],
            environment=os.environ,
            program=module("tests.support.log_processes"),
            stdin=subprocess.PIPE,
        )
        for path in sockets
    ]
    try:
        until(lambda: all(path.exists() for path in sockets), "the processes listen")
        yield [str(path) for path in sockets]
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)


class RemoteLog:
    """A log that another process has open.

    Args:
        address: the socket of the process.
        place: of the log, as of `log_at`.
        retention: how much of each channel it keeps.
    """

    def __init__(self, address: str, place: Path | str, retention: Retention | RetentionRules) -> None:
        self._address = address
        self._opening = [str(place), _written(retention)]
        self._answers: dict[int, asyncio.Future[list[EventId]]] = {}
        self._appends = 0

    async def open(self) -> EventId:
        """Have the log opened, and return its head then."""
        self._reader, self._writer = await asyncio.open_unix_connection(self._address, limit=_LINE)
        self._writer.write(json.dumps(self._opening).encode() + b"\n")
        answer = json.loads(await self._reader.readline())
        if isinstance(answer, str):
            self._writer.close()
            raise errors.StateError(answer)
        self._reading = asyncio.create_task(self._read())
        return EventId(*answer)

    async def _read(self) -> None:
        while line := await self._reader.readline():
            number, ids, error = json.loads(line)
            future = self._answers.pop(number)
            if error is None:
                future.set_result([EventId(*id) for id in ids])
            else:
                future.set_exception(getattr(errors, error[0])(error[1]))

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        """Have events appended, as `EventLog.append` does."""
        self._appends += 1
        future: asyncio.Future[list[EventId]] = asyncio.get_running_loop().create_future()
        self._answers[self._appends] = future
        told = [
            (event.channel, event.type, event.data.decode(), event.retry, event.flags) for event in events
        ]
        line = [self._appends, told, key and (key.subject, key.key, key.digest.hex())]
        self._writer.write(json.dumps(line).encode() + b"\n")
        return await future

    def use(self, retention: Retention | RetentionRules) -> None:
        """Have so much of each channel kept from now on."""
        self._writer.write(json.dumps(_written(retention)).encode() + b"\n")

    async def until_told(self) -> None:
        """Do as the function of this name, in the other process."""
        self._answers[0] = asyncio.get_running_loop().create_future()
        self._writer.write(b"[]\n")
        await self._answers[0]

    async def close(self) -> None:
        """Have the log closed."""
        self._writer.write_eof()
        await self._reading
        self._writer.close()
        await self._writer.wait_closed()


class _ReadFromFirst(EventLog):
    """A log that is read through the first of several that are at the same place."""

    first: EventLog

    async def lost(self, channels: Collection[str], position: EventId) -> dict[str, str]:
        return await self.first.lost(channels, position)

    async def begin(self, channels: Collection[str], beginning: Beginning) -> Floors:
        return await self.first.begin(channels, beginning)

    async def ended(self) -> dict[ChannelName, int]:
        return await self.first.ended()

    async def names(self, pattern: str) -> list[ChannelName]:
        return await self.first.names(pattern)

    async def replay(
        self,
        channels: Collection[str],
        after: int,
        until: int,
        limit: int,
        floors: Mapping[str, int] = NO_FLOORS,
    ) -> Page:
        return await self.first.replay(channels, after, until, limit, floors)

    async def latest(self, channels: Collection[str], limit: int) -> list[Event]:
        return await self.first.latest(channels, limit)

    async def published(self, channel: ChannelName) -> tuple[int, int]:
        return await self.first.published(channel)

    def tail(self, after: int) -> AsyncGenerator[list[Event], None]:
        return self.first.tail(after)


class LogOfProcesses(_ReadFromFirst):
    """One log to which several other processes append in turn, and at once where appends are made at once.

    Args:
        addresses: of the processes.
        place: of the log, as of `log_at`.
        retention: of all.
    """

    def __init__(
        self, addresses: Collection[str], place: Path | str, retention: Retention | RetentionRules
    ) -> None:
        self.first = log_at(place, retention)
        self.others = [RemoteLog(address, place, retention) for address in addresses]
        self._appends = 0
        self._appended = EventId("", 0)
        self._open = False

    @property
    def head(self) -> EventId:
        return max(self.first.head, self._appended, key=lambda id: id.seq)

    @property
    def available(self) -> bool:
        return self.first.available

    async def open(self) -> None:
        await asyncio.gather(self.first.open(), *(other.open() for other in self.others))
        self._open = True

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        if not self._open:
            raise errors.EventLogUnavailable("the event log is closed")
        self._appends += 1
        ids = await self.others[self._appends % len(self.others)].append(events, key)
        self._appended = max(self._appended, ids[-1], key=lambda id: id.seq)
        return ids

    def use(self, retention: Retention | RetentionRules) -> None:
        self.first.use(retention)
        for other in self.others:
            other.use(retention)

    async def close(self) -> None:
        self._open = False
        await asyncio.gather(self.first.close(), *(other.close() for other in self.others))


def main() -> None:
    """Listen on the socket that the argument names."""
    asyncio.run(_serve(sys.argv[1]))


class SharedEventLog(_ReadFromFirst):
    """Two logs at one place, as two processes have them: each appends in turn, and only the first is read.

    Args:
        place: a file, or the URL of a database.
        retention: of both.
    """

    def __init__(self, place: Path | str, retention: Retention | RetentionRules) -> None:
        self.first = log_at(place, retention)
        self.second = log_at(place, retention)
        self._appends = 0

    @property
    def head(self) -> EventId:
        return max(self.first.head, self.second.head)

    @property
    def available(self) -> bool:
        return self.first.available and self.second.available

    async def open(self) -> None:
        await self.first.open()
        await self.second.open()

    async def append(self, events: Sequence[NewEvent], key: IdempotencyKey | None = None) -> list[EventId]:
        self._appends += 1
        return await (self.first, self.second)[self._appends % 2].append(events, key)

    def use(self, retention: Retention | RetentionRules) -> None:
        self.first.use(retention)
        self.second.use(retention)

    async def close(self) -> None:
        await self.first.close()
        await self.second.close()


if __name__ == "__main__":
    main()
