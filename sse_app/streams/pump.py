"""The flush loop of a stream: it resumes from the client's position, replays the past, and writes until the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Protocol

from sse_app.core.errors import EventLogUnavailable
from sse_app.streams.hub import Hub
from sse_app.streams.keepalive import Keepalive
from sse_app.streams.stream import Replay, Stream
from sse_app.streams.turns import Turns

log = logging.getLogger(__name__)


class Writer(Protocol):
    """Where the bytes of a stream go: the handler of its request, or its bare connection."""

    def write(self, chunk: bytes, /) -> object:
        """Take wire bytes."""

    def flush(self) -> Awaitable[None]:
        """Wait until the socket has accepted what was written, or has closed."""


class Pump:
    """Writes streams: replays what follows their positions, joins them to the present, and writes what waits.

    A stream that has caught up, and for which nothing waits, is *parked*: the hub sends to its socket, and neither a
    handler nor a task is there for it. It is written by a task again once the socket does not accept everything.

    At every await, events up to ``replay.after`` have been written or queued, the rest is still in the log.
    So a stream can be handed to another process, or be cut off, at any of them.

    Args:
        hub: has the events.
        keepalive: pings the streams.
    """

    def __init__(self, hub: Hub, keepalive: Keepalive) -> None:
        self._hub = hub
        self._keepalive = keepalive
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns = Turns()
        self._resume = self._run_again  # one object for all streams, each of which has it while it is parked

    async def run(self, stream: Stream, writer: Writer) -> None:
        """Write a stream until it can be parked, or has ended; then it is removed from hub and keepalive.

        Args:
            stream: registered and attached to its connection, its first events written.
            writer: writes to that connection.
        """
        try:
            while True:
                await self._catch_up(stream, writer)
                while stream.waits or self._finishes(stream):
                    writer.write(stream.take())
                    await writer.flush()
                # One that was behind when events of conflated channels came is to be brought to the head again.
                if stream.replay is None or stream.interest.rate is not None:
                    break
                if stream.closed or stream.ending is not None:
                    break
        except BaseException:
            self._end(stream)
            raise
        if stream.closed or stream.ending is not None:
            self._end(stream)
        else:
            stream.park(self._resume)
            if stream.replay is not None:
                self._turns.rest(stream)

    def _finishes(self, stream: Stream) -> bool:
        """End a stream, which has nothing waiting, if its channels have ended; return whether that is so."""
        if stream.closed or stream.ending is not None or not self._hub.is_finished(stream):
            return False
        if stream.replay is not None and stream.replay.after < self._hub.head.seq:
            return False
        self._hub.finish(stream)
        return True

    def adopt(self, stream: Stream) -> None:
        """Write a stream of an earlier process, whose request was answered there.

        A stream at the head with nothing to write is parked at once, so ten thousand are adopted in little time.
        """
        if stream.ending is None and not stream.closed and stream.replay is None:
            self._hub.join(stream)
            if not stream.waits:
                stream.park(self._resume)
                return
        self._run_again(stream)

    def _run_again(self, stream: Stream) -> None:
        """Write a stream that was parked; one whose client has gone has ended."""
        if stream.closed:
            self._end(stream)
            return
        assert stream.connection is not None
        task = asyncio.create_task(self.run(stream, stream.connection))
        self._tasks.add(task)  # the event loop keeps no task alive
        task.add_done_callback(self._tasks.discard)

    def _end(self, stream: Stream) -> None:
        """End the body of a stream and close its connection; remove the stream from hub and keepalive."""
        self._hub.unregister(stream)
        self._keepalive.forget(stream)
        self._turns.forget(stream)
        seconds = round(time.monotonic() - stream.begun_at, 3)
        log.info("stream_closed", extra=stream.log_fields(reason=stream.ending or "client", seconds=seconds))
        assert stream.connection is not None
        stream.connection.finish()

    async def _catch_up(self, stream: Stream, writer: Writer) -> None:
        """Replay what follows the position until the stream is at the head, and join it there.

        The last look at the head and the joining happen in one step of the event loop. So there is no gap
        between the past and the present, and no event is sent twice, also while others are published. One that has a
        rate is read on at its next turn where it has been written something, and joins where there was nothing for it.
        """
        hub = self._hub
        rate = stream.interest.rate
        if rate is not None and stream.replay is not None and not self._turns.begin(stream):
            return
        goal = 0
        has_written = False
        while stream.replay is not None and not stream.closed and stream.ending is None:
            after, floors = stream.replay
            if rate is None or not has_written:
                goal = hub.head.seq
            if after >= goal:
                if has_written and rate is not None:  # it reads on at its next turn
                    return
                stream.replay = None
                hub.join(stream)
                return
            try:
                past, after = await hub.past.read(stream.interest, after, goal, floors)
            except EventLogUnavailable as error:
                log.warning("replay_failed", extra=stream.log_fields(detail=str(error)))
                stream.end("unavailable", hub.jittered_retry())
                return
            if floors and after >= max(floors.values()):
                floors = {}  # from here on all of them follow the position
            stream.replay = Replay(after, floors)
            if past:
                has_written = True
                writer.write(stream.framing.frame(past))
            writer.write(stream.take())
            await writer.flush()
