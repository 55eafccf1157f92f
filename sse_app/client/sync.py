"""The client for programs without an event loop: Celery, Django, scripts.

>>> session = Session("https://events.example", "ann", password)
>>> with Publisher(session.url, session) as publisher:
...     publisher.publish("alerts", "risk_alert", {"severity": "low"})
>>> with listen(session.url, ["alerts"], session) as items:
...     for item in items:
...         print(item)

It does what `sse_app.client` does, in an event loop that runs in a thread, one for the process. Many threads may use
an instance, which keeps its connections and its tokens from call to call. What was made before a fork works after it
too: in the new process it opens connections of its own, and a session logs in anew, for a refresh token that two
processes use is taken for stolen.

An exception that comes while a thread waits, such as KeyboardInterrupt, cancels its call. What is still open when the
program ends is closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Generic, Self, TypeVar

import httpx

from sse_app.client.backoff import Backoff
from sse_app.client.http import HTTPUser
from sse_app.client.items import Connected, Event, Reset, Waiting
from sse_app.client.loop_thread import (
    LoopThread,
    in_a_thread,
    keep_of_parent,
    loop_thread,
    running_loop_thread,
)
from sse_app.client.presence import Presence
from sse_app.client.presence import presence as presence_in_loop
from sse_app.client.publisher import PATIENCE, PUBLISHER_BACKOFF
from sse_app.client.publisher import Publisher as PublisherInLoop
from sse_app.client.session import Session as SessionInLoop
from sse_app.client.stream import STREAM_BACKOFF
from sse_app.client.stream import Stream as StreamInLoop

MakeHTTP = Callable[[], httpx.AsyncClient]
"""Makes an HTTP client, such as one with certificates of your own; called in each process, and closed at the end."""

Used = TypeVar("Used", bound=HTTPUser)
Result = TypeVar("Result")


class _Made(Generic[Used]):
    """A part of the asynchronous client in its loop, with the HTTP client that was made for it."""

    def __init__(self, make: Callable[[httpx.AsyncClient | None], Used], make_http: MakeHTTP | None) -> None:
        self.loop: LoopThread | None = None  # until it is first used
        self._http = None if make_http is None else make_http()
        self.inner = make(self._http)

    async def aclose(self) -> None:
        """Close both."""
        await self.inner.aclose()
        if self._http is not None:
            await self._http.aclose()


class _InLoop(Generic[Used]):
    """A part of the asynchronous client that any thread may use.

    Args:
        make: makes it with an HTTP client.
        http: makes that; None: it has its own.
    """

    def __init__(self, make: Callable[[httpx.AsyncClient | None], Used], http: MakeHTTP | None) -> None:
        self._make = make
        self._make_http = http
        self._made: _Made[Used] | None = _Made(make, http)
        self._is_closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        made: _Made[Used] | None = getattr(self, "_made", None)
        if made is None or made.loop is None:
            return
        if made.loop is running_loop_thread():
            made.loop.begin(made.aclose)  # not waited for: this may be the loop's own thread
        else:
            keep_of_parent(made)

    def close(self) -> None:
        """Close the connections; what is under way fails, and a later call raises RuntimeError."""
        self._is_closed = True
        if (loop := running_loop_thread()) is not None and not loop.is_ending:
            loop.call(self._close(loop))

    async def _close(self, loop: LoopThread) -> None:
        made, self._made = self._made, None
        if made is not None and made.loop is loop:
            await made.aclose()
        elif made is not None and made.loop is not None:
            keep_of_parent(made)

    def inner(self, loop: LoopThread) -> Used:
        """Return the part, in the thread of the process's loop.

        Raises:
            RuntimeError: it is closed.
        """
        if self._is_closed:
            raise RuntimeError(f"this {type(self).__name__} is closed")
        if self._made is not None and self._made.loop not in (None, loop):
            keep_of_parent(self._made)
            self._made = None
        if self._made is None:
            self._made = _Made(self._make, self._make_http)
        if self._made.loop is None:
            self._made.loop = loop
            loop.open.add(self._made)
        return self._made.inner

    def _call(self, use: Callable[[Used], Awaitable[Result]]) -> Result:
        loop = loop_thread()

        async def call() -> Result:
            return await use(self.inner(loop))

        return loop.call(call())


class Session(_InLoop[SessionInLoop]):
    """One account at one server; as `sse_app.client.Session`.

    Args:
        url: the server's address.
        user: the account.
        password: its password, kept to log in again.
        http: makes the HTTP client; None: it has its own.
        timeout: seconds that the server may take for an answer.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self, url: str, user: str, password: str, *, http: MakeHTTP | None = None, timeout: float = 15.0
    ) -> None:
        self.url = url.rstrip("/")
        self.user = user
        super().__init__(
            lambda client: SessionInLoop(url, user, password, http=client, timeout=timeout), http
        )

    def __repr__(self) -> str:
        return f"Session({self.url!r}, {self.user!r})"

    def access_token(self, refused: str | None = None) -> str:
        """Return an access token that is good for some time yet.

        Args, Raises:
            As `sse_app.client.Session.access_token`.
        """
        return self._call(lambda session: session.access_token(refused))

    def stream_token(self, channels: Iterable[str] | None = None) -> str:
        """Return a fresh stream token.

        Args, Raises:
            As `sse_app.client.Session.stream_token`.
        """
        return self._call(lambda session: session.stream_token(channels))

    def logout(self) -> None:
        """End the login at the server.

        Raises:
            As `sse_app.client.Session.logout`.
        """
        self._call(lambda session: session.logout())


Token = str | Callable[[], str] | Session
"""A token: one for good, a function that fetches a fresh one and may block, or the session that hands them out."""


class _Tokens:
    """The tokens of a session in the loop, wherever that runs by now."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def access_token(self, refused: str | None = None, /) -> str:
        return await self._session.inner(loop_thread()).access_token(refused)

    async def stream_token(self, channels: Iterable[str] | None = None, /) -> str:
        return await self._session.inner(loop_thread()).stream_token(channels)


def _in_loop(token: Token) -> str | Callable[[], Awaitable[str]] | _Tokens:
    """Return a token as the asynchronous client takes it.

    Raises:
        TypeError: it is none.
    """
    if isinstance(token, str):
        return token
    if isinstance(token, Session):
        return _Tokens(token)
    if callable(token):
        fetch = token
        return lambda: in_a_thread(fetch)
    raise TypeError(
        f"token must be a text, a function or a Session of sse_app.client.sync, not {type(token).__name__}"
    )


class Publisher(_InLoop[PublisherInLoop]):
    """Publishes events; as `sse_app.client.Publisher`.

    Events of one thread, one call after the other, arrive in that order.

    Args:
        url: the server's address.
        token: an access token with the publish grant, a function that returns one, or a `Session`.
        http: makes the HTTP client; None: it has its own.
        backoff: how long to wait between attempts.
        timeout: seconds to wait for an answer before the request is sent again.
        patience: seconds for which a call tries, all attempts and waits together; at most 23 hours.
        report: called, in the client's thread, with a sentence when the server cannot be reached and when it can again.

    Raises:
        ValueError: the address is none; the patience is not above 0.
        TypeError: the token is none.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        *,
        http: MakeHTTP | None = None,
        backoff: Backoff = PUBLISHER_BACKOFF,
        timeout: float = 15.0,
        patience: float = PATIENCE,
        report: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.url = url.rstrip("/")
        given = _in_loop(token)

        def make(client: httpx.AsyncClient | None) -> PublisherInLoop:
            return PublisherInLoop(
                url, given, http=client, backoff=backoff, timeout=timeout, patience=patience, report=report
            )

        super().__init__(make, http)

    def publish(
        self,
        channel: str,
        event: str,
        data: Any,
        *,
        retry: int | None = None,
        final: bool = False,
        key: str | None = None,
    ) -> str:
        """Publish one event and return its id. By then it is in the server's log, on disk.

        Args, Raises:
            As `sse_app.client.Publisher.publish`.
        """
        return self._call(
            lambda publisher: publisher.publish(channel, event, data, retry=retry, final=final, key=key)
        )

    def publish_batch(self, events: Sequence[Mapping[str, Any]], *, key: str | None = None) -> list[str]:
        """Publish events of any channels, all or none of them, in this order; return their ids.

        Args, Raises:
            As `sse_app.client.Publisher.publish_batch`.
        """
        return self._call(lambda publisher: publisher.publish_batch(events, key=key))


class Listening(_InLoop[StreamInLoop]):
    """What `listen` returns: an iterator over what comes, which is over once it has raised an exception."""

    def __init__(
        self, make: Callable[[httpx.AsyncClient | None], StreamInLoop], http: MakeHTTP | None
    ) -> None:
        super().__init__(make, http)
        self._begun_in: LoopThread | None = None
        self._ended: StreamInLoop | None = None  # what was closed still knows how far it came

    @property
    def last_event_id(self) -> str | None:
        """The id to resume after: of the last event that was taken, or where the stream began; also after its end."""
        made = self._made
        stream = self._ended if made is None else made.inner
        return None if stream is None else stream.last_event_id

    def __enter__(self) -> Self:
        self._call(self._begun)
        return self

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event | Reset:
        """Return what comes next. The iteration ends where all that the stream carries has come to its end.

        Raises:
            As `sse_app.client.Stream` does.
            RuntimeError: it was begun in a process that this one was forked from.
        """
        if self._is_closed:
            raise StopIteration
        try:
            item = self._call(self._next)
        except BaseException:
            self.close()
            raise
        if item is None:
            self.close()
            raise StopIteration
        return item

    def opened(self) -> None:
        """Wait until the stream stands for the first time: from then on it misses nothing.

        Raises:
            As the iteration does, where that ends before.
        """
        try:
            self._call(self._opened)
        except BaseException:
            self.close()
            raise

    async def _close(self, loop: LoopThread) -> None:
        if self._made is not None:
            self._ended = self._made.inner
        await super()._close(loop)

    async def _begun(self, stream: StreamInLoop) -> StreamInLoop:
        loop = loop_thread()
        if self._begun_in is None:
            self._begun_in = loop
            await stream.__aenter__()
        if self._begun_in is not loop:
            raise RuntimeError("this stream was begun before the fork: call listen() in the new process")
        return stream

    async def _next(self, stream: StreamInLoop) -> Event | Reset | None:
        return await anext(await self._begun(stream), None)

    async def _opened(self, stream: StreamInLoop) -> None:
        await (await self._begun(stream)).opened()


def listen(
    url: str,
    channels: str | Iterable[str],
    token: Token | None = None,
    *,
    after: str | None = None,
    begin: str | None = None,
    last: int | None = None,
    since: datetime | timedelta | float | None = None,
    types: str | Iterable[str] | None = None,
    rate: float | None = None,
    client_id: str | None = None,
    http: MakeHTTP | None = None,
    backoff: Backoff = STREAM_BACKOFF,
    ping_interval: float = 30.0,
    open_timeout: float = 20.0,
    on_state: Callable[[Connected | Waiting], None] = lambda state: None,
) -> Listening:
    """Return an iterator over what comes on some channels; as `sse_app.client.Stream`.

    It connects with the first item that is asked for, or at the beginning of a ``with``, at whose end it is closed.

    Args:
        url: the server's address.
        channels: names of channels and patterns, in a list or with commas.
        token: a stream token, a function that returns a fresh one, or a `Session`; None for public channels.
        after, begin, last, since, types, rate: where it begins and what it carries, as of `sse_app.client.Stream`.
        client_id: a label; None makes one.
        http: makes the HTTP client; None: it has its own.
        backoff: how long to wait between attempts.
        ping_interval: seconds between pings to assume until two have come.
        open_timeout: seconds that a token and the server's answer may take.
        on_state: called, in the client's thread, when the stream is open and when it has to wait.

    Raises:
        ValueError: the address is none; ``since`` has no timezone; more than one beginning is asked for.
        InvalidChannel: a name of a channel is none.
        TypeError: the token is none.
    """
    names = channels if isinstance(channels, str) else [*channels]
    wanted = types if isinstance(types, str | None) else [*types]
    given = None if token is None else _in_loop(token)

    def make(client: httpx.AsyncClient | None) -> StreamInLoop:
        return StreamInLoop(
            url,
            names,
            given,
            after=after,
            begin=begin,
            last=last,
            since=since,
            types=wanted,
            rate=rate,
            client_id=client_id,
            http=client,
            backoff=backoff,
            ping_interval=ping_interval,
            open_timeout=open_timeout,
            on_state=on_state,
        )

    return Listening(make, http)


def presence(url: str, channel: str, token: Token, *, http: MakeHTTP | None = None) -> Presence:
    """Return who is on a channel just now.

    Args, Raises:
        As `sse_app.client.presence`.
    """

    async def ask() -> Presence:
        if http is None:
            return await presence_in_loop(url, channel, _in_loop(token))
        async with http() as client:
            return await presence_in_loop(url, channel, _in_loop(token), http=client)

    return loop_thread().call(ask())
