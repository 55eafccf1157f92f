"""Notices that a connection has fallen silent: pings come at an even pace, so a long silence means it is dead."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from datetime import datetime
from itertools import pairwise
from statistics import median_low

import httpx

SILENCE_INTERVALS = 2.25
"""Ping intervals of silence after which a connection is dead."""

SHORTEST = 0.1
LONGEST = 3600.0
"""Seconds between pings that are believed: what the server's settings allow."""

_GAPS = 4
"""How many gaps the pace is the median of."""


class Silence(Exception):
    """Nothing came for too long."""


class Dropped(Exception):
    """The client has closed the connection in order to open another one; the text says why."""


class Pace:
    """The interval between pings: assumed at first, learned from the server's own clock.

    Their arrival says nothing: a caller that was busy for an hour receives the pings of that hour together.

    Args:
        interval: seconds to assume until two pings have come.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._times: deque[float] = deque(maxlen=_GAPS + 1)

    @property
    def limit(self) -> float:
        """The seconds of silence after which a connection is dead."""
        return SILENCE_INTERVALS * self._interval

    def begin(self) -> None:
        """Take note of a new connection."""
        self._times.clear()

    def ping(self, timestamp: object) -> None:
        """Take note of a ping and the time on it (ISO 8601)."""
        try:
            time = datetime.fromisoformat(str(timestamp)).timestamp()
        except ValueError:
            return
        if self._times and not SHORTEST / 2 <= time - self._times[-1] <= LONGEST:
            self._times.clear()  # the server's clock was set
        self._times.append(time)
        if len(self._times) > 1:
            # Not the mean: where the server's clock is set by less than an hour, one gap is wrong.
            self._interval = median_low(after - before for before, after in pairwise(self._times))

    def doubt(self) -> None:
        """Take note of a silence: where no pace was learned on this connection, the server may be slower than believed.

        One learned before may be another server's. Without this a pace of more than `SILENCE_INTERVALS` times as
        slow would never be learned, for no connection would live to see two pings.
        """
        if len(self._times) < 2:
            self._interval = min(LONGEST, 2 * self._interval)


class WatchedStream(httpx.AsyncByteStream):
    """The body of a response, whose reading ends with `Silence` after too much of it, or when it is dropped.

    The time counts only while the caller reads, so a slow caller is not taken for a silent server.

    Args:
        body: the body.
        pace: how long it may be silent.
    """

    def __init__(self, body: httpx.AsyncByteStream, pace: Pace) -> None:
        self._body = body
        self._pace = pace
        self._dropped: str | None = None
        self._reading: asyncio.Timeout | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        pieces = aiter(self._body)
        while True:
            # Even when it is dropped, the end comes from within, so that what reads further down unwinds too.
            limit = self._pace.limit if self._dropped is None else 0.0
            try:
                async with asyncio.timeout(limit) as self._reading:
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                if self._dropped is not None:
                    raise Dropped(self._dropped) from None
                raise Silence from None
            finally:
                self._reading = None
            if self._dropped is None:
                yield piece

    def drop(self, reason: str) -> None:
        """End the reading, also one that is under way."""
        self._dropped = reason
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """Close the body."""
        await self._body.aclose()
