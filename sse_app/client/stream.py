"""A stream that reconnects: an async iterator over events, across any number of connections."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Self
from urllib.parse import quote

import httpx

from sse_app.client.backoff import Backoff
from sse_app.client.connection import RETURN_AT_ONCE, Connection, End, Position, connect
from sse_app.client.errors import Unavailable
from sse_app.client.http import HTTPUser, lost
from sse_app.client.items import Connected, Event, Moved, Reset, Waiting
from sse_app.client.renewal import renew
from sse_app.client.tokens import StreamToken, StreamTokens
from sse_app.client.watch import Pace
from sse_app.core.channels import ChannelPatterns, parse_channels

STREAM = "/api/v1/sse"

BUFFERED = 100
"""Items that are read ahead of the caller; then the rest waits in the kernel, and at last at the server."""

MAX_CHANNELS = 1000

STREAM_BACKOFF = Backoff()


class Stream(HTTPUser):
    """The events of some channels, in the order of the log, each once, from ``after`` or the beginning asked for on.

    It survives lost connections, restarts of the server and the expiry of tokens; docs/clients.md has a table of
    which failures pass and which end it. Where it cannot resume
    without a gap it yields a `Reset` for the channel instead of hiding it. The delay before an attempt is what
    the server asked for (``retry``, ``Retry-After``) and on top of it any time up to a bound that doubles.

    A background task reads, from ``async with`` to its end, and nothing is left running after it. To cancel
    an iteration, as `asyncio.wait_for` does, loses nothing. A caller that is too slow is cut off by the server
    in the end, and resumes from where it was.

    >>> async with Stream("https://events.example", ["alerts"], session) as stream:
    ...     async for item in stream:
    ...         ...

    Args:
        url: the server's address.
        channels: names of channels and patterns such as ``training.*``, in a list or with commas.
        token: a stream token, an async function that returns a fresh one, or a `Session`. One that stays the
            same can neither be renewed nor replaced: the stream ends with it, with `Unauthorized`. None for public
            channels. It is sent in a header, and no URL has it.
        after: the event id to resume after; None begins where ``begin``, ``last`` or ``since`` says, else with what
            comes next.
        begin: ``earliest``: with all that is kept; ``latest``.
        last: with the last so many events of each channel, of the ``types``; where it is conflated, with the newest
            of each key.
        since: with events of a time or later (with a timezone), or of the last seconds (60 or `timedelta`).
        types: event types; others are left out by the server. None: all.
        rate: of a conflated channel at most so many events of each key a second.
        client_id: a label, unique among the streams of this account: all that share it are renewed together.
            None makes one.
        http: the HTTP client to use, None for its own. Let it speak HTTP/1.1: on HTTP/2 httpx (httpcore 1.0) keeps
            what came for one stream until something comes for another.
        backoff: how long to wait between attempts.
        ping_interval: seconds between pings to assume until two have come; 2.25 of them without a sign of life
            mean that the connection is dead.
        open_timeout: seconds that a token and the server's answer may take.
        on_state: called when the stream is open (`Connected`) and when it has to wait (`Waiting`).

    Attributes:
        client_id: the label.
        last_event_id: the id to resume after: of the last event that the caller has taken, or where the stream
            began.

    Raises:
        ValueError: the address is none; ``since`` has no timezone; more than one beginning is asked for.
        InvalidChannel: a name of a channel is none.
    """

    def __init__(
        self,
        url: str,
        channels: str | Iterable[str],
        token: StreamToken = None,
        *,
        after: str | None = None,
        begin: str | None = None,
        last: int | None = None,
        since: datetime | timedelta | float | None = None,
        types: str | Iterable[str] | None = None,
        rate: float | None = None,
        client_id: str | None = None,
        http: httpx.AsyncClient | None = None,
        backoff: Backoff = STREAM_BACKOFF,
        ping_interval: float = 30.0,
        open_timeout: float = 20.0,
        on_state: Callable[[Connected | Waiting], None] = lambda state: None,
    ) -> None:
        names = channels if isinstance(channels, str) else ",".join(channels)
        self.channels: tuple[str, ...] = parse_channels(names, MAX_CHANNELS)
        self._query = _query(begin, last, since, types, rate)
        super().__init__(url, http)
        self.client_id = client_id or f"py-{secrets.token_urlsafe(9)}"
        self.last_event_id = after
        self._tokens = StreamTokens(token, self.channels)
        self._position = Position(after, frozenset(self.channels))
        self._patterns = ChannelPatterns(self.channels)
        self._backoff = backoff
        self._retry = 0.0
        self._pace = Pace(ping_interval)
        self._open_timeout = open_timeout
        self._on_state = on_state
        self._items: asyncio.Queue[Event | Moved | Reset | None] = asyncio.Queue(BUFFERED)
        self._opened = asyncio.Event()
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name=f"stream {self.client_id}")
        return self

    async def aclose(self) -> None:
        """End the stream; tasks that wait for its next item get the end of the iteration."""
        try:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
        finally:
            while not self._items.empty():
                self._items.get_nowait()
            self._items.put_nowait(None)
            self._opened.set()
            await super().aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Reset:
        """Return what comes next. The iteration ends where all that the stream carries has come to its end.

        Raises:
            Unauthorized: the token is refused, also a fresh one, or none is to be had.
            Forbidden: it does not allow one of the channels.
            NotFound: there is no such channel.
            Refused: the request is malformed.
            StreamEnded: the server does not want this client back.
            CertificateRefused: the server's certificate is not valid.
        """
        if self._task is None:
            raise RuntimeError("a Stream is to be used in an 'async with'")
        while isinstance(item := await self._items.get(), Moved):
            self.last_event_id = item.id
        if isinstance(item, Event):
            self.last_event_id = item.id or self.last_event_id
        elif item is None:
            self._items.put_nowait(None)  # for the next call
            raise self._error or StopAsyncIteration
        return item

    async def opened(self) -> None:
        """Wait until the stream stands for the first time: from then on it misses nothing.

        Raises:
            As the iteration does, where that ends before.
        """
        await self._opened.wait()
        if self._error is not None:
            raise self._error

    async def _run(self) -> None:
        try:
            await self._keep_connected()
        except Exception as error:
            self._error = error
        self._opened.set()
        await self._items.put(None)

    async def _keep_connected(self) -> None:
        """Connect again and again; return where all that the stream carries has ended.

        Raises:
            ClientError: to come back is of no use.
        """
        clock = asyncio.get_running_loop().time
        attempt = 0
        while True:
            connection: Connection | None = None
            async with AsyncExitStack() as stack:
                try:
                    connection = await stack.enter_async_context(self._connect())
                except (Unavailable, httpx.RequestError, OSError) as error:
                    end = _unavailable(error)
                else:
                    if connection is None:
                        return
                    await self._hand_on(connection)
                    if connection.is_over:
                        return
                    end = connection.end
            stood = connection.stood(clock()) if connection is not None else 0.0
            if stood >= self._backoff.stable:
                attempt = 0
            if end.at_once and stood >= RETURN_AT_ONCE:
                delay = 0.0
                self._on_state(Waiting(end.reason, delay, 0))
            else:
                floor = self._retry if end.wait is None else end.wait
                delay = floor + self._backoff.delay(attempt)
                attempt += 1
                self._on_state(Waiting(end.reason, delay, attempt))
            await asyncio.sleep(delay)

    def _connect(self) -> AbstractAsyncContextManager[Connection | None]:
        return connect(
            self._http,
            f"{self.url}{STREAM}/{quote(','.join(self.channels), safe=',')}",
            self.client_id,
            self._tokens,
            self._position,
            self._pace,
            self._open_timeout,
            self._query,
            self._patterns,
        )

    async def _hand_on(self, connection: Connection) -> None:
        """Hand the caller what comes, and keep the token fresh, until the connection ends."""
        renewal: asyncio.Task[None] | None = None
        items = connection.items()
        try:
            async for item in items:
                if not isinstance(item, Connected):
                    await self._items.put(item)
                    continue
                self.last_event_id = self.last_event_id or self._position.id
                self._opened.set()
                self._on_state(item)
                if self._tokens.fresh and renewal is None and item.expires_in is not None:
                    address = f"{self.url}{STREAM}/connections/{quote(item.client_id, safe='')}/renew"
                    drop, fail = connection.body.drop, connection.fail
                    renewal = asyncio.create_task(
                        renew(self._http, address, self._tokens, item.expires_in, drop, fail)
                    )
        finally:
            self._retry = self._retry if connection.retry is None else connection.retry
            if renewal is not None:
                renewal.cancel()
                await asyncio.wait([renewal])
            await items.aclose()


def _query(
    begin: str | None,
    last: int | None,
    since: datetime | timedelta | float | None,
    types: str | Iterable[str] | None,
    rate: float | None,
) -> dict[str, str]:
    """Return the query of a stream that begins there and carries that; the server looks at the values.

    Raises:
        ValueError: ``since`` has no timezone, or there is more than one beginning.
    """
    if sum(beginning is not None for beginning in (begin, last, since)) > 1:
        raise ValueError("begin, last and since exclude each other")
    moment: str | None = None
    if isinstance(since, datetime):
        if since.tzinfo is None:
            raise ValueError("since needs a timezone")
        moment = since.astimezone(UTC).isoformat().replace("+00:00", "Z")
    elif since is not None:
        moment = f"-{_decimal(since.total_seconds() if isinstance(since, timedelta) else since)}"
    given = {
        "from": begin,
        "last": None if last is None else str(last),
        "since": moment,
        "types": types if isinstance(types, str) or types is None else ",".join(types),
        "rate": None if rate is None else _decimal(rate),
    }
    return {name: value for name, value in given.items() if value is not None}


def _decimal(number: float) -> str:
    """Return a number as the server reads it: without an exponent, and of no more digits than it takes."""
    return f"{number:.9f}".rstrip("0").rstrip(".")


def _unavailable(error: Unavailable | httpx.RequestError | OSError) -> End:
    """Return what follows from a connection that could not be made.

    Raises:
        ClientError: it never can be.
    """
    reason = error if isinstance(error, Unavailable) else lost(error)
    if not isinstance(reason, Unavailable):
        raise reason from error
    return End(str(reason), wait=reason.retry_after or None)
